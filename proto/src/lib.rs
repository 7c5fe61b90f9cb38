//! The messages and gRPC services that agents, managers and the CLI speak.
//!
//! The schemas in `proto/ha/` are the documentation; package names carry the version.

mod agent_config;
mod text;

/// Agent ↔ manager: messages over unix sockets (`ha.agent.v1`).
pub mod agent {
    pub use crate::agent_config::{
        Config, ConfigError, HealthcheckConfig, MAX_CONFIG, QUIESCE_WAIT_MS, RestartConfig, RestartRule, State, User,
    };

    include!(concat!(env!("OUT_DIR"), "/ha.agent.v1.rs"));

    /// The largest message either side accepts, in bytes.
    pub const MAX_MESSAGE: usize = 64 * 1024;

    pub use crate::text::{LAST_LINES, MAX_TEXT, harmless, last_lines};
}

/// Manager ↔ manager (`ha.peer.v1`).
#[cfg(feature = "grpc")]
pub mod peer {
    include!(concat!(env!("OUT_DIR"), "/ha.peer.v1.rs"));

    /// The largest message either side accepts, in bytes.
    pub const MAX_MESSAGE: usize = 64 * 1024;
}

/// CLI ↔ manager (`ha.control.v1`).
#[cfg(feature = "grpc")]
pub mod control {
    include!(concat!(env!("OUT_DIR"), "/ha.control.v1.rs"));
}
