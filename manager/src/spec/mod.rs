//! The words the rooms share: what a container is, and the names of things.
//!
//! Everything here is plain data, checked when it is built. A value of these types has passed validation; what reads
//! user input (`compose`, `config`) is where errors with a file and a line come from.

mod container;
mod names;
mod units;

pub use container::{
    Condition, ContainerSpec, Dependency, Healthcheck, ImageConfig, ImageRecord, Layer, Mount, MountSource,
    NetworkSpec, RecoveryPolicy, RecoveryStep, RestartPolicy, Rlimit, StateKind, default_keep_manual,
};
pub use names::{ContainerName, Epoch, Mac, NameError, NodeName, SnapshotId};
pub use units::{UnitError, nearest, parse_bytes, parse_duration};
