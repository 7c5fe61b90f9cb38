//! What an image may cost. Images come from strangers; every size below is refused before it is spent.

/// Caps on one import and on unpacking. The defaults are far above any image known to be in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one layer as it is transferred (compressed).
    pub transfer_bytes: u64,
    /// Bytes of one layer's tar stream, decompressed.
    pub layer_bytes: u64,
    /// Files, directories and whiteouts in one layer.
    pub entries: u64,
    /// Bytes of all paths, link targets and extended attributes of one layer together; they are held in memory.
    pub metadata_bytes: u64,
    /// Layers of one image. The kernel's overlay takes 500.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        Self {
            transfer_bytes: 64 * GIB,
            layer_bytes: 128 * GIB,
            entries: 2_000_000,
            metadata_bytes: GIB / 2,
            layers: 450,
        }
    }
}

/// Bytes of an index, a manifest or an image configuration (the distribution specification asks for 4 MiB).
pub(super) const DOCUMENT_BYTES: u64 = 4 << 20;
