//! How long a container that ended is left down before it is brought up again.
//!
//! ```text
//!            ended after it was up for 10 s or longer: again at once
//!           ┌──────────────────────────────────────────────────────┐
//!           ▼            ended sooner                               │
//!        steady ──────────────────────► hasty(1), again at once ────┤
//!           ▲                             │ ended sooner            │
//!           │ order of its operator       ▼                         │
//!           └───────────────────────── hasty(n), again after 1, 2, 4 … 30 s
//! ```
//!
//! A container that had run for a while is never kept waiting: a failover takes no longer for this.

use std::time::Duration;

/// Who was up for so long has come up.
pub const SETTLED: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// How often in a row a container ended soon after it was brought up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    hasty: u32,
}

impl Backoff {
    /// It ended after `up`. Returns how long it stays down before it is brought up again.
    pub fn ended(&mut self, up: Duration) -> Duration {
        if up >= SETTLED {
            self.hasty = 0;
            return Duration::ZERO;
        }
        self.hasty = self.hasty.saturating_add(1);
        match self.hasty {
            1 => Duration::ZERO,
            n => FIRST.saturating_mul(2u32.saturating_pow(n - 2)).min(LONGEST),
        }
    }

    /// How often in a row.
    pub fn hasty(&self) -> u32 {
        self.hasty
    }

    /// Its operator wants it up now.
    pub fn forget(&mut self) {
        self.hasty = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_wait_doubles_to_its_bound_and_begins_again_after_a_good_run() {
        let mut backoff = Backoff::default();
        let mut hasty = || backoff.ended(Duration::from_millis(200)).as_secs();
        assert_eq!([(); 8].map(|()| hasty()), [0, 1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(backoff.ended(SETTLED), Duration::ZERO);
        assert_eq!(backoff.ended(Duration::ZERO), Duration::ZERO);
        assert_eq!(backoff.ended(Duration::ZERO), FIRST);
        backoff.forget();
        assert_eq!(backoff.ended(Duration::ZERO), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn what_had_run_comes_back_at_once_and_what_does_not_run_ever_less_often(ups in prop::collection::vec(0u64..20_000, 1..60)) {
            let (mut backoff, mut before) = (Backoff::default(), Duration::ZERO);
            for up in ups.into_iter().map(Duration::from_millis) {
                let wait = backoff.ended(up);
                if up >= SETTLED {
                    prop_assert_eq!(wait, Duration::ZERO);
                } else {
                    prop_assert!(wait >= before && wait <= LONGEST && (wait > before || before.is_zero() || wait == LONGEST));
                }
                before = wait;
            }
        }
    }
}
