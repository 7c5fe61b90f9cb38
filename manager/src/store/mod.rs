//! The shared object storage: the one thing all nodes agree on.
//!
//! Ownership, addresses, applications and snapshots rest on a single promise of the store: **an object is created
//! once** ([`Store::put_new`]). Nothing is ever updated in place. [`Store::probe_create_only`] tests the promise before
//! a node relies on it.
//!
//! ```text
//!   caller ──► Store ──► permit (bounded) ──► task ──► guard ─► object_store ─► guard ──► answer
//!                │                                      (file: is it still the directory that was opened?)
//!                └── deadline: the caller gets `Deadline`; a hung kernel call keeps its permit until it returns
//! ```
//!
//! A write that ended in [`StoreError::is_retryable`] may have taken place, or may yet: whoever needs to know writes a
//! nonce and reads it back ([`record`]).

pub mod addresses;
pub mod apps;
pub mod beats;
mod cluster;
mod error;
pub mod keys;
mod local;
pub mod logs;
mod newest;
mod open;
pub mod parked;
pub mod record;
pub mod retired;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_s3;
mod transfer;

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, local::LocalFileSystem, path::Path};
use tokio::sync::Semaphore;

pub use cluster::{ClusterInfo, Expected, NodeRecord};
pub use error::StoreError;
pub use newest::Newest;
pub use open::StoreOptions;
pub use transfer::Received;

/// A listing beyond this is refused.
pub const MAX_LISTED: usize = 100_000;

/// A handle on the shared store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// The URL only: what is inside knows the credentials.
impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.inner.url).finish()
    }
}

struct Inner {
    url: String,
    backend: Backend,
    options: StoreOptions,
    permits: Arc<Semaphore>,
}

enum Backend {
    /// `durable` is synced before it answers, `bulk` only by [`Store::sync`].
    Directory {
        durable: Arc<LocalFileSystem>,
        bulk: Arc<LocalFileSystem>,
        guard: Arc<local::Guard>,
    },
    S3(Arc<dyn ObjectStore>),
}

/// What became of a create-only write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutNew {
    Created,
    /// Somebody's object is there, perhaps our own of an earlier attempt whose answer was lost.
    AlreadyExists,
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub size: u64,
    /// The store's clock.
    pub modified: DateTime<Utc>,
}

