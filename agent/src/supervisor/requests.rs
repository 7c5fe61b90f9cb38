//! What the manager asks for.

use std::{fs, time::Duration};

use ha_proto::agent::{CheckResult, Phase, Reply, Request, Status, request::Kind};

use super::{
    Agent,
    checks::{Check, STUCK},
    main_process::Main,
};
use crate::{health::Origin, server::Id};

/// Bounds on what a request may ask for.
const MAX_CHECK: Duration = Duration::from_secs(60);
const MAX_HOLD: Duration = Duration::from_secs(600);

/// How long a reply may be owed: a check that is running, then the one asked for.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// A reply that is owed.
#[derive(Debug)]
pub(super) struct Waiter {
    id: Id,
    nonce: u64,
    deadline: Duration,
    wants: Wants,
}

#[derive(Debug)]
enum Wants {
    /// A check that has not begun: what is running now began before it was asked for.
    CheckToBegin { timeout: Option<Duration> },
    /// The result of the running check.
    CheckResult,
    /// That no check is running; then none is begun for `hold`.
    Quiet { hold: Duration },
}

impl Agent {
    pub(super) fn request(&mut self, id: Id, request: Request) {
        let (now, nonce) = (self.now(), request.nonce);
        match request.kind {
            Some(Kind::Ping(ping)) => self.answer(id, nonce, ping.seen_seq, String::new()),
            Some(Kind::Check(_)) if self.health.config().is_none() => self.answer(id, nonce, 0, String::new()),
            Some(Kind::Check(_)) if !matches!(self.main, Main::Running { .. }) => {
                self.answer(id, nonce, 0, "the main process is not running; there is nothing to check".to_owned());
            }
            Some(Kind::Check(check)) => {
                let asked = Duration::from_millis(check.timeout_ms.into());
                let timeout = (!asked.is_zero()).then_some(asked.min(MAX_CHECK));
                self.wait(id, nonce, Wants::CheckToBegin { timeout });
            }
            Some(Kind::Quiesce(quiesce)) => {
                let hold = Duration::from_millis(quiesce.hold_ms.into()).min(MAX_HOLD);
                if hold.is_zero() {
                    self.health.hold(now, hold);
                    self.answer(id, nonce, 0, String::new());
                } else {
                    self.hush();
                    self.wait(id, nonce, Wants::Quiet { hold });
                }
            }
            Some(Kind::Stop(stop)) => {
                self.stop(Duration::from_millis(stop.grace_ms.into()));
                self.answer(id, nonce, 0, String::new());
            }
            None => {
                self.answer(id, nonce, 0, "this agent does not know the request; it is of another release".to_owned())
            }
        }
    }

    fn wait(&mut self, id: Id, nonce: u64, wants: Wants) {
        let deadline = self.now() + MAX_WAIT;
        self.server.park(id, deadline);
        self.waiters.push(Waiter { id, nonce, deadline, wants });
    }

    /// Begins the check that is waited for, and answers those who wait for quiet.
    pub(super) fn answer_waiters(&mut self) {
        let now = self.now();
        self.waiters.retain(|waiter| waiter.deadline > now);
        let stuck = self.check.as_ref().is_some_and(Check::is_stuck);
        if self.health.is_running() || (self.check.is_some() && !stuck) {
            return;
        }
        let wanted = self.waiters.iter().find_map(|waiter| match waiter.wants {
            Wants::CheckToBegin { timeout } => Some(timeout),
            _ => None,
        });
        if let Some(timeout) = wanted {
            for waiter in &mut self.waiters {
                if matches!(waiter.wants, Wants::CheckToBegin { .. }) {
                    waiter.wants = Wants::CheckResult;
                }
            }
            if stuck {
                self.judge_stuck(Origin::Manager);
            } else {
                self.begin_check(Origin::Manager, timeout);
                return;
            }
        }
        let error = if stuck { STUCK } else { "" };
        for waiter in std::mem::take(&mut self.waiters) {
            match waiter.wants {
                Wants::Quiet { hold } => {
                    self.health.hold(now, if stuck { Duration::ZERO } else { hold });
                    self.answer(waiter.id, waiter.nonce, 0, error.to_owned());
                }
                _ => self.waiters.push(waiter),
            }
        }
    }

    pub(super) fn is_quiet_wanted(&self) -> bool {
        self.waiters.iter().any(|waiter| matches!(waiter.wants, Wants::Quiet { .. }))
    }

    /// The running check has ended with `result`.
    pub(super) fn answer_checks(&mut self, result: &CheckResult) {
        let (done, rest): (Vec<_>, _) =
            std::mem::take(&mut self.waiters).into_iter().partition(|w| matches!(w.wants, Wants::CheckResult));
        self.waiters = rest;
        for waiter in done {
            let reply = Reply {
                nonce: waiter.nonce,
                status: Some(self.status(0)),
                error: String::new(),
                check: Some(result.clone()),
            };
            self.server.reply(waiter.id, &reply, self.now());
        }
    }

    fn answer(&mut self, id: Id, nonce: u64, seen_seq: u64, error: String) {
        let reply = Reply { nonce, status: Some(self.status(seen_seq)), error, check: None };
        self.server.reply(id, &reply, self.now());
    }

    fn status(&self, seen_seq: u64) -> Status {
        let main_pid = if let Main::Running { pid, .. } = self.main { pid.as_raw().unsigned_abs() } else { 0 };
        Status {
            incarnation: self.incarnation.clone(),
            main_running: main_pid != 0,
            main_pid,
            restarts: self.restarts.total(),
            health: self.health.health().into(),
            failing_streak: self.health.streak(),
            health_output: if self.health.streak() > 0 { self.health_output.clone() } else { String::new() },
            processes: count_processes(),
            recent: self.events.after(seen_seq),
            phase: Phase::into(self.phase()),
            last_end: self.last_end.clone(),
            log_dropped_lines: self.log.dropped_total(),
        }
    }
}

/// Entries of /proc that are processes, the agent's own left out.
fn count_processes() -> u32 {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let is_pid = |name: &[u8]| !name.is_empty() && name.iter().all(u8::is_ascii_digit);
    let count = entries.flatten().filter(|entry| is_pid(entry.file_name().as_encoded_bytes())).count();
    u32::try_from(count.saturating_sub(1)).unwrap_or(u32::MAX)
}
