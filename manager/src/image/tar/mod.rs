//! Tar as images use it. The `tar` crate's reader takes extension headers of any size into memory and extracts with its
//! own idea of safety; here every byte has a cap, and reading, writing and extracting are three separate things.

mod entry;
mod pax;
mod read;
mod write;

pub use entry::EntryFault;
pub(super) use entry::{Entry, Kind, Meta, Mtime, clean, join, parent, show, split};
pub(super) use read::{ReadError, Reader};
pub(super) use write::LayerWriter;
