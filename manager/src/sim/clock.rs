//! A node's monotonic clock: an origin of its own, and a rate that is not quite right.

use super::Micros;

/// Counts since the node's power came on.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    since: Micros,
    then: Micros,
    /// Millionths by which it is fast (slow when negative).
    drift: i64,
}

impl Clock {
    pub fn new(now: Micros, origin: Micros, drift: i64) -> Self {
        Self { since: now, then: origin, drift }
    }

    /// What the clock shows.
    pub fn read(&self, now: Micros) -> Micros {
        self.then + scaled(now - self.since, 1_000_000 + self.drift, 1_000_000)
    }

    /// The first instant at which it shows at least `shown`.
    pub fn when(&self, shown: Micros) -> Micros {
        let ahead = shown.saturating_sub(self.then);
        let mut at = self.since + scaled(ahead, 1_000_000, 1_000_000 + self.drift);
        while self.read(at) < shown {
            at += 1;
        }
        at
    }

    pub fn set_drift(&mut self, now: Micros, drift: i64) {
        *self = Self { since: now, then: self.read(now), drift };
    }
}

fn scaled(value: Micros, by: i64, of: i64) -> Micros {
    let scaled = i128::from(value) * i128::from(by) / i128::from(of);
    Micros::try_from(scaled).unwrap_or(Micros::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_what_was_waited_for_at_the_first_instant_and_never_goes_back() {
        for drift in [-10_000, -1, 0, 1, 10_000] {
            let mut clock = Clock::new(500, 7_000_000, drift);
            for shown in [7_000_000, 7_000_001, 8_123_457] {
                let at = clock.when(shown);
                assert!(clock.read(at) >= shown && (at == 500 || clock.read(at - 1) < shown), "{drift} {shown}");
            }
            let before = clock.read(2_000_000);
            clock.set_drift(2_000_000, -drift);
            assert_eq!(clock.read(2_000_000), before);
        }
    }
}
