//! A cluster in one process, played from a seed: the real cores of membership and ownership, the thin shell between them, and a
//! network, a store, clocks and machines that fail.
//!
//! ```text
//!   Scenario ──► World: queue of what is due, in the order of simulated time
//!                 ├─ nodes: clock, disk, containers, watchdog, manager (membership::Core, Lease, Silence)
//!                 ├─ network: delay, loss, duplicates, cuts one way
//!                 ├─ store: create-only objects, late and lost answers, listings that take time
//!                 └─ laws: what must hold after every step ──► Outcome
//! ```
//!
//! The same scenario gives the same run, byte for byte. `docs/simulation.md` has the faults, the laws and the form of scenario
//! files; `ha-manager simulate` plays them.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod clock;
pub mod command;
mod end;
mod exec;
mod expect;
mod file;
mod file_fault;
mod gossip;
mod laws;
#[cfg(test)]
mod mutants;
mod mutation;
mod node;
mod power;
mod random;
mod run;
mod scenario;
mod seeds;
mod shell;
mod store;
#[cfg(test)]
mod tests;
mod world;

pub use file::ScenarioError;
pub use laws::Violation;
pub use run::{Outcome, run};
pub use scenario::{Container, Expect, Fault, Scenario};
pub use seeds::{Tally, play};
pub use world::Note;

/// Simulated time, in microseconds since the scenario's beginning.
pub type Micros = u64;
