//! OCI bundles and the OCI runtime that turns them into containers.
//!
//! A bundle is written from a [`BundleSpec`]; the same spec on another node gives a bundle into which the images of the
//! first restore. [`Runtime`] is what the manager asks of a runtime; [`Runc`] does it with runc. Everything here is
//! synchronous and blocks for at most the time it is given.
//!
//! ```text
//!   BundleSpec ──write──► bundle/config.json, criu.conf, hosts, resolv.conf, hostname
//!                              │
//!            start(id, bundle) │ restore(id, bundle, images)          delete(id)
//!   (nothing) ─────────────────┴──────────────────► running ─► stopped ─────────► (nothing)
//! ```

mod bundle;
mod cgroup;
mod command;
mod defaults;
mod pidfd;
mod resolv;
mod rlimit;
mod runc;
#[cfg(test)]
mod tests;

pub use bundle::{Bind, BundleError, BundleSpec, Process, Tmpfs, write_bundle};
pub use pidfd::ExitWatch;
pub use resolv::{Resolv, resolv_conf};
pub use runc::{ContainerState, Runc, Runtime, RuntimeError, Status};
pub(crate) use {
    command::{memory_file, text_of},
    pidfd::poll_in,
    rlimit::may_raise_limits,
};

/// Where the agent's binary and its channel appear inside every container.
pub const AGENT_BIN_DIR: &str = "/.ha-manager/bin";
/// Where the channel between agent and manager appears inside every container.
pub const AGENT_CHANNEL_DIR: &str = "/.ha-manager/channel";
