//! Snapshots: the format, the way into the store and the way back.
//!
//! ```text
//!            pack                upload                         fetch
//!   trees ─────────► draft ──────────────────► committed ──────────────► trees
//!     │                │  chunks, sync, epoch,      │  every chunk checked
//!     │ error:         │  manifest, epoch           │  before it is used
//!     ▼ nothing left   │                            ▼
//!                      ├─ store away: stays, retried  error: target as it was, the snapshot before is tried
//!                      ├─ queue full: the oldest is dropped
//!                      └─ deposed: dropped
//! ```
//!
//! A snapshot is all or nothing: its manifest is created last, is the commit, and lists every chunk with its checksum.

mod chunk;
mod error;
mod fetch;
#[cfg(test)]
mod figures;
mod held;
#[cfg(test)]
mod hostile;
mod manifest;
mod pack;
mod queue;
#[cfg(test)]
mod race;
mod retention;
mod tar_guard;
#[cfg(test)]
mod tests;
mod tree_read;
mod tree_write;
mod upload;

#[cfg(feature = "fuzzing")]
pub(crate) use chunk::{open, seal};
pub use error::SnapshotError;
#[cfg(test)]
pub use fetch::verify;
pub use fetch::{fetch, list, list_valid, load_manifest, survey};
pub use manifest::{
    Chunk, Compression, Digest, HexBytes, MAX_CHUNK, MAX_MANIFEST, Manifest, NetworkIdentity, Part, PartName,
    SnapshotHealth, SnapshotKind, SnapshotMeta, VERSION, Versions,
};
pub use pack::{PackOptions, PartSource, pack};
pub use queue::{Draft, Queue};
pub use retention::{Found, Keep, Pruned, choose, prune, remove_all};
pub use upload::{OnProgress, Progress, upload};
