//! From a settled epoch to a running copy: only while the lease may run, and only what is still this node's.

use std::time::Duration;

use super::{
    Away, Ctx, Job,
    records::{epochs_of, get, manifests},
};
use crate::{
    sim::{
        laws::Chosen,
        node::{Copy, time},
        store::Key,
    },
    spec::SnapshotId,
};

const AGAIN: Duration = Duration::from_millis(100);

/// `base`: as it was settled just now. Without one, this node begins again what it owns: from the newest snapshot that counts.
pub async fn begin(ctx: Ctx, container: usize, base: Option<Option<SnapshotId>>) {
    if ctx.with(|state| !state.beginning.insert((ctx.node, state.nodes[ctx.node].life, container))) {
        return;
    }
    if let Ok(Some(chosen)) = find(&ctx, container, base).await {
        let restore = ctx.with(|state| state.between(state.scenario.containers[container].restore));
        ctx.sleep(time(restore)).await;
        while !run(&ctx, container, chosen) {
            ctx.sleep(AGAIN).await;
        }
    }
    ctx.with(|state| {
        let life = state.nodes[ctx.node].life;
        state.beginning.remove(&(ctx.node, life, container));
    });
}

/// What to restore; `None` when the container is another's.
async fn find(ctx: &Ctx, container: usize, base: Option<Option<SnapshotId>>) -> Result<Option<Chosen>, Away> {
    let own = ctx.manager(|manager, _| manager.own.get(&container).copied());
    let Some(under) = own else { return Ok(None) };
    let at = ctx.with(|state| state.now);
    if let Some(from) = base {
        return Ok(Some(Chosen { from, under, at }));
    }
    let epochs = epochs_of(ctx, container).await?;
    let listed = manifests(ctx, container).await?;
    let from = epochs.history().newest_valid(listed.into_iter().filter(|id| id.epoch <= under));
    // A later epoch is found by the next renewal or look.
    let newest = get(ctx, Key::Owner(container, under.next())).await?.is_none();
    Ok(newest.then_some(Chosen { from, under, at }))
}

/// True when there is nothing more to do.
fn run(ctx: &Ctx, container: usize, chosen: Chosen) -> bool {
    ctx.with(|state| {
        state.poll_lease(ctx.node);
        let now = state.instant(ctx.node);
        let manager = state.manager(ctx.node);
        let Some(epoch) = manager.own.get(&container).copied() else { return true };
        if manager.ending {
            return true;
        }
        let may_run = manager.lease.end(now).may_run();
        if !may_run || state.nodes[ctx.node].watchdog.fired {
            return false;
        }
        let at = state.now;
        state.nodes[ctx.node].copies.insert(container, Copy { epoch });
        state.laws.changed = true;
        state.laws.begins(container, epoch, chosen, at);
        let from = chosen.from.map_or_else(|| "its image".to_owned(), |from| from.to_string());
        state.note(ctx.node, format!("runs c{container} under epoch {epoch} from {from}"));
        state.jobs.push((ctx.node, Job::Checkpoints(container)));
        true
    })
}
