//! Whether a node has been silent long enough that its leases are over: what a taker goes by.
//!
//! A node lives by this node's answers or by its own beats in the store (`lease`). So it is silent when this node has given it no
//! answer for `short`, and a look at the store found no beat of it that this node has not known for `long`, and no mark that
//! it is parked. Only this node's monotonic clock counts, and only when it *saw* something: no writer's clock, no age of an object.
//!
//! ```text
//!              a look without a beat             no answer for `short`
//!   unseen ──────────────────────────► unheard ───────────────────────► silent
//!      ▲                                  │ ▲                             │
//!      │ a look that failed,              │ │ every beat known for `long` │ a new beat, an answer
//!      │ or a beat that went              ▼ │                             ▼
//!      └────────────────────────────── beating ◄──────────────────────────┘
//! ```

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::lease::Terms;
use crate::spec::NodeName;

/// What a look through the store found of the nodes' lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// The numbers of the beats that are there.
    pub beats: BTreeMap<NodeName, BTreeSet<u64>>,
    pub parked: BTreeSet<NodeName>,
}

/// Why a node is not taken for gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// This node answered it less than `short` ago; until then nothing can be said.
    Answered { until: Instant },
    /// It has written to the store; until then its renewal may count.
    Writes { until: Instant },
    /// It shows no other sign of life: its manager was stopped and its containers go on.
    Parked,
    /// The store has not been looked through, or what was found there has to be looked at once more.
    Unknown,
}

/// What this node has seen of the others in the store.
#[derive(Debug)]
pub struct Silence {
    /// Nobody's answer from before is remembered: each may have been given just then.
    started: Instant,
    seen: BTreeMap<NodeName, BTreeMap<u64, Instant>>,
    parked: BTreeSet<NodeName>,
    /// Their last beat went between two looks: one of its successors may have been missed.
    gone: BTreeSet<NodeName>,
    looked: bool,
}

impl Silence {
    pub fn new(started: Instant) -> Self {
        Self { started, seen: BTreeMap::new(), parked: BTreeSet::new(), gone: BTreeSet::new(), looked: false }
    }

    /// A look has ended just now, and found this.
    pub fn looked(&mut self, now: Instant, traces: Traces) {
        let before = std::mem::take(&mut self.seen);
        for (node, beats) in &traces.beats {
            let known = before.get(node);
            let when = |beat: &u64| known.and_then(|known| known.get(beat)).copied().unwrap_or(now);
            self.seen.insert(node.clone(), beats.iter().map(|beat| (*beat, when(beat))).collect());
        }
        let still = |node: &NodeName| self.seen.get(node).is_some_and(|beats| !beats.is_empty());
        self.gone = before.into_iter().filter(|(node, beats)| !beats.is_empty() && !still(node)).map(|b| b.0).collect();
        self.parked = traces.parked;
        self.looked = true;
    }

    /// A look that failed: what was written meanwhile was not seen.
    pub fn failed(&mut self) {
        self.looked = false;
    }

    /// Whether a beat of it was found that had not been there at `then`, or whether that cannot be said.
    pub fn wrote_since(&self, node: &NodeName, then: Instant) -> bool {
        let beats = self.seen.get(node).into_iter().flat_map(|beats| beats.values());
        !self.looked || self.gone.contains(node) || beats.max().is_some_and(|seen| *seen > then)
    }

    /// Why `node`, which goes by `terms`, may still run what it owned, `answered` being when this node last answered it; `None`: it is
    /// silent.
    pub fn life(&self, terms: Terms, node: &NodeName, answered: Option<Instant>, now: Instant) -> Option<Life> {
        if !self.looked || self.gone.contains(node) {
            return Some(Life::Unknown);
        }
        let beats = self.seen.get(node).into_iter().flat_map(|beats| beats.values());
        if let Some(until) = beats.max().map(|seen| *seen + terms.long).filter(|until| *until > now) {
            return Some(Life::Writes { until });
        }
        let until = answered.map_or(self.started, |at| at.max(self.started)) + terms.short;
        if until > now {
            return Some(Life::Answered { until });
        }
        // Last: a mark may have been left by an earlier manager, and an operator's word is believed against a mark alone.
        self.parked.contains(node).then_some(Life::Parked)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TERMS: Terms = Terms { short: Duration::from_secs(1), long: Duration::from_secs(15) };

    fn n2() -> NodeName {
        "n2".parse().unwrap()
    }

    fn beats(numbers: &[u64]) -> Traces {
        Traces { beats: BTreeMap::from([(n2(), numbers.iter().copied().collect())]), parked: BTreeSet::new() }
    }

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn without_a_beat_it_is_silent_a_second_after_the_last_answer() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        assert_eq!(silence.life(TERMS, &n2(), None, at(start, 5000)), Some(Life::Unknown), "nobody has looked");
        silence.looked(at(start, 5000), Traces::default());
        let answered = Some(at(start, 4200));
        assert_eq!(
            silence.life(TERMS, &n2(), answered, at(start, 5000)),
            Some(Life::Answered { until: at(start, 5200) })
        );
        assert_eq!(silence.life(TERMS, &n2(), answered, at(start, 5200)), None);
        silence.failed();
        assert_eq!(silence.life(TERMS, &n2(), answered, at(start, 5200)), Some(Life::Unknown));
    }

