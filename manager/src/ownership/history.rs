//! Which snapshots count, as a pure function of what the store holds. `docs/ownership.md` has the argument.

// Pure: time comes in as an argument.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::{BTreeMap, BTreeSet};

use crate::spec::{Epoch, SnapshotId};

/// The records of one container: its epochs, and for each that had been prepared the newest snapshot seen then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    epochs: BTreeSet<Epoch>,
    bases: BTreeMap<Epoch, Option<SnapshotId>>,
}

impl History {
    pub fn add_epoch(&mut self, epoch: Epoch) {
        self.epochs.insert(epoch);
    }

    /// `base`: the newest snapshot that counted when the owner of `epoch` looked, after its claim.
    pub fn add_base(&mut self, epoch: Epoch, base: Option<SnapshotId>) {
        self.bases.insert(epoch, base);
    }

    /// The newest epoch.
    pub fn current(&self) -> Option<Epoch> {
        self.epochs.last().copied()
    }

    /// True if the owner of `epoch` has recorded its base, so that nothing new counts below it.
    pub fn has_base(&self, epoch: Epoch) -> bool {
        self.bases.contains_key(&epoch)
    }

    /// The oldest epoch before `epoch` whose base is not recorded.
    pub fn without_base(&self, epoch: Epoch) -> Option<Epoch> {
        self.epochs.range(..epoch).find(|earlier| !self.has_base(**earlier)).copied()
    }

    /// True if the snapshot was committed by an owner before any later one took over.
    ///
    /// That is: its epoch exists, and it is not newer than the base of any later epoch. Adding records only ever
    /// takes snapshots away, never brings one back.
    pub fn is_valid(&self, snapshot: SnapshotId) -> bool {
        self.epochs.contains(&snapshot.epoch) && self.later_bases(snapshot.epoch).all(|base| Some(snapshot) <= base)
    }

    /// The newest of `snapshots` that counts.
    pub fn newest_valid(&self, snapshots: impl IntoIterator<Item = SnapshotId>) -> Option<SnapshotId> {
        snapshots.into_iter().filter(|s| self.is_valid(*s)).max()
    }

    /// What the owner of `epoch` records as its base, from the manifests it listed after its claim.
    pub fn base_for(&self, epoch: Epoch, listed: impl IntoIterator<Item = SnapshotId>) -> Option<SnapshotId> {
        self.newest_valid(listed.into_iter().filter(|s| s.epoch < epoch))
    }

    fn later_bases(&self, epoch: Epoch) -> impl Iterator<Item = Option<SnapshotId>> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.bases.range((Excluded(epoch), Unbounded)).map(|(_, base)| *base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SnapshotId {
        text.parse().unwrap()
    }

    fn history(epochs: &[u64], bases: &[(u64, Option<&str>)]) -> History {
        let mut history = History::default();
        epochs.iter().for_each(|e| history.add_epoch(Epoch(*e)));
        bases.iter().for_each(|(e, base)| history.add_base(Epoch(*e), base.map(id)));
        history
    }

    #[test]
    fn what_came_after_the_base_does_not_count() {
        let h = history(&[1, 2], &[(1, None), (2, Some("e1-7"))]);
        assert!(h.is_valid(id("e1-7")) && h.is_valid(id("e1-3")) && h.is_valid(id("e2-1")));
        assert!(!h.is_valid(id("e1-8")), "written by the deposed owner");
        assert!(!h.is_valid(id("e3-1")), "of an epoch nobody claimed");
        assert_eq!(h.newest_valid([id("e1-8"), id("e1-6"), id("e1-7")]), Some(id("e1-7")));
    }

    #[test]
    fn an_epoch_without_base_ran_nothing_and_takes_nothing_away() {
        let h = history(&[1, 2], &[(1, None)]);
        assert!(h.is_valid(id("e1-8")));
    }

    #[test]
    fn a_late_base_cannot_bring_back_what_a_later_one_left_out() {
        // The owner of 2 stalled before its base; 3 took over from e1-7; then 2 wakes up and lists a late e1-8.
        let h = history(&[1, 2, 3], &[(1, None), (3, Some("e1-7")), (2, Some("e1-8"))]);
        assert!(!h.is_valid(id("e1-8")));
        assert!(h.is_valid(id("e1-7")));
    }

    #[test]
    fn a_removed_container_leaves_nothing_that_counts() {
        let h = history(&[1, 2, 3], &[(1, None), (2, None), (3, None)]);
        assert_eq!(h.newest_valid([id("e1-7"), id("e2-1")]), None);
    }
}
