//! The main process: started, restarted, stopped.

use std::time::Duration;

use ha_proto::agent::{
    GaveUp, HealthChanged, MAX_TEXT, Phase, ProcessEnded, Restarting, Started, event::Kind, harmless,
};
use nix::unistd::{Pid, getpid};

use super::{Agent, chain, cut};
use crate::{
    restarts::Next,
    spawn::{has_children, send_signal, spawn},
};

/// After the delay, what the old main process left behind has so long to be gone; then the new one is started beside it.
const LEFTOVERS: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// See the diagram in `restarts`. `patience` is when a restart no longer waits for leftovers.
#[derive(Debug)]
pub(super) enum Main {
    Running { pid: Pid, since: Duration },
    BackingOff { until: Duration, patience: Duration },
    Ended,
    GaveUp,
}

impl Main {
    pub(super) fn deadline(&self) -> Option<Duration> {
        if let Main::BackingOff { until, .. } = self { Some(*until) } else { None }
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
            Ok((stdout, stderr)) => {
                spawn(&self.config.argv, &self.config, stdout, stderr).map_err(|error| (error.code, chain(&error)))
            }
            Err(error) => Err((126, format!("no file descriptor left to start the main process: {error}"))),
        };
        match started {
            Ok(pid) => {
                self.main = Main::Running { pid, since: now };
                self.events.push(Kind::Started(Started { main_pid: pid.as_raw().unsigned_abs() }));
                if let Some(health) = self.health.main_started(now) {
                    self.health_changed(health, String::new());
                }
            }
            Err((code, why)) => {
                self.log.say(&format!("agent: {why}"));
                let not_started = harmless(why.as_bytes(), MAX_TEXT);
                self.judge_end(ProcessEnded { code, not_started, ..ProcessEnded::default() }, Duration::ZERO);
            }
        }
    }

    /// The main process was reaped.
    pub(super) fn main_ended(&mut self, code: i32, signal: i32) {
        let Main::Running { pid, since } = self.main else { return };
        let ran = self.now() - since;
        self.drain_outputs();
        self.health.main_ended();
        self.abandon_check();
        let ran_ms = u64::try_from(ran.as_millis()).unwrap_or(u64::MAX);
        let last_output = self.tail.take();
        self.judge_end(ProcessEnded { code, signal, ran_ms, last_output, ..ProcessEnded::default() }, ran);
        if matches!(self.main, Main::BackingOff { .. }) {
            // Its workers would keep what the new one needs, the listening socket first of all.
            kill_all(pid);
        }
    }

    fn judge_end(&mut self, end: ProcessEnded, ran: Duration) {
        let code = end.code;
        self.last_end = Some(end.clone());
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
                let until = self.now() + delay;
                self.main = Main::BackingOff { until, patience: until + LEFTOVERS };
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
            self.exit = Some(self.last_end.as_ref().map_or(0, |end| end.code));
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
        if let Main::BackingOff { until, patience } = self.main
            && now >= until
        {
            let leftovers = is_init() && has_children();
            if leftovers && now < patience {
                self.main = Main::BackingOff { until: now + LOOK_AGAIN, patience };
            } else {
                if leftovers {
                    self.log.say("agent: processes of the old main process do not end although they were killed");
                }
                self.start_main();
            }
        }
        if let Some(stopping) = &mut self.stopping
            && stopping.kill_at.is_some_and(|at| now >= at)
        {
            stopping.kill_at = None;
            if let Main::Running { pid, .. } = self.main {
                kill_all(pid);
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

fn is_init() -> bool {
    getpid().as_raw() == 1
}

/// All there is, but only where nothing else can be: as PID 1. Elsewhere the group of the main process `pid`.
fn kill_all(pid: Pid) {
    let target = if is_init() { -1 } else { -pid.as_raw() };
    send_signal(Pid::from_raw(target), nix::libc::SIGKILL);
}
