//! The thin shell between the cores, as the manager's own is: what is asked when, and what becomes of the answers.

mod begin;
mod commit;
mod hold;
mod park;
mod records;
mod renew;
mod scan;
mod settle;
mod take;

use std::{future::Future, pin::Pin, time::Duration};

use super::exec::{Away, Ctx};
use crate::spec::{Epoch, NodeName, SnapshotId};

/// Between two looks at what the peers answered.
const POLL: Duration = Duration::from_millis(100);

/// A task of a manager.
#[derive(Debug, Clone)]
pub enum Job {
    /// Counts the peers' answers and tells the watchdog.
    Keep,
    /// Renews in the store when answers are missing.
    Renew,
    /// Looks through the store again and again.
    Scan,
    /// Membership holds a node dead.
    Died(NodeName),
    /// One container of a dead node, after this time.
    Consider(usize, Duration),
    /// Takes a container: the newest epoch that is known, and whether that is this node's, without a base.
    Take(usize, Epoch, bool),
    /// A later epoch than the own one was found.
    Hold(usize),
    /// Begins a copy, from this base or from the newest snapshot that counts.
    Begin(usize, Option<Option<SnapshotId>>),
    Checkpoints(usize),
    Terminate,
}

pub fn task(job: Job, ctx: Ctx) -> Pin<Box<dyn Future<Output = ()>>> {
    match job {
        Job::Keep => Box::pin(keep(ctx)),
        Job::Renew => Box::pin(renew::when_due(ctx)),
        Job::Scan => Box::pin(scan::every_two_seconds(ctx)),
        Job::Died(node) => Box::pin(scan::died(ctx, node)),
        Job::Consider(container, after) => Box::pin(scan::consider_one(ctx, container, after)),
        Job::Take(container, newest, own) => Box::pin(take::attempt(ctx, container, newest, own)),
        Job::Hold(container) => Box::pin(hold::alone(ctx, container)),
        Job::Begin(container, base) => Box::pin(begin::begin(ctx, container, base)),
        Job::Checkpoints(container) => Box::pin(commit::again_and_again(ctx, container)),
        Job::Terminate => Box::pin(park::terminate(ctx)),
    }
}

async fn keep(ctx: Ctx) {
    loop {
        ctx.with(|state| state.poll_lease(ctx.node));
        ctx.sleep(POLL).await;
    }
}
