//! The real agent, outside of a container (as a child subreaper) or as PID 1 of a namespace of its own.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use ha_agent::wire;
use ha_proto::agent::{
    Check, Config, Event, HealthcheckConfig, Ping, Quiesce, Reply, Request, RestartConfig, RestartRule, State, Status,
    Stop, event, request::Kind,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use prost::Message;

pub const PATIENCE: Duration = Duration::from_secs(30);

/// Says why a test did not run. Returns true so that it reads `if skip(…) { return; }`.
pub fn skipped(test: &str, why: &str) {
    println!("SKIPPED {test}: {why}");
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn shell(script: &str, state: State, rule: RestartRule) -> Config {
    let mut config = Config::new(vec!["/bin/sh".into(), "-c".into(), script.into()], state);
    config.env = vec!["PATH=/usr/bin:/bin".into(), "GREETING=hello".into()];
    config.restart = RestartConfig { rule, max_attempts: 3, first_delay_ms: 50, max_delay_ms: 100, ..config.restart };
    config
}

pub fn healthcheck(script: &str) -> HealthcheckConfig {
    HealthcheckConfig {
        argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
        interval_ms: 50,
        timeout_ms: 5000,
        start_period_ms: 0,
        start_interval_ms: 50,
        retries: 2,
    }
}

/// The manager's end of a channel, as simple as can be.
pub struct Channel {
    pub dir: PathBuf,
    events: UnixDatagram,
}

impl Channel {
    pub fn new(dir: &Path, config: &Config) -> Self {
        fs::write(dir.join("agent.json"), config.to_json().unwrap()).unwrap();
        Self::open(dir)
    }

    pub fn open(dir: &Path) -> Self {
        let _ = fs::remove_file(dir.join("manager.sock"));
        let events = UnixDatagram::bind(dir.join("manager.sock")).unwrap();
        events.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { dir: dir.to_owned(), events }
    }

    pub fn connect(&self) -> std::io::Result<UnixStream> {
        let stream = UnixStream::connect(self.dir.join("agent.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    pub fn try_ask(&self, kind: Kind) -> Option<Reply> {
        let mut stream = self.connect().ok()?;
        let request = Request { nonce: 42, kind: Some(kind) };
        stream.write_all(&wire::encode(&request)).ok()?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).ok()?;
        let reply: Reply = wire::decode(&bytes).unwrap()?;
        assert_eq!(reply.nonce, 42);
        Some(reply)
    }

    pub fn ask(&self, kind: Kind) -> Reply {
        wait_for("an answer", || self.try_ask(kind))
    }

    pub fn status(&self) -> Status {
        self.ask(Kind::Ping(Ping { seen_seq: 0 })).status.unwrap()
    }

    pub fn check(&self, timeout_ms: u32) -> Reply {
        self.ask(Kind::Check(Check { timeout_ms }))
    }

    pub fn quiesce(&self, hold_ms: u32) -> Reply {
        self.ask(Kind::Quiesce(Quiesce { hold_ms }))
    }

    pub fn stop(&self, grace_ms: u32) -> Reply {
        self.ask(Kind::Stop(Stop { grace_ms }))
    }

    pub fn event(&self) -> Event {
        let mut buffer = vec![0; 64 * 1024];
        let length = self.events.recv(&mut buffer).expect("an event");
        Event::decode(&buffer[..length]).unwrap()
    }

    /// Skips to the next event that `pick` wants.
    pub fn event_of<T>(&self, pick: impl Fn(&event::Kind) -> Option<T>) -> T {
        loop {
            if let Some(found) = self.event().kind.as_ref().and_then(&pick) {
                return found;
            }
        }
    }

    /// The log's lines without their timestamps.
    pub fn log(&self) -> Vec<String> {
        let text = fs::read(self.dir.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().map(|line| line.split_once(' ').expect("a timestamp").1.to_owned()).collect()
    }

    pub fn wait_for_log(&self, line: &str) {
        wait_for(&format!("{line:?} in the log"), || self.log().iter().any(|l| l == line).then_some(()));
    }
}

/// A running agent with its channel. Ends everything it started when dropped.
pub struct Agent {
    pub channel: Channel,
    pub child: Child,
    dir: Option<tempfile::TempDir>,
}

impl Agent {
    pub fn start(config: &Config) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ha-agent"));
        command.arg("--channel");
        Self::start_by(command, config)
    }

    /// As PID 1. `None`, said aloud, where that is not allowed.
    pub fn start_as_init(test: &str, config: &Config) -> Option<Self> {
        if !is_root() {
            skipped(test, "a PID namespace needs root");
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", env!("CARGO_BIN_EXE_ha-agent"), "--channel"]);
        Some(Self::start_by(command, config))
    }

    pub fn start_by(mut command: Command, config: &Config) -> Self {
        let dir = tempfile::Builder::new().prefix("hag-").tempdir().unwrap();
        let channel = Channel::new(dir.path(), config);
        let child = command.arg(dir.path()).stdin(Stdio::null()).spawn().unwrap();
        Self { channel, child, dir: Some(dir) }
    }

    /// One that was started otherwise.
    pub fn adopt(channel: Channel, child: Child) -> Self {
        Self { channel, child, dir: None }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub fn exit_code(&mut self) -> Option<i32> {
        wait_for("the agent's exit", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(self.pid(), Signal::SIGCONT);
            let asked = self.channel.try_ask(Kind::Stop(Stop { grace_ms: 0 })).is_some();
            for _ in 0..200 {
                if !asked || !matches!(self.child.try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        drop(self.dir.take());
    }
}
