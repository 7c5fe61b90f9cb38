//! System calls nothing safe wraps. Each asks the kernel whether it has something, on this process only.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// `UFFDIO_API`: `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// The result of a system call that gives a new descriptor.
fn new_fd(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the kernel has just given this descriptor to us; nothing else owns it.
        #[allow(unsafe_code)]
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether userfaultfd can write-protect asynchronously, unpopulated pages included (Linux 6.7).
#[allow(unsafe_code)]
pub(super) fn userfaultfd_wp_async() -> io::Result<()> {
    // SAFETY: takes flags only and touches no memory of ours.
    let fd = new_fd(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
    let mut api = UffdioApi { api: UFFD_API, features: UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC, ioctls: 0 };
    // SAFETY: `api` has the layout the request names and outlives the call.
    match unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether /proc/PID/pagemap can be scanned (Linux 6.7).
#[allow(unsafe_code)]
pub(super) fn pagemap_scan() -> io::Result<()> {
    let pagemap = std::fs::File::open("/proc/self/pagemap")?;
    // `struct pm_scan_arg` is twelve u64: its size, flags, start, end, and further fields that may be 0. An empty range
    // asks for nothing, so what comes back is only whether the request is known.
    let mut arg = [0u64; 12];
    arg[0] = size_of_val(&arg) as u64;
    // SAFETY: `arg` is as large as the request says and outlives the call; its range and its output are empty.
    let result = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, arg.as_mut_ptr()) };
    match io::Error::last_os_error() {
        error if result < 0 && error.raw_os_error() == Some(libc::ENOTTY) => Err(error),
        _ => Ok(()),
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
