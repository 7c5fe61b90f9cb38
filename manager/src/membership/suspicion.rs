//! How long a suspicion lasts (Lifeguard's local health aware suspicion): long while only one node holds it, shorter
//! with each peer that finds the same on its own.

// Pure: time comes in as an argument.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::Duration;

use super::message::Time;
use crate::spec::NodeName;

/// How often one suspicion is lengthened because we ourselves were stalled and its peer got no fair chance.
const MAX_GRACES: u8 = 3;

/// The time that is left to a suspect in any case, in a cluster of `nodes`: rumours need `O(log n)` rounds to reach it.
pub fn least(suspicion: Duration, nodes: usize) -> Duration {
    suspicion.mul_f64((nodes.max(1) as f64).log10().max(1.0))
}

/// `max − (max − min)·ln(c + 1)/ln(k + 1)`, not below `min`, with `max = factor·min`; `min` when nobody could confirm.
pub fn timeout(least: Duration, factor: u32, confirmed: usize, wanted: usize) -> Duration {
    if confirmed >= wanted {
        return least;
    }
    let share = ((confirmed + 1) as f64).ln() / ((wanted + 1) as f64).ln();
    least + least.mul_f64(f64::from(factor.saturating_sub(1)) * (1.0 - share).clamp(0.0, 1.0))
}

#[derive(Debug, Clone)]
pub struct Suspicion {
    started: Time,
    /// The first is who raised it, the others confirm.
    accusers: Vec<NodeName>,
    /// No end before this: set when we were stalled.
    not_before: Time,
    graces: u8,
}

impl Suspicion {
    pub fn new(accuser: NodeName, now: Time) -> Self {
        Self { started: now, accusers: vec![accuser], not_before: Time::ZERO, graces: 0 }
    }

    pub fn accuser(&self) -> &NodeName {
        &self.accusers[0]
    }

    /// True when `accuser` is new and counts, with at most `wanted` confirmations kept.
    pub fn confirm(&mut self, accuser: &NodeName, wanted: usize) -> bool {
        if self.accusers.len() > wanted || self.accusers.contains(accuser) {
            return false;
        }
        self.accusers.push(accuser.clone());
        true
    }

    pub fn deadline(&self, least: Duration, factor: u32, wanted: usize) -> Time {
        (self.started + timeout(least, factor, self.accusers.len() - 1, wanted)).max(self.not_before)
    }

    /// We slept for `late`: that time does not count against the peer, and `fresh` is the least it gets from now on.
    pub fn excuse(&mut self, late: Duration, now: Time, fresh: Duration) {
        self.started = (self.started + late).min(now);
        if self.graces < MAX_GRACES {
            self.graces += 1;
            self.not_before = now + fresh;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(600);

    #[test]
    fn each_confirmation_shortens_it_down_to_the_least() {
        assert_eq!(timeout(MIN, 3, 0, 2), MIN * 3);
        let one = timeout(MIN, 3, 1, 2);
        assert!(one < MIN * 2 && one > MIN, "{one:?}");
        assert_eq!(timeout(MIN, 3, 2, 2), MIN);
        assert_eq!(timeout(MIN, 3, 9, 2), MIN);
        assert_eq!(timeout(MIN, 3, 0, 0), MIN, "two nodes: nobody to ask");
    }

    #[test]
    fn one_accuser_counts_once() {
        let name = |n: &str| n.parse::<NodeName>().unwrap();
        let mut s = Suspicion::new(name("a"), Time::ZERO);
        assert!(!s.confirm(&name("a"), 2));
        assert!(s.confirm(&name("b"), 2));
        assert!(!s.confirm(&name("b"), 2));
        assert!(s.confirm(&name("c"), 2));
        assert!(!s.confirm(&name("d"), 2), "more are not kept");
    }

    #[test]
    fn a_stall_excuses_but_not_for_ever() {
        let mut s = Suspicion::new("a".parse().unwrap(), Time::ZERO);
        let fresh = Duration::from_millis(350);
        let mut now = Time::from_secs(1);
        for _ in 0..3 {
            s.excuse(Duration::from_millis(10), now, fresh);
            assert_eq!(s.deadline(MIN, 3, 0), (now + fresh).max(MIN));
            now += Duration::from_secs(1);
        }
        s.excuse(Duration::from_millis(10), now, fresh);
        assert!(s.deadline(MIN, 3, 0) < now, "the fourth stall gives no fresh start");
    }
}
