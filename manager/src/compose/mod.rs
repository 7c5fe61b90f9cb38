//! Compose files: input with line numbers in, checked specifications out.
