//! What images need from object storage: create-only puts and whole-file gets, no more.

use std::{future::Future, path::Path};

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
    /// Stores the file under `key` unless something is there. Returns whether it was stored now. An object appears
    /// whole or not at all.
    fn put_if_absent(&self, key: &str, file: &Path) -> impl Future<Output = Result<bool, BlobError>> + Send;

    /// Writes the object to `file`, which it creates or truncates. Returns its size; refuses one above `max` bytes.
    fn get_to_file(&self, key: &str, file: &Path, max: u64) -> impl Future<Output = Result<u64, BlobError>> + Send;

    fn exists(&self, key: &str) -> impl Future<Output = Result<bool, BlobError>> + Send;
}

impl BlobStore for Store {
    async fn put_if_absent(&self, key: &str, file: &Path) -> Result<bool, BlobError> {
        if self.head(key).await.map_err(from_store)?.is_some() {
            return Ok(false);
        }
        self.put_file(key, file).await.map(|_| true).map_err(from_store)
    }

    async fn get_to_file(&self, key: &str, file: &Path, max: u64) -> Result<u64, BlobError> {
        Store::get_to_file(self, key, file, max).await.map(|received| received.size).map_err(from_store)
    }

    async fn exists(&self, key: &str) -> Result<bool, BlobError> {
        self.head(key).await.map(|size| size.is_some()).map_err(from_store)
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
            let temporary = tempfile::NamedTempFile::new_in(&self.dir).map_err(other)?;
            std::fs::copy(file, temporary.path()).map_err(other)?;
            match std::fs::hard_link(temporary.path(), self.dir.join(key)) {
                Ok(()) => {
                    self.puts.fetch_add(1, Ordering::SeqCst);
                    Ok(true)
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(other(error)),
            }
        }

        async fn get_to_file(&self, key: &str, file: &Path, max: u64) -> Result<u64, BlobError> {
            self.gets.fetch_add(1, Ordering::SeqCst);
            if std::fs::metadata(self.dir.join(key)).map_err(other)?.len() > max {
                return Err(BlobError::TooLarge { max });
            }
            std::fs::copy(self.dir.join(key), file).map_err(other)
        }

        async fn exists(&self, key: &str) -> Result<bool, BlobError> {
            self.dir.join(key).try_exists().map_err(other)
        }
    }
}
