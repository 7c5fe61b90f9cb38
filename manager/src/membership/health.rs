//! Our own health (Lifeguard's local health multiplier): when we are the slow one, we take longer to blame others.

// Pure: time comes in as an argument.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Health {
    score: u32,
    max: u32,
}

impl Health {
    pub fn new(max: u32) -> Self {
        Self { score: 0, max }
    }

    pub fn score(&self) -> u32 {
        self.score
    }

    /// A timer of ours was late, a relay we asked did not even say no, or somebody suspected us.
    pub fn worse(&mut self) {
        self.score = (self.score + 1).min(self.max);
    }

    /// A probe of ours was answered in time.
    pub fn better(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    pub fn scale(&self, time: Duration) -> Duration {
        time * (self.score + 1)
    }
}
