//! `logs/<container>/<epoch>-<n>`: pieces of a container's output, kept over checkpoint, restart and failover.

use bytes::Bytes;

use super::{PutNew, Store, StoreError, keys};
use crate::spec::{ContainerName, Epoch};

/// The largest segment.
pub const MAX_SEGMENT: u64 = 4 << 20;

/// A segment in the store; in the order of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    pub epoch: Epoch,
    pub number: u64,
    pub size: u64,
}

/// Stores segment `number`; the same segment again is fine, which makes a repeated upload harmless.
///
/// # Errors
/// [`StoreError::Corrupt`] if other bytes are there under this number, [`StoreError::TooLarge`].
pub async fn put(
    store: &Store,
    container: &ContainerName,
    epoch: Epoch,
    number: u64,
    bytes: Bytes,
) -> Result<(), StoreError> {
    let key = keys::log(container, epoch, number);
    if bytes.len() as u64 > MAX_SEGMENT {
        return Err(StoreError::TooLarge { key, size: bytes.len() as u64, max: MAX_SEGMENT });
    }
    if store.put_new(&key, bytes.clone()).await? == PutNew::AlreadyExists
        && store.get(&key, MAX_SEGMENT).await? != bytes
    {
        return Err(StoreError::Corrupt { key, what: "another segment was stored under this number".to_owned() });
    }
    Ok(())
}

/// All segments, oldest first.
pub async fn list(store: &Store, container: &ContainerName) -> Result<Vec<Segment>, StoreError> {
    let prefix = keys::logs(container);
    let listed = store.list(&prefix).await?;
    Ok(listed
        .iter()
        .filter_map(|o| {
            let (epoch, number) = keys::pair(o.key.strip_prefix(&prefix)?)?;
            Some(Segment { epoch: Epoch(epoch), number, size: o.size })
        })
        .collect())
}

pub async fn get(store: &Store, container: &ContainerName, segment: Segment) -> Result<Bytes, StoreError> {
    store.get(&keys::log(container, segment.epoch, segment.number), MAX_SEGMENT).await
}

/// Removes the oldest segments beyond `keep_bytes` and says how many.
pub async fn trim(store: &Store, container: &ContainerName, keep_bytes: u64) -> Result<usize, StoreError> {
    let mut kept = 0_u64;
    let mut removed = 0;
    for segment in list(store, container).await?.into_iter().rev() {
        kept = kept.saturating_add(segment.size);
        if kept > keep_bytes {
            store.delete(&keys::log(container, segment.epoch, segment.number)).await?;
            removed += 1;
        }
    }
    Ok(removed)
}
