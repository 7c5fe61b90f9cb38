//! Looking at a container's sockets from outside: their descriptors by `pidfd_getfd`, unix peers by `sock_diag`.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use crate::runtime::{ExitWatch, poll_in};

/// Takes a copy of another process's descriptor.
pub(super) fn take_descriptor(process: &ExitWatch, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain system call with integer arguments; the result is checked before it is used.
    #[allow(unsafe_code)]
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    if taken < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us (close-on-exec).
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(taken as i32) })
}

/// An option of a socket that is an int.
pub(super) fn get_int(socket: &OwnedFd, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` and `length` outlive the call and have the sizes it is told.
    #[allow(unsafe_code)]
    let rc = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) };
    if rc == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

pub(super) fn set_int(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` outlives the call and has the size it is told.
    #[allow(unsafe_code)]
    let rc = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A unix socket of a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UnixSocket {
    /// Inode of the other end; `None` when it is not connected.
    pub peer: Option<u32>,
    /// Ends of connections not accepted yet.
    pub waiting: Vec<u32>,
}

/// All unix sockets of a process's network namespace, by inode.
pub(super) fn unix_sockets(pid: i32) -> io::Result<HashMap<u32, UnixSocket>> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    // The namespace belongs to a thread, and this one ends with the question.
    let ask = move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
        ask_for_unix_sockets()
    };
    thread::spawn(ask).join().unwrap_or_else(|_| Err(io::Error::other("the thread that asks panicked")))
}

fn ask_for_unix_sockets() -> io::Result<HashMap<u32, UnixSocket>> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST_DUMP: u16 = 0x301;
    const SHOW_PEER_AND_WAITING: u32 = 0x4 | 0x8;
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    let mut request = Vec::with_capacity(40);
    request.extend(40u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]); // sequence number and port
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes()); // every state
    request.extend([0; 4]); // every inode
    request.extend(SHOW_PEER_AND_WAITING.to_ne_bytes());
    request.extend([0xff; 8]); // no cookie
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut found = HashMap::new();
    loop {
        // SAFETY: the descriptor is the socket's, which outlives the borrow.
        #[allow(unsafe_code)]
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        if !poll_in(fd, Some(deadline))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (answer, _) = socket.recv_from_full()?;
        if read_answer(&answer, &mut found)? {
            return Ok(found);
        }
    }
}

/// Takes the messages of one answer; true after the last.
fn read_answer(mut answer: &[u8], found: &mut HashMap<u32, UnixSocket>) -> io::Result<bool> {
    const DONE: u16 = 3;
    const ERROR: u16 = 2;
    while let (Some(length), Some(kind)) = (word(answer, 0), half(answer, 4)) {
        let length = length as usize;
        let Some(message) = answer.get(16..length) else { return Err(io::ErrorKind::InvalidData.into()) };
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let errno = word(message, 0).unwrap_or(0) as i32;
                return Err(io::Error::from_raw_os_error(-errno));
            }
            _ => {
                if let (Some(inode), Some(attributes)) = (word(message, 4), message.get(16..)) {
                    found.insert(inode, read_attributes(attributes));
                }
            }
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn read_attributes(mut attributes: &[u8]) -> UnixSocket {
    const PEER: u16 = 2;
    const WAITING: u16 = 3;
    let mut socket = UnixSocket::default();
    while let (Some(length), Some(kind)) = (half(attributes, 0), half(attributes, 2)) {
        let Some(value) = attributes.get(4..length as usize) else { break };
        match kind {
            PEER => socket.peer = word(value, 0),
            WAITING => socket.waiting = value.chunks_exact(4).filter_map(|inode| word(inode, 0)).collect(),
            _ => {}
        }
        attributes = attributes.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    socket
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::MetadataExt, net::UnixStream};

    use super::*;

    #[test]
    fn the_two_ends_of_a_pair_name_each_other() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED the_two_ends_of_a_pair_name_each_other: not root");
            return;
        }
        let (one, other) = UnixStream::pair().unwrap();
        let inode = |stream: &UnixStream| {
            std::fs::metadata(format!("/proc/self/fd/{}", stream.as_raw_fd())).unwrap().ino() as u32
        };
        let sockets = unix_sockets(std::process::id() as i32).unwrap();
        assert_eq!(sockets[&inode(&one)].peer, Some(inode(&other)));
        assert_eq!(sockets[&inode(&other)].peer, Some(inode(&one)));
    }

    #[test]
    fn broken_answers_are_refused_or_cut_off_without_a_panic() {
        let mut found = HashMap::new();
        for length in 0..64u32 {
            let mut answer = length.to_ne_bytes().to_vec();
            answer.extend([20, 0, 0, 0]);
            answer.extend(vec![0xff; 40]);
            // Whatever it says of these, it has to come back.
            let _ = read_answer(&answer, &mut found);
        }
    }
}
