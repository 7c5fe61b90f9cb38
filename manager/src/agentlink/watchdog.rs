//! Whether an agent hangs, from the pings it answered and those it did not.
//!
//! ```text
//!            missed               missed, `misses` in a row
//!   Alive ───────────► Late ─────────────────────────────► Hung
//!     ▲                 │ answered                           │ answered
//!     └─────────────────┴────────────────────────────────────┘
//! ```

// Pure: time comes in as an argument.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// From one ping to the next, and how long one may take. Default 1 s.
    pub interval: Duration,
    /// Unanswered pings in a row until the agent hangs. Default 3.
    pub misses: u32,
}

impl Default for WatchdogConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), misses: 3 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Alive,
    /// Pings in a row without an answer, fewer than it takes.
    Late(u32),
    /// Without an answer for this long.
    Hung(Duration),
}

/// The state; the caller has the clock and sends the pings.
#[derive(Debug)]
pub struct Watchdog {
    config: WatchdogConfig,
    answered: Instant,
    pinged: Option<Instant>,
    missed: u32,
    suspended: bool,
}

impl Watchdog {
    pub fn new(config: WatchdogConfig, now: Instant) -> Self {
        Self { config, answered: now, pinged: None, missed: 0, suspended: false }
    }

    /// Whether a ping is to be sent now, with [`WatchdogConfig::interval`] as its timeout.
    pub fn due(&self, now: Instant) -> bool {
        !self.suspended && self.pinged.is_none_or(|at| now.duration_since(at) >= self.config.interval)
    }

    pub fn pinged(&mut self, now: Instant) {
        self.pinged = Some(now);
    }

    pub fn answered(&mut self, now: Instant) {
        (self.answered, self.missed) = (now, 0);
    }

    /// The ping timed out or could not be delivered.
    pub fn missed(&mut self) {
        if !self.suspended {
            self.missed = self.missed.saturating_add(1);
        }
    }

    /// The container is being frozen: silence means nothing.
    pub fn suspend(&mut self) {
        self.suspended = true;
    }

    /// It runs again; counting begins anew.
    pub fn resume(&mut self, now: Instant) {
        self.suspended = false;
        self.pinged = None;
        self.answered(now);
    }

    pub fn verdict(&self, now: Instant) -> Verdict {
        match self.missed {
            0 => Verdict::Alive,
            n if n < self.config.misses => Verdict::Late(n),
            _ => Verdict::Hung(now.duration_since(self.answered)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_misses_hang_an_answer_revives_and_a_freeze_does_not_count() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut dog = Watchdog::new(WatchdogConfig::default(), start);
        assert!(dog.due(start));
        dog.pinged(start);
        assert!(!dog.due(start + Duration::from_millis(999)) && dog.due(at(1)));
        dog.missed();
        dog.missed();
        assert_eq!(dog.verdict(at(2)), Verdict::Late(2));
        dog.missed();
        assert_eq!(dog.verdict(at(3)), Verdict::Hung(Duration::from_secs(3)));
        dog.answered(at(4));
        assert_eq!(dog.verdict(at(4)), Verdict::Alive);
        dog.suspend();
        assert!(!dog.due(at(60)));
        (0..5).for_each(|_| dog.missed());
        dog.resume(at(60));
        assert_eq!((dog.verdict(at(60)), dog.due(at(60))), (Verdict::Alive, true));
    }
}
