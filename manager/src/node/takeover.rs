//! Becoming the owner: of what a dead node ran, of what this node ran before it was restarted, of what is handed over.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::sync::oneshot;

use super::{
    Node,
    drive::{NotTaken, Word},
    life::Owners,
};
use crate::{
    membership::Liveness,
    ownership::{self, Claim, Claimant, Owner, OwnershipError, Rest, Standing},
    policy::{self, Candidate, Scope},
    recovery::{Begin, LocalPhase, LocalRecord, Place, clear_leftovers, forget},
    spec::{ContainerName, Epoch, NodeName, RecoveryStep, SnapshotId},
    store::apps::{self, App},
};

/// Between attempts to go on with a copy that could not be judged.
const ADOPT_AGAIN: Duration = Duration::from_millis(500);
/// Why a copy is not gone on with yet.
const FROZEN: &str = "it is frozen until this node has renewed its lease in the store";

/// Each node further down the order waits this much longer before it tries.
const STAGGER: Duration = Duration::from_millis(700);

/// Whether other nodes' leases may be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    None,
    Some,
}

impl Node {
    /// Takes over what a node ran that is held for dead, as far as it is this node's turn.
    pub(super) async fn peer_died(self: &Arc<Self>, dead: &NodeName) {
        let owners = match self.look().await {
            Ok(owners) => owners,
            Err(error) => {
                // The regular look at the store comes back to it.
                tracing::warn!(%dead, error = crate::chain(&error), "its containers cannot be looked up");
                return;
            }
        };
        self.ctx.lease.renew_now();
        let theirs = owners.iter().filter(|(_, owner)| owner.node == *dead && !owner.released);
        let tries = theirs.map(|(name, owner)| self.consider(name, owner, &owners));
        futures_util::future::join_all(tries).await;
    }

