//! Object storage with the guarantees the rest needs.
