//! Who is alive: SWIM-style probes, suspicion and refutation.

mod belief;
mod calls;
mod config;
mod core;
mod handle;
mod health;
mod lane;
mod message;
mod probe;
mod rng;
mod rumours;
mod shell;
mod suspicion;
mod wire;

pub use self::core::{Core, Me, PeerState};
pub use config::{Config, ConfigError};
pub use handle::{Membership, MembershipService, PeerView, StartError};
pub use message::{
    Boot, CallId, Event, Gossip, Input, Liveness, MAX_ADDRESS, MAX_RUMOURS, Output, Request, Rumour, Time,
};
pub use wire::{WireError, check_address};

#[cfg(test)]
mod laws;
#[cfg(test)]
mod shell_tests;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod sim_tests;
