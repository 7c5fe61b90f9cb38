//! Running the healthcheck: at most one at a time, in a process group of its own, killed when it takes too long.
//!
//! ```text
//!            ended by itself: judged
//!   Running ──────────────────────────────────────────────► (none)
//!      │ timed out: judged as failed                            ▲
//!      │ a checkpoint wants quiet: broken off, not judged       │ reaped
//!      ▼                        does not end                    │
//!    Killed ───────────────────────────────────────► Stuck ─────┤
//!      └────────────────────────────────────────────────────────┘
//! ```
//!
//! A process that waits for a hung file system is not ended by SIGKILL. While one is Stuck no other check can be begun: each
//! that would be due has failed, and no checkpoint is possible.

use std::{
    io::{self, PipeReader, Read},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use ha_proto::agent::CheckResult;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::Pid,
};

use super::{Agent, chain, cut};
use crate::{
    health::Origin,
    spawn::{send_signal, spawn},
};

/// What is kept of a check's output, in bytes.
const MAX_OUTPUT: usize = 4096;

/// A killed check that is not gone after this long is stuck.
const DYING: Duration = Duration::from_secs(1);

/// At most so long does a checkpoint wait for a check that is not to be broken off.
const CHECKPOINT_WAITS: Duration = Duration::from_millis(ha_proto::agent::QUIESCE_WAIT_MS);

pub(super) const STUCK: &str = "a healthcheck was killed and does not end: does it wait for a file system that hangs?";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running {
        kill_at: Duration,
    },
    /// Nothing but its end is awaited any more.
    Killed {
        stuck_at: Duration,
    },
    Stuck,
}

/// A check under way.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) pid: Pid,
    /// `None` once it has ended.
    reader: Option<PipeReader>,
    output: Vec<u8>,
    begun: Duration,
    stage: Stage,
}

