//! The regular look, and what a death begins.

use std::time::Duration;

use super::{
    Away, Ctx, Job,
    records::{Epochs, all_epochs, epochs_of, look_for_life},
};
use crate::{
    membership::Liveness,
    ownership::lineage::Begun,
    sim::{
        node::{name, number},
        world::State,
    },
    spec::NodeName,
};

const EVERY: Duration = Duration::from_secs(2);
/// Between the first and each further candidate.
const STAGGER: Duration = Duration::from_millis(700);
/// A node that this manager has not met holds nothing back after this time.
const STRANGER: Duration = Duration::from_secs(5);

pub async fn every_two_seconds(ctx: Ctx) {
    loop {
        // An error: the next look sees it.
        let _ = look(&ctx).await;
        ctx.sleep(EVERY).await;
    }
}

async fn look(ctx: &Ctx) -> Result<(), Away> {
    let all = all_epochs(ctx).await?;
    let traces = look_for_life(ctx).await?;
    for (container, epochs) in &all {
        consider(ctx, *container, epochs);
    }
    if traces.parked.contains(&name(ctx.node)) && ctx.with(|state| !state.nodes[ctx.node].watchdog.parked) {
        super::park::unmark(ctx).await;
    }
    Ok(())
}

/// Its containers, each by the nodes in an order of its own.
pub async fn died(ctx: Ctx, dead: NodeName) {
    let ranks: Vec<(usize, u32)> = ctx.with(|state| {
        let containers = state.scenario.containers.len();
        let mut living: Vec<usize> = alive(state, ctx.node).into_iter().filter(|node| name(*node) != dead).collect();
        living.push(ctx.node);
        living.sort_unstable();
        let rank = |container: usize| living.iter().cycle().skip(container).position(|node| *node == ctx.node);
        (0..containers).map(|container| (container, rank(container).unwrap_or(0) as u32)).collect()
    });
    for (container, rank) in ranks {
        ctx.spawn(Job::Consider(container, STAGGER * rank));
    }
}

fn alive(state: &mut State, node: usize) -> Vec<usize> {
    let peers = state.manager(node).core.peers();
    peers.filter(|peer| peer.liveness <= Liveness::Suspect).filter_map(|peer| number(&peer.name)).collect()
}

pub async fn consider_one(ctx: Ctx, container: usize, after: Duration) {
    ctx.sleep(after).await;
    if let Ok(epochs) = epochs_of(&ctx, container).await {
        consider(&ctx, container, &epochs);
    }
}

fn consider(ctx: &Ctx, container: usize, epochs: &Epochs) {
    let job = ctx.with(|state| decide(state, ctx.node, container, epochs));
    if let Some(job) = job {
        ctx.spawn(job);
    }
}

/// What is to be done about a container.
fn decide(state: &mut State, node: usize, container: usize, epochs: &Epochs) -> Option<Job> {
    let (newest, there) = epochs.newest()?;
    let holder = epochs.holder();
    let failover = state.scenario.containers[container].failover;
    let life = state.nodes[node].life;
    let has_copy = state.nodes[node].copies.contains_key(&container);
    let begins = state.beginning.contains(&(node, life, container));
    let manager = state.manager(node);
    if manager.ending || manager.busy.contains(&container) {
        return None;
    }
    if let Some(own) = manager.own.get(&container) {
        return match newest > *own {
            true => Some(Job::Hold(container)),
            false => (!has_copy && !begins).then_some(Job::Begin(container, None)),
        };
    }
    if there.node == node {
        return match epochs.begun(newest) {
            Begun::NotYet => Some(Job::Take(container, newest, true)),
            Begun::ByOwner(_) => {
                state.manager(node).own.insert(container, newest);
                Some(Job::Begin(container, None))
            }
            Begun::Never | Begun::Released => Some(Job::Take(container, newest, false)),
        };
    }
    if holder == Some(node) {
        return Some(Job::Take(container, newest, false));
    }
    let gone = |of: usize| is_dead(state, node, of) && state.nodes[node].disk.met.contains(&name(of));
    let eager = state.scenario.eager && holder.is_some();
    (failover && (eager || gone(there.node)) && holder.is_none_or(gone)).then_some(Job::Take(container, newest, false))
}

fn is_dead(state: &State, node: usize, of: usize) -> bool {
    let Some(manager) = &state.nodes[node].manager else { return false };
    let peer = manager.core.peers().find(|peer| peer.name == name(of));
    match peer {
        Some(peer) => peer.liveness >= Liveness::Dead,
        None => state.instant(node).saturating_duration_since(manager.started) > STRANGER,
    }
}
