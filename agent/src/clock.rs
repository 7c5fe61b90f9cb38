//! Time as the agent counts it.
//!
//! `CLOCK_MONOTONIC` jumps, forwards or backwards, when a container is restored on another node. Deadlines are therefore
//! set on a clock of the agent's own, which adds up the time between two rounds of its loop and refuses to believe in a
//! round that took seconds longer than asked for.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A round may be this much late (a busy machine, the freeze of a checkpoint) and still counts in full.
const SLACK: Duration = Duration::from_secs(2);

/// What a jump counts for: not nothing, so that on a hopelessly slow machine time still passes.
const JUMP: Duration = Duration::from_millis(100);

/// The agent's time: how long it has been running, checkpoints and restores left out.
#[derive(Debug)]
pub struct Clock {
    raw: Duration,
    elapsed: Duration,
}

impl Clock {
    pub fn new(raw: Duration) -> Self {
        Self { raw, elapsed: Duration::ZERO }
    }

    pub fn now(&self) -> Duration {
        self.elapsed
    }

    /// Ends a round that was to take `expected` at most. True when the clock jumped: probably this is another node.
    pub fn advance(&mut self, raw: Duration, expected: Duration) -> bool {
        let passed = raw.checked_sub(self.raw).filter(|passed| *passed <= expected + SLACK);
        self.raw = raw;
        self.elapsed += passed.unwrap_or(JUMP);
        passed.is_none()
    }
}

/// `CLOCK_MONOTONIC`; zero if it cannot be read, which no Linux does.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// Since 1970 UTC.
pub fn wall() -> Duration {
    clock_gettime(ClockId::CLOCK_REALTIME).map(Duration::from).unwrap_or_default()
}

/// RFC 3339, UTC, milliseconds: `2026-11-23T06:45:00.123Z`.
pub fn rfc3339(since_1970: Duration) -> String {
    let secs = since_1970.as_secs();
    let (day, second) = (secs / 86_400, secs % 86_400);
    // Days to a civil date in eras of 400 years that begin on 1 March.
    let shifted = day + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day_of_month:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since_1970.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn ordinary_rounds_count_in_full_and_jumps_hardly() {
        let mut clock = Clock::new(1_000_000 * MS);
        assert!(!clock.advance(1_000_050 * MS, 50 * MS));
        assert!(!clock.advance(1_001_050 * MS, 10 * MS), "a freeze of a second is no jump");
        assert_eq!(clock.now(), 1050 * MS);
        assert!(clock.advance(9_000_000 * MS, 50 * MS), "a node that has been up for longer");
        assert!(clock.advance(500 * MS, 50 * MS), "a node that has just booted");
        assert_eq!(clock.now(), 1250 * MS);
        assert!(!clock.advance(510 * MS, 50 * MS));
        assert_eq!(clock.now(), 1260 * MS);
    }

    proptest! {
        #[test]
        fn it_never_runs_backwards_nor_past_what_was_asked_for(rounds in prop::collection::vec((0u64..1 << 50, 0u64..60_000), 1..50)) {
            let mut clock = Clock::new(Duration::ZERO);
            for (raw, expected) in rounds {
                let before = clock.now();
                clock.advance(Duration::from_millis(raw), Duration::from_millis(expected));
                prop_assert!(clock.now() >= before);
                prop_assert!(clock.now() - before <= Duration::from_millis(expected) + SLACK);
            }
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_795_416_300, "2026-11-23T06:45:00.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(secs)), text);
        }
        assert_eq!(rfc3339(Duration::from_millis(7)), "1970-01-01T00:00:00.007Z");
    }
}
