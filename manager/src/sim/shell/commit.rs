//! Checkpoints of what runs here: the epoch, the manifest, the epoch again.

use super::{
    Away, Ctx,
    records::{Created, create, get, record},
};
use crate::{
    sim::{mutation::Mutation, node::time, store::Key},
    spec::{Epoch, SnapshotId},
};

pub async fn again_and_again(ctx: Ctx, container: usize) {
    loop {
        let every = ctx.with(|state| state.scenario.containers[container].every);
        ctx.sleep(time(every)).await;
        let copy = ctx.with(|state| {
            let node = &state.nodes[ctx.node];
            node.copies.get(&container).copied().map(|copy| (copy, node.runs(container)))
        });
        let Some((copy, runs)) = copy else { return };
        if runs {
            // An error: the next one goes on from a later moment.
            let _ = commit(&ctx, container, copy.epoch).await;
        }
    }
}

async fn commit(ctx: &Ctx, container: usize, epoch: Epoch) -> Result<(), Away> {
    let seq = ctx.with(|state| {
        let seq = state.nodes[ctx.node].disk.snapshots.entry(container).or_insert(0);
        *seq += 1;
        *seq
    });
    let id = SnapshotId { epoch, seq };
    if !is_newest(ctx, container, epoch).await? {
        return Ok(());
    }
    if create(ctx, Key::Manifest(container, id), record(ctx, None)).await? != Created::Won {
        return Ok(());
    }
    if is_newest(ctx, container, epoch).await? {
        ctx.with(|state| state.laws.acknowledged(container, id, &state.objects));
    }
    Ok(())
}

async fn is_newest(ctx: &Ctx, container: usize, epoch: Epoch) -> Result<bool, Away> {
    if ctx.with(|state| state.scenario.is(Mutation::CommitDoesNotLook)) {
        return Ok(true);
    }
    Ok(get(ctx, Key::Owner(container, epoch.next())).await?.is_none())
}
