//! The directory store's guard and its bulk synchronisation.
//!
//! A directory has two ways of being the wrong one without any error: a mount that was forgotten or went away leaves the
//! empty mount point, where every listing is empty and every creation succeeds. So each operation is preceded and
//! followed by a look at the directory's identity, and a changed one is accepted only if the `cluster` object in it
//! carries the identity of the store that was opened (the same file system, mounted again).

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

use super::{StoreError, cluster::Marker, keys, record::MAX_RECORD};

/// Device and inode of the directory.
type Identity = (u64, u64);

#[derive(Debug)]
pub(super) struct Guard {
    root: PathBuf,
    seen: Mutex<Identity>,
    /// Identity of the store, once it was read from the marker.
    store_id: Mutex<Option<String>>,
}

impl Guard {
    /// Blocking.
    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        let no_directory = |source| StoreError::NoDirectory { path: root.to_owned(), source };
        let meta = std::fs::metadata(root).map_err(no_directory)?;
        if !meta.is_dir() {
            return Err(no_directory(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self { root: root.to_owned(), seen: Mutex::new((meta.dev(), meta.ino())), store_id: Mutex::new(None) })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn expect_store(&self, id: &str) {
        *lock(&self.store_id) = Some(id.to_owned());
    }

    /// Blocking. An error means that the directory is not the store that was opened.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let replaced = |what: String| StoreError::Replaced { path: self.root.clone(), what };
        let meta = std::fs::metadata(&self.root).map_err(|e| replaced(e.to_string()))?;
        let now = (meta.dev(), meta.ino());
        if now == *lock(&self.seen) {
            return Ok(());
        }
        let Some(wanted) = lock(&self.store_id).clone() else {
            return Err(replaced("another directory is there now".to_owned()));
        };
        let bytes = read_capped(&self.root.join(keys::CLUSTER)).map_err(|e| {
            replaced(format!("another directory is there now, and its cluster object is unreadable: {e}"))
        })?;
        match Marker::decode(&bytes) {
            Ok(marker) if marker.id == wanted => {
                *lock(&self.seen) = now;
                Ok(())
            }
            Ok(marker) => Err(replaced(format!("another store is there now, of cluster {:?}", marker.cluster))),
            Err(error) => Err(replaced(error.to_string())),
        }
    }

    /// Blocking. Makes the objects of `files` and every directory on the way to them durable.
    pub(super) fn sync(&self, files: &[PathBuf]) -> io::Result<()> {
        let mut directories = BTreeSet::new();
        for file in files {
            File::open(file)?.sync_all()?;
            let mut parent = file.parent();
            while let Some(dir) = parent {
                if !dir.starts_with(&self.root) || !directories.insert(dir.to_owned()) {
                    break;
                }
                parent = dir.parent();
            }
        }
        for directory in &directories {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }
}

/// Whoever made the directory that is there now may have put anything there.
fn read_capped(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_RECORD + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_RECORD { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// The guarded values are replaced whole, so a panic elsewhere cannot leave them half-written.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
