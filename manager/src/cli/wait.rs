//! `apply --wait`: until every container of the file runs, is healthy and protected, or one of them will not be.

use std::time::{Duration, Instant};

use ha_proto::control::{
    ContainerStatus, SnapshotInfo, SnapshotsRequest, StatusRequest, control_client::ControlClient,
};
use tonic::transport::Channel;

use super::{client::CliError, progress};
use crate::spec::{ContainerSpec, StateKind};

/// Between two looks at the status.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// How far a container is.
#[derive(Debug, PartialEq, Eq)]
enum Readiness {
    Ready,
    /// What is missing.
    Waits(String),
    /// It will not be by itself, and why.
    Never(String),
}

/// # Errors
/// [`CliError::NotReady`] names the containers that are not, their phase and what was last the matter with them.
pub(super) async fn until_ready(
    manager: &mut ControlClient<Channel>,
    containers: &[ContainerSpec],
    patience: Duration,
) -> Result<(), CliError> {
    let working = progress::quiet();
    let began = Instant::now();
    loop {
        let status = manager.status(StatusRequest { local: false }).await?.into_inner();
        let mut missing = Vec::new();
        for spec in containers {
            let name = spec.name.as_str();
            let container = status.containers.iter().find(|container| container.name == name);
            let protected = match (spec.state, container) {
                (StateKind::Stateless, _) => true,
                (StateKind::Stateful { .. }, None) => false,
                (StateKind::Stateful { .. }, Some(container)) => is_protected(manager, container).await?,
            };
            match readiness(container, protected) {
                Readiness::Ready => {}
                Readiness::Waits(what) => missing.push(format!("{name} {what}")),
                Readiness::Never(why) => {
                    return Err(CliError::NotReady(format!("{name} {why}; `ha-manager events {name}` shows how")));
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join("; ");
        let left = patience.saturating_sub(began.elapsed());
        if left.is_zero() {
            let patience = humantime::format_duration(patience);
            return Err(CliError::NotReady(format!(
                "not ready after {patience}: {missing}. What was applied stays; `ha-manager status` shows how it goes on, \
                 --wait-timeout waits longer"
            )));
        }
        working.say(&format!("waiting: {missing}"));
        tokio::time::sleep(LOOK_EVERY.min(left)).await;
    }
}

/// Whether a recovery has something to go back to.
async fn is_protected(manager: &mut ControlClient<Channel>, container: &ContainerStatus) -> Result<bool, CliError> {
    let usable = |snapshot: &SnapshotInfo| snapshot.health != "unhealthy";
    match &container.last_snapshot {
        Some(last) if usable(last) => Ok(true),
        // Its node has seen none since its manager was started, or an unhealthy one: there may be older ones.
        _ => {
            let request = SnapshotsRequest { name: container.name.clone() };
            Ok(manager.snapshots(request).await?.into_inner().snapshots.iter().any(usable))
        }
    }
}

fn readiness(container: Option<&ContainerStatus>, protected: bool) -> Readiness {
    let Some(container) = container else { return Readiness::Waits("is not in the status".into()) };
    let last = ["not running: ", "the last checkpoint failed: "].iter().find_map(|mark| {
        let note = container.notes.iter().find(|note| note.starts_with(mark))?;
        Some(format!(" ({})", note.strip_prefix("not running: ").unwrap_or(note)))
    });
    let last = last.unwrap_or_default();
    match (container.phase.as_str(), container.health.as_str()) {
        (phase @ ("failed" | "stopped"), _) => Readiness::Never(format!("is {phase}{last}")),
        // While a checkpoint is taken it runs, too.
        ("running" | "checkpointing", "healthy" | "none") if protected => Readiness::Ready,
        (phase @ ("running" | "checkpointing"), "healthy" | "none") => {
            Readiness::Waits(format!("is {phase}, but has no committed snapshot yet{last}"))
        }
        (phase @ ("running" | "checkpointing"), health) => {
            Readiness::Waits(format!("is {phase}, but not healthy (health: {health}){last}"))
        }
        ("unknown", _) => Readiness::Waits(format!("is unknown ({})", container.notes.join("; "))),
        (phase, _) => Readiness::Waits(format!("is {phase}{last}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(phase: &str, health: &str, notes: &[&str]) -> ContainerStatus {
        let notes = notes.iter().map(|note| (*note).to_owned()).collect();
        ContainerStatus { phase: phase.into(), health: health.into(), notes, ..ContainerStatus::default() }
    }

    #[test]
    fn what_runs_is_well_and_is_protected_is_ready() {
        for (phase, health, protected, ready) in [
            ("running", "none", true, true),
            ("running", "healthy", true, true),
            ("checkpointing", "healthy", true, true),
            ("running", "healthy", false, false),
            ("running", "starting", true, false),
            ("running", "unhealthy", true, false),
            ("starting", "none", true, false),
            ("recovering", "healthy", true, false),
            ("moving", "healthy", true, false),
            ("frozen", "unknown", true, false),
            ("frozen", "none", true, false),
            ("unknown", "", true, false),
        ] {
            let found = readiness(Some(&container(phase, health, &[])), protected);
            assert_eq!(found == Readiness::Ready, ready, "{phase} {health} {protected}");
            assert!(!matches!(found, Readiness::Never(_)), "{phase} {health}");
        }
        assert!(matches!(readiness(None, true), Readiness::Waits(_)));
    }

    #[test]
    fn what_is_missing_is_named_with_the_last_reason() {
        let failed = container("failed", "none", &["host bind /x: not in snapshots", "not running: exit code 3"]);
        assert_eq!(readiness(Some(&failed), true), Readiness::Never("is failed (exit code 3)".into()));
        let stopped = container("stopped", "none", &[]);
        assert_eq!(readiness(Some(&stopped), true), Readiness::Never("is stopped".into()));
        let unprotected = container("running", "healthy", &["the last checkpoint failed: the store is away"]);
        let Readiness::Waits(what) = readiness(Some(&unprotected), false) else { panic!() };
        assert!(what.contains("running") && what.contains("the store is away"), "{what}");
    }
}
