//! A node's configuration file.
