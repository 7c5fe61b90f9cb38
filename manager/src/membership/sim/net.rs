//! The simulated network by itself: delay, loss, duplication and cuts, and a clock that leaps to what is due next. What is sent
//! and who handles it is the caller's; everything follows from the seed.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    time::Duration,
};

use super::super::{message::Time, rng::Rng};

/// What the network does to each message, one way.
#[derive(Debug, Clone)]
pub struct Faults {
    /// Lost and duplicated per 10,000 messages.
    pub loss: usize,
    pub duplicate: usize,
    /// Drawn anew for each message, so messages overtake each other.
    pub delay: (Duration, Duration),
    /// Pairs (from, to) whose messages vanish.
    pub cut: BTreeSet<(usize, usize)>,
}

impl Faults {
    /// 0.1 to 2 ms, nothing lost.
    pub fn lan() -> Self {
        Self {
            loss: 0,
            duplicate: 0,
            delay: (Duration::from_micros(100), Duration::from_millis(2)),
            cut: BTreeSet::new(),
        }
    }

    /// `loss` of 10,000 messages lost, 0.2 % twice, 0.1 to 20 ms.
    pub fn lossy(loss: usize) -> Self {
        Self { loss, duplicate: 20, delay: (Duration::from_micros(100), Duration::from_millis(20)), ..Self::lan() }
    }

    pub fn split(&mut self, one: &[usize], other: &[usize]) {
        for a in one {
            for b in other {
                self.cut.insert((*a, *b));
                self.cut.insert((*b, *a));
            }
        }
    }
}

/// A network whose messages, timers and whatever else comes due are `D`.
#[derive(Debug)]
pub struct Net<D> {
    pub now: Time,
    pub faults: Faults,
    pub rng: Rng,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    due: HashMap<u64, D>,
    order: u64,
}

impl<D: Clone> Net<D> {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let rng = Rng::new(seed);
        Self { now: Time::ZERO, faults, rng, queue: BinaryHeap::new(), due: HashMap::new(), order: 0 }
    }

    /// `due` happens at `at`; of two at one time the earlier asked for goes first.
    pub fn at(&mut self, at: Time, due: D) {
        self.order += 1;
        self.due.insert(self.order, due);
        self.queue.push(Reverse((at, self.order)));
    }

    /// Sends a message, whose arrival is `due`: after a delay, twice, or not at all.
    pub fn send(&mut self, from: usize, to: usize, due: D) {
        let copies = if self.rng.below(10_000) < self.faults.duplicate { 2 } else { 1 };
        for _ in 0..copies {
            if self.faults.cut.contains(&(from, to)) || self.rng.below(10_000) < self.faults.loss {
                continue;
            }
            let (least, most) = self.faults.delay;
            let spread = (most - least).as_micros() as usize;
            let delay = least + Duration::from_micros(self.rng.below(spread + 1) as u64);
            self.at(self.now + delay, due.clone());
        }
    }

    /// What is due next, no later than `end`; the clock is there then. `None`: nothing, and it is `end`.
    pub fn next(&mut self, end: Time) -> Option<D> {
        while let Some(Reverse((at, order))) = self.queue.peek().copied().filter(|Reverse((at, _))| *at <= end) {
            self.queue.pop();
            self.now = at;
            if let Some(due) = self.due.remove(&order) {
                return Some(due);
            }
        }
        self.now = end;
        None
    }
}
