//! Which snapshots go: a pure choice, and its execution.

use std::collections::{BTreeMap, BTreeSet};

use super::{SnapshotError, SnapshotHealth, error, fetch::survey};
use crate::{
    ownership::{self, History, check_epoch},
    spec::{ContainerName, Epoch, SnapshotId},
    store::{Store, keys},
};

/// What is known of a snapshot in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Chunks without a manifest.
    Uncommitted,
    /// With a manifest that this program cannot read.
    Unreadable,
    Committed(SnapshotHealth),
}

/// What [`prune`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Committed snapshots beyond `keep`, or written by a deposed owner.
    pub snapshots: Vec<SnapshotId>,
    /// Chunks that never became a snapshot.
    pub orphans: Vec<SnapshotId>,
}

/// Chooses what the owner of `current` deletes. Pure.
///
/// Kept are the newest `keep` (at least 1) readable ones that count, the newest healthy one, and whatever is newer than
/// the oldest of those. While there are fewer readable ones, nothing that counts goes: what this program cannot read, a newer
/// one may, and it may be the only state there is. What does not count, and never will, goes: deposed owners' snapshots, uploads that were given up
/// (those of an earlier epoch, or older than what this epoch has committed since).
pub fn choose(found: &BTreeMap<SnapshotId, Found>, history: &History, keep: u32, current: Epoch) -> Pruned {
    let mut pruned = Pruned::default();
    // Before the base is settled, a predecessor's snapshot may still come to count.
    if history.current() != Some(current) || !history.has_base(current) {
        return pruned;
    }
    let valid = || found.iter().rev().filter(|(id, _)| history.is_valid(**id));
    let readable = || valid().filter_map(|(id, f)| if let Found::Committed(h) = f { Some((*id, *h)) } else { None });
    let mut kept: BTreeSet<SnapshotId> = readable().take(keep.max(1) as usize).map(|(id, _)| id).collect();
    kept.extend(readable().find(|(_, health)| *health == SnapshotHealth::Healthy).map(|(id, _)| id));
    let oldest_of_newest = readable().nth(keep.max(1) as usize - 1).map(|(id, _)| id);
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
            _ => match oldest_of_newest {
                Some(oldest) if *id < oldest => pruned.snapshots.push(*id),
                _ => {}
            },
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
    keep: u32,
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
    for (id, read) in survey(store, container, &committed, |manifest| manifest.meta.health).await? {
        found.insert(id, read.map_or(Found::Unreadable, Found::Committed));
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
