//! What must hold at every instant, by a model that knows nothing of `History` or of the cores.

use std::collections::BTreeMap;

use super::{
    Micros,
    node::Node,
    store::{Answer, Key, Objects, Op, Prefix},
};
use crate::spec::{Epoch, SnapshotId};

/// An invariant that broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which: I1 to I5, or `expect`.
    pub law: &'static str,
    pub what: String,
}

/// What a copy begins from, and what was known when that was chosen.
#[derive(Debug, Clone, Copy)]
pub struct Chosen {
    pub from: Option<SnapshotId>,
    /// Under which epoch, and when. What that epoch's own owner wrote before it was started again may land later.
    pub under: Epoch,
    pub at: Micros,
}

/// What the model knows of one container.
#[derive(Debug, Default)]
struct Story {
    /// When each manifest appeared, and whether no later epoch was there then.
    landed: BTreeMap<SnapshotId, (Micros, bool)>,
    /// When a copy began, or went on, under an epoch.
    begun: BTreeMap<Epoch, Micros>,
    /// Told to an owner as committed.
    acknowledged: Option<SnapshotId>,
    begins: usize,
}

#[derive(Debug)]
pub struct Laws {
    stories: Vec<Story>,
    /// Copies or freezes have changed since they were counted.
    pub changed: bool,
    pub violation: Option<Violation>,
}

impl Laws {
    pub fn new(containers: usize) -> Self {
        let stories = (0..containers).map(|_| Story::default()).collect();
        Self { stories, changed: false, violation: None }
    }

    pub fn broken(&mut self, law: &'static str, what: String) {
        self.violation.get_or_insert(Violation { law, what });
    }

    /// I1: at no instant do two nodes run the same container.
    pub fn count(&mut self, nodes: &[Node]) {
        for container in 0..self.stories.len() {
            let runs: Vec<String> =
                nodes.iter().filter(|node| node.runs(container)).map(|node| node.name.to_string()).collect();
            if runs.len() > 1 {
                self.broken("I1", format!("container {container} runs on {} at once", runs.join(" and ")));
            }
        }
    }

    /// A write has taken effect.
    pub fn stored(&mut self, op: &Op, answer: &Answer, now: Micros, objects: &Objects) {
        let Op::Create(key, record) = op else { return };
        // A repeated request is answered with "exists" and has taken effect all the same.
        if objects.get(*key).is_none_or(|there| there.nonce != record.nonce) {
            return;
        }
        match *key {
            Key::Manifest(container, id) if *answer == Answer::Created || !self.has(container, id) => {
                let later = |key: &Key| matches!(key, Key::Owner(_, epoch) if *epoch > id.epoch);
                let current = !objects.listed(Prefix::OwnersOf(container)).iter().any(|(key, _)| later(key));
                self.stories[container].landed.entry(id).or_insert((now, current));
            }
            Key::Base(container, epoch) => {
                let acknowledged = self.stories[container].acknowledged.filter(|id| id.epoch < epoch);
                if acknowledged > record.base {
                    let (lost, base) = (shown(acknowledged), shown(record.base));
                    self.broken("I3", format!("{lost} was committed, and the base of epoch {epoch} is {base}"));
                }
            }
            _ => {}
        }
    }

    fn has(&self, container: usize, id: SnapshotId) -> bool {
        self.stories[container].landed.contains_key(&id)
    }

    /// I3: what an owner is told to be committed is never lost.
    pub fn acknowledged(&mut self, container: usize, id: SnapshotId, objects: &Objects) {
        for (key, record) in objects.listed(Prefix::OwnersOf(container)) {
            if let Key::Base(_, epoch) = key
                && epoch > id.epoch
                && record.base < Some(id)
            {
                let base = shown(record.base);
                self.broken("I3", format!("{id} is told to be committed, and the base of epoch {epoch} is {base}"));
            }
        }
        let newest = &mut self.stories[container].acknowledged;
        *newest = (*newest).max(Some(id));
    }

    /// A running copy goes on under another epoch.
    pub fn went_on(&mut self, container: usize, epoch: Epoch, now: Micros) {
        self.stories[container].begun.entry(epoch).or_insert(now);
    }

    /// I2: what is restored is the newest snapshot that was committed before anybody else began the container.
    pub fn begins(&mut self, container: usize, epoch: Epoch, chosen: Chosen, now: Micros) {
        let from = chosen.from;
        let story = &mut self.stories[container];
        story.begins += 1;
        story.begun.entry(epoch).or_insert(now);
        let counts = story.landed.iter().filter(|(id, (landed, current))| {
            *current && id.epoch <= epoch && (id.epoch < chosen.under || *landed < chosen.at)
        });
        let newest = counts.map(|(id, _)| *id).max().max(story.acknowledged.filter(|id| id.epoch <= epoch));
        if from < newest {
            let (from, newest) = (shown(from), shown(newest));
            self.broken("I2", format!("epoch {epoch} begins from {from}, and {newest} was committed"));
            return;
        }
        let Some(id) = from else { return };
        let Some((landed, _)) = story.landed.get(&id).copied() else {
            return self.broken("I2", format!("epoch {epoch} begins from {id}, which nobody wrote"));
        };
        let later = |began: &Epoch| *began > id.epoch && *began <= epoch;
        let after = story.begun.iter().find(|(began, at)| later(began) && **at < landed);
        if let Some((began, _)) = after {
            let what = format!("epoch {epoch} begins from {id}, written after epoch {began} had begun");
            self.broken("I2", what);
        }
    }

    /// Copies begun so far.
    pub fn begun(&self, container: usize) -> usize {
        self.stories[container].begins
    }
}

fn shown(id: Option<SnapshotId>) -> String {
    id.map_or_else(|| "nothing".to_owned(), |id| id.to_string())
}
