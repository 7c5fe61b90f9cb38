//! From the store back to directories: chunks fetched side by side, each checked before it is used.

use std::{
    io::{self, Read},
    path::Path,
};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;

use super::{
    Manifest, OnProgress, PartName, Progress, SnapshotError, chunk,
    error::{self, io as io_error},
    manifest::{Chunk, MAX_MANIFEST, Part},
    tree_read::{Bounds, read_tree},
};
use crate::{
    ownership,
    spec::{ContainerName, SnapshotId},
    store::{Store, StoreError, keys},
};

/// Chunks under way at once; with those waiting to be unpacked, this bounds the memory.
const CONCURRENCY: usize = 4;
/// Manifests read at once.
const MANIFESTS: usize = 8;

/// Reads and checks the manifest of a snapshot.
///
/// # Errors
/// [`SnapshotError::Missing`] if there is none: it was never committed, or removed.
pub async fn load_manifest(
    store: &Store,
    container: &ContainerName,
    id: SnapshotId,
) -> Result<Manifest, SnapshotError> {
    let key = keys::manifest(container, id);
    let bytes = match store.get(&key, MAX_MANIFEST).await {
        Err(StoreError::NotFound { .. }) => return Err(SnapshotError::Missing { object: key }),
        other => other.map_err(error::store(container, id))?,
    };
    let manifest = Manifest::decode(&key, &bytes)?;
    if manifest.meta.id != id || manifest.meta.container != *container {
        let what = format!("it is of snapshot {} of {}", manifest.meta.id, manifest.meta.container);
        return Err(SnapshotError::Damaged { object: key, what });
    }
    Ok(manifest)
}

/// The snapshots that may be restored, newest first: committed, and by an owner before anybody took over.
pub async fn list(store: &Store, container: &ContainerName) -> Result<Vec<SnapshotId>, SnapshotError> {
    let (history, committed) =
        tokio::try_join!(ownership::history(store, container), ownership::committed(store, container))
            .map_err(error::ownership(container))?;
    let mut valid: Vec<_> = committed.into_iter().filter(|id| history.is_valid(*id)).collect();
    valid.sort_by(|a, b| b.cmp(a));
    Ok(valid)
}

/// Reads the manifests of `ids`, several at a time, and keeps of each what `take` does: a failover waits for this. What cannot
/// be read is there with its error: it is a snapshot all the same.
///
/// # Errors
/// The store does not answer for one of them.
pub async fn survey<T>(
    store: &Store,
    container: &ContainerName,
    ids: &[SnapshotId],
    take: impl Fn(Manifest) -> T,
) -> Result<Vec<(SnapshotId, Result<T, SnapshotError>)>, SnapshotError> {
    let mut found = Vec::with_capacity(ids.len());
    for some in ids.chunks(MANIFESTS) {
        let reads = some.iter().copied().map(|id| load_manifest(store, container, id));
        for (id, read) in some.iter().zip(futures_util::future::join_all(reads).await) {
            match read {
                Err(error) if error.is_retryable() => return Err(error),
                read => found.push((*id, read.map(&take))),
            }
        }
    }
    Ok(found)
}

/// The manifests of the snapshots that may be restored, newest first. One that cannot be read is left out, and said in the log:
/// the one before it is what there is then.
///
/// # Errors
/// The store does not answer.
pub async fn list_valid(store: &Store, container: &ContainerName) -> Result<Vec<Manifest>, SnapshotError> {
    let ids = list(store, container).await?;
    let mut manifests = Vec::new();
    for (id, read) in survey(store, container, &ids, |manifest| manifest).await? {
        match read {
            Ok(manifest) => manifests.push(manifest),
            Err(error) => tracing::error!(%container, snapshot = %id, error = crate::chain(&error), "not usable"),
        }
    }
    Ok(manifests)
}

/// Unpacks a part into `target`, which must not exist or be empty. After an error it is as it was.
///
/// Every chunk is checked before a byte of it is used, and `Ok` means that the whole part was: start nothing before
/// all parts are there.
pub async fn fetch(
    store: &Store,
    manifest: &Manifest,
    name: &PartName,
    target: &Path,
    progress: OnProgress<'_>,
) -> Result<(), SnapshotError> {
    let part = find(manifest, name)?;
    let created = prepare(target)?;
    let result = unpack(store, manifest, part, target, progress).await;
    if result.is_err() {
        let target = target.to_owned();
        // The first error is the one to report.
        let _ = tokio::task::spawn_blocking(move || clear(&target, created)).await;
    }
    result
}

