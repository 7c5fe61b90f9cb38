//! Closing a container's port of the bridge for the time of a checkpoint.
//!
//! A closed port is in the spanning tree's *listening* state: the bridge forwards nothing into it and drops all that
//! comes out of it, while the link stays up on both ends. *Disabled* would do the same, but the kernel enables a disabled
//! port by itself at the next change of its link; it leaves a listening one alone.
//!
//! A gate that holds keeps what comes for the container meanwhile and hands it over right after opening ([`Hold`]); without
//! one it is lost, and sent again by whoever cares.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{
    NetworkError,
    hold::{Hold, Shut},
};

const RTM_SETLINK: u16 = 19;
const IFLA_PROTINFO: u16 = 12;
const IFLA_BRPORT_STATE: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;
const NLMSG_ERROR: u16 = 2;
const LISTENING: u8 = 1;
const FORWARDING: u8 = 3;

/// netlink header 16, link header 16, nested attribute 4, state attribute 4 + 1, padded to 44.
const MESSAGE: usize = 44;
const SEQUENCE_AT: usize = 8;

/// One container's gate. Opening and closing send a message that was prepared when this was made: no allocation, no
/// lookup. Dropping it does not change the gate; one left closed by a manager that died is opened by the next. What it
/// holds is dropped with it.
pub struct Gate {
    socket: Socket,
    container: String,
    host_index: u32,
    hold: Option<Hold>,
    /// Why this closing could not hold; said once the gate is open again.
    trouble: Option<io::Error>,
    shut: Shut,
    close: [u8; MESSAGE],
    open: [u8; MESSAGE],
    sequence: u32,
}

impl Gate {
    pub(super) fn new(container: String, host_index: u32, shut: Shut) -> Result<Self, NetworkError> {
        let prepare = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // A refusal then does not bring the whole request back, so that every answer fits the small buffer.
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = prepare().map_err(NetworkError::kernel(format!("preparing the gate of {container}")))?;
        Ok(Self {
            socket,
            container,
            host_index,
            hold: None,
            trouble: None,
            shut,
            close: message(host_index, LISTENING),
            open: message(host_index, FORWARDING),
            sequence: 0,
        })
    }

    pub(super) fn host_index(&self) -> u32 {
        self.host_index
    }

    /// Makes it hold from the next closing on, if `hold` is there.
    pub(super) fn holding(mut self, hold: io::Result<Hold>) -> Self {
        match hold {
            Ok(hold) => self.hold = Some(hold),
            Err(error) => drops(&self.container, &error),
        }
        self
    }

    /// From its return on nothing passes in either direction. What the container had already been handed by then is in
    /// its own stack.
    ///
    /// # Errors
    /// [`NetworkError::NotAttached`] when the container's link is not in the bridge.
    pub fn close(&mut self) -> Result<(), NetworkError> {
        // Before the port, so that no frame falls between; and not dropped here when it fails: the kernel would wait for
        // its readers, and the container with it.
        self.trouble = self.hold.as_mut().and_then(|hold| hold.begin().err());
        self.shut.set(self.host_index, true);
        self.set(true).inspect_err(|_| {
            self.shut.set(self.host_index, false);
            if let Some(hold) = &mut self.hold {
                hold.forget();
            }
        })
    }

    /// Lets everything pass again, first of all what was held. Opening an open gate changes nothing.
    ///
    /// # Errors
    /// [`NetworkError::NotAttached`] when the container's link is not in the bridge.
    pub fn open(&mut self) -> Result<(), NetworkError> {
        if let Some(hold) = &mut self.hold {
            hold.gather();
        }
        self.set(false)?;
        self.shut.set(self.host_index, false);
        if let Some(hold) = &mut self.hold {
            // Only now: the container's answers have to get out.
            let (delivered, lost) = hold.deliver();
            if lost > 0 {
                tracing::info!(container = %self.container, delivered, lost, "not everything fitted while the gate was closed");
            }
        }
        if let Some(error) = self.trouble.take() {
            drops(&self.container, &error);
        }
        Ok(())
    }

    fn set(&mut self, closed: bool) -> Result<(), NetworkError> {
        self.exchange(closed).map_err(|source| match source.raw_os_error() {
            // A link without a bridge has nobody who could answer for its port state.
            Some(libc::EOPNOTSUPP | libc::ENODEV | libc::EINVAL) => {
                NetworkError::NotAttached { container: self.container.clone() }
            }
            _ => NetworkError::Kernel {
                doing: format!("{} the gate of {}", if closed { "closing" } else { "opening" }, self.container),
                source,
            },
        })
    }

    fn exchange(&mut self, closed: bool) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence.to_ne_bytes();
        let message = if closed { &mut self.close } else { &mut self.open };
        message[SEQUENCE_AT..SEQUENCE_AT + 4].copy_from_slice(&sequence);
        self.socket.send(&message[..], 0)?;
        loop {
            let mut answer = [0_u8; 128];
            match self.socket.recv(&mut &mut answer[..], 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if answer[SEQUENCE_AT..SEQUENCE_AT + 4] != sequence || answer[4..6] != NLMSG_ERROR.to_ne_bytes() {
                continue;
            }
            let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
            return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) };
        }
    }
}

/// Said once: it is about the node, and every checkpoint would say it again.
fn drops(container: &str, error: &io::Error) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            container,
            %error,
            "what arrives in a checkpoint cannot be held on this node and is dropped: new connections then take about a \
             second longer; holding needs CAP_NET_RAW and packet sockets with PACKET_VNET_HDR (CONFIG_PACKET)"
        );
    }
}

fn message(host_index: u32, state: u8) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    message[0..4].copy_from_slice(&(MESSAGE as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_SETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message[16] = libc::AF_BRIDGE as u8;
    message[20..24].copy_from_slice(&host_index.to_ne_bytes());
    message[32..34].copy_from_slice(&12_u16.to_ne_bytes());
    message[34..36].copy_from_slice(&(IFLA_PROTINFO | NLA_F_NESTED).to_ne_bytes());
    message[36..38].copy_from_slice(&5_u16.to_ne_bytes());
    message[38..40].copy_from_slice(&IFLA_BRPORT_STATE.to_ne_bytes());
    message[40] = state;
    message
}
