//! Watching a process that is not our child.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Becomes readable when a process ends. Made for a container's init, whose parent is not the manager; holding it also
/// keeps the PID from being mistaken after reuse.
#[derive(Debug)]
pub struct ExitWatch {
    fd: OwnedFd,
}

impl ExitWatch {
    /// Watches `pid`.
    ///
    /// # Errors
    /// `ESRCH` when there is no such process (any more).
    pub fn new(pid: i32) -> io::Result<Self> {
        // SAFETY: plain system call with integer arguments; the result is checked before it is used.
        #[allow(unsafe_code)]
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just returned this descriptor (close-on-exec) and nobody else owns it.
        #[allow(unsafe_code)]
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Self { fd })
    }

    /// Waits at most `timeout`; true when the process has ended.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        poll_in(self.fd.as_fd(), Some(Instant::now() + timeout))
    }

    /// Sends a signal to exactly this process, never to a later one with its PID.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: plain system call on a descriptor we own; a null siginfo means "as kill(2) would".
        #[allow(unsafe_code)]
        let rc = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0)
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for ExitWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for ExitWatch {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// Polls for input until `deadline` (for ever without one); true when there is some.
pub(crate) fn poll_in(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(at) => {
                // Rounded up: a timeout of 0 ms before the deadline would spin.
                let left = at.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
                PollTimeout::try_from(left.min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) if deadline.is_some_and(|at| Instant::now() >= at) => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}
