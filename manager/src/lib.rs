//! The node manager, room by room. `docs/architecture.md` shows how data walks through them.

pub mod agentlink;
pub mod api;
pub mod checkpoint;
pub mod compose;
pub mod config;
pub mod doctor;
pub mod image;
pub mod membership;
pub mod network;
pub mod node;
pub mod ownership;
pub mod policy;
pub mod recovery;
pub mod runtime;
pub mod snapshot;
pub mod spec;
pub mod store;
