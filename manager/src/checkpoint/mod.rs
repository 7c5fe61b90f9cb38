//! Freezing a container and taking its memory and files in one freeze; bringing it back from them.
//!
//! A dump goes to CRIU directly, over the RPC of `criu swrk`, because that is where the frozen time is won; a restore goes
//! through the OCI runtime, so that the container is the runtime's again. `docs/checkpoint.md` shows the order and the
//! figures.
//!
//! ```text
//!               running                 │            frozen              │ running
//!   spawn CRIU ► preflight ► first copy │ gate ► CRIU dump ∥ second copy │ gate open ► report
//!                                       │   close                        │
//!        any failure ──────────────────►│── let go, mend, gate open ────►│ error says what is left
//! ```
//!
//! - [`Dumper::dump`] makes a dump; [`Gate`] is how it has the network held back.
//! - [`preflight`] names what cannot be dumped.
//! - [`restore()`] brings a container back; [`Dumper::check_cpu`] tells beforehand whether this node's CPU can run it.

mod capture;
mod conversation;
mod cpu;
mod dump;
mod evict;
mod images;
mod logs;
mod mounts;
mod preflight;
mod proc;
mod rescue;
mod restore;
mod rpc;
mod sockets;
mod swrk;
#[cfg(test)]
mod tests;
mod urgent;

pub use capture::{CaptureError, CaptureReport, CaptureSource};
pub use cpu::CpuError;
pub use dump::{DumpError, DumpReport, DumpRequest, Dumper, Gate};
pub use preflight::{Obstacle, preflight};
pub use rescue::{Remains, settle_orphan};
pub use restore::{RestoreError, restore};
pub use swrk::{CriuVersion, Swrk, SwrkError};