impl Store {
    /// Opens `file:///directory` (which has to exist) or `s3://bucket/prefix` (the rest from `AWS_*`).
    ///
    /// # Errors
    /// A URL of another form, a missing directory, a directory that does not answer.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        open::open(url, StoreOptions::default()).await
    }

    /// As [`Store::open`], with deadlines of the caller's.
    pub async fn open_with(url: &str, options: StoreOptions) -> Result<Self, StoreError> {
        open::open(url, options).await
    }

    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// Creates `key`, durably, unless it exists. Exactly one of several racing callers gets [`PutNew::Created`].
    pub async fn put_new(&self, key: &str, bytes: Bytes) -> Result<PutNew, StoreError> {
        let path = self.path("create", key)?;
        let store = self.inner.durable();
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let result = self
            .run("create", key, bytes.len() as u64, async move {
                match store.put_opts(&path, PutPayload::from_bytes(bytes), options).await {
                    Ok(_) => Ok(PutNew::Created),
                    // S3 answers a lost race with either.
                    Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                        Ok(PutNew::AlreadyExists)
                    }
                    Err(e) => Err(e),
                }
            })
            .await?;
        Ok(result)
    }

    /// Writes `key`, replacing it. On a directory it is durable only after [`Store::sync`].
    pub async fn put_bulk(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let path = self.path("write", key)?;
        let store = self.inner.bulk();
        let size = bytes.len() as u64;
        self.run("write", key, size, async move { store.put(&path, PutPayload::from_bytes(bytes)).await.map(drop) })
            .await
    }

    /// Makes earlier [`Store::put_bulk`] writes of these keys durable. S3 has nothing to do.
    pub async fn sync(&self, keys: &[String]) -> Result<(), StoreError> {
        let Backend::Directory { guard, .. } = &self.inner.backend else { return Ok(()) };
        let guard = Arc::clone(guard);
        let files: Vec<PathBuf> = keys.iter().map(|key| guard.root().join(key)).collect();
        let first = keys.first().map(String::as_str).unwrap_or_default();
        // The data is counted as 16 MiB an object: what is synced was not written out yet.
        self.run("sync", first, (keys.len() as u64) << 24, async move {
            tokio::task::spawn_blocking(move || guard.sync(&files)).await?.map_err(generic)
        })
        .await
    }

    /// True if a [`Store::put_bulk`] that was answered survives a power cut of the store without [`Store::sync`].
    pub fn bulk_is_durable(&self) -> bool {
        matches!(self.inner.backend, Backend::S3(_))
    }

    /// Reads an object of at most `max` bytes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::TooLarge`] before anything is read.
    pub async fn get(&self, key: &str, max: u64) -> Result<Bytes, StoreError> {
        let path = self.path("read", key)?;
        let store = self.inner.durable();
        // Two steps, so that the time allowed for the data depends on how much there is.
        let result = self.run("read", key, 0, async move { store.get(&path).await }).await?;
        let size = result.meta.size;
        if size > max {
            return Err(StoreError::TooLarge { key: key.to_owned(), size, max });
        }
        self.run("read", key, size, result.bytes()).await
    }

    /// As [`Store::get`], with `None` for a missing object.
    pub async fn get_opt(&self, key: &str, max: u64) -> Result<Option<Bytes>, StoreError> {
        match self.get(key, max).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The object's size, or `None`.
    pub async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.stat(key).await?.map(|object| object.size))
    }

    /// What a listing would say of the object, or `None`.
    pub async fn stat(&self, key: &str) -> Result<Option<Listed>, StoreError> {
        let path = self.path("look at", key)?;
        let store = self.inner.durable();
        match self.run("look at", key, 0, async move { store.head(&path).await }).await {
            Ok(meta) => Ok(Some(Listed { key: meta.location.into(), size: meta.size, modified: meta.last_modified })),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All objects under `prefix` (ending in `/`, or empty), in the order of their keys.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let path = self.path("list", prefix.trim_end_matches('/'))?;
        let store = self.inner.durable();
        let listed = self.run("list", prefix, 5 << 20, async move {
            let mut stream = store.list(Some(&path));
            let mut listed = Vec::new();
            while let Some(meta) = stream.next().await {
                if listed.len() == MAX_LISTED {
                    return Ok(None);
                }
                let meta = meta?;
                listed.push(Listed { key: meta.location.into(), size: meta.size, modified: meta.last_modified });
            }
            listed.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(Some(listed))
        });
        listed.await?.ok_or_else(|| StoreError::TooMany { prefix: prefix.to_owned(), max: MAX_LISTED })
    }

    /// Shows `step` the key of every object under `prefix`, in any order, however many there are: what it keeps is to be bounded.
    pub async fn fold<T: Send + 'static>(
        &self,
        prefix: &str,
        start: T,
        step: impl Fn(&mut T, &str) + Send + 'static,
    ) -> Result<T, StoreError> {
        let path = self.path("list", prefix.trim_end_matches('/'))?;
        let store = self.inner.durable();
        let folded = self.run("list", prefix, 5 << 20, async move {
            let (mut stream, mut folded) = (store.list(Some(&path)), start);
            while let Some(meta) = stream.next().await {
                step(&mut folded, meta?.location.as_ref());
            }
            Ok(folded)
        });
        folded.await
    }

    /// The names directly under `prefix` that have objects under them, sorted.
    pub async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let path = self.path("list", prefix.trim_end_matches('/'))?;
        let store = self.inner.durable();
        let result = self.run("list", prefix, 5 << 20, async move { store.list_with_delimiter(Some(&path)).await });
        let result = match result.await {
            Err(e) if e.is_not_found() => return Ok(Vec::new()),
            other => other?,
        };
        if result.common_prefixes.len() > MAX_LISTED {
            return Err(StoreError::TooMany { prefix: prefix.to_owned(), max: MAX_LISTED });
        }
        let names = result.common_prefixes.iter().filter_map(|p| p.filename().map(str::to_owned));
        let mut names: Vec<String> = names.collect();
        names.sort();
        Ok(names)
    }

    /// Removes an object; one that is gone already is fine.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.path("delete", key)?;
        let store = self.inner.durable();
        match self.run("delete", key, 0, async move { store.delete(&path).await }).await {
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// Removes every object under `prefix` (ending in `/`) and says how many there were.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<usize, StoreError> {
        let listed = self.list(prefix).await?;
        let count = listed.len();
        let mut deletions =
            futures_util::stream::iter(listed.into_iter().map(|o| async move { self.delete(&o.key).await }))
                .buffer_unordered(8);
        while let Some(result) = deletions.next().await {
            result?;
        }
        Ok(count)
    }

    fn path(&self, op: &'static str, key: &str) -> Result<Path, StoreError> {
        Path::parse(key).map_err(|e| StoreError::Internal { op, key: key.to_owned(), source: Box::new(e) })
    }

    /// Runs one operation under a permit, the guard and a deadline that allows for `bytes` of data.
    async fn run<T, F>(&self, op: &'static str, key: &str, bytes: u64, operation: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, object_store::Error>> + Send + 'static,
    {
        let options = &self.inner.options;
        let deadline =
            options.deadline + Duration::from_millis(bytes.saturating_mul(1000) / options.slowest_rate.max(1));
        let late = || StoreError::Deadline { url: self.inner.url.clone(), op, key: key.to_owned(), deadline };
        let internal = |source| StoreError::Internal { op, key: key.to_owned(), source };
        let started = tokio::time::Instant::now();
        let permit = Arc::clone(&self.inner.permits).acquire_owned();
        let permit = tokio::time::timeout(deadline, permit).await.map_err(|_| late())?;
        let permit = permit.map_err(|e| internal(e.into()))?;
        let guard = self.inner.guard();
        let (url, owned) = (self.inner.url.clone(), key.to_owned());
        // A task of its own: a call that hangs in the kernel cannot be cancelled, and keeps its permit.
        let mut task = tokio::spawn(async move {
            let _permit = permit;
            checked(&guard).await?;
            let result = operation.await;
            checked(&guard).await?;
            result.map_err(|e| StoreError::classify(&url, op, &owned, e))
        });
        match tokio::time::timeout_at(started + deadline, &mut task).await {
            Ok(Ok(result)) => result,
            Ok(Err(e)) => Err(internal(Box::new(e))),
            Err(_) => {
                if matches!(self.inner.backend, Backend::S3(_)) {
                    task.abort();
                }
                Err(late())
            }
        }
    }
}

impl Inner {
    fn durable(&self) -> Arc<dyn ObjectStore> {
        match &self.backend {
            Backend::Directory { durable, .. } => Arc::clone(durable) as _,
            Backend::S3(store) => Arc::clone(store),
        }
    }

    fn bulk(&self) -> Arc<dyn ObjectStore> {
        match &self.backend {
            Backend::Directory { bulk, .. } => Arc::clone(bulk) as _,
            Backend::S3(store) => Arc::clone(store),
        }
    }

    fn guard(&self) -> Option<Arc<local::Guard>> {
        match &self.backend {
            Backend::Directory { guard, .. } => Some(Arc::clone(guard)),
            Backend::S3(_) => None,
        }
    }
}

async fn checked(guard: &Option<Arc<local::Guard>>) -> Result<(), StoreError> {
    let Some(guard) = guard.clone() else { return Ok(()) };
    tokio::task::spawn_blocking(move || guard.check()).await.map_err(|e| StoreError::Internal {
        op: "check",
        key: String::new(),
        source: Box::new(e),
    })?
}

fn generic(source: std::io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "directory", source: Box::new(source) }
}
