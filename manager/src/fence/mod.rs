//! A node that nobody hears any more stops its own containers, before a peer begins others in their place; and a peer can make
//! sure by a command that switches the node off.
//!
//! The manager knows until when this node may run containers (its lease) and tells it, again and again, to a small process of
//! its own, the watchdog. When that moment comes without a later one having been told, the watchdog freezes all containers and
//! takes their links down, whatever became of the manager:
//!
//! ```text
//!   manager                                  watchdog (one per node, RUN/watchdog.sock)
//!     Guard ── Hold(deadline) ─────────────► core: Holding ──────── deadline ────────► Fenced
//!       │                                                              │ freezer: the containers' parent group
//!       │                                                              │ links: every hv… down
//!       │ ◄───────────────────────────────── State{fired} ─────────────┘
//!       └── Release(new deadline) ─────────► links up, thaw ── Ack ──►
//!   ended, killed, stopped: ─────────────────► nothing changes, the deadline stands
//! ```
//!
//! [`Guard`] is the manager's end, [`watchdog`] the process. [`FenceCommand`] is the other way, used by peers. What is promised
//! and what not: `docs/fencing.md`.

mod agent;
mod clock;
mod command;
mod connection;
mod core;
mod device;
mod error;
mod freezer;
mod guard;
mod process;
mod protocol;
mod serve;
mod setting;
#[cfg(test)]
pub(crate) mod testing;
mod told;

pub use self::{
    agent::{AgentAction, AgentOptions},
    command::{CommandError, FenceCommand},
    error::FenceError,
    guard::{Deadline, Guard, Inherited, State},
    process::watchdog,
    setting::Setting,
};

/// Below the run directory.
const SOCKET: &str = "watchdog.sock";
const LOCK: &str = "watchdog.lock";
