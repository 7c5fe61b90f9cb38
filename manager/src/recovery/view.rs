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

impl ContainerView {
    /// Phase and health as `status` has them. `frozen`: the lease of this node has lapsed, and the watchdog has frozen what runs
    /// here. Its actor does not know, and what its agent said last is old.
    pub fn shown(&self, frozen: bool) -> (&'static str, &'static str) {
        shown(self.phase, self.health, frozen && self.copy)
    }
}

fn shown(phase: Phase, health: &'static str, frozen: bool) -> (&'static str, &'static str) {
    match (phase, health) {
        // It was not up before either, which says more.
        (Phase::Stopped | Phase::Failed, _) => (phase.as_str(), health),
        _ if !frozen => (phase.as_str(), health),
        (_, "none") => ("frozen", "none"),
        _ => ("frozen", "unknown"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_frozen_is_neither_running_nor_healthy_until_it_goes_on() {
        for (phase, health, frozen) in [
            (Phase::Running, "healthy", ("frozen", "unknown")),
            (Phase::Running, "none", ("frozen", "none")),
            (Phase::Checkpointing, "unhealthy", ("frozen", "unknown")),
            (Phase::Moving, "starting", ("frozen", "unknown")),
            (Phase::Failed, "healthy", ("failed", "healthy")),
            (Phase::Stopped, "none", ("stopped", "none")),
        ] {
            assert_eq!(shown(phase, health, true), frozen);
            assert_eq!(shown(phase, health, false), (phase.as_str(), health));
        }
    }
}
