//! The agent's loop: one `ppoll`, everything it can report handled without blocking, then whatever has become due.
//!
//! All that the agent holds across a checkpoint is in [`Agent`]; nothing in it refers to the node.

mod checks;
mod main_process;
mod requests;

use std::{
    fs,
    io::{self, PipeReader, PipeWriter, Read},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use ha_proto::agent::{Config, ConfigError, ProcessEnded};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        time::TimeSpec,
    },
    unistd::{Gid, Pid, Uid, fchown},
};

use crate::{
    clock::{self, Clock},
    events::Events,
    frame::{Framer, Stream},
    health,
    log::Log,
    names,
    restarts::Restarts,
    server::{Server, Source},
    spawn::{self, send_signal},
    tail::Tail,
};
use checks::Check;
use main_process::{Main, Stopping};
use requests::Waiter;

/// The loop looks after its socket at least this often.
const ROUND: Duration = Duration::from_secs(5);
const VERIFY: Duration = Duration::from_secs(1);

/// Between rounds while the kernel cannot say what is ready.
const UNPOLLED: Duration = Duration::from_millis(100);

/// A piece of a line is written out after this long without its end.
const PIECE: Duration = Duration::from_secs(1);

/// Forwarded to the main process as they come. SIGTERM is a stop, SIGCHLD the agent's own.
const FORWARDED: &[Signal] =
    &[Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH];

/// Why the agent could not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot read {path}; the manager writes it before it starts the container")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not usable")]
    Config { path: PathBuf, source: ConfigError },
    #[error("{what} failed; the kernel or a seccomp profile refuses it")]
    System { what: &'static str, source: io::Error },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// One of the main process's two output streams. The agent keeps the writing end, too: a restarted main process gets
/// the same pipe, and a process left behind by the old one is never killed by SIGPIPE.
#[derive(Debug)]
struct Output {
    reader: PipeReader,
    writer: PipeWriter,
    framer: Framer,
}

/// The whole agent.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    incarnation: Vec<u8>,
    clock: Clock,
    signals: SignalFd,
    outputs: [Output; 2],
    log: Log,
    tail: Tail,
    events: Events,
    server: Server,
    verify_at: Duration,
    verify_failing: bool,
    main: Main,
    restarts: Restarts,
    last_end: Option<ProcessEnded>,
    stopping: Option<Stopping>,
    health: health::Machine,
    check: Option<Check>,
    health_output: String,
    waiters: Vec<Waiter>,
    exit: Option<i32>,
}

#[derive(Debug, Clone, Copy)]
enum Ready {
    Signals,
    Output(usize),
    CheckOutput,
    Server(Source),
}

impl Agent {
    /// Reads the configuration in `channel` and prepares; no process is started yet.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn new(channel: &Path) -> Result<Self, StartError> {
        let path = channel.join(names::CONFIG);
        let mut text = Vec::new();
        fs::File::open(&path)
            .and_then(|file| file.take(ha_proto::agent::MAX_CONFIG as u64 + 1).read_to_end(&mut text))
            .map_err(|source| StartError::Read { path: path.clone(), source })?;
        let config = Config::from_json(&text).map_err(|source| StartError::Config { path, source })?;

