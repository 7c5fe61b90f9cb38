//! Ending a CRIU that does not end by itself, and mending what it leaves.
//!
//! Hung up on, CRIU gives up at its next question and cleans up after itself. One that is stuck has to be killed. The
//! kernel then lets go of the processes it traced, and the code it had put into them sees its socket close and returns to
//! where the program was; its pages stay mapped. TCP sockets however stay in repair mode, in which reading fails, and
//! a process may stay stopped. All three are mended; but if CRIU was killed by somebody else while it dumped sockets, programs
//! may have seen the failure first and closed those connections.

use std::{
    collections::HashSet,
    fmt,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use super::{evict, proc, sockets, swrk::Swrk};

/// How long CRIU is given to clean up by itself; the container stays frozen for it.
const GRACE: Duration = Duration::from_secs(1);
/// How long the processes are given to run again.
const SETTLE: Duration = Duration::from_secs(2);

/// The state a container was left in after a dump was broken off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remains {
    /// CRIU had to be killed.
    pub killed: bool,
    /// TCP sockets taken out of repair mode.
    pub mended_sockets: usize,
    /// Processes that do not run: stopped, or still traced. The container needs to be restored from a snapshot.
    pub not_running: Vec<i32>,
    /// Processes that still hold CRIU's pages, and why. They run, but the next dump will fail.
    pub not_evicted: Vec<(i32, String)>,
    /// The init process is gone.
    pub dead: bool,
}

impl Remains {
    pub(super) fn untouched() -> Self {
        Self::default()
    }

    /// Whether the container is as if nothing had been tried.
    pub fn is_running(&self) -> bool {
        !self.dead && self.not_running.is_empty()
    }
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dead {
            return f.write_str("the container has ended");
        }
        if !self.not_running.is_empty() {
            return write!(f, "processes {:?} of the container do not run any more: restart it", self.not_running);
        }
        f.write_str("the container goes on running")?;
        if self.killed {
            write!(f, " (CRIU had to be killed; {} TCP sockets were mended)", self.mended_sockets)?;
        }
        if let Some((pid, why)) = self.not_evicted.first() {
            write!(f, ", but cannot be dumped again until it is restarted: process {pid} holds CRIU's pages ({why})")?;
        }
        Ok(())
    }
}

/// The container's processes that are stopped by a signal, and have to stay so.
pub(super) fn stopped(init_pid: i32) -> HashSet<i32> {
    proc::descendants(init_pid).into_iter().filter(|pid| proc::state(*pid) == Some('T')).collect()
}

/// Ends CRIU and brings the container back.
pub(super) fn end_criu(swrk: &mut Swrk, init_pid: i32, stopped_before: &HashSet<i32>) -> Remains {
    swrk.hang_up();
    let mut remains = Remains::default();
    let mend = || proc::descendants(init_pid).iter().map(|pid| mend_sockets(*pid)).sum::<usize>();
    if !swrk.wait_end(Instant::now() + GRACE) {
        // Stopped, it goes on holding the processes: they must not run before their sockets are mended, since reading
        // from a socket in repair mode fails and makes programs close it.
        swrk.stop();
        remains.mended_sockets = mend();
        swrk.kill();
        remains.killed = true;
    }
    // It may have died half-way by itself.
    remains.mended_sockets += mend();
    settle(init_pid, stopped_before, remains)
}

/// Brings a container back whose manager was killed in a dump, and CRIU perhaps with it: waits until a CRIU that still works
/// on it has given up by itself, ends one that does not, and mends what is left. Blocks for `patience` at most, and a little.
pub fn settle_orphan(init_pid: i32, patience: Duration) -> Remains {
    let tracers = || -> HashSet<i32> {
        let traced = proc::descendants(init_pid).into_iter().filter_map(|pid| proc::status_field(pid, "TracerPid"));
        traced.filter_map(|tracer| tracer.parse().ok()).filter(|tracer| *tracer > 0).collect()
    };
    let stopped_before = stopped(init_pid);
    let mut remains = Remains::default();
    let deadline = Instant::now() + patience;
    let mut left = tracers();
    while !left.is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
        left = tracers();
    }
    let signal = |signal| {
        for pid in &left {
            // It may end just now, and then holds nothing.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal);
        }
    };
    remains.killed = !left.is_empty();
    // As in `end_criu`: sockets first, while it still holds the processes.
    signal(nix::sys::signal::Signal::SIGSTOP);
    remains.mended_sockets = proc::descendants(init_pid).iter().map(|pid| mend_sockets(*pid)).sum();
    signal(nix::sys::signal::Signal::SIGKILL);
    settle(init_pid, &stopped_before, remains)
}

/// Waits until the processes run again and takes CRIU's pages out of them.
fn settle(init_pid: i32, stopped_before: &HashSet<i32>, mut remains: Remains) -> Remains {
    let processes = proc::descendants(init_pid);
    let deadline = Instant::now() + SETTLE;
    loop {
        remains.dead = matches!(proc::state(init_pid), None | Some('Z' | 'X'));
        let still = |pid: &&i32| {
            !stopped_before.contains(pid) && (matches!(proc::state(**pid), Some('T' | 't')) || is_traced(**pid))
        };
        remains.not_running = processes.iter().filter(still).copied().collect();
        if remains.not_running.is_empty() || Instant::now() >= deadline {
            break;
        }
        for pid in &remains.not_running {
            // It may be gone, which is no worse.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGCONT);
        }
        thread::sleep(Duration::from_millis(10));
    }
    for pid in processes.into_iter().filter(|pid| !remains.not_running.contains(pid)) {
        match evict::evict(pid) {
            Ok(_) => {}
            // It has ended.
            Err(error) if proc::state(pid).is_none() => drop(error),
            Err(error) => remains.not_evicted.push((pid, error.to_string())),
        }
    }
    remains
}

/// Before a dump: what an earlier CRIU left that was killed when nobody was there to mend it.
pub(super) fn clear_leftovers(init_pid: i32) {
    for pid in proc::descendants(init_pid) {
        if let Err(error) = evict::evict(pid) {
            tracing::warn!(pid, %error, "an earlier CRIU's pages could not be removed from a process");
        }
    }
}

fn is_traced(pid: i32) -> bool {
    proc::status_field(pid, "TracerPid").is_some_and(|tracer| tracer != "0")
}

/// Takes a process's TCP sockets out of repair mode; how many were in it.
fn mend_sockets(pid: i32) -> usize {
    let Ok(watch) = crate::runtime::ExitWatch::new(pid) else { return 0 };
    let is_socket = |fd: &i32| {
        std::fs::read_link(format!("/proc/{pid}/fd/{fd}"))
            .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    let sockets = proc::descriptors(pid).into_iter().filter(is_socket);
    sockets.filter(|fd| sockets::take_descriptor(&watch, *fd).is_ok_and(|socket| leave_repair(&socket))).count()
}

/// True when the socket was in repair mode and is not any more.
fn leave_repair(socket: &OwnedFd) -> bool {
    // On other sockets than TCP the first of these fails. Leaving the mode also clears SO_REUSEADDR, without which the
    // program might not be able to listen on its port again.
    sockets::get_int(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR).is_ok_and(|mode| mode == 1)
        && sockets::set_int(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 0).is_ok()
        && sockets::set_int(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).is_ok()
}
