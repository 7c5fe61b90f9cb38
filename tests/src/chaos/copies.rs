//! What becomes of a container's copies from look to look: which come and go, and when two of them run at one instant.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::Duration;

use serde::Serialize;

use super::{
    fault::Place,
    look::{Copy, Seen},
};

/// A copy's life. Times are since the beginning of the session.
#[derive(Debug, Clone, Serialize)]
pub struct Life {
    /// From 1, in the order in which they were seen.
    pub number: usize,
    #[serde(skip)]
    pub copy: Copy,
    pub node: String,
    pub born: Duration,
    pub gone: Option<Duration>,
}

/// Two copies that ran at the same time.
#[derive(Debug, Clone, Serialize)]
pub struct Double {
    /// The numbers of the two lives.
    pub lives: [usize; 2],
    pub nodes: [String; 2],
    pub from: Duration,
    pub until: Option<Duration>,
}

/// Everything that was seen of one container's copies.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Copies {
    pub lives: Vec<Life>,
    pub doubles: Vec<Double>,
    #[serde(skip)]
    now: Vec<Seen>,
}

/// What a look brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Born(usize),
    Gone(usize),
    /// To be confirmed by looking again: both ran in this look and in the one before.
    Suspicious([Copy; 2]),
    /// One of the two is gone or frozen.
    NoLongerDouble,
}

impl Copies {
    /// Takes in what a look at `at` has seen.
    pub fn look(&mut self, at: Duration, seen: &[Seen]) -> Vec<Change> {
        let mut changes = Vec::new();
        for life in self.lives.iter_mut().filter(|life| life.gone.is_none()) {
            if !seen.iter().any(|seen| seen.copy == life.copy) {
                life.gone = Some(at);
                changes.push(Change::Gone(life.number));
            }
        }
        for Seen { copy, .. } in seen {
            if !self.lives.iter().any(|life| life.gone.is_none() && life.copy == *copy) {
                let number = self.lives.len() + 1;
                let life = Life { number, copy: *copy, node: copy.node.to_string(), born: at, gone: None };
                self.lives.push(life);
                changes.push(Change::Born(number));
            }
        }
        let runs = |all: &[Seen], copy: Copy| all.iter().any(|seen| seen.copy == copy && !seen.frozen);
        let both: Vec<Copy> =
            seen.iter().map(|seen| seen.copy).filter(|copy| runs(seen, *copy) && runs(&self.now, *copy)).collect();
        let open = self.doubles.last_mut().filter(|double| double.until.is_none());
        match (open, &both[..]) {
            (None, [one, two, ..]) => changes.push(Change::Suspicious([*one, *two])),
            (Some(open), [] | [_]) => {
                open.until = Some(at);
                changes.push(Change::NoLongerDouble);
            }
            _ => {}
        }
        self.now = seen.to_vec();
        changes
    }

    /// The two run: looking again has confirmed it.
    pub fn confirm(&mut self, at: Duration, two: [Copy; 2]) {
        let lives = two.map(|copy| self.number_of(copy).unwrap_or_default());
        self.doubles.push(Double { lives, nodes: two.map(|copy| copy.node.to_string()), from: at, until: None });
    }

    fn number_of(&self, copy: Copy) -> Option<usize> {
        self.lives.iter().rev().find(|life| life.copy == copy).map(|life| life.number)
    }

    /// The copies of the newest look.
    pub fn now(&self) -> &[Seen] {
        &self.now
    }

    /// The numbers of the lives of the newest look that are not frozen.
    pub fn running(&self) -> Vec<usize> {
        self.now.iter().filter(|seen| !seen.frozen).filter_map(|seen| self.number_of(seen.copy)).collect()
    }

    /// How often a copy came up on another node than the copy before it.
    pub fn failovers(&self) -> usize {
        let node = |life: &Life| -> Place { life.copy.node };
        self.lives.windows(2).filter(|pair| node(&pair[0]) != node(&pair[1])).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(node: usize, pid: u32) -> Copy {
        Copy { node: Place(node), pid, started: 5 }
    }

    fn seen(copies: &[(Copy, bool)]) -> Vec<Seen> {
        copies.iter().map(|(copy, frozen)| Seen { copy: *copy, frozen: *frozen }).collect()
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn two_copies_are_suspicious_when_both_run_in_two_looks() {
        let (one, two) = (copy(0, 10), copy(1, 20));
        let mut copies = Copies::default();
        assert_eq!(copies.look(at(0), &seen(&[(one, false)])), [Change::Born(1)]);
        assert_eq!(copies.look(at(5), &seen(&[(one, false), (two, false)])), [Change::Born(2)]);
        let both = seen(&[(one, false), (two, false)]);
        assert_eq!(copies.look(at(10), &both), [Change::Suspicious([one, two])]);
        // Not confirmed: asked again.
        assert_eq!(copies.look(at(15), &both), [Change::Suspicious([one, two])]);
        copies.confirm(at(15), [one, two]);
        assert_eq!(copies.look(at(20), &both), []);
        assert_eq!(copies.look(at(25), &seen(&[(one, true), (two, false)])), [Change::NoLongerDouble]);
        assert_eq!(copies.look(at(30), &seen(&[(two, false)])), [Change::Gone(1)]);
        assert_eq!(copies.doubles.len(), 1);
        assert_eq!((copies.doubles[0].lives, copies.doubles[0].until), ([1, 2], Some(at(25))));
        assert_eq!(copies.failovers(), 1);
    }

    #[test]
    fn a_frozen_copy_beside_a_running_one_is_none() {
        let (one, two) = (copy(0, 10), copy(1, 20));
        let mut copies = Copies::default();
        for ms in 0..10 {
            let changes = copies.look(at(ms), &seen(&[(one, true), (two, false)]));
            assert!(!changes.iter().any(|change| matches!(change, Change::Suspicious(_))), "{changes:?}");
        }
        assert_eq!(copies.running(), [2]);
    }

    #[test]
    fn a_number_that_another_process_got_is_another_life() {
        let mut copies = Copies::default();
        copies.look(at(0), &seen(&[(copy(0, 10), false)]));
        let reused = Copy { started: 6, ..copy(0, 10) };
        assert_eq!(copies.look(at(5), &seen(&[(reused, false)])), [Change::Gone(1), Change::Born(2)]);
        assert_eq!(copies.failovers(), 0);
    }
}
