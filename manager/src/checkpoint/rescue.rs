//! Ending a CRIU that does not end by itself, and mending what it leaves.
//!
//! Hung up on, CRIU gives up at its next question and cleans up after itself. One that is stuck has to be killed. The
//! kernel then lets go of the processes it traced, and the code it had put into them sees its socket close and returns to
//! where the program was; its pages stay mapped. TCP sockets however stay in repair mode, in which reading fails, and
//! a process may stay stopped. All three are mended; but if CRIU was killed by somebody else while it dumped sockets, programs
//! may have seen the failure first and closed those connections.

use std::{
    collections::HashSet,
    fmt, fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    evict, proc, sockets,
    swrk::{Swrk, WORKER},
};

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
pub(super) fn end_criu(criu: &Path, swrk: &mut Swrk, init_pid: i32, stopped_before: &HashSet<i32>) -> Remains {
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
    settle(criu, init_pid, stopped_before, remains)
}

/// What a dump under way leaves for the manager after one that is killed: who was stopped before it began.
pub(super) struct Underway(PathBuf);

impl Underway {
    const FILE: &str = "dump-under-way";

    pub fn begin(work: &Path, stopped: &HashSet<i32>) -> io::Result<Self> {
        let path = work.join(Self::FILE);
        let pids: Vec<String> = stopped.iter().map(ToString::to_string).collect();
        fs::write(&path, pids.join(" ")).map(|()| Self(path))
    }

    /// `None` when no dump was under way.
    fn read(work: &Path) -> Option<HashSet<i32>> {
        let text = fs::read_to_string(work.join(Self::FILE)).ok()?;
        Some(text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
    }

    fn forget(work: &Path) {
        // Mostly there is none.
        let _ = fs::remove_file(work.join(Self::FILE));
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        // One that stays is replaced by the next dump's; at worst a process is continued that its user had stopped.
        let _ = fs::remove_file(&self.0);
    }
}

/// Brings a container back whose manager was killed in a dump, and CRIU perhaps with it: waits until a CRIU that still works
/// on it has given up by itself, ends one that does not, and mends what is left. Whoever else traces a process (a debugger, a
/// sandbox of the container's own) is left alone. `work` is the dumps' [`super::DumpRequest::work`]. Blocks for `patience` at
/// most, and a little.
pub fn settle_orphan(criu: &Path, init_pid: i32, work: &Path, patience: Duration) -> Remains {
    let tracers = || -> HashSet<i32> {
        let traced = proc::descendants(init_pid).into_iter().filter_map(proc::tracer);
        traced.filter(|tracer| is_ours(*tracer, criu)).collect()
    };
    let stopped_before = Underway::read(work).unwrap_or_else(|| stopped(init_pid));
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
    let remains = settle(criu, init_pid, &stopped_before, remains);
    Underway::forget(work);
    remains
}

/// Whether a process is a CRIU that a manager on this node began: the program it was told to use, as a worker, among the
/// node's processes and not the container's.
fn is_ours(pid: i32, criu: &Path) -> bool {
    let of_node = |pid| proc::namespace_inode(pid, "pid");
    if of_node(pid) != of_node(std::process::id() as i32) {
        return false;
    }
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    // A CRIU that is a script has its interpreter before it.
    let args: Vec<&str> = line.split('\0').collect();
    args.windows(2).take(2).any(|pair| Path::new(pair[0]).file_name() == criu.file_name() && pair[1] == WORKER)
}

/// Waits until the processes run again and takes CRIU's pages out of them.
fn settle(criu: &Path, init_pid: i32, stopped_before: &HashSet<i32>, mut remains: Remains) -> Remains {
    let processes = proc::descendants(init_pid);
    // Traced by somebody else, they stand or run as that one wants.
    let is_foreign = |pid: &i32| proc::tracer(*pid).is_some_and(|tracer| !is_ours(tracer, criu));
    let foreign: HashSet<i32> = processes.iter().copied().filter(is_foreign).collect();
    let deadline = Instant::now() + SETTLE;
    loop {
        remains.dead = matches!(proc::state(init_pid), None | Some('Z' | 'X'));
        let still = |pid: &&i32| {
            !stopped_before.contains(pid)
                && !foreign.contains(pid)
                && (matches!(proc::state(**pid), Some('T' | 't')) || proc::tracer(**pid).is_some())
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
    let deadline = Instant::now() + evict::PATIENCE;
    for pid in processes.into_iter().filter(|pid| !remains.not_running.contains(pid) && !foreign.contains(pid)) {
        match evict::evict(pid, deadline) {
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
    let deadline = Instant::now() + evict::PATIENCE;
    for pid in proc::descendants(init_pid) {
        if let Err(error) = evict::evict(pid, deadline) {
            tracing::warn!(pid, %error, "an earlier CRIU's pages could not be removed from a process");
        }
    }
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
