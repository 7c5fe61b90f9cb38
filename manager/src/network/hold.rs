//! Keeping what comes for a container while its gate is closed, and handing it over afterwards.
//!
//! ```text
//!            begin            port closes           port opens          deliver
//!   idle ────────► capturing ────────────► holding ────────────► pairing ───────► idle
//!                      │ does not close        │ stays closed
//!                      └── forget ──► idle     └── dropped with all it holds
//! ```
//! One packet socket sees every device of the node; its filter leaves the frames for this container. They are sent out of
//! the container's own link, past the bridge, when the port is open.

use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    filter::{self, Instruction},
    kept::Kept,
    packet::{Direction, OFFLOAD_HEADER, PacketSocket},
};
use crate::spec::Mac;

/// What the kernel may keep for a gate: more than 1 Gbit/s brings in 200 ms. Taken as frames come, not before.
const ROOM: usize = 32 << 20;
/// The largest frame that a link hands over at once (64 KiB before it is cut into segments), and its headers.
const PACKET: usize = OFFLOAD_HEADER + 14 + (64 << 10);
/// Frames read in one go: an end to it also when they come faster than they are read.
const READS: usize = 1 << 16;

/// Which gates of this node are closed, by their links. What comes out of a closed one is nobody's.
#[derive(Clone, Default)]
pub(super) struct Shut(Arc<Mutex<HashSet<u32>>>);

impl Shut {
    pub(super) fn set(&self, link: u32, shut: bool) {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shut {
            links.insert(link)
        } else {
            links.remove(&link)
        };
    }

    pub(super) fn all(&self) -> HashSet<u32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The links around a container.
pub(super) struct Links {
    /// The container's own, on the node's side.
    pub(super) host: u32,
    pub(super) bridge: u32,
    /// All of the bridge's ports.
    pub(super) ports: HashSet<u32>,
}

pub(super) struct Hold {
    socket: PacketSocket,
    links: Links,
    shut: Shut,
    filter: Vec<Instruction>,
    state: State,
    kept: Kept,
    buffer: Vec<u8>,
    lost: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its socket hears nothing yet.
    New,
    Capturing,
    /// Its socket is open to all, with a filter that lets nothing through.
    Idle,
}

impl Hold {
    /// Makes everything that takes time: nothing is captured yet.
    pub(super) fn prepare(links: Links, mac: Mac, shut: Shut) -> io::Result<Self> {
        let socket = PacketSocket::open(0, 0)?;
        socket.with_offload_header()?;
        let filter = filter::of_container(links.host, links.bridge, mac);
        socket.filter(&filter)?;
        socket.grow(ROOM);
        // Touched here: fresh memory is slow.
        let buffer = vec![1; PACKET];
        let kept = Kept::new(OFFLOAD_HEADER, ROOM);
        Ok(Self { socket, links, shut, filter, state: State::New, kept, buffer, lost: 0 })
    }

    /// Directly before the port closes.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        match self.state {
            State::New => self.socket.hear_all_links()?,
            State::Idle => self.socket.filter(&self.filter)?,
            State::Capturing => return Ok(()),
        }
        self.state = State::Capturing;
        Ok(())
    }

    /// Before the port opens: so that what was held follows the opening at once.
    pub(super) fn gather(&mut self) {
        if self.state == State::Capturing {
            self.read(true);
        }
    }

    /// After the port has opened: everything held goes to the container. How many frames that were, and how many were lost.
    pub(super) fn deliver(&mut self) -> (usize, usize) {
        if self.state != State::Capturing {
            return (0, 0);
        }
        let mut delivered = self.send();
        self.read(true);
        self.mute();
        // What comes in from the opening on goes in by itself; only whether the last ones did is still to be read.
        self.read(false);
        delivered += self.send();
        self.lost += self.socket.lost_frames().unwrap_or(0);
        (delivered, std::mem::take(&mut self.lost))
    }

    /// The port did not close.
    pub(super) fn forget(&mut self) {
        if self.state == State::Capturing {
            self.mute();
            self.read(false);
            self.kept.take();
        }
    }

    fn mute(&mut self) {
        // Refused for want of memory, it goes on capturing into a buffer with an end.
        if self.socket.filter(&filter::NOTHING).is_ok() {
            self.state = State::Idle;
        }
    }

    fn read(&mut self, keep: bool) {
        let shut = self.shut.all();
        for _ in 0..READS {
            let seen = match self.socket.next(&mut self.buffer) {
                Ok(Some(seen)) => seen,
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // One that the kernel cannot describe to us.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.lost += 1;
                    continue;
                }
                Err(_) => return,
            };
            let Some(packet) = self.buffer.get(..seen.length) else {
                self.lost += 1;
                continue;
            };
            if seen.link == self.links.host {
                self.kept.went_out(packet);
                continue;
            }
            // The same frame is also seen where the bridge did not take it from: below a bond, above the bridge.
            let entered = match seen.direction {
                Direction::Out => seen.link == self.links.bridge,
                Direction::In => self.links.ports.contains(&seen.link) && !shut.contains(&seen.link),
            };
            if keep && entered && !self.kept.came_in(packet) {
                self.lost += 1;
            }
        }
    }

    fn send(&mut self) -> usize {
        let mut sent = 0;
        for packet in self.kept.take() {
            match self.socket.send_through(self.links.host, &packet) {
                Ok(()) => sent += 1,
                Err(_) => self.lost += 1,
            }
        }
        sent
    }
}
