//! SIGTERM: the mark that keeps everybody from this node's containers, and its removal when a manager is back.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Away, Ctx, hold,
    records::{Created, create, get, list, record},
};
use crate::{
    membership::Input,
    ownership::lease::End,
    sim::{
        mutation::Mutation,
        store::{Key, Op, Prefix},
    },
};

/// Rounds of reading the epochs before the node ends without a mark that counts.
const ROUNDS: usize = 5;
const AGAIN: Duration = Duration::from_millis(250);

pub async fn terminate(ctx: Ctx) {
    if ctx.manager(|manager, _| std::mem::replace(&mut manager.ending, true)) {
        return;
    }
    let parked = park(&ctx).await == Ok(true);
    ctx.with(|state| {
        if parked {
            state.nodes[ctx.node].watchdog.parked = true;
            state.tell(ctx.node, End::Never);
        }
        state.input(ctx.node, Input::Leave);
        state.kill(ctx.node, if parked { "parked" } else { "ends without a mark: its lease runs out" });
    });
}

/// True when the mark is there and nobody had claimed anything before it was.
async fn park(ctx: &Ctx) -> Result<bool, Away> {
    let one_name = ctx.with(|state| state.scenario.is(Mutation::OneNameForParks));
    let number = if one_name { 0 } else { ctx.with(|state| state.unique()) };
    let created = create(ctx, Key::Parked(ctx.node, number), record(ctx, None)).await?;
    if created != Created::Won && !one_name {
        return Ok(false);
    }
    for _ in 0..ROUNDS {
        if unchallenged(ctx).await? {
            return Ok(true);
        }
        ctx.sleep(AGAIN).await;
    }
    Ok(false)
}

async fn unchallenged(ctx: &Ctx) -> Result<bool, Away> {
    let mut read = BTreeSet::new();
    loop {
        let unread = |pair: &(_, _)| !read.contains(pair);
        let own = ctx.manager(|manager, _| manager.own.iter().map(|(c, e)| (*c, *e)).find(unread));
        let Some((container, epoch)) = own else { return Ok(true) };
        if get(ctx, Key::Owner(container, epoch.next())).await?.is_some() {
            hold::hold(ctx, container).await?;
            return Ok(false);
        }
        read.insert((container, epoch));
    }
}

/// Removes this node's marks: of earlier parks, or of one that landed late. What fails is tried again.
pub async fn unmark(ctx: &Ctx) {
    let Ok(marks) = list(ctx, Prefix::Parked).await else { return };
    for (key, _) in marks {
        // The lease holds without it, and no park is under way.
        let mine = matches!(key, Key::Parked(node, _) if node == ctx.node);
        let free = mine
            && ctx.with(|state| {
                let now = state.instant(ctx.node);
                let parked = state.nodes[ctx.node].watchdog.parked;
                let manager = state.manager(ctx.node);
                !parked && !manager.ending && manager.lease.end(now).may_run()
            });
        if free {
            let _ = ctx.call(Op::Delete(key)).await;
        }
    }
}
