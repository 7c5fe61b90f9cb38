//! Why a snapshot could not be written, committed or read.

use std::{io, path::PathBuf};

use nix::errno::Errno;

use crate::{
    ownership::OwnershipError,
    spec::{ContainerName, SnapshotId},
    store::StoreError,
};

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("snapshot {id} of {container}: the store failed")]
    Store { container: ContainerName, id: SnapshotId, source: Box<StoreError> },
    #[error("listing the snapshots of {container}: the store failed")]
    List { container: ContainerName, source: Box<StoreError> },
    #[error("snapshot of {container} was not committed")]
    Ownership { container: ContainerName, source: Box<OwnershipError> },
    #[error("{object} is damaged: {what}. It is not restored; the snapshot before it can be tried")]
    Damaged { object: String, what: String },
    #[error(
        "{object} is missing although its snapshot was committed: it was deleted by hand or lost by the store. \
         The snapshot before it can be tried"
    )]
    Missing { object: String },
    #[error(
        "{object} has format version {found}, this program reads up to {known}: it was written by a newer ha-manager. \
         Upgrade this node"
    )]
    TooNew { object: String, found: u32, known: u32 },
    #[error("snapshot {id} of {container} has no part {part:?}")]
    NoPart { container: ContainerName, id: SnapshotId, part: String },
    #[error("snapshot {id} of {container} is in the store already, with other content: two writers used one number")]
    Conflict { container: ContainerName, id: SnapshotId },
    #[error("{op} {}", path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
    #[error("{} changed while it was packed ({what}); pack only what nobody writes to", path.display())]
    Changed { path: PathBuf, what: String },
    #[error("{} cannot be in a snapshot: {what}", path.display())]
    Unsupported { path: PathBuf, what: String },
    #[error("{object} is refused: the entry {entry:?} {what}. Nothing of it was started")]
    Hostile { object: String, entry: String, what: &'static str },
    #[error("compressing or expanding {object}")]
    Compression { object: String, source: io::Error },
    #[error("the snapshot's description is too large: {what}")]
    Limits { what: String },
    #[error("the draft {id} in {} is gone: it was dropped to make room", path.display())]
    DraftGone { id: SnapshotId, path: PathBuf },
    #[error("a worker of {op} ended abnormally")]
    Worker { op: &'static str },
}

impl SnapshotError {
    /// True when trying again later can help; false when it is the snapshot or the ownership.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store { source, .. } | Self::List { source, .. } => source.is_retryable(),
            Self::Ownership { source, .. } => source.is_retryable(),
            _ => false,
        }
    }

    /// True when it is this snapshot that can never be committed. Anything else passes or is mended: the store, this node's
    /// descriptors, its memory.
    pub fn is_of_the_snapshot(&self) -> bool {
        const PASSES: [Errno; 5] = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EAGAIN, Errno::EINTR];
        match self {
            Self::Store { source, .. } | Self::List { source, .. } => source.is_of_the_object(),
            Self::Ownership { source, .. } => !matches!(**source, OwnershipError::Store { .. }),
            Self::Io { source, .. } => {
                !source.raw_os_error().map(Errno::from_raw).is_some_and(|no| PASSES.contains(&no))
            }
            Self::Worker { .. } => false,
            _ => true,
        }
    }

    /// True when another node owns the container: stop, do not retry.
    pub fn is_deposed(&self) -> bool {
        matches!(self, Self::Ownership { source, .. } if matches!(**source, OwnershipError::Deposed { .. }))
    }
}

/// For `map_err` on the store's answers about one snapshot.
pub(super) fn store(container: &ContainerName, id: SnapshotId) -> impl Fn(StoreError) -> SnapshotError + '_ {
    move |source| SnapshotError::Store { container: container.clone(), id, source: Box::new(source) }
}

/// For `map_err` on the store's answers about all snapshots of a container.
pub(super) fn list(container: &ContainerName) -> impl Fn(StoreError) -> SnapshotError + '_ {
    move |source| SnapshotError::List { container: container.clone(), source: Box::new(source) }
}

/// For `map_err` on what ownership says.
pub(super) fn ownership(container: &ContainerName) -> impl Fn(OwnershipError) -> SnapshotError + '_ {
    move |source| SnapshotError::Ownership { container: container.clone(), source: Box::new(source) }
}

/// For `map_err` on local files.
pub(super) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.into();
    move |source| SnapshotError::Io { op, path, source }
}
