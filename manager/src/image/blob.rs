//! What images need from object storage: create-only puts and whole-file gets, no more.

use std::{future::Future, path::Path};

use chrono::TimeDelta;

use crate::store::{Store, StoreError};

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("it is not there")]
    Missing,
    #[error("it is larger than the {max} bytes it may have")]
    TooLarge { max: u64 },
    /// The store does not answer: try again later.
    #[error(transparent)]
    Away(Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// The part of an object store that this room uses. Keys are relative paths such as `blobs/<blake3>`.
pub trait BlobStore: Send + Sync {
    /// Stores the file under `key` unless an object of its size is there, and not one that may be removed as unused before
    /// long. Returns whether it was stored now. An object appears whole or not at all.
    fn put_if_absent(&self, key: &str, file: &Path) -> impl Future<Output = Result<bool, BlobError>> + Send;

    /// Writes the object to `file`, which must not exist. Returns its size; refuses one above `max` bytes.
    fn get_to_file(&self, key: &str, file: &Path, max: u64) -> impl Future<Output = Result<u64, BlobError>> + Send;
}

/// An object that an import finds in the store is written anew when it is older than this, so that nobody who just then looks
/// for objects that are in no use takes it for one ([`KEPT_AT_LEAST`]).
pub const WRITTEN_ANEW_AFTER: TimeDelta = TimeDelta::days(7);
/// No object is removed before this age. Between this and the other age lies the time in which an import has to become a
/// registered application.
pub const KEPT_AT_LEAST: TimeDelta = TimeDelta::days(30);

impl BlobStore for Store {
    async fn put_if_absent(&self, key: &str, file: &Path) -> Result<bool, BlobError> {
        if let Some(there) = self.stat(key).await.map_err(from_store)? {
            let size = tokio::fs::metadata(file).await.map_err(|error| BlobError::Other(error.into()))?.len();
            let now = self.clock().await.map_err(from_store)?;
            if there.size == size && now - there.modified < WRITTEN_ANEW_AFTER {
                return Ok(false);
            }
        }
        self.put_file(key, file).await.map(|_| true).map_err(from_store)
    }

    async fn get_to_file(&self, key: &str, file: &Path, max: u64) -> Result<u64, BlobError> {
        Store::get_to_file(self, key, file, max).await.map(|received| received.size).map_err(from_store)
    }
}

fn from_store(error: StoreError) -> BlobError {
    if error.is_not_found() {
        return BlobError::Missing;
    }
    if error.is_retryable() { BlobError::Away(Box::new(error)) } else { BlobError::Other(Box::new(error)) }
}

/// The store's name of the content with this blake3 digest.
pub fn blob_key(digest: &str) -> String {
    format!("blobs/{digest}")
}

#[cfg(test)]
pub(crate) mod testing {
    use std::{
        io::ErrorKind,
        path::PathBuf,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// A store that is a local directory, and counts what was uploaded and read.
    pub struct DirStore {
        pub dir: PathBuf,
        pub puts: AtomicUsize,
        pub gets: AtomicUsize,
    }

    impl DirStore {
        pub fn new(dir: &Path) -> Self {
            std::fs::create_dir_all(dir.join("blobs")).unwrap();
            Self { dir: dir.to_owned(), puts: AtomicUsize::new(0), gets: AtomicUsize::new(0) }
        }

        pub fn blob(&self, digest: &str) -> PathBuf {
            self.dir.join(blob_key(digest))
        }
    }

    fn other(error: std::io::Error) -> BlobError {
        if error.kind() == ErrorKind::NotFound { BlobError::Missing } else { BlobError::Other(error.into()) }
    }

    impl BlobStore for DirStore {
        async fn put_if_absent(&self, key: &str, file: &Path) -> Result<bool, BlobError> {
            let there = std::fs::metadata(self.dir.join(key)).ok().map(|meta| meta.len());
            if there.is_some_and(|size| size == std::fs::metadata(file).unwrap().len()) {
                return Ok(false);
            }
            let temporary = tempfile::NamedTempFile::new_in(&self.dir).map_err(other)?;
            std::fs::copy(file, temporary.path()).map_err(other)?;
            temporary.persist(self.dir.join(key)).map_err(|error| other(error.error))?;
            self.puts.fetch_add(1, Ordering::SeqCst);
            Ok(true)
        }

        async fn get_to_file(&self, key: &str, file: &Path, max: u64) -> Result<u64, BlobError> {
            self.gets.fetch_add(1, Ordering::SeqCst);
            if std::fs::metadata(self.dir.join(key)).map_err(other)?.len() > max {
                return Err(BlobError::TooLarge { max });
            }
            let mut to = std::fs::File::create_new(file).map_err(|error| BlobError::Other(error.into()))?;
            std::io::copy(&mut std::fs::File::open(self.dir.join(key)).map_err(other)?, &mut to).map_err(other)
        }
    }
}
