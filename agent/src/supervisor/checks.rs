//! Running the healthcheck: at most one at a time, in a process group of its own, killed when it takes too long.

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

/// A check under way.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) pid: Pid,
    /// `None` once it has ended.
    reader: Option<PipeReader>,
    output: Vec<u8>,
    begun: Duration,
    kill_at: Option<Duration>,
}

impl Check {
    /// When it is to be killed; `None` once it was.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.kill_at
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
    /// Begins a check with `timeout`, or with the healthcheck's own. Never while one is running.
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
                let kill_at = Some(now.saturating_add(timeout));
                self.check = Some(Check { pid, reader: Some(reader), output: Vec::new(), begun: now, kill_at });
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
        let timed_out = check.kill_at.is_none();
        let took_ms = u32::try_from((self.now() - check.begun).as_millis()).unwrap_or(u32::MAX);
        let healthy = code == 0 && !timed_out;
        self.judge_check(CheckResult { healthy, code, timed_out, took_ms, output: text(&check.output) });
    }

    fn judge_check(&mut self, result: CheckResult) {
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
            && check.kill_at.is_some_and(|at| now >= at)
        {
            check.kill_at = None;
            send_signal(Pid::from_raw(-check.pid.as_raw()), nix::libc::SIGKILL);
        }
        if self.stopping.is_none() && self.health.deadline().is_some_and(|at| now >= at) {
            self.begin_check(Origin::Schedule, None);
        }
    }
}
