//! The renewal: a new beat, then the epochs of the own containers; and rest once everybody answers.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{
    Away, Ctx, hold,
    records::{Created, create, get, list, record},
};
use crate::{
    membership::Liveness,
    ownership::lease::End,
    sim::{
        mutation::Mutation,
        store::{Key, Op, Prefix},
    },
};

const LOOK: Duration = Duration::from_millis(50);
/// Between two renewals while somebody is suspected, and while somebody is known to be gone.
const SOON: Duration = Duration::from_millis(250);
const LATER: Duration = Duration::from_secs(2);

pub async fn when_due(ctx: Ctx) {
    while find(&ctx).await.is_err() {
        ctx.sleep(SOON).await;
    }
    let mut last: Option<Instant> = None;
    let mut again = false;
    loop {
        let (wanted, soon, resting) = ctx.manager(|manager, now| {
            let suspected = manager.core.peers().any(|peer| peer.liveness == Liveness::Suspect);
            let lapsed = manager.lease.end(now) == End::Lapsed;
            let wanted = manager.lease.wants_renewal(now);
            let resting = !wanted && !manager.beats.is_empty() && manager.lease.rest_on_answers(now);
            (wanted, suspected || lapsed, resting)
        });
        let now = ctx.now();
        let pause = if soon || again { SOON } else { LATER };
        if wanted && last.is_none_or(|last| now.saturating_duration_since(last) >= pause) {
            last = Some(now);
            again = renew(&ctx).await != Ok(true);
        } else if resting {
            // The watchdog first: with the manager killed here, it would go by a renewal whose beat is gone.
            if !ctx.with(|state| state.scenario.is(Mutation::RestNotTold)) {
                ctx.with(|state| state.poll_lease(ctx.node));
            }
            // A failure is tried again at the next rest.
            let _ = remove_below(&ctx, u64::MAX).await;
        }
        ctx.sleep(LOOK).await;
    }
}

/// What an earlier manager of this node may have left.
async fn find(ctx: &Ctx) -> Result<(), Away> {
    let beats = list(ctx, Prefix::Beats).await?;
    ctx.manager(|manager, _| {
        for (key, _) in beats {
            if let Key::Beat(node, beat) = key
                && node == ctx.node
            {
                manager.beats.insert(beat);
                manager.next_beat = manager.next_beat.max(beat + 1);
            }
        }
    });
    Ok(())
}

/// True when the lease was renewed; false when something stood in the way and was dealt with.
async fn renew(ctx: &Ctx) -> Result<bool, Away> {
    let is = |mutation| ctx.with(|state| state.scenario.is(mutation));
    let mut began = ctx.now();
    if is(Mutation::EpochsReadBeforeBeat) && !unchallenged(ctx).await? {
        return Ok(false);
    }
    let beat = ctx.manager(|manager, _| {
        let beat = manager.next_beat;
        manager.next_beat += 1;
        manager.beats.insert(beat);
        beat
    });
    let written = create(ctx, Key::Beat(ctx.node, beat), record(ctx, None)).await?;
    if matches!(written, Created::Lost(_)) {
        // A number that is taken proves nothing: the next one does.
        return Ok(false);
    }
    if is(Mutation::BeatsRemovedEarly) {
        let _ = remove_below(ctx, beat).await;
    }
    if is(Mutation::CountedFromAfterTheWrite) {
        began = ctx.now();
    }
    if !is(Mutation::EpochsNotRead) && !is(Mutation::EpochsReadBeforeBeat) && !unchallenged(ctx).await? {
        return Ok(false);
    }
    let (counts, parked) = ctx.with(|state| {
        let now = state.instant(ctx.node);
        let there = &mut state.nodes[ctx.node];
        let Some(manager) = &mut there.manager else { return (false, false) };
        if !manager.lease.renewed(began, now) {
            return (false, false);
        }
        if there.watchdog.parked && manager.lease.unpark(now) {
            there.watchdog.parked = false;
        }
        let parked = there.watchdog.parked;
        state.poll_lease(ctx.node);
        (true, parked)
    });
    if counts {
        let _ = remove_below(ctx, beat).await;
    }
    if !parked {
        super::park::unmark(ctx).await;
    }
    Ok(counts)
}

/// Reads the epoch after each own one. What is begun meanwhile is read, too: the renewal will count for it.
async fn unchallenged(ctx: &Ctx) -> Result<bool, Away> {
    let mut left: Vec<_> = ctx.manager(|manager, _| manager.own.iter().map(|(c, e)| (*c, *e)).collect());
    let mut read = BTreeSet::new();
    loop {
        let Some((container, epoch)) = left.pop() else { return Ok(true) };
        if get(ctx, Key::Owner(container, epoch.next())).await?.is_some() {
            // Whatever comes of it, this renewal does not count.
            hold::hold(ctx, container).await?;
            return Ok(false);
        }
        read.insert((container, epoch));
        if left.is_empty() {
            let unread = |pair: &(_, _)| !read.contains(pair);
            left = ctx.manager(|manager, _| manager.own.iter().map(|(c, e)| (*c, *e)).filter(unread).collect());
        }
    }
}

/// Removes own beats, oldest first.
async fn remove_below(ctx: &Ctx, bound: u64) -> Result<(), Away> {
    loop {
        let oldest = ctx.manager(|manager, _| manager.beats.first().copied().filter(|beat| *beat < bound));
        let Some(oldest) = oldest else { return Ok(()) };
        ctx.call(Op::Delete(Key::Beat(ctx.node, oldest))).await?;
        ctx.manager(|manager, _| manager.beats.remove(&oldest));
    }
}
