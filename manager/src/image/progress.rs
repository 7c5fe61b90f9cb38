//! What long work tells whoever waits for it.

use std::sync::Arc;

/// One step of an import or of a fetch. Layers count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes of a layer that came from the registry so far.
    Pulling { layer: usize, layers: usize, bytes: u64, of: u64 },
    /// A layer (or the root directory) is being brought into the stored form.
    Converting { layer: usize, layers: usize },
    /// A layer is in the store; `uploaded` is false when it already was.
    Stored { layer: usize, layers: usize, size_bytes: u64, uploaded: bool },
    /// A layer is being fetched from the store to this node.
    Fetching { layer: usize, layers: usize, size_bytes: u64 },
    /// A layer is being unpacked on this node.
    Unpacking { layer: usize, layers: usize },
    /// A layer is on this node; `fetched` is false when it already was.
    Ready { layer: usize, layers: usize, fetched: bool },
    /// Something was left out on purpose, and what.
    Note { text: String },
}

/// Receives events, from any thread; must not block.
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

/// A receiver that drops everything.
pub fn silent() -> Progress {
    Arc::new(|_| {})
}
