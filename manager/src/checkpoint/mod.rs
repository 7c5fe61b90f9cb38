//! Freezing a container and taking its memory and files in one freeze.

mod capture;
mod conversation;
mod cpu;
mod dump;
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

pub use capture::{CaptureError, CaptureReport, CaptureSource};
pub use cpu::{CPUINFO, CpuError, check as check_cpu, describe as describe_cpu};
pub use dump::{DumpError, DumpReport, DumpRequest, Dumper, Gate, OpenGate};
pub use preflight::{Obstacle, preflight};
pub use rescue::Remains;
pub use restore::{RestoreError, restore};
pub use swrk::{CriuVersion, Swrk, SwrkError};
