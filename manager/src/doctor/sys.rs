//! System calls nothing safe wraps. Each asks the kernel whether it has something, on this process only.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// The result of a system call that gives a new descriptor.
fn new_fd(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the kernel has just given this descriptor to us; nothing else owns it.
        #[allow(unsafe_code)]
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a descriptor can be taken through a pidfd (Linux 5.6); tried on this process.
#[allow(unsafe_code)]
pub(super) fn pidfd_getfd() -> io::Result<()> {
    // SAFETY: takes numbers only and touches no memory of ours.
    let pidfd = new_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) })?;
    // SAFETY: as above; the result is a new descriptor.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), pidfd.as_raw_fd(), 0) }).map(drop)
}

/// The kernel's view of its clock.
pub(super) struct Clock {
    pub(super) synchronised: bool,
    /// Microseconds.
    pub(super) max_error: i64,
}

#[allow(unsafe_code)]
pub(super) fn clock() -> io::Result<Clock> {
    // SAFETY: `timex` is integers only, for which zero is a value.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: with `modes` 0 the kernel only writes to `timex`, which outlives the call.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    let synchronised = state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0;
    Ok(Clock { synchronised, max_error: timex.maxerror })
}
