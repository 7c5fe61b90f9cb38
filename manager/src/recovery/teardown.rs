//! Clearing away a copy: process, network, mounts, files. Goes on after an error and reports them all.

use super::place::{Place, Volumes};
use crate::{image, node::Ctx, spec::ContainerName};

/// What could not be cleared away, each with its cause.
#[derive(Debug, thiserror::Error)]
#[error("the old copy of {container} could not be cleared away: {}", .problems.join("; "))]
pub struct TeardownError {
    pub container: ContainerName,
    pub problems: Vec<String>,
}

/// How much of a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Process, network and mounts. The files stay for the operator to look at.
    Running,
    /// The files too, but not the log nor snapshots that are not committed.
    Files(Volumes),
    /// Everything.
    All,
}

/// Blocks. What is not there is no error: it can be called for a container that never ran here.
pub fn clear(ctx: &Ctx, container: &ContainerName, place: &Place, extent: Extent) -> Result<(), TeardownError> {
    let mut problems = Vec::new();
    let mut note = |what: &str, error: Option<String>| problems.extend(error.map(|error| format!("{what}: {error}")));
    let timeout = ctx.config.checkpoint.timeout;
    // The kernel ends the connections of a killed process with FIN or RST. They are the container's, which goes on from a
    // snapshot here or at its new owner: nobody may hear of it. Mostly there is no link any more to hold back.
    let _ = ctx.network.gate(container).and_then(|mut gate| gate.close());
    note(
        "container",
        ctx.runtime.clear(&ctx.runtime_id(container), &place.bundle(), timeout).err().map(|e| crate::chain(&e)),
    );
    note("network", ctx.network.teardown(container).err().map(|e| crate::chain(&e)));
    note("root", image::umount_overlay(&place.merged()).err().map(|e| crate::chain(&e)));
    // With the root still mounted a removal would go through it into nothing that is ours alone to delete.
    if problems.is_empty() {
        let removed = match extent {
            Extent::Running => Ok(()),
            Extent::Files(volumes) => place.clear(volumes),
            Extent::All => place.remove(),
        };
        problems.extend(removed.err().map(|e| format!("files: {e}")));
    }
    if problems.is_empty() { Ok(()) } else { Err(TeardownError { container: container.clone(), problems }) }
}
