//! The watchdog's process: what it makes of itself before it is anybody's watchdog.
//!
//! It shares the manager's control group (the service is stopped with `KillMode=process`, so that only the manager itself is
//! killed) and nothing else: a session of its own, its memory locked, before everything else on the CPU, last to be killed
//! when memory runs out. Whatever of this is not allowed is left out and said: less certain, not wrong.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::{
        mman::{MlockAllFlags, mlockall},
        prctl,
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, umask},
    },
    unistd::setsid,
};

use super::{FenceError, LOCK, SOCKET, Setting, core::Core, device::Device, freezer::Freezer, serve::Watchdog};
use crate::network::HostLinks;

/// One that was killed, or is just ending, holds the lock until the kernel has taken it apart.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs the watchdog until it is told to end.
///
/// # Errors
/// There is one already, or something it needs is not there. Nothing has been changed then.
pub fn watchdog(setting: &Setting) -> Result<(), FenceError> {
    let fail = FenceError::watchdog;
    // It was started as /proc/self/exe, which would make it `exe` in a list of processes.
    let _ = prctl::set_name(c"ha-watchdog");
    // Fails for the first process of a group, which a person's shell made: that stays in its session.
    let _ = setsid();
    let _lock = lock(&setting.run_dir.join(LOCK))?;
    let freezer = Freezer::find(&setting.cgroup).map_err(fail)?;
    let links =
        HostLinks::open(&setting.link_prefix).map_err(|error| fail(format!("cannot open rtnetlink: {error}")))?;
    let mut device = match &setting.device {
        None => None,
        Some(path) => Some(Device::open(path).map_err(|error| {
            let hint = "name the right one as `watchdog_device`, load its driver, or end who has it open";
            fail(format!("cannot open the hardware watchdog {}: {error}; {hint}", path.display()))
        })?),
    };
    let socket = setting.run_dir.join(SOCKET);
    let listener = listen_at(&socket)?;

    let mut journal = Journal::open();
    harden(&mut journal);
    if let Some(warning) = device.as_mut().and_then(Device::take_warning) {
        journal.say(&warning);
    }
    let core = Core::new(freezer.is_frozen());
    let outcome = Watchdog::new(core, freezer, links, device, listener, setting.digest(), journal).run();
    // Whoever connects between these two finds nobody, and starts the next one.
    let _ = fs::remove_file(&socket);
    outcome
}

fn lock(path: &Path) -> Result<Flock<File>, FenceError> {
    let fail = |what: String| FenceError::watchdog(format!("{}: {what}", path.display()));
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path);
    let file = file.map_err(|error| fail(error.to_string()))?;
    let deadline = Instant::now() + PATIENCE;
    let mut file = file;
    let attempt = loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((held, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = held,
            other => break other,
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    match attempt {
        Ok(mut file) => {
            let written = file.set_len(0).and_then(|()| file.rewind());
            let written = written.and_then(|()| write!(file, "{}", std::process::id()));
            written.map_err(|error| fail(error.to_string()))?;
            Ok(file)
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = (&mut file).take(16).read_to_string(&mut pid);
            Err(FenceError::Taken { run_dir: path.parent().unwrap_or(path).to_owned(), pid })
        }
        Err((_, errno)) => Err(fail(errno.to_string())),
    }
}

/// The lock is held: a socket that is there is of one that was killed.
fn listen_at(path: &Path) -> Result<OwnedFd, FenceError> {
    let fail = |errno: Errno| FenceError::watchdog(format!("cannot listen at {}: {errno}", path.display()));
    let _ = fs::remove_file(path);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(fail)?;
    let address = UnixAddr::new(path).map_err(fail)?;
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &address);
    umask(before);
    bound.map_err(fail)?;
    listen(&listener, Backlog::new(4).map_err(fail)?).map_err(fail)?;
    Ok(listener)
}

fn harden(journal: &mut Journal) {
    let mut missing = Vec::new();
    if let Err(errno) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        missing.push(format!("memory is not locked ({errno})"));
    }
    if let Err(error) = hurry() {
        missing.push(format!("no real-time priority ({error})"));
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        missing.push(format!("can be killed when memory runs out ({error})"));
    }
    if !missing.is_empty() {
        journal.say(&missing.join("; "));
    }
}

/// Before everything that is not real-time itself, at the lowest of these priorities.
fn hurry() -> std::io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: `parameters` outlives the call; 0 is the calling thread, the only one.
    #[allow(unsafe_code)]
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The kernel's log: writing to it never waits for a reader, and journald reads it too.
pub(super) struct Journal(Option<File>);

impl Journal {
    fn open() -> Self {
        Self(OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok())
    }

    /// Says nothing to anybody.
    #[cfg(test)]
    pub fn none() -> Self {
        Self(None)
    }

    /// Where there is no such log, or the line does not fit in, it is lost: the manager is told as well.
    pub fn say(&mut self, line: &str) {
        if let Some(file) = &mut self.0 {
            // <4>: a warning. One write is one line.
            let _ = file.write_all(format!("<4>ha-manager watchdog: {}\n", crate::cut(line, 700)).as_bytes());
        }
    }
}
