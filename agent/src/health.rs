//! When the healthcheck runs and what its results mean; Docker's rules.
//!
//! ```text
//!              success                     `retries` failures in a row
//!  Starting ─────────────► Healthy ─────────────────────────────► Unhealthy
//!     │                       ▲                success                │
//!     │                       └───────────────────────────────────────┘
//!     └── `retries` failures in a row, those within the start period not counted ──► Unhealthy
//!
//!  a restarted main process begins at Starting again; without a healthcheck it is None throughout
//! ```
//!
//! A check the manager asked for makes the container healthy when it succeeds. When it fails it does not count: how often
//! the manager asks has no influence on how soon a container is unhealthy.
//!
//! A scheduled check that a checkpoint breaks off does not count and begins again after it. The next one is spared, or a check
//! that takes longer than checkpoints are apart would never have a result.

use std::time::Duration;

use ha_proto::agent::{Health, HealthcheckConfig};

/// Who wanted a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Schedule,
    Manager,
}

#[derive(Debug)]
struct Running {
    origin: Origin,
    begun: Duration,
}

/// The state machine. It runs nothing itself; `now` is the agent's own time.
#[derive(Debug)]
pub struct Machine {
    config: Option<HealthcheckConfig>,
    health: Health,
    streak: u32,
    /// When the main process started; `None` while there is none, and then nothing is checked.
    started: Option<Duration>,
    next_at: Duration,
    held_until: Duration,
    running: Option<Running>,
    /// The check before was broken off; this one is not.
    spared: bool,
}

impl Machine {
    pub fn new(config: Option<HealthcheckConfig>) -> Self {
        let health = if config.is_some() { Health::Starting } else { Health::None };
        Self {
            config,
            health,
            streak: 0,
            started: None,
            next_at: Duration::ZERO,
            held_until: Duration::ZERO,
            running: None,
            spared: false,
        }
    }

    pub fn health(&self) -> Health {
        self.health
    }

    pub fn streak(&self) -> u32 {
        self.streak
    }

    pub fn config(&self) -> Option<&HealthcheckConfig> {
        self.config.as_ref()
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// True when the running check is one of the schedule's own: nobody waits for its result.
    pub fn is_scheduled(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.origin == Origin::Schedule)
    }

    /// True when a checkpoint may end the running check without a result.
    pub fn may_break_off(&self) -> bool {
        self.is_scheduled() && !self.spared
    }

    /// The running check was ended without a result; the next is due at once.
    pub fn broken_off(&mut self, now: Duration) {
        self.running = None;
        self.spared = true;
        self.next_at = now;
    }

    /// Returns the new health when it changed.
    pub fn main_started(&mut self, now: Duration) -> Option<Health> {
        self.started = Some(now);
        self.streak = 0;
        self.next_at = now + self.interval(now);
        if self.config.is_some() { self.become_(Health::Starting) } else { None }
    }

    pub fn main_ended(&mut self) {
        self.started = None;
    }

    /// Begins no scheduled check for `hold` from now on; zero ends a hold.
    pub fn hold(&mut self, now: Duration, hold: Duration) {
        self.held_until = now + hold;
    }

    /// When the next scheduled check is due.
    pub fn deadline(&self) -> Option<Duration> {
        (self.config.is_some() && self.started.is_some() && self.running.is_none())
            .then_some(self.next_at.max(self.held_until))
    }

    /// A check begins. Never while one is running.
    pub fn begin(&mut self, now: Duration, origin: Origin) {
        debug_assert!(self.running.is_none());
        self.running = Some(Running { origin, begun: now });
    }

    /// The running check ended. Returns the new health when it changed.
    pub fn finished(&mut self, now: Duration, success: bool) -> Option<Health> {
        let running = self.running.take()?;
        self.spared = false;
        let change = self.judge(&running, success);
        self.next_at = now + self.interval(now);
        change
    }

    fn judge(&mut self, running: &Running, success: bool) -> Option<Health> {
        let started = self.started?;
        if running.begun < started {
            return None; // The main process it looked at is gone.
        }
        if success {
            self.streak = 0;
            return self.become_(Health::Healthy);
        }
        let within_start = self.health == Health::Starting && running.begun < started + self.start_period();
        if running.origin == Origin::Manager || within_start {
            return None;
        }
        self.streak = self.streak.saturating_add(1);
        let retries = self.config.as_ref().map_or(u32::MAX, |c| c.retries);
        if self.streak >= retries { self.become_(Health::Unhealthy) } else { None }
    }

    fn become_(&mut self, health: Health) -> Option<Health> {
        let changed = self.health != health;
        self.health = health;
        changed.then_some(health)
    }

    fn start_period(&self) -> Duration {
        Duration::from_millis(self.config.as_ref().map_or(0, |c| c.start_period_ms))
    }

