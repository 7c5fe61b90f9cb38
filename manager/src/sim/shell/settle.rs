//! Settling bases: of the undecided epochs before, then the own one; then whether that is still the newest.

use super::{
    Away, Ctx,
    records::{Created, create, epochs_of, get, manifests, record},
};
use crate::{
    sim::{
        mutation::Mutation,
        store::{Key, Record},
    },
    spec::{Epoch, SnapshotId},
};

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The base is the epoch's owner's own, and the epoch is the newest.
    Own(Option<SnapshotId>),
    /// Somebody else settled it, or one before had begun, or a later epoch is there.
    Passed,
}

/// `claim_back`: the owner of an undecided epoch before must be kept from beginning.
pub async fn settle(ctx: &Ctx, container: usize, epoch: Epoch, claim_back: bool) -> Result<Settled, Away> {
    let is = |mutation| ctx.with(|state| state.scenario.is(mutation));
    let leave_open = is(Mutation::UndecidedLeftToItself);
    let epochs = loop {
        let epochs = epochs_of(ctx, container).await?;
        // Listed after the claim: who settled an epoch before it came to be has begun, whoever held the container before.
        if claim_back && epochs.holder() != Some(ctx.node) {
            return Ok(Settled::Passed);
        }
        let history = epochs.history();
        let Some(gap) = history.without_base(epoch).filter(|_| !(leave_open && claim_back)) else { break epochs };
        let Some(owner) = epochs.owners.get(&gap) else { break epochs };
        let base = history.base_for(gap, manifests(ctx, container).await?);
        let in_passing = Record { node: owner.node, ..record(ctx, base) };
        if let Created::Lost(there) = create(ctx, Key::Base(container, gap), in_passing).await?
            && there.nonce == owner.nonce
        {
            return Ok(Settled::Passed);
        }
    };
    let Some(owner) = epochs.owners.get(&epoch) else { return Ok(Settled::Passed) };
    let base = epochs.history().base_for(epoch, manifests(ctx, container).await?);
    let own = Record { base, ..*owner };
    let base = match create(ctx, Key::Base(container, epoch), own).await? {
        // An earlier attempt's, perhaps: then that one stands.
        Created::Won => get(ctx, Key::Base(container, epoch)).await?.ok_or(Away)?.base,
        Created::Lost(_) => return Ok(Settled::Passed),
    };
    match get(ctx, Key::Owner(container, epoch.next())).await? {
        Some(_) if !leave_open => Ok(Settled::Passed),
        _ => Ok(Settled::Own(base)),
    }
}
