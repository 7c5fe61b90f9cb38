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
    /// Unanswered pings in a row until the agent hangs. Default 3.
    pub misses: u32,
}

impl Default for WatchdogConfig {
    fn default() -> Self {
        Self { misses: 3 }
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
    missed: u32,
}

impl Watchdog {
    pub fn new(config: WatchdogConfig, now: Instant) -> Self {
        Self { config, answered: now, missed: 0 }
    }

    pub fn answered(&mut self, now: Instant) {
        (self.answered, self.missed) = (now, 0);
    }

    /// The ping timed out or could not be delivered.
    pub fn missed(&mut self) {
        self.missed = self.missed.saturating_add(1);
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
    fn three_misses_hang_and_an_answer_revives() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut dog = Watchdog::new(WatchdogConfig::default(), start);
        dog.missed();
        dog.missed();
        assert_eq!(dog.verdict(at(2)), Verdict::Late(2));
        dog.missed();
        assert_eq!(dog.verdict(at(3)), Verdict::Hung(Duration::from_secs(3)));
        dog.answered(at(4));
        assert_eq!(dog.verdict(at(4)), Verdict::Alive);
    }
}