    fn interval(&self, now: Duration) -> Duration {
        let Some(config) = &self.config else { return Duration::ZERO };
        let starting = self.health == Health::Starting && self.started.is_some_and(|s| now < s + self.start_period());
        Duration::from_millis(if starting { config.start_interval_ms } else { config.interval_ms })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn machine(start_period_ms: u64) -> Machine {
        let mut machine = Machine::new(Some(HealthcheckConfig {
            argv: vec!["x".into()],
            interval_ms: 1000,
            timeout_ms: 500,
            start_period_ms,
            start_interval_ms: 100,
            retries: 3,
        }));
        machine.main_started(ms(0));
        machine
    }

    fn check(machine: &mut Machine, at: u64, origin: Origin, success: bool) -> Option<Health> {
        machine.begin(ms(at), origin);
        machine.finished(ms(at + 10), success)
    }

    #[test]
    fn three_failures_in_a_row_are_unhealthy_and_one_success_heals() {
        let mut m = machine(0);
        assert_eq!(m.deadline(), Some(ms(1000)));
        assert_eq!(check(&mut m, 1000, Origin::Schedule, true), Some(Health::Healthy));
        assert_eq!(m.deadline(), Some(ms(2010)));
        assert_eq!(check(&mut m, 2000, Origin::Schedule, false), None);
        assert_eq!(check(&mut m, 3000, Origin::Schedule, false), None);
        assert_eq!(check(&mut m, 4000, Origin::Schedule, false), Some(Health::Unhealthy));
        assert_eq!(check(&mut m, 5000, Origin::Schedule, false), None);
        assert_eq!(m.streak(), 4);
        assert_eq!(check(&mut m, 6000, Origin::Schedule, true), Some(Health::Healthy));
        assert_eq!(m.streak(), 0);
    }

    #[test]
    fn failures_in_the_start_period_do_not_count_until_the_first_success() {
        let mut m = machine(10_000);
        assert_eq!(m.deadline(), Some(ms(100)), "within the start period the start interval holds");
        for at in [100, 200, 300, 400] {
            assert_eq!(check(&mut m, at, Origin::Schedule, false), None);
        }
        assert_eq!((m.health(), m.streak()), (Health::Starting, 0));
        assert_eq!(check(&mut m, 500, Origin::Schedule, true), Some(Health::Healthy));
        assert_eq!(m.deadline(), Some(ms(1510)));
        for at in [600, 700] {
            assert_eq!(check(&mut m, at, Origin::Schedule, false), None);
        }
        assert_eq!(check(&mut m, 800, Origin::Schedule, false), Some(Health::Unhealthy));
    }

    #[test]
    fn failures_after_the_start_period_count_from_one() {
        let mut m = machine(1000);
        check(&mut m, 999, Origin::Schedule, false);
        check(&mut m, 1001, Origin::Schedule, false);
        check(&mut m, 2001, Origin::Schedule, false);
        assert_eq!((m.health(), m.streak()), (Health::Starting, 2));
        assert_eq!(check(&mut m, 3001, Origin::Schedule, false), Some(Health::Unhealthy));
    }

    #[test]
    fn a_hold_delays_and_ends() {
        let mut m = machine(0);
        m.hold(ms(900), ms(5000));
        assert_eq!(m.deadline(), Some(ms(5900)));
        m.hold(ms(1500), ms(0));
        assert_eq!(m.deadline(), Some(ms(1500)));
    }

    #[test]
    fn a_restart_begins_anew_and_the_check_of_the_old_process_is_not_believed() {
        let mut m = machine(0);
        check(&mut m, 1000, Origin::Schedule, true);
        m.begin(ms(2000), Origin::Schedule);
        assert_eq!(m.deadline(), None);
        m.main_ended();
        assert_eq!(m.main_started(ms(2100)), Some(Health::Starting));
        assert_eq!(m.finished(ms(2200), true), None);
        assert_eq!(m.health(), Health::Starting);
    }

    #[test]
    fn without_a_main_process_or_a_healthcheck_nothing_is_due() {
        let mut m = machine(0);
        m.main_ended();
        assert_eq!(m.deadline(), None);
        let mut none = Machine::new(None);
        assert_eq!(none.main_started(ms(0)), None);
        assert_eq!((none.deadline(), none.health()), (None, Health::None));
    }

    proptest! {
        #[test]
        fn only_scheduled_failures_make_unhealthy_and_only_success_makes_healthy(
            steps in prop::collection::vec((any::<bool>(), any::<bool>()), 0..60)
        ) {
            let mut m = machine(0);
            let (mut streak, mut at) = (0, 1000);
            for (scheduled, success) in steps {
                let origin = if scheduled { Origin::Schedule } else { Origin::Manager };
                let before = m.health();
                let change = check(&mut m, at, origin, success);
                at += 1000;
                streak = if success { 0 } else { streak + u32::from(scheduled) };
                let wanted = if success { Health::Healthy } else if streak >= 3 { Health::Unhealthy } else { before };
                prop_assert_eq!(m.health(), wanted);
                prop_assert_eq!(change.is_some(), wanted != before);
            }
        }
    }
}
