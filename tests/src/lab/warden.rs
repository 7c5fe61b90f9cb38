//! The processes that hold a node up, and take it down whatever happens to the laboratory.
//!
//! ```text
//!   laboratory ──life pipe──► warden ──parent of──► init (PID 1 of the node) ──► everything in the node
//!                               │ end of file: kills init
//!                               └ init gone: the kernel has killed the rest; removes the node's control groups; exits
//! ```
//!
//! The pipe ends however the laboratory ends, by SIGKILL too, so nothing outlives it.

use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl,
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, sethostname},
};

use super::cgroup;

/// Who has not died of its node's death by then is frozen by the version 1 freezer, and would never.
const FROZEN_AFTER: Duration = Duration::from_millis(200);

/// What a node is told about itself.
#[derive(Debug, Clone, clap::Args)]
pub struct NodeArgs {
    /// Its control group's name, unique on the machine.
    #[arg(long)]
    pub group: String,
    #[arg(long)]
    pub hostname: String,
    /// The laboratory's `nodes` directory; the node sees its own entry only.
    #[arg(long)]
    pub nodes_dir: PathBuf,
}

/// `ha-lab node-warden`: starts a node and sees it to its end.
///
/// # Errors
/// When the node cannot be started, or something of it cannot be removed.
pub fn node_warden(args: &NodeArgs) -> anyhow::Result<()> {
    cgroup::create(&args.group)?;
    let result = keep(args);
    // Children of the init died with it; their groups are empty now.
    cgroup::remove(&args.group)?;
    result
}

#[allow(unsafe_code)]
fn keep(args: &NodeArgs) -> anyhow::Result<()> {
    let doors = cgroup::doors(&args.group)?;
    // The next child, and no other, becomes PID 1 of a new namespace.
    unshare(CloneFlags::CLONE_NEWPID).context("cannot unshare the PID namespace")?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("node-init").args(["--group", &args.group, "--hostname", &args.hostname]);
    command.arg("--nodes-dir").arg(&args.nodes_dir).stdin(Stdio::null()).stdout(Stdio::piped());
    let others = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    // SAFETY: this process has one thread, so the child may allocate and write files before it executes.
    unsafe {
        command.pre_exec(move || {
            cgroup::join(&doors)?;
            unshare(others)?;
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            Ok(())
        });
    }
    let mut init = command.spawn().context("cannot start the node's first process")?;
    let pid = Pid::from_raw(init.id().cast_signed());
    let mut line = String::new();
    if let Some(mut stdout) = init.stdout.take() {
        // The init closes its end once it is up; a failure closes it with nothing said.
        stdout.read_to_string(&mut line)?;
    }
    if line.trim() != "up" {
        let status = init.wait()?;
        anyhow::bail!("the node {} did not come up: {status}", args.hostname);
    }
    // A laboratory that was killed meanwhile does not read this; its life pipe says so below.
    let _ = writeln!(std::io::stdout(), "ready {pid}");
    let waited = pidfd(pid).and_then(|init| wait_life_or(Some(&init)));
    // Already dead after a power cut; its number cannot be reused before it is waited for below.
    let _ = kill(pid, Signal::SIGKILL);
    let dead = Instant::now();
    while init.try_wait().context("cannot wait for the node's first process")?.is_none() {
        // By now all have their death before them: whoever is let go meets it and does nothing else.
        if dead.elapsed() > FROZEN_AFTER {
            cgroup::thaw(&args.group)?;
        }
        thread::sleep(Duration::from_millis(2));
    }
    waited
}

#[allow(unsafe_code)]
fn pidfd(pid: Pid) -> anyhow::Result<OwnedFd> {
    // SAFETY: the call takes plain numbers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = nix::errno::Errno::result(fd).context("cannot open a pidfd")?;
    // SAFETY: the descriptor was just returned to us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}

/// Returns when the life pipe (standard input) has ended or the process has.
fn wait_life_or(process: Option<&OwnedFd>) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    loop {
        let mut fds = vec![PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        fds.extend(process.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(err) => return Err(err).context("cannot poll"),
        }
    }
}

/// `ha-lab node-init`: PID 1 of a node. Makes the node's own /proc, /sys, /run and control groups, then reaps.
///
/// # Errors
/// When a part of the node cannot be made. Afterwards it does not return.
pub fn node_init(args: &NodeArgs) -> anyhow::Result<()> {
    let hierarchies = cgroup::hierarchies()?;
    sethostname(&args.hostname).context("cannot set the host name")?;
    mount_private(args, &hierarchies)?;
    for dir in ["/run/netns", "/run/lock"] {
        fs::create_dir_all(dir)?;
    }
    crate::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;

    let mut waited = SigSet::empty();
    waited.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&waited), None)?;
    println!("up");
    std::io::stdout().flush()?;
    close_stdout()?;
    loop {
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        // A pending SIGCHLD stays pending while blocked, so none between the two calls is lost.
        waited.wait()?;
    }
}