impl Check {
    /// When it is to be looked at again.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match self.stage {
            Stage::Running { kill_at: at } | Stage::Killed { stuck_at: at } => Some(at),
            Stage::Stuck => None,
        }
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.stage == Stage::Stuck
    }

    fn kill(&mut self, now: Duration) {
        self.stage = Stage::Killed { stuck_at: now + DYING };
        send_signal(Pid::from_raw(-self.pid.as_raw()), nix::libc::SIGKILL);
    }

    pub(super) fn output(&self) -> Option<BorrowedFd<'_>> {
        self.reader.as_ref().map(AsFd::as_fd)
    }

    fn read(&mut self) {
        let Some(reader) = &mut self.reader else { return };
        let mut buffer = [0; 4096];
        for _ in 0..16 {
            match reader.read(&mut buffer) {
                Ok(0) => {
                    self.reader = None;
                    return;
                }
                Ok(length) => {
                    let room = MAX_OUTPUT - self.output.len();
                    self.output.extend_from_slice(&buffer[..length.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

/// Printable, and at most [`MAX_OUTPUT`] bytes also where bytes became replacement characters.
fn text(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    cut(&mut text, MAX_OUTPUT);
    text
}

impl Agent {
    /// Begins a check with `timeout`, or with the healthcheck's own. Never while one is there.
    pub(super) fn begin_check(&mut self, origin: Origin, timeout: Option<Duration>) {
        let Some(healthcheck) = self.health.config() else { return };
        let timeout = timeout.unwrap_or(Duration::from_millis(healthcheck.timeout_ms));
        let (argv, now) = (healthcheck.argv.clone(), self.now());
        self.health.begin(now, origin);
        let pipe = io::pipe().and_then(|(reader, writer)| {
            fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            Ok((reader, writer.try_clone()?, writer))
        });
        let started = match pipe {
            Ok((reader, stdout, stderr)) => spawn(&argv, &self.config, stdout.into(), stderr.into())
                .map(|pid| (pid, reader))
                .map_err(|error| (error.code, chain(&error))),
            Err(error) => Err((126, format!("no file descriptor left for the healthcheck: {error}"))),
        };
        match started {
            Ok((pid, reader)) => {
                let stage = Stage::Running { kill_at: now.saturating_add(timeout) };
                self.check = Some(Check { pid, reader: Some(reader), output: Vec::new(), begun: now, stage });
            }
            Err((code, output)) => {
                self.judge_check(CheckResult { healthy: false, code, timed_out: false, took_ms: 0, output });
            }
        }
    }

    pub(super) fn read_check_output(&mut self) {
        if let Some(check) = &mut self.check {
            check.read();
        }
    }

    /// The check was reaped.
    pub(super) fn check_ended(&mut self, code: i32) {
        let Some(mut check) = self.check.take() else { return };
        check.read();
        // Whatever it left behind would hold the pipe and its group.
        send_signal(Pid::from_raw(-check.pid.as_raw()), nix::libc::SIGKILL);
        if let Stage::Running { .. } = check.stage {
            let took_ms = millis(self.now() - check.begun);
            let output = text(&check.output);
            self.judge_check(CheckResult { healthy: code == 0, code, timed_out: false, took_ms, output });
        }
    }

    /// A checkpoint wants quiet. A scheduled check is broken off, or soon killed as too slow if the one before was.
    pub(super) fn hush(&mut self) {
        let now = self.now();
        let Some(check) = &mut self.check else { return };
        let Stage::Running { kill_at } = &mut check.stage else { return };
        if self.health.may_break_off() {
            check.kill(now);
            self.health.broken_off(now);
        } else if self.health.is_scheduled() {
            *kill_at = now.saturating_add(CHECKPOINT_WAITS).min(*kill_at);
        }
    }

    /// The main process has ended, and there is nothing to check.
    pub(super) fn abandon_check(&mut self) {
        let now = self.now();
        if self.health.is_scheduled()
            && let Some(check) = self.check.as_mut().filter(|check| matches!(check.stage, Stage::Running { .. }))
        {
            check.kill(now);
            self.health.finished(now, false); // Not counted: there is no main process.
        }
    }

    /// The check that is due cannot be begun, since the one before does not end.
    pub(super) fn judge_stuck(&mut self, origin: Origin) {
        self.health.begin(self.now(), origin);
        self.judge_check(CheckResult { healthy: false, code: 137, timed_out: true, took_ms: 0, output: STUCK.into() });
    }

    /// When a scheduled check is due; `None` also while a killed one has not ended, and while quiet is wanted.
    pub(super) fn next_check_at(&self) -> Option<Duration> {
        let free = self.check.as_ref().is_none_or(Check::is_stuck) && !self.is_quiet_wanted();
        self.health.deadline().filter(|_| free)
    }

    fn judge_check(&mut self, mut result: CheckResult) {
        // It stands in sentences.
        result.output.truncate(result.output.trim_end().len());
        if !result.healthy {
            self.health_output = match (result.timed_out, result.output.is_empty()) {
                (true, _) => text(format!("timed out after {} ms: {}", result.took_ms, result.output).as_bytes()),
                (false, true) => format!("exit code {}", result.code),
                (false, false) => result.output.clone(),
            };
        }
        if let Some(health) = self.health.finished(self.now(), result.healthy) {
            let output = if result.healthy { String::new() } else { self.health_output.clone() };
            self.health_changed(health, output);
        }
        self.answer_checks(&result);
    }

    pub(super) fn checks_due(&mut self) {
        let now = self.now();
        if let Some(check) = &mut self.check
            && check.deadline().is_some_and(|at| now >= at)
        {
            if let Stage::Running { .. } = check.stage {
                check.read();
                check.kill(now);
                let (took_ms, output) = (millis(now - check.begun), text(&check.output));
                // Not at its end, which need not come.
                self.judge_check(CheckResult { healthy: false, code: 137, timed_out: true, took_ms, output });
            } else {
                check.stage = Stage::Stuck;
                self.log.say(&format!("agent: {STUCK}"));
            }
        }
        if self.stopping.is_none() && self.next_check_at().is_some_and(|at| now >= at) {
            match self.check {
                None => self.begin_check(Origin::Schedule, None),
                Some(_) => self.judge_stuck(Origin::Schedule),
            }
        }
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
