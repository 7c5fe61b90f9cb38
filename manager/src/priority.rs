//! Letting the manager go before the programs it protects.
//!
//! On a node whose processors are busy a heartbeat or a renewal that comes late is taken for a failure, and its containers are
//! frozen for nothing. The manager needs little, so it goes first. What it starts does not: runtimes, CRIU and containers have the
//! ordinary priority.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Worker threads of the runtime.
pub const WORKERS: usize = 2;
/// As `nice -n -10`.
const NICE: i32 = -10;

/// For the start of each thread of a runtime: the first ones, its workers, go first. Those after them pack and hash, and do not.
pub fn workers_go_first() {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    if STARTED.fetch_add(1, Ordering::Relaxed) < WORKERS {
        go_first();
    }
}

/// Puts the calling thread before others; processes that it starts are not. Where that is not allowed it stays as it is.
fn go_first() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: plain system calls on the calling thread; `parameters` outlives the second. In this order: with the flag set a
    // refused niceness would change nothing.
    #[allow(unsafe_code)]
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
        libc::sched_setscheduler(0, libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK, &raw const parameters);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_the_ordinary_priority() {
        std::thread::spawn(|| {
            // SAFETY: plain system call on the calling thread.
            #[allow(unsafe_code)]
            let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
            let before = nice();
            go_first();
            if nice() != NICE {
                println!("SKIPPED a_child_has_the_ordinary_priority: the priority cannot be raised here");
                return;
            }
            let child = std::process::Command::new("nice").output().unwrap();
            let child: i32 = String::from_utf8_lossy(&child.stdout).trim().parse().unwrap();
            assert_eq!(child, 0, "before {before}");
        })
        .join()
        .unwrap();
    }
}
