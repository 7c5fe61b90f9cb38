//! Who may run a container, and whose snapshots count.
//!
//! Gossip suspects; the store decides. Owning a container means having created `owners/<container>/<epoch>` for the
//! highest epoch there is. What the owner before writes after it was deposed must never be restored, and what it had
//! committed must never be lost; [`History`] decides that without any clock.
//!
//! ```text
//!             claim(expected = e)                  take_over                       run
//!   observed ───────────────────► Won(e+1) ───────────────────────► base settled ──────► owner
//!      ▲            │                 │                                  │                 │
//!      │            ▼                 │ a later epoch exists             │                 │ ensure_current:
//!      └───────── Lost                └──────────► Deposed ◄─────────────┴─────────────────┘ a later epoch exists
//! ```
//!
//! A container that has come to rest is owned like any other, and not run ([`Rest`]).

mod claim;
mod history;
pub mod lease;
pub mod lineage;
#[cfg(test)]
mod model;
mod rest;
pub mod silence;
mod standing;
pub mod take;
#[cfg(test)]
mod tests;

pub use claim::{
    Claim, Claimant, Owner, OwnershipError, Taken, all, check_epoch, claim, committed, current, ensure_current,
    history, moves_since, next_seq, release, take_base, take_over,
};
pub use history::History;
pub use rest::{Outcome, Rest, at_rest, rest};
pub use standing::{Back, Standing, claim_back, standing};
