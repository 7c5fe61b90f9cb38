//! A process with an open socket is dumped and restored, and has to answer.

use std::{
    fs, io, mem,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{disk::Scrap, tool};

/// Of one CRIU run; the process is tiny.
const TIMEOUT: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(super) enum TrialError {
    #[error("cannot prepare a trial: {step}")]
    Prepare { step: &'static str, source: io::Error },
    #[error("cannot run CRIU")]
    Criu(#[from] tool::ToolError),
    #[error("criu {verb} failed: {why}")]
    Refused { verb: &'static str, why: String },
    #[error("CRIU said the process was restored, but {0}")]
    NotBack(&'static str),
}

pub(super) struct Took {
    pub(super) dump: Duration,
    pub(super) restore: Duration,
}

/// `base`: where the images may lie.
pub(super) fn run(criu: &str, base: &Path) -> Result<Took, TrialError> {
    let prepare = |step| move |source| TrialError::Prepare { step, source };
    let images = Scrap::new(base).map_err(prepare("a directory for the images"))?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(prepare("a socket"))?;
    let address = listener.local_addr().map_err(prepare("a socket"))?;
    let mut subject = Subject::start(listener).map_err(prepare("a process"))?;

    let start = Instant::now();
    criu_run(criu, "dump", images.path(), &["--tree", &subject.pid.to_string()])?;
    let dump = start.elapsed();
    subject.end();

    let start = Instant::now();
    // As our child, so that it can be waited for when it ends.
    criu_run(criu, "restore", images.path(), &["--restore-detached", "--restore-sibling"])?;
    let restore = start.elapsed();
    subject.life = Life::Restored;
    subject.answers(address)?;
    Ok(Took { dump, restore })
}

fn criu_run(criu: &str, verb: &'static str, images: &Path, more: &[&str]) -> Result<(), TrialError> {
    let log = images.join(format!("{verb}.log"));
    let (dir, log_arg) = (images.to_string_lossy(), log.to_string_lossy());
    let mut args = vec![verb, "--images-dir", &dir, "--log-file", &log_arg, "-v1", "--manage-cgroups=ignore"];
    args.extend(more);
    let output = tool::run(criu, &args, TIMEOUT)?;
    if output.ok() {
        return Ok(());
    }
    let first_error = fs::read_to_string(log)
        .ok()
        .and_then(|log| log.lines().find(|line| line.contains("Error")).map(|line| line.trim().to_owned()));
    Err(TrialError::Refused { verb, why: first_error.unwrap_or_else(|| output.last_line()) })
}

/// `sleep` with a listening socket as its input: the smallest program with one. Ended when dropped.
struct Subject {
    pid: Pid,
    life: Life,
}

enum Life {
    Started(Child),
    Dumped,
    Restored,
}

impl Subject {
    fn start(listener: TcpListener) -> io::Result<Self> {
        // In a session of its own: CRIU dumps whole sessions, not parts of ours. `setsid` becomes `sleep`.
        let child = Command::new("setsid")
            .args(["sleep", "600"])
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()?;
        let subject = Self { pid: Pid::from_raw(child.id().cast_signed()), life: Life::Started(child) };
        let start = Instant::now();
        while !subject.is_sleep() {
            if start.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "`setsid sleep` did not start"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(subject)
    }

    fn is_sleep(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/comm", self.pid)).is_ok_and(|comm| comm.trim() == "sleep")
    }

    fn answers(&self, address: SocketAddr) -> Result<(), TrialError> {
        if !self.is_sleep() {
            return Err(TrialError::NotBack("it is not there"));
        }
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => Ok(()),
            Err(_) => Err(TrialError::NotBack("its socket does not listen")),
        }
    }

    /// Ends it and waits for it, which frees its number. A dump has killed it already.
    fn end(&mut self) {
        match mem::replace(&mut self.life, Life::Dumped) {
            // Both fail only when there is nothing left to end.
            Life::Started(mut child) => drop(child.kill().and_then(|()| child.wait())),
            // Only a child of ours can be waited for, so nobody else's process with this number is killed.
            Life::Restored => {
                if waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive) {
                    let _ = kill(self.pid, Signal::SIGKILL).and_then(|()| waitpid(self.pid, None));
                }
            }
            Life::Dumped => {}
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.end();
    }
}
