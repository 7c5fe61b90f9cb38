//! A helper process that lives as long as its handle, and threads that work in its network namespace.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::{fd::AsFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};

/// A started `ha-lab` helper. Dropping it closes its life pipe and waits until it has cleaned up.
#[derive(Debug)]
pub(super) struct Holder {
    child: Child,
    /// The process whose namespaces are held, as this process sees it.
    pub pid: u32,
}

impl Holder {
    /// Starts a helper and waits until it says `ready PID`.
    pub fn start(args: impl IntoIterator<Item = String>) -> anyhow::Result<Self> {
        let mut command = Command::new(crate::lab_program()?);
        // A group of its own: an interrupt from the terminal is the laboratory's to handle.
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        match line.trim().strip_prefix("ready ").and_then(|pid| pid.parse().ok()) {
            Some(pid) => Ok(Self { child, pid }),
            None => {
                drop(child.stdin.take());
                bail!("{command:?} did not get ready: {}", child.wait()?)
            }
        }
    }

    pub fn netns(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid))
    }

    /// A command to be run in the network namespace, everything else as here.
    pub fn net_command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns().display())).arg(program);
        command
    }

    /// Waits for the helper's own end (after its process has been killed).
    pub fn wait(&mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { bail!("a node's warden failed: {status}") }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Err(err) = self.wait() {
            eprintln!("ha-lab: {err:#}");
        }
    }
}

/// Runs `work` on a thread of its own inside a network namespace. Sockets made there stay in it wherever they are used.
///
/// # Errors
/// When the namespace cannot be opened; entering it fails inside the thread, as its result.
pub fn in_netns<T: Send + 'static>(
    netns: PathBuf,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<thread::JoinHandle<anyhow::Result<T>>> {
    let file = fs::File::open(&netns).with_context(|| format!("cannot open {}", netns.display()))?;
    Ok(thread::Builder::new().name("in-netns".to_owned()).spawn(move || {
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).with_context(|| format!("setns {}", netns.display()))?;
        work()
    })?)
}
