//! A later epoch was found while this node ran the container: claimed back, or given up.

use super::{
    Away, Ctx,
    records::{Created, create, epochs_of, record},
    settle::{Settled, settle},
};
use crate::{sim::store::Key, spec::Epoch};

pub async fn alone(ctx: Ctx, container: usize) {
    // An error is seen again at the next renewal or look.
    let _ = hold(&ctx, container).await;
}

/// Whatever comes of it is found by the next look at the epochs.
pub async fn hold(ctx: &Ctx, container: usize) -> Result<(), Away> {
    if !ctx.manager(|manager, _| manager.busy.insert(container)) {
        return Ok(());
    }
    let held = hold_alone(ctx, container).await;
    ctx.manager(|manager, _| manager.busy.remove(&container));
    held
}

async fn hold_alone(ctx: &Ctx, container: usize) -> Result<(), Away> {
    let epochs = epochs_of(ctx, container).await?;
    let Some((newest, there)) = epochs.newest() else { return Ok(()) };
    let Some(own) = ctx.manager(|manager, _| manager.own.get(&container).copied()) else { return Ok(()) };
    if newest <= own {
        return Ok(());
    }
    if epochs.holder() != Some(ctx.node) {
        ctx.note(format!("c{container} is deposed by epoch {newest}"));
        ctx.with(|state| {
            let node = &mut state.nodes[ctx.node];
            node.copies.remove(&container);
            node.manager.as_mut().map(|manager| manager.own.remove(&container));
        });
        return Ok(());
    }
    // An attempt that was broken off goes on.
    let mine = there.node == ctx.node;
    let epoch = if mine { newest } else { newest.next() };
    if !mine && create(ctx, Key::Owner(container, epoch), record(ctx, None)).await? != Created::Won {
        return Ok(());
    }
    // Otherwise somebody was quicker, and it is looked at again.
    if let Settled::Own(_) = settle(ctx, container, epoch, true).await? {
        go_on(ctx, container, epoch);
    }
    Ok(())
}

fn go_on(ctx: &Ctx, container: usize, epoch: Epoch) {
    ctx.note(format!("c{container} is claimed back under epoch {epoch}"));
    ctx.with(|state| {
        let now = state.now;
        let node = &mut state.nodes[ctx.node];
        if let Some(copy) = node.copies.get_mut(&container) {
            copy.epoch = epoch;
            state.laws.went_on(container, epoch, now);
        }
        state.manager(ctx.node).own.insert(container, epoch);
    });
}
