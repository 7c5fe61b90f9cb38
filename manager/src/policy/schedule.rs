//! When the next checkpoint is due.
//!
//! `state-sensitivity` S is the longest loss of state the user accepts. What is lost at a failure is the time since the newest
//! *committed* snapshot was *frozen*; it is largest just before a commit: interval + time from freeze to commit. So the
//! interval is S − (freeze to commit, as measured lately), never under `min_interval`:
//!
//! ```text
//!   frozen        committed          frozen         committed
//!     │──── commit ───│                │──── commit ────│
//!     │◄──────────── interval ────────►│                │
//!     │◄──────────── at most S of state is lost ───────►│
//! ```

use std::time::{Duration, Instant};

/// The checkpoint clock of one container.
#[derive(Debug, Clone)]
pub struct Schedule {
    sensitivity: Duration,
    min_interval: Duration,
    /// Freeze to commit: a decaying maximum, so that one slow upload is remembered for a while and not for ever.
    commit_time: Duration,
    failures: u32,
    due: Instant,
}

impl Schedule {
    /// The first checkpoint is due at once: until it is committed there is nothing to go back to.
    pub fn new(sensitivity: Duration, min_interval: Duration, now: Instant) -> Self {
        Self { sensitivity, min_interval, commit_time: Duration::ZERO, failures: 0, due: now }
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    pub fn interval(&self) -> Duration {
        self.sensitivity.saturating_sub(self.commit_time).max(self.min_interval)
    }

    pub fn set_sensitivity(&mut self, sensitivity: Duration, now: Instant) {
        self.sensitivity = sensitivity;
        self.due = self.due.min(now + self.interval());
    }

    /// A dump was made; the container was frozen at `frozen_at`.
    pub fn dumped(&mut self, frozen_at: Instant) {
        self.failures = 0;
        self.due = frozen_at + self.interval();
    }

    pub fn committed(&mut self, took: Duration) {
        self.commit_time = took.max(self.commit_time.mul_f64(0.9));
    }

    /// The dump failed: tried again soon, but ever less often, up to a minute, or the interval where that is longer.
    pub fn failed(&mut self, now: Instant) {
        let wait = self.min_interval * 2u32.saturating_pow(self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.due = now + wait.min(self.interval().max(Duration::from_secs(60)));
    }

    /// The container began anew: nothing is committed that could be gone back to.
    pub fn due_now(&mut self, now: Instant) {
        self.failures = 0;
        self.due = now;
    }

    /// After a restore: what was restored is committed already.
    pub fn restart(&mut self, now: Instant) {
        self.failures = 0;
        self.due = now + self.interval();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(5);
    const MIN: Duration = Duration::from_secs(1);

    #[test]
    fn the_loss_stays_within_the_sensitivity_when_commits_take_as_long_as_before() {
        let t0 = Instant::now();
        let mut schedule = Schedule::new(S, MIN, t0);
        assert_eq!(schedule.due(), t0);
        let commit = Duration::from_millis(700);
        schedule.dumped(t0);
        schedule.committed(commit);
        let frozen = t0 + Duration::from_secs(5);
        schedule.dumped(frozen);
        assert_eq!(schedule.due() + commit - frozen, S);
    }

    #[test]
    fn a_sensitivity_that_cannot_be_kept_is_missed_by_no_more_than_it_has_to() {
        let mut schedule = Schedule::new(Duration::from_secs(2), MIN, Instant::now());
        schedule.committed(Duration::from_millis(1500));
        assert_eq!(schedule.interval(), MIN);
    }

    proptest! {
        #[test]
        fn failures_back_off_but_never_stop(failures in 1usize..200) {
            let mut now = Instant::now();
            let mut schedule = Schedule::new(S, MIN, now);
            let mut last = Duration::ZERO;
            for _ in 0..failures {
                schedule.failed(now);
                let wait = schedule.due() - now;
                prop_assert!(wait >= last && wait <= Duration::from_secs(60));
                last = wait;
                now = schedule.due();
            }
            schedule.dumped(now);
            prop_assert!(schedule.due() - now <= S);
        }
    }
}