fn mount_private(args: &NodeArgs, hierarchies: &[cgroup::Hierarchy]) -> anyhow::Result<()> {
    let none = None::<&str>;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make mounts private")?;
    mount(Some("proc"), "/proc", Some("proc"), quiet, none).context("cannot mount /proc")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), quiet, none).context("cannot mount /sys")?;
    cgroup::mount_inside(hierarchies)?;
    let memory = |at: &str, mode: &str| {
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(mode))
            .with_context(|| format!("cannot mount {at}"))
    };
    memory("/run", "mode=755")?;
    if Path::new("/dev/shm").is_dir() {
        memory("/dev/shm", "mode=1777")?;
    }
    // Of the other nodes' disks this one sees nothing: what it has of them, it has from the store.
    let own = args.nodes_dir.join(&args.hostname);
    let aside = Path::new("/run/disk");
    fs::create_dir(aside)?;
    mount(Some(&own), aside, none, MsFlags::MS_BIND, none).context("cannot bind the node's disk")?;
    mount(Some("tmpfs"), &args.nodes_dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("cannot hide the other nodes' disks")?;
    fs::create_dir(&own)?;
    mount(Some(aside), &own, none, MsFlags::MS_MOVE, none).context("cannot move the node's disk into place")?;
    fs::remove_dir(aside)?;
    Ok(())
}

/// Lets the reader of our standard output see its end, keeping descriptor 1 taken.
fn close_stdout() -> anyhow::Result<()> {
    let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

/// `ha-lab hold`: a network namespace and nothing else, as long as the life pipe lasts.
///
/// # Errors
/// When the namespace cannot be made.
pub fn hold_netns() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    crate::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let _ = writeln!(std::io::stdout(), "ready {}", std::process::id());
    wait_life_or(None)
}

/// `ha-lab node-exec`: runs a program inside a node and stands in for it: signals go through, its exit code comes back,
/// and it dies with its stand-in.
///
/// # Errors
/// When the node cannot be entered (it is off) or the program not be started.
#[allow(unsafe_code)]
pub fn node_exec(pid: i32, group: &str, argv: &[String]) -> anyhow::Result<i32> {
    let (program, args) = argv.split_first().context("node-exec: no program given")?;
    let doors = cgroup::doors(group)?;
    let open = |name: &str| {
        let path = format!("/proc/{pid}/ns/{name}");
        fs::File::open(&path).with_context(|| format!("cannot enter the node: {path}"))
    };
    // The mount namespace comes last: after it /proc is the node's.
    let namespaces = ["cgroup", "ipc", "uts", "net", "pid", "mnt"].map(open);
    cgroup::join(&doors).context("cannot join the node's control groups")?;
    for namespace in namespaces {
        let namespace = namespace?;
        setns(namespace.as_fd(), CloneFlags::empty()).with_context(|| format!("setns {}", namespace.as_raw_fd()))?;
    }
    let passed = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGQUIT];
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    passed.iter().for_each(|signal| mask.add(*signal));
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;

    let mut command = Command::new(program);
    command.args(args);
    // SAFETY: only system calls that are allowed between fork and exec.
    unsafe {
        command.pre_exec(move || {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            Ok(())
        });
    }
    let mut child = command.spawn().with_context(|| format!("cannot start {program} in the node"))?;
    let child_pid = Pid::from_raw(child.id().cast_signed());
    loop {
        match mask.wait()? {
            Signal::SIGCHLD => {
                if let Some(status) = child.try_wait()? {
                    return Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
                }
            }
            signal => {
                // Gone already: its SIGCHLD is on the way.
                let _ = kill(child_pid, signal);
            }
        }
    }
}