    #[test]
    fn a_node_that_was_switched_off_is_back_when_it_writes_or_nobody_can_say() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        assert!(silence.wrote_since(&n2(), at(start, 100)), "nobody has looked");
        silence.looked(at(start, 100), beats(&[7]));
        silence.looked(at(start, 300), beats(&[7]));
        assert!(!silence.wrote_since(&n2(), at(start, 200)), "that one is from before");
        silence.looked(at(start, 400), beats(&[7, 8]));
        assert!(silence.wrote_since(&n2(), at(start, 200)));
        silence.looked(at(start, 500), Traces::default());
        assert!(
            silence.wrote_since(&n2(), at(start, 450)),
            "its last beat went, and one after it may have come and gone"
        );
        silence.looked(at(start, 600), Traces::default());
        assert!(!silence.wrote_since(&n2(), at(start, 450)));
    }

    #[test]
    fn a_manager_that_has_just_started_does_not_know_whom_it_answered_before() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        silence.looked(start, Traces::default());
        assert_eq!(silence.life(TERMS, &n2(), None, at(start, 999)), Some(Life::Answered { until: at(start, 1000) }));
        assert_eq!(silence.life(TERMS, &n2(), None, at(start, 1000)), None);
    }

    #[test]
    fn a_beat_counts_from_when_it_was_first_seen_and_an_old_one_not_again() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        silence.looked(at(start, 2000), beats(&[7]));
        silence.looked(at(start, 9000), beats(&[7]));
        assert_eq!(
            silence.life(TERMS, &n2(), None, at(start, 16_999)),
            Some(Life::Writes { until: at(start, 17_000) })
        );
        assert_eq!(silence.life(TERMS, &n2(), None, at(start, 17_000)), None);
        silence.looked(at(start, 17_000), beats(&[7, 8]));
        assert_eq!(
            silence.life(TERMS, &n2(), None, at(start, 17_000)),
            Some(Life::Writes { until: at(start, 32_000) })
        );
    }

    #[test]
    fn when_the_last_beat_has_gone_it_is_looked_at_once_more() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        silence.looked(at(start, 2000), beats(&[7]));
        silence.looked(at(start, 4000), Traces::default());
        assert_eq!(silence.life(TERMS, &n2(), None, at(start, 4000)), Some(Life::Unknown));
        silence.looked(at(start, 4010), Traces::default());
        assert_eq!(silence.life(TERMS, &n2(), None, at(start, 4010)), None);
    }

    #[test]
    fn a_parked_node_is_never_silent() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        silence.looked(start, Traces { parked: BTreeSet::from([n2()]), ..Traces::default() });
        assert_eq!(silence.life(TERMS, &n2(), None, at(start, 600_000)), Some(Life::Parked));
    }

    #[test]
    fn a_mark_hides_neither_a_beat_nor_an_answer() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        let traces = |numbers: &[u64]| Traces { parked: BTreeSet::from([n2()]), ..beats(numbers) };
        silence.looked(at(start, 2000), traces(&[7]));
        let life = |silence: &Silence, answered, ms| silence.life(TERMS, &n2(), answered, at(start, ms));
        assert_eq!(life(&silence, None, 16_999), Some(Life::Writes { until: at(start, 17_000) }));
        assert_eq!(life(&silence, None, 17_000), Some(Life::Parked), "the beat was left, too");
        let answered = Some(at(start, 20_000));
        assert_eq!(life(&silence, answered, 20_999), Some(Life::Answered { until: at(start, 21_000) }));
        assert_eq!(life(&silence, answered, 21_000), Some(Life::Parked));
        silence.looked(at(start, 22_000), traces(&[7, 8]));
        assert_eq!(life(&silence, answered, 22_000), Some(Life::Writes { until: at(start, 37_000) }));
        silence.looked(at(start, 23_000), traces(&[]));
        assert_eq!(life(&silence, answered, 23_000), Some(Life::Unknown));
    }
}
