//! Images: from a directory, an OCI layout or archive, or a registry to layers in the store, and from there to a node.
//!
//! A node that takes a container over may never have seen its image, and the machine or registry it came from may be
//! gone. So an image is imported once, where it is applied, and from then on the store is its only source.
//!
//! ```text
//!  image: ── classify ──► Source ─┬─ root directory ────────── tree ──────┐
//!                                 ├─ OCI layout ──┐                       ▼
//!                                 ├─ archive ─────┼─► manifest ─► convert ─► zstd tar ──► store: blobs/<blake3>
//!                                 └─ registry ────┘   (digests)   (whiteouts)     └──────► spec::ImageRecord
//!
//!  on a node:  ImageRecord ─ ensure ─► fetch, verify, unpack ─► layers/<digest>/ ── mount_overlay ──► root file system
//! ```
//!
//! `docs/images.md` describes what is accepted and the stored form.

mod archive;
mod blob;
mod classify;
mod convert;
mod credentials;
mod ensure;
mod error;
mod import;
mod layout;
mod limits;
mod manifest;
mod mount;
mod progress;
mod registry;
mod run;
mod stream;
mod tar;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tree;
mod unpack;
mod user;

pub use blob::{BlobError, BlobStore, KEPT_AT_LEAST, WRITTEN_ANEW_AFTER, blob_key};
pub use classify::{Source, classify};
#[cfg(test)]
pub use ensure::missing;
pub use ensure::{clear, ensure, prune, retire};
pub use error::ImageError;
pub use import::{ImportOptions, import};
pub use limits::Limits;
pub use mount::{mount_overlay, umount_overlay};
pub use progress::{Event, Progress, silent};
pub use run::argv;
pub use tar::EntryFault;
pub use user::{UserIds, resolve_user};

/// Runs file work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ImageError::Interrupted),
    }
}
