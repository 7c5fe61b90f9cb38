//! Freezing a container and taking its memory and files in one freeze.
