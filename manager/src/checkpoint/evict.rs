//! Taking out of a process what a CRIU that was killed left mapped in it.
//!
//! The code CRIU puts into a process finds its way back to the program when CRIU dies, but its pages stay, and the next
//! CRIU takes them for a place to put its own code, and fails. So the process is made to unmap them, as CRIU would have.

use std::{
    io,
    time::{Duration, Instant},
};

/// How long processes are given to find their way back from CRIU's code, and to stop: one that waits in the kernel, or is in a
/// frozen control group, never does.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Unmaps CRIU's pages from a process, if there are any; true when there were. Blocks until `deadline` at most, and
/// [`PATIENCE`].
///
/// # Errors
/// When the process could not be stopped or its code could not be used. It then runs on as before, but cannot be dumped; one that
/// stuck in the unmapping itself has been killed.
pub(super) fn evict(pid: i32, deadline: Instant) -> io::Result<bool> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let left: Vec<(u64, u64)> =
        maps.lines().filter(|line| line.ends_with("/memfd:CRIUMFD (deleted)")).filter_map(range).collect();
    if left.is_empty() {
        return Ok(false);
    }
    let vdso = maps.lines().find(|line| line.ends_with("[vdso]")).and_then(range);
    let vdso = vdso.ok_or_else(|| io::Error::other("the process has no vDSO to take a system call from"))?;
    arch::unmap(pid, &left, vdso, deadline).map(|()| true)
}

fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(target_arch = "x86_64")]
#[path = "evict_x86_64.rs"]
mod arch;

#[cfg(not(target_arch = "x86_64"))]
mod arch {
    pub fn unmap(_: i32, _: &[(u64, u64)], _: (u64, u64), _: std::time::Instant) -> std::io::Result<()> {
        Err(std::io::Error::other("not known how on this processor"))
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
#[path = "evict_tests.rs"]
mod tests;
