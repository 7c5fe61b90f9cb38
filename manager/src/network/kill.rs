//! Ending TCP connections of a container from outside (SOCK_DESTROY, as `ss -K` does).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

use super::{NetworkError, bridge::is_absent, netns};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// family, protocol, extensions, padding, states, socket.
const REQUEST: usize = HEADER + 8 + ID;
/// ports 4, addresses 32, link 4, cookie 8.
const ID: usize = 48;
/// Every state but LISTEN, NEW_SYN_RECV and TIME_WAIT, which are not connections of a process.
const STATES: u32 = 0xfff & !(1 << 10) & !(1 << 6);

/// A TCP socket that has a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSocket {
    /// IPv4 where it is IPv4 on the wire, also of an IPv6 socket.
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

/// Ends every TCP connection in the namespace that `which` chooses; the program's next use of it fails with
/// `ECONNABORTED`. Returns how many were ended. A namespace that is not there has none.
///
/// # Errors
/// The kernel cannot (built without `CONFIG_INET_DIAG_DESTROY`) or may not.
pub fn kill_tcp(netns: &Path, which: impl Fn(&TcpSocket) -> bool + Sync) -> Result<usize, NetworkError> {
    let killed = netns::enter(netns, || {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        let mut killed = 0;
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let found = match list(&socket, family) {
                // A kernel without IPv6 does not know the family.
                Err(error) if i32::from(family) == libc::AF_INET6 && is_absent(&error) => continue,
                other => other?,
            };
            for (found, id) in found {
                if which(&found) && destroy(&socket, family, &id)? {
                    killed += 1;
                }
            }
        }
        Ok(killed)
    });
    match killed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        other => other.map_err(NetworkError::kernel(format!("ending connections in {}", netns.display()))),
    }
}

fn request(kind: u16, flags: u16, family: u8, id: Option<&[u8; ID]>) -> [u8; REQUEST] {
    let mut message = [0; REQUEST];
    message[0..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    message[HEADER] = family;
    message[HEADER + 1] = libc::IPPROTO_TCP as u8;
    message[HEADER + 4..HEADER + 8].copy_from_slice(&STATES.to_ne_bytes());
    if let Some(id) = id {
        message[HEADER + 8..].copy_from_slice(id);
    }
    message
}

fn list(socket: &Socket, family: u8) -> io::Result<Vec<(TcpSocket, [u8; ID])>> {
    socket.send(&request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, None), 0)?;
    let mut found = Vec::new();
    loop {
        for (kind, body) in receive(socket)? {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return error(&body).map(|()| found),
                _ => {
                    // family, state, timer, retransmits, then the socket
                    let Some(id) = body.get(4..).and_then(|rest| rest.first_chunk::<ID>()) else { continue };
                    if let Some(one) = describe(body[0], id) {
                        found.push((one, *id));
                    }
                }
            }
        }
    }
}

/// Whether there was still something to end.
fn destroy(socket: &Socket, family: u8, id: &[u8; ID]) -> io::Result<bool> {
    socket.send(&request(SOCK_DESTROY, NLM_F_ACK, family, Some(id)), 0)?;
    loop {
        for (kind, body) in receive(socket)? {
            if kind == NLMSG_ERROR {
                return match error(&body) {
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
                    other => other.map(|()| true),
                };
            }
        }
    }
}

fn describe(family: u8, id: &[u8; ID]) -> Option<TcpSocket> {
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let ip = |at: usize| -> Option<IpAddr> {
        Some(match i32::from(family) {
            libc::AF_INET => Ipv4Addr::from(*id.get(at..)?.first_chunk::<4>()?).into(),
            libc::AF_INET6 => Ipv6Addr::from(*id.get(at..)?.first_chunk::<16>()?).to_canonical(),
            _ => return None,
        })
    };
    Some(TcpSocket { local: SocketAddr::new(ip(4)?, port(0)), peer: SocketAddr::new(ip(20)?, port(2)) })
}

fn error(body: &[u8]) -> io::Result<()> {
    let code = body.first_chunk::<4>().map_or(-libc::EBADMSG, |code| i32::from_ne_bytes(*code));
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

/// Kinds and bodies of one datagram's messages.
fn receive(socket: &Socket) -> io::Result<Vec<(u16, Vec<u8>)>> {
    let mut buffer = Vec::with_capacity(64 * 1024);
    socket.recv(&mut buffer, 0)?;
    let mut messages = Vec::new();
    let mut rest = &buffer[..];
    while let Some(head) = rest.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some(body) = rest.get(HEADER..length) else { break };
        messages.push((u16::from_ne_bytes([head[4], head[5]]), body.to_vec()));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(messages)
}
