//! Who is alive: SWIM-style probes, suspicion and refutation, with Lifeguard's care for our own slowness.
//!
//! A node that fails has to be noticed within a second, by every other node, at a cost that does not grow with the
//! cluster. A node that is merely slow, or that *we* are too slow to hear, must not be. What comes out of here is a
//! suspicion, however strong: a container moves only by what the store says.
//!
//! A peer, as another node sees it:
//!
//! ```text
//!              first message or rumour
//!                        │
//!                        ▼     every probe failed, or a rumour says so
//!      ┌──────────────▶ alive ─────────────────────────▶ suspect ◀─┐ confirmed by another:
//!      │                 │ ▲                              │ │  └───┘ less time is left
//!      │                 │ └──── higher incarnation ──────┘ │
//!      │                 │              (refuted)           │ suspicion time over,
//!      │  it says so     │                                  │ or a rumour says so
//!      │                 ▼                                  ▼
//!      ├────────────── left                               dead ── 24 h ──▶ forgotten
//!      │  higher incarnation                                │
//!      └────────────────────────────────────────────────────┘ higher incarnation (slow probes go on)
//! ```
//!
//! Claims are ordered by (incarnation, alive < suspect < dead < left) and the greater one is kept, so the order in which
//! they arrive does not matter. Only a node itself raises its incarnation.
//!
//! [`Core`] is pure: [`Input`] and a time in, [`Output`]s out, a seeded generator inside. [`Membership`] runs it with real
//! time and gRPC. `docs/membership.md` has the protocol, the formulae and what is promised.

mod acquaintances;
mod belief;
mod calls;
mod config;
mod contacts;
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
pub use acquaintances::{Acquaintances, AcquaintancesError};
pub use config::{Config, ConfigError};
pub use contacts::Contacts;
pub use handle::{ForgetError, Membership, MembershipService, PeerView, StartError};
pub use message::{
    Boot, CallId, Event, Gossip, Input, Liveness, MAX_ADDRESS, MAX_RUMOURS, Output, Request, Rumour, Time, Touch,
};
pub(crate) use rng::Rng;
pub use shell::OnKnown;
pub use wire::{WireError, check_address};
#[cfg(feature = "fuzzing")]
pub(crate) use wire::{envelope, gossip, indirect};

#[cfg(test)]
mod laws;
#[cfg(test)]
mod shell_tests;
#[cfg(any(test, feature = "simulation"))]
pub mod sim;
#[cfg(test)]
mod sim_tests;
