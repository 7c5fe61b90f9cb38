//! One `criu swrk` process and the socket to it.
//!
//! It runs in a session of its own, so that the manager's end does not end it in the middle of a dump: it then fails at
//! its next question, resumes the container and goes away by itself. It serves one dump only; spawned ahead of the
//! freeze, its start costs the container nothing.

use std::{
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, shutdown, socketpair};
use prost::Message;

use super::rpc::{self, Request, Response};
use crate::runtime::poll_in;

#[derive(Debug, thiserror::Error)]
pub enum SwrkError {
    #[error("cannot run {program:?}: is CRIU installed?")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("cannot send a request to CRIU")]
    Send { source: io::Error },
    #[error("cannot receive CRIU's answer")]
    Receive { source: io::Error },
    #[error("CRIU ended without an answer ({ending}); it said: {stderr}")]
    Ended { ending: String, stderr: String },
    #[error("CRIU sent a message that is not understood")]
    Decode { source: prost::DecodeError },
    #[error("CRIU did not answer in time")]
    Timeout,
    #[error("CRIU refused the request {what}: {reason}")]
    Refused { what: &'static str, reason: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CriuVersion {
    pub major: i32,
    pub minor: i32,
    pub sublevel: i32,
}

impl fmt::Display for CriuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.sublevel)
    }
}

/// CRIU's command for a worker.
pub(super) const WORKER: &str = "swrk";

/// A worker waiting for its request. Dropped, it is hung up on, and reaped.
pub struct Swrk {
    child: Child,
    socket: OwnedFd,
    stderr: File,
}

impl Swrk {
    /// Starts `criu swrk` and returns at once.
    pub fn spawn(program: &Path) -> Result<Self, SwrkError> {
        let error = |source: io::Error| SwrkError::Spawn { program: program.to_owned(), source };
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|errno| error(errno.into()))?;
        let stderr = crate::runtime::memory_file().map_err(error)?;
        let mut command = Command::new(program);
        command
            .args([WORKER, "3"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.try_clone().map_err(error)?);
        let fd = theirs.as_raw_fd();
        // SAFETY: between fork and exec only async-signal-safe calls are made (setsid, signal, dup2, fcntl), and nothing
        // is allocated. `theirs` outlives the spawn.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || {
                if libc::setsid() < 0 {
                    return Err(io::Error::last_os_error());
                }
                // A manager that is gone must make CRIU's send fail, not kill CRIU with the container frozen.
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
                let rc = if fd == 3 { libc::fcntl(3, libc::F_SETFD, 0) } else { libc::dup2(fd, 3) };
                if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let child = command.spawn().map_err(error)?;
        Ok(Self { child, socket: ours, stderr })
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The version of the CRIU that answers.
    pub fn version(program: &Path, timeout: Duration) -> Result<CriuVersion, SwrkError> {
        let request = Request { kind: rpc::kind::VERSION, ..Default::default() };
        let response = Self::spawn(program)?.ask("VERSION", &request, timeout)?;
        let version = response.version.ok_or(SwrkError::Refused { what: "VERSION", reason: "no version".into() })?;
        Ok(CriuVersion { major: version.major, minor: version.minor, sublevel: version.sublevel.unwrap_or(0) })
    }

    /// One request with one answer.
    pub(super) fn ask(
        mut self,
        what: &'static str,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, SwrkError> {
        self.send(request)?;
        let response = self.receive(Instant::now() + timeout)?;
        if response.success {
            return Ok(response);
        }
        let errno = response.errno.map(|errno| io::Error::from_raw_os_error(errno).to_string());
        let reason = response.errmsg.or(errno).unwrap_or_else(|| "no reason given".to_owned());
        Err(SwrkError::Refused { what, reason: reason.trim().to_owned() })
    }

    pub(super) fn send(&self, request: &Request) -> Result<(), SwrkError> {
        let bytes = request.encode_to_vec();
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)
            .map(drop)
            .map_err(|errno| SwrkError::Send { source: errno.into() })
    }

    /// Answers a notification.
    pub(super) fn acknowledge(&self, success: bool) -> Result<(), SwrkError> {
        self.send(&Request { kind: rpc::kind::NOTIFY, notify_success: Some(success), ..Default::default() })
    }

    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Response, SwrkError> {
        let receive = |source| SwrkError::Receive { source };
        if !poll_in(self.socket.as_fd(), Some(deadline)).map_err(receive)? {
            return Err(SwrkError::Timeout);
        }
        // CRIU's messages are far below this; a longer one is cut off and fails to decode.
        let mut buffer = [0; 64 * 1024];
        let length =
            recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(|errno| receive(errno.into()))?;
        if length == 0 {
            let ending = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            return Err(SwrkError::Ended { ending, stderr: self.stderr_text() });
        }
        Response::decode(&buffer[..length]).map_err(|source| SwrkError::Decode { source })
    }

    /// Lets CRIU find nobody to ask any more: it fails at its next question and cleans up.
    pub(super) fn hang_up(&self) {
        // Fails only when CRIU has hung up first, which is as good.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Waits for CRIU's end; false when it still runs at the deadline.
    pub(super) fn wait_end(&mut self, deadline: Instant) -> bool {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return true;
        }
        match crate::runtime::ExitWatch::new(self.pid()) {
            Ok(watch) => {
                let ended = watch.wait(deadline.saturating_duration_since(Instant::now())).unwrap_or(false);
                ended && self.child.wait().is_ok()
            }
            Err(_) => self.child.wait().is_ok(),
        }
    }

    /// Stops CRIU and its helpers, with whatever they hold.
    pub(super) fn stop(&self) {
        // It may end just now, and then holds nothing.
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(self.pid()), nix::sys::signal::Signal::SIGSTOP);
    }

    /// Kills CRIU and the helpers it forked (they share its process group), and reaps it.
    pub(super) fn kill(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.pid());
        if matches!(self.child.try_wait(), Ok(None)) {
            // Both may race with its end, which is what is wanted.
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    pub(super) fn stderr_text(&self) -> String {
        let text = self.stderr.try_clone().and_then(crate::runtime::text_of).unwrap_or_default();
        let text = text.trim();
        if text.is_empty() { "nothing".to_owned() } else { text.chars().take(2000).collect() }
    }
}

impl Drop for Swrk {
    fn drop(&mut self) {
        // In the middle of a dump (we are unwinding) it has a container to let go of first.
        self.hang_up();
        if !self.wait_end(Instant::now() + Duration::from_secs(1)) {
            self.kill();
        }
    }
}
