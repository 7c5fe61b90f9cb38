//! Why an image was refused or could not be had. The operation is in the variant, the remedy in the text.

use std::{io, path::PathBuf};

use super::{blob::BlobError, tar::EntryFault};

/// Everything that can go wrong between an image reference and a mounted root file system.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("image {reference:?} is not usable: {tried}")]
    Unclassified { reference: String, tried: String },
    #[error("cannot {op} {}", path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
    #[error("{what} is not well-formed: {reason}")]
    Malformed { what: String, reason: String },
    #[error("{what} is damaged: its digest is {found}, {expected} was expected; fetch or build the image again")]
    Digest { what: String, expected: String, found: String },
    #[error("{what} is damaged: it has {found} bytes, {expected} were announced; fetch or build the image again")]
    Size { what: String, expected: u64, found: u64 },
    #[error("{what} is over the limit of {limit} {unit}")]
    Limit { what: String, limit: u64, unit: &'static str },
    #[error("{what} has no image for {need}; it has {offered}")]
    Platform { what: String, need: String, offered: String },
    #[error("{what} holds more than one image ({candidates}); save one only, or refer to one by its digest")]
    Ambiguous { what: String, candidates: String },
    #[error("{what} is {found}, which is not supported; {remedy}")]
    Unsupported { what: String, found: String, remedy: &'static str },
    #[error("{what}, entry {path:?}: {fault}")]
    Entry { what: String, path: String, fault: EntryFault },
    #[error("cannot read the archive of {what}")]
    Archive { what: String, source: io::Error },
    #[error("cannot {op} {reference} at its registry; check the name, the network and `docker login`'s credentials")]
    Registry {
        op: &'static str,
        reference: String,
        // Boxed: the registry client's error is far larger than every other variant.
        source: Box<oci_client::errors::OciDistributionError>,
    },
    #[error("cannot use the registry credentials in {}: {reason}", path.display())]
    Credentials { path: PathBuf, reason: String },
    #[error("cannot {op} {key} in the store")]
    Store { op: &'static str, key: String, source: BlobError },
    #[error("layer digest {digest:?} of the image record is not 64 lower-case hex digits")]
    LayerDigest { digest: String },
    #[error(
        "neither the image nor the application has a command; give `command:` (a root directory has none of its own)"
    )]
    NoCommand,
    #[error("user {user:?} cannot be used: {reason}")]
    User { user: String, reason: String },
    #[error("cannot mount an overlay on {}: {step}; see `dmesg` for the kernel's reason", merged.display())]
    Mount { merged: PathBuf, step: String, source: io::Error },
    #[error("an overlay of {layers} layers is refused: {reason}")]
    TooManyLayers { layers: usize, reason: &'static str },
    #[error("cannot unmount {}; a process still has files open there (`fuser -vm` names it)", merged.display())]
    Unmount { merged: PathBuf, source: io::Error },
    #[error("the blocking work of an image was stopped before its end")]
    Interrupted,
}

impl ImageError {
    /// True when the store was away and trying again later can help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Store { source: BlobError::Away(_), .. })
    }

    /// For `map_err`: an operation on a path of this node.
    pub(super) fn io<E: Into<io::Error>>(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> ImageError {
        let path = path.into();
        move |source| ImageError::Io { op, path, source: source.into() }
    }

    pub(super) fn malformed(what: impl Into<String>, reason: impl ToString) -> ImageError {
        ImageError::Malformed { what: what.into(), reason: reason.to_string() }
    }
}
