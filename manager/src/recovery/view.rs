//! What others may know of a container: written by its actor, read by `status`, without asking the actor.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use ha_proto::control::SnapshotInfo;

use crate::{ownership::Owner, snapshot::NetworkIdentity, spec::ContainerSpec};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Running,
    Checkpointing,
    Recovering,
    Moving,
    Stopped,
    Failed,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Checkpointing => "checkpointing",
            Phase::Recovering => "recovering",
            Phase::Moving => "moving",
            Phase::Stopped => "stopped",
            Phase::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone)]
pub struct ContainerView {
    pub spec: ContainerSpec,
    pub owner: Owner,
    /// Processes of a copy may be on this node.
    pub copy: bool,
    pub network: NetworkIdentity,
    pub phase: Phase,
    /// none, starting, healthy, unhealthy
    pub health: &'static str,
    pub pid: u32,
    pub up_since: Option<Instant>,
    pub recoveries: u32,
    pub last_snapshot: Option<SnapshotInfo>,
    /// When the state of `last_snapshot` was frozen, if this manager saw it.
    pub last_frozen: Option<Instant>,
    /// Why checkpoints fail, while they do.
    pub checkpoint_problem: Option<String>,
    /// Why the container failed.
    pub failure: Option<String>,
}

/// Shared between an actor and its readers.
#[derive(Debug, Clone)]
pub struct SharedView(Arc<Mutex<ContainerView>>);

impl SharedView {
    pub fn new(view: ContainerView) -> Self {
        Self(Arc::new(Mutex::new(view)))
    }

    pub fn get(&self) -> ContainerView {
        self.lock().clone()
    }

    pub fn update(&self, change: impl FnOnce(&mut ContainerView)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, ContainerView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
