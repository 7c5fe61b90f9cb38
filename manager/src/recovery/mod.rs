//! Carrying out what policy decides, one container at a time.
//!
//! Each container this node owns has an actor: one task that alone touches the copy of the container on this node. What it
//! does comes from four sides: the agent, the kernel (the container's exit), the clock, and orders (operator, peers, store).
//!
//! ```text
//!                 launch ok                         checkpoint due
//!   ┌──────────┐ ──────────► ┌─────────┐ ──────────────────────────► ┌───────────────┐
//!   │ starting │             │ running │ ◄────────────────────────── │ checkpointing │
//!   └──────────┘             └─────────┘   resumed, or failed: the    └───────────────┘
//!        │ failed     process │   ▲        container goes on either way
//!        ▼            or agent│   │ restored and answering
//!   ┌────────────┐    or exit │   │
//!   │ recovering │ ◄──────────┘   │          attempts exhausted      ┌────────┐
//!   │            │ ───────────────┘ ───────────────────────────────► │ failed │── order ─► recovering
//!   └────────────┘                                                   └────────┘
//!   main process ended as it may: running ─► stopped; stopped and failed are at rest until an order, whoever owns it then
//!   from every state: deposed (a later epoch exists) → the copy is cleared away, the actor ends
//!                     removed                        → as deposed, and the container's objects are deleted
//!                     moved                          → last checkpoint, copy cleared away, the peer restores
//! ```
//!
//! A failed launch clears everything it made before the next attempt begins: process, link, namespace, mounts, images.

mod actor;
mod adopt;
mod checkpoint;
mod clearing;
mod commit_wait;
mod committer;
mod ending;
mod handed;
mod handover;
mod heed;
mod launch;
mod leave;
mod live;
mod moving;
mod order;
mod order_restore;
mod orders;
mod packer;
mod place;
mod quiet;
mod record;
mod recover;
mod remove_tree;
mod rest;
mod restore;
mod shipping;
mod teardown;
mod unfit;
mod upload;
mod view;

pub use actor::{ActorHandle, Begin, spawn};
pub use launch::blocking;
pub use order::{Command, Order, ProgressSender};
pub use orders::{clear_leftovers, end_running, forget, forget_objects};
pub use place::Place;
pub use record::{LocalPhase, LocalRecord};
pub use shipping::{ShippingView, Standing};
pub use view::{ContainerView, Phase};
#[cfg(feature = "fuzzing")]
pub(crate) use {
    ending::{facts, sentence},
    launch::described,
};