        let mut mask = SigSet::empty();
        for signal in FORWARDED.iter().chain(&[Signal::SIGTERM, Signal::SIGCHLD]) {
            mask.add(*signal);
        }
        mask.thread_block().map_err(|e| system("blocking signals")(e.into()))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(|e| system("signalfd")(e.into()))?;
        let incarnation = random().map_err(system("getrandom"))?.to_vec();
        let output = |stream| Output::new(stream, &config).map_err(system("making a pipe"));
        Ok(Self {
            outputs: [output(Stream::Stdout)?, output(Stream::Stderr)?],
            clock: Clock::new(clock::monotonic()),
            signals,
            log: Log::new(channel, config.log_max_bytes),
            tail: Tail::default(),
            events: Events::new(incarnation.clone(), channel.join(names::MANAGER_SOCKET)),
            server: Server::new(channel.join(names::AGENT_SOCKET)),
            verify_at: Duration::ZERO,
            verify_failing: false,
            main: Main::Ended,
            restarts: Restarts::new(config.state, config.restart.clone()),
            last_end: None,
            stopping: None,
            health: health::Machine::new(config.healthcheck.clone()),
            check: None,
            health_output: String::new(),
            waiters: Vec::new(),
            exit: None,
            incarnation,
            config,
        })
    }

    /// Starts the main process and looks after it until the container's end. Returns the exit code.
    pub fn run(mut self) -> i32 {
        self.verify_server();
        self.start_main();
        loop {
            self.due();
            if let Some(code) = self.exit {
                self.finish();
                return code;
            }
            let timeout = self.timeout();
            let (ready, interrupted) = self.poll(timeout);
            let jumped = self.clock.advance(clock::monotonic(), timeout);
            if jumped || interrupted {
                // Perhaps a restore: another directory, another manager.
                self.verify_at = Duration::ZERO;
                self.events.retry_now();
            }
            for ready in ready {
                self.handle(ready);
            }
        }
    }

    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn timeout(&self) -> Duration {
        let now = self.now();
        let pieces = self.outputs.iter().filter_map(|o| o.framer.waiting_since()).map(|since| since + PIECE);
        [
            self.main.deadline(),
            self.stopping.as_ref().and_then(|s| s.kill_at),
            self.next_check_at(),
            self.check.as_ref().and_then(Check::deadline),
            self.server.deadline(),
            self.events.deadline(),
            self.log.deadline(),
        ]
        .into_iter()
        .flatten()
        .chain(pieces)
        .map(|at| at.saturating_sub(now))
        .fold(ROUND, Duration::min)
    }

    /// Returns what is ready, and whether a signal (a restore looks like one) cut the wait short.
    fn poll(&self, timeout: Duration) -> (Vec<Ready>, bool) {
        let mut watched: Vec<(Ready, BorrowedFd<'_>, PollFlags)> =
            vec![(Ready::Signals, self.signals.as_fd(), PollFlags::POLLIN)];
        for (n, output) in self.outputs.iter().enumerate() {
            watched.push((Ready::Output(n), output.reader.as_fd(), PollFlags::POLLIN));
        }
        if let Some(output) = self.check.as_ref().and_then(Check::output) {
            watched.push((Ready::CheckOutput, output, PollFlags::POLLIN));
        }
        watched.extend(self.server.sources().map(|(source, fd, flags)| (Ready::Server(source), fd, flags)));
        let mut fds: Vec<PollFd<'_>> = watched.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        // Rounded up: a wait that ends just before its time would be followed by a round of nothing.
        let timeout = Duration::from_millis(u64::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
        match ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None) {
            Ok(_) => {
                let ready = watched.iter().zip(&fds).filter(|(_, fd)| fd.any() != Some(false));
                (ready.map(|((ready, ..), _)| *ready).collect(), false)
            }
            Err(Errno::EINTR) => (Vec::new(), true),
            Err(_out_of_memory) => {
                // Everything is read without blocking, so it can be tried without knowing; only not in a busy loop.
                std::thread::sleep(UNPOLLED);
                (watched.iter().map(|(ready, ..)| *ready).collect(), false)
            }
        }
    }

    fn handle(&mut self, ready: Ready) {
        match ready {
            Ready::Signals => self.read_signals(),
            Ready::Output(n) => {
                self.read_output(n, 256 * 1024);
            }
            Ready::CheckOutput => self.read_check_output(),
            Ready::Server(source) => {
                if let Some((id, request)) = self.server.ready(source, self.now()) {
                    self.request(id, request);
                }
            }
        }
    }

    /// Whatever time has made due.
    fn due(&mut self) {
        let now = self.now();
        if now >= self.verify_at {
            self.verify_server();
        }
        self.main_due();
        self.checks_due();
        self.answer_waiters();
        self.server.expire(now);
        for n in 0..self.outputs.len() {
            if self.outputs[n].framer.waiting_since().is_some_and(|since| now >= since + PIECE) {
                let timestamp = clock::rfc3339(clock::wall());
                self.outputs[n].framer.flush(&timestamp, &mut |record| {
                    self.log.push(record);
                    self.tail.push(record);
                });
            }
        }
        self.events.flush(now);
        self.log.flush(now);
    }

    fn verify_server(&mut self) {
        self.verify_at = self.now() + VERIFY;
        match self.server.verify() {
            Ok(()) => self.verify_failing = false,
            Err(error) if !self.verify_failing => {
                self.verify_failing = true;
                self.log
                    .say(&format!("agent: the manager cannot reach this container: cannot bind agent.sock: {error}"));
            }
            Err(_) => {}
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            if number == Signal::SIGCHLD as i32 {
                self.reap();
            } else if number == Signal::SIGTERM as i32 {
                self.stop(Duration::from_millis(self.config.stop_grace_ms));
            } else if let Main::Running { pid, .. } = self.main {
                send_signal(pid, number);
            }
        }
    }

    fn reap(&mut self) {
        while let Some(end) = spawn::reap() {
            if matches!(self.main, Main::Running { pid, .. } if pid == end.pid) {
                self.main_ended(end.code, end.signal);
            } else if self.check.as_ref().is_some_and(|check| check.pid == end.pid) {
                self.check_ended(end.code);
            }
        }
    }

    /// Reads what the main process wrote, at most `limit` bytes.
    fn read_output(&mut self, n: usize, limit: usize) {
        let (now, timestamp) = (self.now(), clock::rfc3339(clock::wall()));
        let Output { reader, framer, .. } = &mut self.outputs[n];
        let mut buffer = [0; 16 * 1024];
        let mut total = 0;
        while total < limit {
            match reader.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    framer.push(&buffer[..length], now, &timestamp, &mut |record| {
                        self.log.push(record);
                        self.tail.push(record);
                    });
                    total += length;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// What the ended main process has left in the pipes, and the end of its last lines.
    fn drain_outputs(&mut self) {
        for n in 0..self.outputs.len() {
            self.read_output(n, 1024 * 1024);
            let timestamp = clock::rfc3339(clock::wall());
            self.outputs[n].framer.finish(&timestamp, &mut |record| {
                self.log.push(record);
                self.tail.push(record);
            });
        }
    }

    /// Last words. As PID 1 the agent's exit ends every other process of the container.
    fn finish(&mut self) {
        self.drain_outputs();
        self.log.flush_now(self.now());
        self.events.retry_now();
        self.events.flush(self.now());
        if let Some(check) = &self.check {
            send_signal(Pid::from_raw(-check.pid.as_raw()), nix::libc::SIGKILL);
        }
    }
}

impl Output {
    fn new(stream: Stream, config: &Config) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        if config.user.uid != 0 {
            // /dev/stdout opens the pipe anew, with the permissions of its owner.
            let _ = fchown(&writer, Some(Uid::from_raw(config.user.uid)), Some(Gid::from_raw(config.user.gid)));
        }
        Ok(Self { reader, writer, framer: Framer::new(stream) })
    }
}

#[allow(unsafe_code)]
fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    // SAFETY: the pointer and the length are those of `bytes`. Requests up to 256 bytes are never cut short.
    let result = unsafe { nix::libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    Errno::result(result)?;
    Ok(bytes)
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Shortens to at most `max` bytes, at a character's end.
fn cut(text: &mut String, max: usize) {
    let end = (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
}
