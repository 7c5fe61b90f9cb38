//! The store: names created once, and everything that can go wrong between a caller and it.

use std::collections::BTreeMap;

use super::Micros;
use crate::{
    membership::Rng,
    spec::{Epoch, SnapshotId},
};

/// An object's name. Containers and nodes by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Owner(usize, Epoch),
    Base(usize, Epoch),
    Beat(usize, u64),
    /// Each park has a name of its own: a removal that lands late cannot take a later mark away.
    Parked(usize, u64),
    Manifest(usize, SnapshotId),
}

/// An object's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub node: usize,
    pub nonce: u64,
    pub base: Option<SnapshotId>,
}

/// What is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// Owners and bases of every container.
    Owners,
    OwnersOf(usize),
    Beats,
    Parked,
    ManifestsOf(usize),
}

impl Prefix {
    fn holds(self, key: &Key) -> bool {
        match (self, key) {
            (Prefix::Owners, Key::Owner(..) | Key::Base(..)) => true,
            (Prefix::OwnersOf(c), Key::Owner(of, _) | Key::Base(of, _)) => *of == c,
            (Prefix::Beats, Key::Beat(..)) | (Prefix::Parked, Key::Parked(..)) => true,
            (Prefix::ManifestsOf(c), Key::Manifest(of, _)) => *of == c,
            _ => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Creates it unless it is there.
    Create(Key, Record),
    Get(Key),
    Delete(Key),
    List(Prefix),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Created,
    Exists,
    Found(Option<Record>),
    Deleted,
    Listed(Vec<(Key, Record)>),
}

/// How well the store does. Shares are in thousandths of the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quality {
    /// One way.
    pub latency: (Micros, Micros),
    /// From a listing's beginning to its end, in which it sees some changes and others not.
    pub listing: (Micros, Micros),
    /// Calls that take effect and whose answer is lost.
    pub unanswered: usize,
    /// Creations that the way repeats: "already exists" is the answer to the one who created it.
    pub repeated: usize,
    /// Calls that take effect long after their caller gave up.
    pub late: usize,
}

impl Quality {
    pub fn good() -> Self {
        Self { latency: (1_000, 5_000), listing: (500, 5_000), unanswered: 0, repeated: 0, late: 0 }
    }
}

/// How long a caller waits for an answer.
pub const DEADLINE: Micros = 5_000_000;

/// A call under way.
#[derive(Debug, Clone)]
pub struct Call {
    pub node: usize,
    pub op: Op,
    /// The way there repeats the request.
    pub repeated: bool,
    /// What a listing found when it began.
    before: Vec<(Key, Record)>,
}

impl Call {
    pub fn new(node: usize, op: Op, repeated: bool) -> Self {
        Self { node, op, repeated, before: Vec::new() }
    }
}

#[derive(Debug, Default)]
pub struct Objects {
    there: BTreeMap<Key, Record>,
}

impl Objects {
    /// A listing begins: what is there now.
    pub fn begin_list(&self, call: &mut Call) {
        if let Op::List(prefix) = call.op {
            call.before = self.listed(prefix);
        }
    }

    /// Carries it out.
    pub fn apply(&mut self, call: &Call, rng: &mut Rng) -> Answer {
        match call.op {
            Op::Create(key, record) => {
                let created = !self.there.contains_key(&key);
                self.there.entry(key).or_insert(record);
                if created && !call.repeated { Answer::Created } else { Answer::Exists }
            }
            Op::Get(key) => Answer::Found(self.there.get(&key).copied()),
            Op::Delete(key) => {
                self.there.remove(&key);
                Answer::Deleted
            }
            Op::List(prefix) => Answer::Listed(self.end_list(prefix, &call.before, rng)),
        }
    }

    pub fn get(&self, key: Key) -> Option<Record> {
        self.there.get(&key).copied()
    }

    /// As it is at this instant; for the laws, which are not part of the world.
    pub fn listed(&self, prefix: Prefix) -> Vec<(Key, Record)> {
        let all = self.there.iter().filter(|(key, _)| prefix.holds(key));
        all.map(|(key, record)| (*key, *record)).collect()
    }

    /// What was there from beginning to end is listed; of what came or went meanwhile, some.
    fn end_list(&self, prefix: Prefix, before: &[(Key, Record)], rng: &mut Rng) -> Vec<(Key, Record)> {
        let mut all: BTreeMap<Key, Record> = before.iter().copied().collect();
        let after: BTreeMap<Key, Record> = self.listed(prefix).into_iter().collect();
        all.retain(|key, _| after.contains_key(key) || rng.below(2) == 0);
        let was = |key: &Key| before.binary_search_by(|(there, _)| there.cmp(key)).is_ok();
        for (key, record) in after {
            if was(&key) || rng.below(2) == 0 {
                all.insert(key, record);
            }
        }
        all.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_sees_what_was_there_all_the_time_and_of_the_rest_some() {
        let record = Record { node: 0, nonce: 1, base: None };
        let (mut seen_new, mut seen_gone) = (0, 0);
        for seed in 0..40 {
            let mut rng = Rng::new(seed);
            let mut objects = Objects::default();
            let put = |objects: &mut Objects, n| {
                objects.apply(&Call::new(0, Op::Create(Key::Beat(0, n), record), false), &mut Rng::new(0))
            };
            put(&mut objects, 1);
            put(&mut objects, 2);
            let mut call = Call::new(1, Op::List(Prefix::Beats), false);
            objects.begin_list(&mut call);
            assert_eq!(put(&mut objects, 3), Answer::Created);
            assert_eq!(put(&mut objects, 3), Answer::Exists);
            objects.apply(&Call::new(0, Op::Delete(Key::Beat(0, 1)), false), &mut rng);
            let Answer::Listed(listed) = objects.apply(&call, &mut rng) else { panic!() };
            let has = |n| listed.iter().any(|(key, _)| *key == Key::Beat(0, n));
            assert!(has(2));
            seen_gone += usize::from(has(1));
            seen_new += usize::from(has(3));
        }
        assert!((5..35).contains(&seen_new) && (5..35).contains(&seen_gone), "{seen_new} {seen_gone}");
    }
}
