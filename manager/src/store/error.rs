//! What can go wrong with the store, sorted by what the caller can do about it.

use std::{io, path::PathBuf, time::Duration};

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An operation on the store failed. [`StoreError::is_retryable`] says whether waiting can help.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "{op} {key:?}: the store {url} cannot be reached; check the mount or the endpoint. \
         Whether a write took place is not known"
    )]
    Unreachable { url: String, op: &'static str, key: String, source: Source },
    #[error(
        "{op} {key:?}: the store {url} gave no answer within {deadline:?}; check the mount or the endpoint. \
         Whether a write took place is not known"
    )]
    Deadline { url: String, op: &'static str, key: String, deadline: Duration },
    #[error("{op} {key:?}: the store {url} is full; make room there")]
    Full { url: String, op: &'static str, key: String, source: Source },
    #[error("{op} {key:?}: the store {url} refuses it; give this node read and write access")]
    Denied { url: String, op: &'static str, key: String, source: Source },
    #[error("{op} {key:?}: the store {url} is read-only; mount it writable again")]
    ReadOnly { url: String, op: &'static str, key: String, source: Source },
    #[error("the store {url} names a bucket that does not exist; create it, or correct the URL or AWS_ENDPOINT")]
    NoBucket { url: String, source: Source },
    #[error("the store has no object {key:?}")]
    NotFound { key: String },
    #[error("the object {key:?} in the store is damaged: {what}")]
    Corrupt { key: String, what: String },
    #[error("the object {key:?} in the store has {size} bytes, at most {max} are expected: it is not ours, or damaged")]
    TooLarge { key: String, size: u64, max: u64 },
    #[error("{prefix:?} in the store holds more than {max} objects; remove what does not belong there")]
    TooMany { prefix: String, max: usize },
    #[error("store URL {url:?} is not usable: {why}. Allowed are file:///absolute/directory and s3://bucket/prefix")]
    BadUrl { url: String, why: String },
    #[error(
        "the store directory {} cannot be used. It is not created by itself, so that a forgotten mount does not \
         become a private store: mount the shared directory there, or create it by hand for a first trial",
        path.display()
    )]
    NoDirectory { path: PathBuf, source: io::Error },
    #[error(
        "the store directory {} is no longer the store that was opened (unmounted, renamed or replaced): {what}. \
         Mount it again; nothing is done until then",
        path.display()
    )]
    Replaced { path: PathBuf, what: String },
    #[error(
        "the store {url} does not keep the promise that an object is created only once ({what}), so two nodes could \
         both own a container. Use a local file system, NFS v4, or an S3 service with conditional writes \
         (If-None-Match)"
    )]
    NotCreateOnly { url: String, what: String },
    #[error(
        "the store {url} belongs to cluster {found:?}, this node is configured for {wanted:?}; correct one of them"
    )]
    WrongCluster { url: String, found: String, wanted: String },
    #[error(
        "the store {url} is empty, and this node has been in a store before: the mount is not there, or the URL is another \
         one, or the store was wiped. Mount it, or correct the URL; nothing was changed"
    )]
    Emptied { url: String },
    #[error(
        "the store {url} is not the one this node was in before (it has the id {found}, that one {wanted}): mount the right \
         one, or correct the URL; nothing was changed"
    )]
    OtherStore { url: String, found: String, wanted: String },
    #[error(
        "{key:?} has format version {found}, this program reads up to {known}; upgrade ha-manager on this node \
         (nothing was changed)"
    )]
    TooNew { key: String, found: u32, known: u32 },
    #[error(
        "the node name {name:?} is taken by a node at {address} (registered {at}); choose another name, or, if that \
         node is gone for good, use `ha-manager retire {name}` on another one"
    )]
    NodeNameTaken { name: String, address: String, at: String },
    #[error("the address pool {pool} has no free address for {container:?}; enlarge the pool or remove containers")]
    PoolExhausted { pool: String, container: String },
    #[error("the address {address} belongs to container {owner:?}; choose another for {container:?}")]
    AddressTaken { address: std::net::Ipv4Addr, owner: String, container: String },
    #[error("the address {address} is node {node}'s own; choose another for {container:?}")]
    AddressOfNode { address: std::net::Ipv4Addr, node: String, container: String },
    #[error("{op}: the local file {}", path.display())]
    LocalFile { op: &'static str, path: PathBuf, source: io::Error },
    #[error("{op} {key:?}: an operation on the store ended abnormally")]
    Internal { op: &'static str, key: String, source: Source },
}

impl StoreError {
    /// True when the same call can succeed later, by itself or once somebody has mended the store: nothing is wrong with the
    /// object, nor with this node's configuration.
    ///
    /// A write that failed this way may have taken place, or may still take place: repeat it with the same nonce.
    pub fn is_retryable(&self) -> bool {
        self.is_away() || matches!(self, Self::Denied { .. } | Self::TooMany { .. } | Self::Internal { .. })
    }

    /// True when it is the whole store: of any other object it would have said the same.
    pub fn is_away(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Deadline { .. }
                | Self::Full { .. }
                | Self::ReadOnly { .. }
                | Self::NoBucket { .. }
                | Self::Replaced { .. }
        )
    }

    /// True when it is the object: asked for as often as one likes, it stays so.
    pub fn is_of_the_object(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Corrupt { .. } | Self::TooLarge { .. } | Self::TooNew { .. })
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Sorts an error of the object store library.
    pub(super) fn classify(url: &str, op: &'static str, key: &str, error: object_store::Error) -> Self {
        use object_store::Error as E;
        let (url, key) = (url.to_owned(), key.to_owned());
        match error {
            // A missing bucket must not look like an empty store.
            E::NotFound { .. } | E::Generic { .. } if error.to_string().contains("NoSuchBucket") => {
                Self::NoBucket { url, source: Box::new(error) }
            }
            E::NotFound { .. } => Self::NotFound { key },
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
                Self::Denied { url, op, key, source: Box::new(error) }
            }
            E::NotImplemented { .. } | E::NotSupported { .. } => {
                Self::NotCreateOnly { url, what: format!("{op} is not supported: {error}") }
            }
            E::InvalidPath { .. } | E::JoinError { .. } | E::UnknownConfigurationKey { .. } => {
                Self::Internal { op, key, source: Box::new(error) }
            }
            other => match io_kind(&other) {
                Some(io::ErrorKind::NotFound) => Self::NotFound { key },
                Some(io::ErrorKind::PermissionDenied) => Self::Denied { url, op, key, source: Box::new(other) },
                // What a file system does to itself after an error, and an administrator undoes.
                Some(io::ErrorKind::ReadOnlyFilesystem) => Self::ReadOnly { url, op, key, source: Box::new(other) },
                Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                    Self::Full { url, op, key, source: Box::new(other) }
                }
                _ => Self::Unreachable { url, op, key, source: Box::new(other) },
            },
        }
    }
}

/// The kind of the first I/O error in a chain of sources.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut current = Some(error);
    while let Some(e) = current {
        if let Some(io) = e.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        current = e.source();
    }
    None
}
