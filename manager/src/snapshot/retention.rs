//! Which snapshots go: a pure choice, and its execution.

use std::collections::{BTreeMap, BTreeSet};

use super::{SnapshotError, SnapshotHealth, SnapshotKind, error, fetch::survey};
use crate::{
    ownership::{self, History, check_epoch},
    spec::{ContainerName, ContainerSpec, Epoch, SnapshotId},
    store::{Store, keys},
};

/// What is known of a snapshot in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Chunks without a manifest.
    Uncommitted,
    /// With a manifest that this program cannot read.
    Unreadable,
    Committed(SnapshotKind, SnapshotHealth),
}

/// How many committed snapshots stay, each at least 1. A person's do not go because periodic ones come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// Of those that were taken by themselves.
    pub periodic: u32,
    /// Of those that a person asked for.
    pub manual: u32,
}

impl From<&ContainerSpec> for Keep {
    fn from(spec: &ContainerSpec) -> Self {
        Self { periodic: spec.keep, manual: spec.keep_manual }
    }
}

/// What [`prune`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Committed snapshots beyond [`Keep`], or written by a deposed owner.
    pub snapshots: Vec<SnapshotId>,
    /// Chunks that never became a snapshot.
    pub orphans: Vec<SnapshotId>,
}

/// Chooses what the owner of `current` deletes. Pure.
///
/// Kept are, of those that count and can be read, the newest of either kind, as many as `keep` says, and what a recovery goes
/// back to: the newest that was healthy, and the newest that was not unhealthy. What this program cannot read, a newer one may,
/// and it may be the only state there is: it goes when it is older than all the periodic ones that are to be kept, and these are
/// there. What does not count, and never will, goes: deposed owners' snapshots, uploads that were given up
/// (those of an earlier epoch, or older than what this epoch has committed since).
pub fn choose(found: &BTreeMap<SnapshotId, Found>, history: &History, keep: Keep, current: Epoch) -> Pruned {
    use SnapshotHealth::{Healthy, Unhealthy};
    let mut pruned = Pruned::default();
    // Before the base is settled, a predecessor's snapshot may still come to count.
    if history.current() != Some(current) || !history.has_base(current) {
        return pruned;
    }
    let valid = || found.iter().rev().filter(|(id, _)| history.is_valid(**id));
    let readable =
        || valid().filter_map(|(id, f)| if let Found::Committed(k, h) = f { Some((*id, *k, *h)) } else { None });
    let newest = |manual: bool, count: u32| {
        let of_kind = readable().filter(move |(_, kind, _)| (*kind == SnapshotKind::Manual) == manual);
        of_kind.map(|(id, ..)| id).take(count.max(1) as usize).collect::<Vec<_>>()
    };
    let periodic = newest(false, keep.periodic);
    let oldest_periodic = periodic.get(keep.periodic.max(1) as usize - 1).copied();
    let mut kept: BTreeSet<SnapshotId> = periodic.into_iter().chain(newest(true, keep.manual)).collect();
    kept.extend(readable().find(|(.., health)| *health == Healthy).map(|(id, ..)| id));
    kept.extend(readable().find(|(.., health)| *health != Unhealthy).map(|(id, ..)| id));
    let newest_committed = found.iter().rev().find(|(id, f)| id.epoch == current && **f != Found::Uncommitted);
    for (id, f) in found {
        match f {
            Found::Uncommitted => {
                let given_up = id.epoch < current || newest_committed.is_some_and(|(newest, _)| id < newest);
                if given_up && id.epoch <= current {
                    pruned.orphans.push(*id);
                }
            }
            _ if id.epoch > current || kept.contains(id) => {}
            _ if !history.is_valid(*id) => pruned.snapshots.push(*id),
            Found::Unreadable if oldest_periodic.is_none_or(|oldest| *id > oldest) => {}
            _ => pruned.snapshots.push(*id),
        }
    }
    pruned
}

/// Deletes what [`choose`] chose, of each snapshot the manifest first: there is never a manifest without its chunks.
///
/// Called by the owner of `current`, not while it uploads.
///
/// # Errors
/// Nothing is deleted by a node that was deposed.
pub async fn prune(
    store: &Store,
    container: &ContainerName,
    keep: Keep,
    current: Epoch,
) -> Result<Pruned, SnapshotError> {
    let list_error = error::list(container);
    let own_error = error::ownership(container);
    let mut found = BTreeMap::new();
    let mut committed = Vec::new();
    for object in store.list(&keys::snapshots(container)).await.map_err(&list_error)? {
        let Some((id, file)) = keys::parse_snapshot_object(container, &object.key) else { continue };
        found.entry(id).or_insert(Found::Uncommitted);
        if file == keys::MANIFEST {
            committed.push(id);
        }
    }
    for (id, read) in survey(store, container, &committed, |manifest| manifest.meta).await? {
        found.insert(id, read.map_or(Found::Unreadable, |meta| Found::Committed(meta.kind, meta.health)));
    }
    let history = ownership::history(store, container).await.map_err(&own_error)?;
    let pruned = choose(&found, &history, keep, current);
    // After everything was listed: if no later owner exists now, what was seen is what a later one would have to see.
    check_epoch(store, container, current).await.map_err(&own_error)?;
    for id in &pruned.snapshots {
        store.delete(&keys::manifest(container, *id)).await.map_err(&list_error)?;
    }
    for id in pruned.snapshots.iter().chain(&pruned.orphans) {
        store.delete_prefix(&keys::snapshot(container, *id)).await.map_err(&list_error)?;
    }
    Ok(pruned)
}

/// Deletes all snapshots of a removed container. Call it after [`ownership::release`] was won.
pub async fn remove_all(store: &Store, container: &ContainerName) -> Result<usize, SnapshotError> {
    let list_error = error::list(container);
    let own_error = error::ownership(container);
    for id in ownership::committed(store, container).await.map_err(&own_error)? {
        store.delete(&keys::manifest(container, id)).await.map_err(&list_error)?;
    }
    store.delete_prefix(&keys::snapshots(container)).await.map_err(&list_error)
}

#[cfg(test)]
mod tests;
