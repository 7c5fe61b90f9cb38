//! CLOCK_MONOTONIC as a number, which one process can tell another, and `Instant`, which it cannot.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::protocol::Due;

/// Nanoseconds of CLOCK_MONOTONIC.
pub(super) fn now() -> u64 {
    // It cannot fail for this clock; 0 would be long past, and fences.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}

/// One moment on both scales. `Instant` is CLOCK_MONOTONIC on Linux, so one pair is enough for ever.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    number: u64,
    instant: Instant,
}

impl Pair {
    /// The number is read first: a deadline is told too early by the time between the two, never too late.
    pub fn take() -> Self {
        let mut closest = (u64::MAX, Self::once().1);
        for _ in 0..8 {
            closest = std::cmp::min_by_key(closest, Self::once(), |(gap, _)| *gap);
        }
        closest.1
    }

    fn once() -> (u64, Self) {
        let number = now();
        let instant = Instant::now();
        (now() - number, Self { number, instant })
    }

    pub fn due(self, at: Instant) -> Due {
        let ahead = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Due::At(match at.checked_duration_since(self.instant) {
            Some(later) => self.number.saturating_add(ahead(later)),
            None => self.number.saturating_sub(ahead(self.instant - at)),
        })
    }

    /// `None` for a moment that `Instant` has no room for.
    pub fn instant(self, number: u64) -> Option<Instant> {
        match number.checked_sub(self.number) {
            Some(ahead) => self.instant.checked_add(Duration::from_nanos(ahead)),
            None => self.instant.checked_sub(Duration::from_nanos(self.number - number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_same_on_both_scales() {
        let pair = Pair::take();
        for ahead in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(900)] {
            let at = pair.instant + ahead;
            let Due::At(number) = pair.due(at) else { panic!() };
            assert_eq!(pair.instant(number), Some(at));
            assert_eq!(number, pair.number + ahead.as_nanos() as u64);
        }
        let before = pair.instant - Duration::from_nanos(17);
        assert_eq!(pair.due(before), Due::At(pair.number - 17));
        assert_eq!(pair.instant(pair.number - 17), Some(before));
    }

    #[test]
    fn what_was_told_has_not_come_later() {
        let pair = Pair::take();
        for _ in 0..1000 {
            let at = Instant::now();
            assert!(matches!(pair.due(at), Due::At(number) if number <= now()));
        }
    }
}
