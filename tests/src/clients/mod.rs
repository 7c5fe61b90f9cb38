//! Clients that notice: what they were told, when, on which connection, and what was missing.

pub mod counter;
pub mod newcomers;
pub mod redis;
pub mod rtsp;
