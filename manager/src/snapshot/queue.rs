//! Drafts: snapshots that are complete on this node and wait for the store.
//!
//! ```text
//!   queue/
//!     e3-17.partial/   being packed; removed when the queue is opened
//!     e3-16/           complete: its chunks and, written before the rename, its manifest
//! ```
//!
//! Drafts are not synced to disk: after a power cut the container is another node's, and what is left here is checked
//! against its manifest before a byte of it is sent.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    Manifest, SnapshotError,
    error::io as io_error,
    manifest::{MAX_MANIFEST, Part},
};
use crate::{
    spec::{Epoch, SnapshotId},
    store::keys,
};

const PARTIAL: &str = "partial";

/// The drafts of one container.
#[derive(Debug, Clone)]
pub struct Queue {
    dir: PathBuf,
}

/// A snapshot that is complete on this node.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    pub manifest: Manifest,
    dir: PathBuf,
}

impl Draft {
    pub fn id(&self) -> SnapshotId {
        self.manifest.meta.id
    }

    /// Where the chunk's bytes are.
    pub(super) fn chunk_path(&self, part: &Part, index: usize) -> PathBuf {
        self.dir.join(part.chunk_file(index))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Queue {
    /// Opens the queue in `dir`, creating it, and clears away what was never finished. Blocking, as all of it.
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        std::fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let queue = Self { dir: dir.to_owned() };
        for name in queue.names()? {
            if name.ends_with(PARTIAL) {
                let path = dir.join(name);
                std::fs::remove_dir_all(&path).map_err(io_error("remove", path))?;
            }
        }
        Ok(queue)
    }

    /// Complete drafts, oldest first: the order in which they have to be uploaded.
    pub fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        let mut ids: Vec<SnapshotId> = self.names()?.iter().filter_map(|n| n.parse().ok()).collect();
        ids.sort();
        Ok(ids)
    }

    pub fn load(&self, id: SnapshotId) -> Result<Draft, SnapshotError> {
        let dir = self.dir.join(id.to_string());
        let path = dir.join(keys::MANIFEST);
        let bytes = match read_limited(&path, MAX_MANIFEST) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(SnapshotError::DraftGone { id, path: dir }),
            other => other.map_err(io_error("read", &path))?,
        };
        let manifest = Manifest::decode(&path.to_string_lossy(), &bytes)?;
        if manifest.meta.id != id {
            let what = format!("it is of snapshot {}", manifest.meta.id);
            return Err(SnapshotError::Damaged { object: path.display().to_string(), what });
        }
        Ok(Draft { manifest, dir })
    }

    /// Removes a draft; one that is gone already is fine.
    pub fn remove(&self, id: SnapshotId) -> Result<(), SnapshotError> {
        let dir = self.dir.join(id.to_string());
        // Under another name first: a removal that is interrupted must not leave half a draft.
        let doomed = self.dir.join(format!("{id}.{PARTIAL}"));
        match std::fs::rename(&dir, &doomed) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io_error("remove", dir)(e)),
            Ok(()) => std::fs::remove_dir_all(&doomed).map_err(io_error("remove", doomed)),
        }
    }

    /// Bytes of all complete drafts.
    pub fn size(&self) -> Result<u64, SnapshotError> {
        self.list()?.into_iter().map(|id| self.draft_size(id)).sum()
    }

    /// Drops the oldest drafts until at most `max_bytes` are left, never the newest one nor `spare`, and says which.
    pub fn enforce(&self, max_bytes: u64, spare: Option<SnapshotId>) -> Result<Vec<SnapshotId>, SnapshotError> {
        let ids = self.list()?;
        let sizes: Result<Vec<u64>, _> = ids.iter().map(|id| self.draft_size(*id)).collect();
        let sizes = sizes?;
        let mut total: u64 = sizes.iter().sum();
        let mut dropped = Vec::new();
        for (id, size) in ids.iter().zip(&sizes).take(ids.len().saturating_sub(1)) {
            if total <= max_bytes {
                break;
            }
            if Some(*id) == spare {
                continue;
            }
            self.remove(*id)?;
            total -= size;
            dropped.push(*id);
        }
        Ok(dropped)
    }

    /// Drops the drafts of epochs before `current`, which can never be committed, and says which.
    pub fn drop_deposed(&self, current: Epoch) -> Result<Vec<SnapshotId>, SnapshotError> {
        let doomed: Vec<_> = self.list()?.into_iter().filter(|id| id.epoch < current).collect();
        for id in &doomed {
            self.remove(*id)?;
        }
        Ok(doomed)
    }

    pub(super) fn begin(&self, id: SnapshotId) -> Result<PathBuf, SnapshotError> {
        let partial = self.dir.join(format!("{id}.{PARTIAL}"));
        std::fs::create_dir(&partial).map_err(io_error("create", &partial))?;
        Ok(partial)
    }

    pub(super) fn finish(&self, partial: &Path, manifest: Manifest) -> Result<Draft, SnapshotError> {
        let path = partial.join(keys::MANIFEST);
        std::fs::write(&path, manifest.encode()?).map_err(io_error("write", path))?;
        let dir = self.dir.join(manifest.meta.id.to_string());
        std::fs::rename(partial, &dir).map_err(io_error("rename to", &dir))?;
        Ok(Draft { manifest, dir })
    }

    fn draft_size(&self, id: SnapshotId) -> Result<u64, SnapshotError> {
        let dir = self.dir.join(id.to_string());
        let sum = || -> io::Result<u64> {
            std::fs::read_dir(&dir)?.map(|entry| entry.and_then(|e| e.metadata()).map(|m| m.len())).sum()
        };
        match sum() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            other => other.map_err(io_error("read", &dir)),
        }
    }

    fn names(&self) -> Result<Vec<String>, SnapshotError> {
        let listed: io::Result<Vec<_>> = std::fs::read_dir(&self.dir).and_then(Iterator::collect);
        let listed = listed.map_err(io_error("read", &self.dir))?;
        Ok(listed.into_iter().filter_map(|e| e.file_name().into_string().ok()).collect())
    }
}

/// Reads a file of at most `max` bytes.
pub(super) fn read_limited(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("it is larger than {max} bytes")));
    }
    Ok(bytes)
}
