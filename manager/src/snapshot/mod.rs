//! The snapshot format: manifest, chunks, checksums, retention.
