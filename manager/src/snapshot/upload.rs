//! From a draft to a committed snapshot: chunks, synchronisation, epoch, manifest, epoch.
//!
//! The manifest is never durable before its chunks. The epoch is looked at before the manifest, so that a deposed
//! owner stops early, and after it, so that "committed" means: before anybody took over. `docs/ownership.md` shows why
//! the second look is needed.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};

use super::{
    Draft, Manifest, SnapshotError, chunk,
    error::{self, io as io_error},
    manifest::{Chunk, MAX_CHUNK, MAX_MANIFEST},
    queue::read_limited,
};
use crate::{
    ownership::check_epoch,
    store::{PutNew, Store, keys},
};

/// Chunks under way at once.
const CONCURRENCY: usize = 4;

/// How far a transfer is, in bytes of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

/// Called from several threads, in no particular order.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Uploads and commits a draft. Drafts of a container are uploaded one after the other, oldest first.
///
/// Repeating it, after any error or none, is safe. The draft stays; remove it from its queue afterwards.
///
/// # Errors
/// `is_deposed` of the error: another node owns the container; the draft can be dropped. `is_retryable`: try again
/// later; the snapshot may have been committed already, which the repetition finds out.
pub async fn upload(store: &Store, draft: &Draft, progress: OnProgress<'_>) -> Result<Manifest, SnapshotError> {
    let meta = &draft.manifest.meta;
    let (container, id) = (&meta.container, meta.id);
    let still_owner =
        || async move { check_epoch(store, container, id.epoch).await.map_err(error::ownership(container)) };
    still_owner().await?;
    let keys = put_chunks(store, draft, progress).await?;
    store.sync(&keys).await.map_err(error::store(container, id))?;
    still_owner().await?;
    commit(store, &draft.manifest).await?;
    still_owner().await?;
    Ok(draft.manifest.clone())
}

async fn put_chunks(store: &Store, draft: &Draft, progress: OnProgress<'_>) -> Result<Vec<String>, SnapshotError> {
    let meta = &draft.manifest.meta;
    let total = draft.manifest.stored_bytes();
    let done = AtomicU64::new(0);
    let there = already_there(store, draft).await?;
    let chunks = draft.manifest.parts.iter().flat_map(|part| part.chunks.iter().enumerate().map(move |c| (part, c)));
    let uploads = chunks.map(|(part, (index, chunk))| {
        let key = keys::chunk(&meta.container, meta.id, &part.chunk_file(index));
        let path = draft.chunk_path(part, index);
        let (done, there) = (&done, &there);
        async move {
            if !there.contains(&(key.clone(), u64::from(chunk.len))) {
                let bytes = read_chunk(draft, path, chunk.clone()).await?;
                let put = store.put_bulk(&key, bytes).await;
                put.map_err(error::store(&meta.container, meta.id))?;
            }
            let done = done.fetch_add(u64::from(chunk.len), Ordering::Relaxed) + u64::from(chunk.len);
            progress(Progress { done, total });
            Ok(key)
        }
    });
    let uploads: Vec<_> = uploads.collect();
    futures_util::stream::iter(uploads).buffer_unordered(CONCURRENCY).try_collect().await
}

/// Chunks of an earlier attempt. Of a directory they are written anew: they may not have reached the disk.
async fn already_there(
    store: &Store,
    draft: &Draft,
) -> Result<std::collections::HashSet<(String, u64)>, SnapshotError> {
    let meta = &draft.manifest.meta;
    if !store.bulk_is_durable() {
        return Ok(Default::default());
    }
    let listed = store.list(&keys::snapshot(&meta.container, meta.id)).await;
    let listed = listed.map_err(error::store(&meta.container, meta.id))?;
    Ok(listed.into_iter().map(|o| (o.key, o.size)).collect())
}

/// Reads a chunk of the draft and checks it: what this disk damaged must not be committed.
async fn read_chunk(draft: &Draft, path: std::path::PathBuf, chunk: Chunk) -> Result<Bytes, SnapshotError> {
    let (id, dir) = (draft.id(), draft.dir().to_owned());
    let read = tokio::task::spawn_blocking(move || {
        let bytes = match read_limited(&path, MAX_CHUNK) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(SnapshotError::DraftGone { id, path: dir });
            }
            other => other.map_err(io_error("read", &path))?,
        };
        chunk::verify(&path.to_string_lossy(), &bytes, &chunk)?;
        Ok(Bytes::from(bytes))
    });
    read.await.map_err(|_| SnapshotError::Worker { op: "uploading" })?
}

/// Creates the manifest. "Already exists" and a lost answer are settled by what is there.
async fn commit(store: &Store, manifest: &Manifest) -> Result<(), SnapshotError> {
    let (container, id) = (&manifest.meta.container, manifest.meta.id);
    let store_error = error::store(container, id);
    let bytes = Bytes::from(manifest.encode()?);
    let key = keys::manifest(container, id);
    let unknown = match store.put_new(&key, bytes.clone()).await {
        Ok(PutNew::Created) => return Ok(()),
        Ok(PutNew::AlreadyExists) => None,
        Err(error) if error.is_retryable() => Some(error),
        Err(error) => return Err(store_error(error)),
    };
    match (store.get_opt(&key, MAX_MANIFEST).await, unknown) {
        (Ok(Some(there)), _) if there == bytes => Ok(()),
        (Ok(Some(_)), _) => Err(SnapshotError::Conflict { container: container.clone(), id }),
        (_, Some(error)) | (Err(error), None) => Err(store_error(error)),
        (Ok(None), None) => Err(SnapshotError::Missing { object: key }),
    }
}
