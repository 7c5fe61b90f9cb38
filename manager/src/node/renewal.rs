//! One renewal of the lease in the store: a beat, and then whether every copy on this node is still the newest.
//!
//! The order is what makes it a proof. A taker creates its epoch and then looks for beats; here the beat is written and then the
//! epochs are read. Whichever came second sees the other.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::StreamExt;
use serde_json::json;

use super::Node;
use crate::{
    ownership::{self, Back, Claimant, Owner, OwnershipError},
    recovery::{Command, LocalRecord, Place, clear_leftovers, end_running},
    spec::{ContainerName, Epoch},
    store::{StoreError, parked},
};

/// Epochs read at a time.
const LOOKS: usize = 16;

/// What a renewal found.
pub(super) enum Renewed {
    /// Nothing later than what is here; older beats than this one may go.
    Clean { beat: u64 },
    /// A copy here has a later epoch, which is being seen to: the lease is not longer for this.
    Contested,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum RenewError {
    #[error("no beat could be written")]
    Beat(#[source] StoreError),
    #[error(transparent)]
    Epoch(#[from] OwnershipError),
}

impl Node {
    /// Renews once. The caller notes the time before.
    ///
    /// # Errors
    /// From the store: then nothing is proved.
    pub(super) async fn renew(self: &Arc<Self>) -> Result<Renewed, RenewError> {
        let beat = self.heart.lock().await.beat().await.map_err(RenewError::Beat)?;
        Ok(if self.all_newest().await? { Renewed::Clean { beat } } else { Renewed::Contested })
    }

    /// Whether no copy here has a later epoch in the store. One that has is seen to.
    async fn all_newest(self: &Arc<Self>) -> Result<bool, OwnershipError> {
        let mut newest = true;
        let looks = self.copies().into_iter().map(|(name, held)| async move {
            let found = ownership::check_epoch(&self.ctx.store, &name, held).await;
            (name, held, found)
        });
        let found: Vec<_> = futures_util::stream::iter(looks).buffer_unordered(LOOKS).collect().await;
        for (name, held, found) in found {
            match found {
                Ok(()) => {}
                Err(OwnershipError::Deposed { by, .. }) if self.goes_on_unmanned(&name, held).await? => {
                    tracing::debug!(container = %name, epoch = %by.epoch, "this node's own later epoch");
                }
                Err(OwnershipError::Deposed { by, .. }) => {
                    newest = false;
                    self.contested(&name, &by).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(newest)
    }

    /// Whether every copy here is the newest. Nothing is done about one that is not.
    pub(super) async fn are_newest(&self) -> Result<bool, OwnershipError> {
        for (name, held) in self.copies() {
            match ownership::check_epoch(&self.ctx.store, &name, held).await {
                Ok(()) => {}
                Err(OwnershipError::Deposed { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether a copy that an earlier manager left is still the one that may run, under a later epoch of this node's own: that
    /// manager ended before it had written down the epoch.
    async fn goes_on_unmanned(&self, name: &ContainerName, held: Epoch) -> Result<bool, OwnershipError> {
        if self.has(name) {
            return Ok(false);
        }
        let there = ownership::standing(&self.ctx.store, name).await?;
        Ok(there.is_some_and(|there| there.newest.node == *self.name() && there.may_go_on(self.name(), held)))
    }

    pub(super) fn has_copies(&self) -> bool {
        !self.copies().is_empty()
    }

    /// The copies on this node, running, frozen or just being begun, each with the epoch it goes by.
    fn copies(&self) -> BTreeMap<ContainerName, Epoch> {
        let actors = self.actors();
        let mut copies: BTreeMap<_, _> = actors
            .iter()
            .map(|(name, actor)| (name, actor.view.get()))
            .filter(|(_, view)| view.copy)
            .map(|(name, view)| (name.clone(), view.owner.epoch))
            .collect();
        for name in Place::names(&self.ctx.config) {
            let place = Place::new(&self.ctx.config, &name);
            // Left by an earlier manager: nobody has judged it yet. One without a record belongs to no epoch that counts.
            if !actors.contains_key(&name) && self.ctx.runtime.is_inhabited(&place.bundle()) {
                let record = LocalRecord::load(&place.record()).ok().flatten();
                copies.insert(name, record.map_or(Epoch(0), |record| record.owner.epoch));
            }
        }
        copies
    }

    /// A copy here is not the newest by the store: it is ended, or, when nobody has begun another, the container is claimed back.
    pub(super) async fn contested(self: &Arc<Self>, name: &ContainerName, by: &Owner) {
        let actor = self.actors().get(name).map(|actor| (actor.inbox.clone(), actor.view.get().owner.epoch));
        if let Some((inbox, held)) = actor {
            if held < by.epoch {
                // It looks for itself. Full: it is told by a later look; waiting for it would keep all other containers waiting.
                let _ = inbox.try_send(Command::Outdated(by.clone()));
            }
            return;
        }
        // Another look, or the adoption, is at it.
        let Some(_one) = self.taking.begin(name) else { return };
        match ownership::standing(&self.ctx.store, name).await {
            Ok(Some(there)) if there.holder.as_ref() == Some(self.name()) => {
                if self.is_undecided(&there) {
                    drop(self.take_back_unmanned(name, &there.newest).await);
                } else if let Err(error) = end_running(&self.ctx, name).await {
                    // Its record is lost: what runs cannot be gone on with, and would keep the lease from being renewed.
                    tracing::warn!(container = %name, error, "a copy without a record could not be ended");
                }
            }
            Ok(_) => {
                // What is left of it is frozen or about to be: it ends before anything is let go on.
                if let Err(error) = clear_leftovers(&self.ctx, name).await {
                    tracing::warn!(container = %name, error, "an outdated copy could not be cleared away");
                }
            }
            // It is come back to by the next look.
            Err(_) => {}
        }
    }

    /// Whether another node has claimed what this one may go on with.
    pub(super) fn is_undecided(&self, there: &ownership::Standing) -> bool {
        !there.newest.released && there.newest.node != *self.name() && there.holder.as_ref() == Some(self.name())
    }

    /// Claims back a container that nobody here works on, for the copy that an earlier manager has left, or for none.
    pub(super) async fn take_back_unmanned(&self, name: &ContainerName, by: &Owner) -> Result<Owner, String> {
        let _claim = self.stopping.may_begin().await?;
        let claimant = Claimant::new(self.name().clone());
        let back = ownership::claim_back(&self.ctx.store, name, by, &claimant).await;
        match back.map_err(|error| crate::chain(&error))? {
            Back::Mine(owner) => {
                let place = Place::new(&self.ctx.config, name);
                if let Ok(Some(mut record)) = LocalRecord::load(&place.record()) {
                    (record.owner, record.next_seq) = (owner.clone(), 1);
                    record.save(&place).map_err(|error| error.to_string())?;
                }
                let text = format!("claimed back from {}, which had begun nothing", by.node);
                let detail = json!({"epoch": owner.epoch, "previous": by.epoch});
                self.events().emit(Some(name), "ownership.claimed", &text, detail);
                Ok(owner)
            }
            Back::Gone(other) => Err(format!("node {} owns {name} (epoch {})", other.node, other.epoch)),
        }
    }

    /// Beats that the last renewal has made superfluous go.
    pub(super) async fn settle_beats(&self, upto: u64) {
        if let Err(error) = self.heart.lock().await.tidy(upto).await {
            tracing::debug!(error = crate::chain(&error), "old beats stay in the store for now");
        }
    }

    /// All beats go. To be called only when no lease rests on one.
    pub(super) async fn end_beats(&self) {
        if let Err(error) = self.heart.lock().await.rest().await {
            tracing::debug!(error = crate::chain(&error), "beats stay in the store for now");
        }
    }

    /// The lease holds by itself again: others may take over from this node when it ends.
    pub(super) async fn unpark(&self) {
        let marks = self.ctx.lease.marks();
        if marks.is_empty() {
            return;
        }
        match parked::unpark(&self.ctx.store, &marks).await {
            Ok(()) => self.ctx.lease.forget_marks(),
            // Nobody takes anything from this node until it is gone: the next renewal tries again.
            Err(error) => {
                tracing::warn!(error = crate::chain(&error), "a parked node's mark stays in the store for now")
            }
        }
    }

    /// Whether beats of this node may be in the store.
    pub(super) fn has_beats(&self) -> bool {
        self.heart.try_lock().is_ok_and(|heart| heart.may_be_there())
    }
}