    /// Takes a dead node's container over if its policy wants that and no better node does it first.
    pub(super) async fn consider(self: &Arc<Self>, name: &ContainerName, owner: &Owner, owners: &Owners) {
        // Another look came before and is at it.
        let Some(_one) = self.taking.begin(name) else { return };
        let began = Instant::now();
        let app = match apps::newest(&self.ctx.store, name).await {
            Ok(Some(app)) => app,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(container = %name, error = crate::chain(&error), "its description cannot be read");
                return;
            }
        };
        let Some(content) = &app.content else { return };
        // Being cleared away or handed over here: its own task is at work on it.
        if self.has(name) {
            return;
        }
        if !content.spec.recovery.steps.contains(&RecoveryStep::Failover) {
            return;
        }
        let load = |node: &NodeName| owners.values().filter(|owner| owner.node == *node && !owner.released).count();
        let mut candidates = vec![Candidate { node: self.name().clone(), containers: load(self.name()) }];
        for peer in self.ctx.membership.peers() {
            if peer.liveness == Liveness::Alive && peer.name != owner.node {
                candidates.push(Candidate { containers: load(&peer.name), node: peer.name });
            }
        }
        let order = policy::rank(name, candidates);
        let turn = order.iter().position(|node| node == self.name()).unwrap_or(order.len());
        if turn > 0 {
            tokio::time::sleep(STAGGER * u32::try_from(turn).unwrap_or(u32::MAX)).await;
            let peers = self.ctx.membership.peers();
            if peers.iter().any(|peer| peer.name == owner.node && peer.liveness != Liveness::Dead) {
                // It was heard again in the meantime.
                return;
            }
        }
        // Asked after the wait too: a loss of the carrier is what peers are held for dead on.
        if let Some(why) = self.uplink.cut_off(Instant::now()) {
            tracing::info!(container = %name, why, "not taken over");
            return;
        }
        // What is frozen here cannot begin anything; and a copy that an earlier manager left is gone on with, not begun anew.
        if !self.ctx.lease.may_run() || self.is_inhabited(name) {
            return;
        }
        let word = match self.fit_to_take(&owner.node).await {
            Ok(word) => word,
            Err((why, text)) => return self.hold(name, &owner.node, why, &text),
        };
        if !matches!(word, Word::Fenced(..)) && self.still_runs(name, content, &owner.node).await {
            return;
        }
        let why = format!("node {} is dead", owner.node);
        self.take(name, app, owner, word, began, why).await;
    }

    async fn take(
        self: &Arc<Self>,
        name: &ContainerName,
        app: App,
        newest: &Owner,
        word: Word,
        began: Instant,
        why: String,
    ) {
        let Ok(_claim) = self.stopping.may_begin().await else { return };
        let (owner, rest) = match self.take_from_silent(name, newest, &word).await {
            Ok(taken) => taken,
            Err(NotTaken::Held(holder, why, text)) => return self.hold(name, &holder, why, &text),
            Err(NotTaken::Lost(text)) => {
                let epoch = newest.epoch.next();
                self.events().emit(Some(name), "ownership.lost", &text, json!({"epoch": epoch}));
                return;
            }
            Err(NotTaken::Away(text)) => {
                tracing::warn!(container = %name, error = text, "not taken over yet");
                return;
            }
        };
        let ms = ms(began);
        let detail = json!({"epoch": owner.epoch, "previous": newest.epoch, "ms": ms});
        self.events().emit(
            Some(name),
            "ownership.claimed",
            &format!("this node owns it under epoch {}", owner.epoch),
            detail,
        );
        let Some(content) = app.content.clone() else { return };
        let identity = match self.identity(&content).await {
            Ok(identity) => identity,
            Err(error) => {
                let detail = json!({"cause": crate::chain(&error)});
                self.events().emit(Some(name), "recovery.failed", "its address cannot be looked up", detail);
                return;
            }
        };
        let begin = match rest {
            Some(rest) => Begin::AtRest(Box::new(rest)),
            None => Begin::TakeOver { scope: Scope::Node, why, next_seq: 1 },
        };
        self.start(app, content, owner, identity, begin);
    }

    /// Claims back what another living node has claimed and not begun, and this one may go on with.
    pub(super) async fn reclaim(self: &Arc<Self>, name: &ContainerName, owner: &Owner) -> Result<bool, OwnershipError> {
        match ownership::standing(&self.ctx.store, name).await? {
            Some(there) if there.newest == *owner && self.is_undecided(&there) => {
                if let Err(error) = self.take_back_unmanned(name, owner).await {
                    tracing::warn!(container = %name, error, "not claimed back");
                }
                Ok(false)
            }
            // Decided for good: an epoch that was begun stays begun.
            Some(there) => Ok(there.newest == *owner && there.holder.as_ref() == Some(&owner.node)),
            None => Ok(false),
        }
    }

    /// Becomes the owner after `epoch`, by the word of its owner, whose copy is gone. The error says who won instead.
    async fn take_after(&self, name: &ContainerName, epoch: Epoch) -> Result<(Owner, Option<Rest>), String> {
        let owner = self.win(name, epoch).await?;
        let taken = ownership::take_over(&self.ctx.store, name, &owner).await.map_err(|error| crate::chain(&error))?;
        Ok((owner, taken.rest))
    }

    /// Claims the epoch after `epoch`. The error says who won instead.
    async fn win(&self, name: &ContainerName, epoch: Epoch) -> Result<Owner, String> {
        let claimant = Claimant::new(self.name().clone());
        match self.claim_again(name, epoch, &claimant).await {
            Ok(Claim::Won(owner)) => Ok(owner),
            Ok(Claim::Lost(other)) => Err(format!("node {} was first (epoch {})", other.node, other.epoch)),
            Err(error) => Err(crate::chain(&error)),
        }
    }

    /// Claims the epoch after `epoch`, and again while the answer is not known: with the same claimant a claim that stands is
    /// recognised.
    pub(super) async fn claim_again(
        &self,
        name: &ContainerName,
        epoch: Epoch,
        claimant: &Claimant,
    ) -> Result<Claim, OwnershipError> {
        let mut tries = 0;
        loop {
            match ownership::claim(&self.ctx.store, name, Some(epoch), claimant).await {
                Err(error) if error.is_retryable() && tries < 3 => tries += 1,
                outcome => return outcome,
            }
        }
    }

    /// Begins a container that this node owns and nobody works on: goes on with the copy its record describes, else recovers.
    pub(super) async fn resume(self: &Arc<Self>, owner: Owner, app: App, why: &str) -> Result<(), String> {
        let Some(content) = app.content.clone() else { return Ok(()) };
        let _claim = self.stopping.may_begin().await?;
        let text = |error: &(dyn std::error::Error + 'static)| crate::chain(error);
        let place = Place::new(&self.ctx.config, &content.spec.name);
        let record = LocalRecord::load(&place.record()).unwrap_or_else(|error| {
            // Unreadable is as good as none: the store knows who owns the container, and its snapshots.
            tracing::warn!(container = %content.spec.name, %error, "its local record cannot be used");
            None
        });
        let identity = self.identity(&content).await.map_err(|error| text(&error))?;
        let (store, name) = (&self.ctx.store, &content.spec.name);
        if !self.ctx.lease.may_run() && self.is_inhabited(name) {
            return Err(FROZEN.into());
        }
        let there = ownership::standing(store, name).await.map_err(|error| text(&error))?;
        let record = record.and_then(|record| self.record_under(&owner, there.as_ref(), record));
        let left = record.as_ref().is_some_and(|record| record.phase != LocalPhase::Launching);
        let mut owner = owner;
        let others = there.and_then(|there| there.holder).filter(|holder| holder != self.name());
        let rest = if others.is_some() {
            let (taken, rest) = self.take_from_silent(name, &owner, &Word::Own).await.map_err(NotTaken::text)?;
            owner = taken;
            rest
        } else if left {
            // Begun or at rest under this epoch: nothing is to be settled, and a damaged old base does not matter.
            ownership::at_rest(store, name, owner.epoch).await.map_err(|error| text(&error))?
        } else {
            // The claim may have been the last thing that was done. Where all is settled this changes nothing.
            ownership::take_over(store, name, &owner).await.map_err(|error| text(&error))?.rest
        };
        let begin = match (record, rest) {
            (_, Some(rest)) => Begin::AtRest(Box::new(rest)),
            (Some(record), None) if left => Begin::Adopt(Box::new(record)),
            (record, None) => {
                let next_seq = match record {
                    Some(record) => record.next_seq,
                    None => ownership::next_seq(store, name, owner.epoch).await.map_err(|error| text(&error))?,
                };
                Begin::TakeOver { scope: Scope::Container, why: why.to_owned(), next_seq }
            }
        };
        self.start(app, content, owner, identity, begin);
        Ok(())
    }

    /// The record of a copy that may go on under `owner`. Its manager may have ended between claiming an epoch and writing it down.
    fn record_under(&self, owner: &Owner, there: Option<&Standing>, record: LocalRecord) -> Option<LocalRecord> {
        if record.owner == *owner {
            return Some(record);
        }
        let goes_on = record.owner.node == *self.name()
            && there.is_some_and(|there| there.newest == *owner && there.may_go_on(self.name(), record.owner.epoch));
        goes_on.then(|| LocalRecord { owner: owner.clone(), next_seq: 1, ..record })
    }

    /// Whether a copy of it runs here, is frozen, or is just being begun. A copy is marked before the epochs are read that it is
    /// begun under (`Actor::launch`): so whoever has claimed a later one, and then hears that there is none, can rely on it.
    pub fn has_copy(&self, name: &ContainerName) -> bool {
        self.view(name).is_some_and(|view| view.copy) || self.is_inhabited(name)
    }

    fn is_inhabited(&self, name: &ContainerName) -> bool {
        self.ctx.runtime.is_inhabited(&Place::new(&self.ctx.config, name).bundle())
    }

    /// A container its owner hands over (planned move, or a failover of a container that failed there).
    pub async fn take_handed(
        self: &Arc<Self>,
        name: &ContainerName,
        from: &NodeName,
        epoch: Epoch,
        snapshot: Option<SnapshotId>,
    ) -> Result<Epoch, String> {
        let app = apps::newest(&self.ctx.store, name).await.map_err(|error| crate::chain(&error))?;
        let app = app.ok_or_else(|| format!("{name} is not described in the store"))?;
        let content = app.content.clone().ok_or_else(|| format!("{name} has been removed"))?;
        let Some(_one) = self.taking.begin(name) else { return Err(format!("{name} is being worked on here")) };
        if self.has(name) {
            return Err(format!("{name} is still being cleared away here; try again"));
        }
        let identity = self.identity(&content).await.map_err(|error| crate::chain(&error))?;
        if !self.ctx.lease.may_run() {
            return Err("this node's lease is over: it begins nothing".into());
        }
        // Nobody's leases are waited for, by the word of the one who may run it.
        let there = ownership::standing(&self.ctx.store, name).await.map_err(|error| crate::chain(&error))?;
        if let Some(holder) =
            there.and_then(|there| there.holder).filter(|holder| holder != from && holder != self.name())
        {
            return Err(format!("{holder} may still run it, and {from} hands it over"));
        }
        let claim = self.stopping.may_begin().await?;
        let (owner, rest) = self.take_after(name, epoch).await?;
        if let Some(rest) = rest {
            return Err(format!("{name} is at rest: {}", rest.why));
        }
        let taken = owner.epoch;
        let detail = json!({"epoch": taken, "previous": epoch});
        self.events().emit(Some(name), "ownership.claimed", &format!("handed over: epoch {taken}"), detail);
        let (reply, outcome) = oneshot::channel();
        if !self.start(app, content, owner, identity, Begin::Handed { snapshot, reply }) {
            return Err(format!("{name} is being started here already"));
        }
        drop((claim, _one));
        outcome.await.map_err(|_| "its task ended early; see the events of this node".to_owned())??;
        Ok(taken)
    }

    /// Looks through what is left on this node from before the manager was started: goes on with what this node still owns,
    /// clears away what it does not.
    pub(super) async fn adopt(self: &Arc<Self>) {
        let names = Place::names(&self.ctx.config);
        let known = names.clone();
        // What could not be judged, for the store did not answer, may be running: it stays until it is.
        let mut keep = Vec::new();
        for name in names {
            if let Err(text) = self.adopt_one(&name, Patience::None).await {
                if text == FROZEN && self.renew_lease().await && self.adopt_one(&name, Patience::None).await.is_ok() {
                    continue;
                }
                self.events().emit(Some(&name), "adopt.failed", &text, json!({}));
                keep.push(name.clone());
                tokio::spawn(Arc::clone(self).adopt_later(name));
            }
        }
        keep.extend(self.actors().keys().cloned());
        let gone: Vec<ContainerName> = known.into_iter().filter(|name| !keep.contains(name)).collect();
        match self.ctx.network.sweep(&gone) {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => tracing::info!(?gone, "removed what was left of earlier containers"),
            Err(error) => tracing::warn!(error = crate::chain(&error), "leftovers could not be removed"),
        }
    }

    async fn adopt_later(self: Arc<Self>, name: ContainerName) {
        loop {
            tokio::time::sleep(ADOPT_AGAIN).await;
            // By now it may have been begun again in another way.
            if self.has(&name) || self.adopt_one(&name, Patience::Some).await.is_ok() {
                return;
            }
        }
    }

    async fn adopt_one(self: &Arc<Self>, name: &ContainerName, patience: Patience) -> Result<(), String> {
        let Some(_one) = self.taking.begin(name) else { return Err(format!("{name} is being worked on already")) };
        let text = |error: &(dyn std::error::Error + 'static)| crate::chain(error);
        let store = &self.ctx.store;
        let owner = ownership::current(store, name).await.map_err(|error| text(&error))?;
        let app = apps::newest(store, name).await.map_err(|error| text(&error))?;
        if owner.is_none() {
            // Records of owners are never deleted: this is not the store the copy came from, or it has lost them.
            return Err(format!(
                "the store has never heard of {name}: the copy here is left as it is. See whether it is the right store; \
                 `ha-manager rm {name}` removes the copy"
            ));
        }
        let mut mine = owner.filter(|owner| owner.node == *self.name() && !owner.released);
        let there = ownership::standing(store, name).await.map_err(|error| text(&error))?;
        if let Some(there) = there.as_ref().filter(|there| self.is_undecided(there)) {
            mine = Some(self.take_back_unmanned(name, &there.newest).await?);
        } else if patience == Patience::None
            && there.and_then(|there| there.holder).is_some_and(|holder| mine.is_some() && holder != *self.name())
        {
            return Err("another node's copy has to be silent first".into());
        }
        if let (Some(owner), Some(App { generation, content: None, .. })) = (&mine, &app) {
            // The removal had come as far as its description when it was broken off.
            forget(&self.ctx, name, *generation, Some(owner)).await.map_err(|error| error.to_string())?;
            self.events().emit(Some(name), "container.removed", "an interrupted removal was finished", json!({}));
            return clear_leftovers(&self.ctx, name).await;
        }
        let described = app.filter(|app| app.content.is_some());
        let (Some(owner), Some(app)) = (mine, described) else {
            self.events().emit(
                Some(name),
                "ownership.deposed",
                "the copy here is out of date and is removed",
                json!({}),
            );
            return clear_leftovers(&self.ctx, name).await;
        };
        self.resume(owner, app, "its start was interrupted").await
    }
}

fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