/// For tests: checks that every chunk of the snapshot is there and whole, without unpacking it.
#[cfg(test)]
pub async fn verify(store: &Store, manifest: &Manifest, progress: OnProgress<'_>) -> Result<(), SnapshotError> {
    let total = manifest.stored_bytes();
    let done = std::sync::atomic::AtomicU64::new(0);
    for part in &manifest.parts {
        let mut chunks = std::pin::pin!(chunks(store, manifest, part));
        while let Some(chunk) = chunks.next().await {
            let (len, _) = chunk?;
            progress(Progress { done: done.fetch_add(len, std::sync::atomic::Ordering::Relaxed) + len, total });
        }
    }
    Ok(())
}

fn find<'a>(manifest: &'a Manifest, name: &PartName) -> Result<&'a Part, SnapshotError> {
    manifest.part(name).ok_or_else(|| SnapshotError::NoPart {
        container: manifest.meta.container.clone(),
        id: manifest.meta.id,
        part: name.to_string(),
    })
}

/// True if the directory was made.
fn prepare(target: &Path) -> Result<bool, SnapshotError> {
    match std::fs::create_dir(target) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let mut entries = std::fs::read_dir(target).map_err(io_error("read", target))?;
            match entries.next() {
                None => Ok(false),
                Some(_) => Err(io_error("unpack to", target)(io::ErrorKind::DirectoryNotEmpty.into())),
            }
        }
        Err(e) => Err(io_error("create", target)(e)),
    }
}

fn clear(target: &Path, created: bool) -> io::Result<()> {
    if created {
        return std::fs::remove_dir_all(target);
    }
    for entry in std::fs::read_dir(target)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

async fn unpack(
    store: &Store,
    manifest: &Manifest,
    part: &Part,
    target: &Path,
    progress: OnProgress<'_>,
) -> Result<(), SnapshotError> {
    let object = format!("{} of snapshot {} of {}", part.name, manifest.meta.id, manifest.meta.container);
    let (sender, receiver) = mpsc::channel(2);
    let bounds = Bounds { entries: part.entries, logical_bytes: part.logical_bytes };
    let reader = Pieces { receiver, piece: Bytes::new(), left: part.raw_bytes() };
    let unpacker = {
        let target = target.to_owned();
        tokio::task::spawn_blocking(move || read_tree(&object, reader, &target, bounds))
    };
    let total = part.stored_bytes();
    let mut done = 0;
    let mut failed = None;
    let mut chunks = std::pin::pin!(chunks(store, manifest, part));
    while let Some(chunk) = chunks.next().await {
        match chunk {
            Ok((len, raw)) => {
                if sender.send(raw).await.is_err() {
                    break;
                }
                done += len;
                progress(Progress { done, total });
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    drop(sender);
    let unpacked = unpacker.await.map_err(|_| SnapshotError::Worker { op: "unpacking" })?;
    // A chunk that failed is the cause of what the unpacker then says.
    failed.map_or(unpacked, Err)
}

/// The part's chunks in order, checked and expanded, with their length in the store.
fn chunks<'a>(
    store: &'a Store,
    manifest: &'a Manifest,
    part: &'a Part,
) -> impl Stream<Item = Result<(u64, Bytes), SnapshotError>> + 'a {
    let meta = &manifest.meta;
    let fetches = part.chunks.iter().enumerate().map(move |(index, chunk)| {
        let key = keys::chunk(&meta.container, meta.id, &part.chunk_file(index));
        async move {
            let stored = match store.get(&key, u64::from(chunk.len)).await {
                Ok(stored) => stored,
                Err(StoreError::NotFound { .. }) => return Err(SnapshotError::Missing { object: key }),
                Err(StoreError::TooLarge { size, max, .. }) => {
                    let what = format!("it has {size} bytes where {max} belong");
                    return Err(SnapshotError::Damaged { object: key, what });
                }
                Err(source) => {
                    return Err(error::store(&meta.container, meta.id)(source));
                }
            };
            let raw = open(key, stored, chunk.clone()).await?;
            Ok((u64::from(chunk.len), raw))
        }
    });
    futures_util::stream::iter(fetches).buffered(CONCURRENCY)
}

async fn open(key: String, stored: Bytes, chunk: Chunk) -> Result<Bytes, SnapshotError> {
    let opened = tokio::task::spawn_blocking(move || chunk::open(&key, stored, &chunk));
    opened.await.map_err(|_| SnapshotError::Worker { op: "expanding" })?
}

/// Chunks as one stream. It ends where the manifest says; a sender that stops earlier makes it fail, not end.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
    left: u64,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        while self.piece.is_empty() {
            self.piece = self.receiver.blocking_recv().ok_or(io::ErrorKind::UnexpectedEof)?;
        }
        let len = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..len]);
        self.left = self.left.saturating_sub(len as u64);
        Ok(len)
    }
}
