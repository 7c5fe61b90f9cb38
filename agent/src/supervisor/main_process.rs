//! The main process: started, restarted, stopped.

use std::time::Duration;

use ha_proto::agent::{GaveUp, HealthChanged, Phase, ProcessEnded, Restarting, Started, event::Kind};
use nix::unistd::{Pid, getpid};

use super::{Agent, chain, cut};
use crate::{
    restarts::Next,
    spawn::{send_signal, spawn},
};

/// See the diagram in `restarts`.
#[derive(Debug)]
pub(super) enum Main {
    Running { pid: Pid, since: Duration },
    BackingOff { until: Duration },
    Ended,
    GaveUp,
}

impl Main {
    pub(super) fn deadline(&self) -> Option<Duration> {
        if let Main::BackingOff { until } = self { Some(*until) } else { None }
    }
}

/// A stop is under way.
#[derive(Debug)]
pub(super) struct Stopping {
    /// When patience ends; `None` once it has.
    pub(super) kill_at: Option<Duration>,
}

impl Agent {
    pub(super) fn start_main(&mut self) {
        let now = self.now();
        let [stdout, stderr] = &self.outputs;
        let pipes = stdout.writer.try_clone().and_then(|out| Ok((out.into(), stderr.writer.try_clone()?.into())));
        let started = match pipes {
            Ok((stdout, stderr)) => spawn(&self.config.argv, &self.config, stdout, stderr).map_err(|error| {
                self.log.say(&format!("agent: {}", chain(&error)));
                error.code
            }),
            Err(error) => {
                self.log.say(&format!("agent: no file descriptor left to start the main process: {error}"));
                Err(126)
            }
        };
        match started {
            Ok(pid) => {
                self.main = Main::Running { pid, since: now };
                self.events.push(Kind::Started(Started { main_pid: pid.as_raw().unsigned_abs() }));
                if let Some(health) = self.health.main_started(now) {
                    self.health_changed(health, String::new());
                }
            }
            Err(code) => self.judge_end(code, 0, Duration::ZERO),
        }
    }

    /// The main process was reaped.
    pub(super) fn main_ended(&mut self, code: i32, signal: i32) {
        let ran = if let Main::Running { since, .. } = self.main { self.now() - since } else { Duration::ZERO };
        self.drain_outputs();
        self.health.main_ended();
        self.judge_end(code, signal, ran);
    }

    fn judge_end(&mut self, code: i32, signal: i32, ran: Duration) {
        let end = ProcessEnded { code, signal };
        self.last_end = Some(end);
        self.events.push(Kind::ProcessEnded(end));
        self.main = Main::Ended;
        if self.stopping.is_some() {
            self.exit = Some(code);
            return;
        }
        match self.restarts.ended(code, ran) {
            Next::Exit => self.exit = Some(code),
            Next::Wait => self.log.say(&format!("agent: the main process ended with {code}; the manager decides")),
            Next::Restart { attempt, delay } => {
                self.log.say(&format!("agent: the main process ended with {code}; restart {attempt} in {delay:?}"));
                let delay_ms = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
                self.events.push(Kind::Restarting(Restarting { attempt, delay_ms }));
                self.main = Main::BackingOff { until: self.now() + delay };
            }
            Next::GiveUp { attempts } => {
                self.log
                    .say(&format!("agent: the main process ended with {code} after {attempts} restarts; giving up"));
                self.events.push(Kind::GaveUp(GaveUp { attempts, code }));
                self.main = Main::GaveUp;
            }
        }
    }

    /// Ends the container: the stop signal now, SIGKILL after `grace`. A second stop can only shorten the grace.
    pub(super) fn stop(&mut self, grace: Duration) {
        let Main::Running { pid, .. } = self.main else {
            self.exit = Some(self.last_end.map_or(0, |end| end.code));
            return;
        };
        let kill_at = self.now().saturating_add(grace);
        match &mut self.stopping {
            Some(Stopping { kill_at: Some(before) }) => *before = kill_at.min(*before),
            Some(Stopping { kill_at: None }) => {}
            none => {
                *none = Some(Stopping { kill_at: Some(kill_at) });
                send_signal(pid, self.config.stop_signal);
            }
        }
    }

    pub(super) fn main_due(&mut self) {
        let now = self.now();
        if self.main.deadline().is_some_and(|until| now >= until) {
            self.start_main();
        }
        if let Some(stopping) = &mut self.stopping
            && stopping.kill_at.is_some_and(|at| now >= at)
        {
            stopping.kill_at = None;
            if let Main::Running { pid, .. } = self.main {
                // All there is, but only where nothing else can be: as PID 1.
                let everything = if getpid().as_raw() == 1 { Pid::from_raw(-1) } else { Pid::from_raw(-pid.as_raw()) };
                send_signal(everything, nix::libc::SIGKILL);
            }
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.main {
            _ if self.stopping.is_some() || self.exit.is_some() => Phase::Stopping,
            Main::Running { .. } => Phase::Running,
            Main::BackingOff { .. } => Phase::BackingOff,
            Main::Ended => Phase::Ended,
            Main::GaveUp => Phase::GaveUp,
        }
    }

    pub(super) fn health_changed(&mut self, health: ha_proto::agent::Health, mut output: String) {
        cut(&mut output, 512);
        self.events.push(Kind::HealthChanged(HealthChanged { health: health.into(), output }));
    }
}
