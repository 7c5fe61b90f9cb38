//! Handing a container to a peer, and taking it back when the peer could not.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use ha_proto::peer::{HasCopyRequest, MAX_MESSAGE, PingRequest, TakeOverRequest, peer_client::PeerClient};
use serde_json::json;

use super::{
    actor::{Actor, Down, State},
    recover::{FIRST_WAIT, LONGEST_WAIT},
    teardown::Extent,
    view::Phase,
};
use crate::{
    ownership::{self, Back, Claim, Claimant, Owner, OwnershipError, Rest, Taken},
    policy::Scope,
    spec::{Epoch, NodeName, SnapshotId},
};

/// Restoring there, with room for a large image.
const PATIENCE: Duration = Duration::from_secs(120);
/// Answering a ping.
const ANSWER: Duration = Duration::from_secs(5);

/// What became of it.
pub(super) enum Handover {
    /// It runs there.
    Taken { epoch: u64 },
    /// It does not run there, and this node owns it (again), with the state it was handed over with.
    Refused(String),
    /// The same, but it ran there for a while, and there is a newer state.
    Back(String),
    /// Somebody else owns it by now.
    Deposed(Owner),
    /// Nothing of it is begun here: something that was heard meanwhile is heeded first, or it was found at rest.
    Interrupted,
    /// Who owns it cannot be settled by trying again.
    Stuck(String),
}

/// What a later epoch has turned out to be.
pub(super) enum Settled {
    /// Begun elsewhere: the copy here has been ended.
    Gone(ControlFlow<()>),
    /// Claimed only, and claimed back; or old news.
    Mine,
    /// The store does not say.
    Open(String),
}

/// Why a peer did not become the owner of what it was offered.
pub(super) enum NotOffered {
    /// It cannot be offered now: the store is away, or the copy here could not be ended.
    Held(String),
    /// The peer did not take it, and this node owns it still.
    Refused(String),
}

/// Why it is not this node's again.
enum NotBack {
    Lost(Owner),
    /// It is, and came to rest on the peer.
    AtRest(Box<Rest>),
    /// The store is away: the same again.
    Away(String),
    Hopeless(String),
}

impl From<OwnershipError> for NotBack {
    fn from(error: OwnershipError) -> Self {
        match error {
            OwnershipError::Deposed { by, .. } => Self::Lost(*by),
            error if error.is_retryable() => Self::Away(crate::chain(&error)),
            error => Self::Hopeless(crate::chain(&error)),
        }
    }
}

enum NotTaken {
    /// The peer was not reached: nothing has begun.
    NotAsked(String),
    /// The peer says that it does not run there.
    Refused(String),
    /// No answer: the peer may be the owner, or become it at any later time.
    Unknown(String),
}

impl Actor {
    /// Ends what there is of a copy that failed and offers the container to a peer. Its files stay until the peer has it: it may
    /// come back to them. `Ok`: it is settled who goes on with it, or something that was heard is heeded first.
    pub(super) async fn offer(
        &mut self,
        to: &NodeName,
        snapshot: Option<SnapshotId>,
    ) -> Result<ControlFlow<()>, NotOffered> {
        // A node that stood still may have lost it. The peer that has it would refuse, and be taken for one that claimed in vain.
        match ownership::ensure_current(&self.ctx.store, &self.name, &self.owner).await {
            Ok(()) => {}
            Err(OwnershipError::Deposed { by, .. }) => match self.settle(&by).await {
                Settled::Gone(flow) => return Ok(flow),
                Settled::Mine => {}
                Settled::Open(cause) => return Err(NotOffered::Held(cause)),
            },
            Err(error) => return Err(NotOffered::Held(crate::chain(&error))),
        }
        if let Err(error) = self.clear(Extent::Running).await {
            return Err(NotOffered::Held(error.to_string()));
        }
        self.ship_log().await;
        match self.hand_over(to, snapshot).await {
            Handover::Taken { .. } => Ok(self.gone(to).await),
            Handover::Deposed(by) => Ok(self.deposed(&by).await),
            Handover::Interrupted => Ok(ControlFlow::Continue(())),
            Handover::Stuck(text) => {
                self.fail(text);
                Ok(ControlFlow::Continue(()))
            }
            Handover::Refused(text) => Err(NotOffered::Refused(text)),
            // What is to be tried now is planned anew.
            Handover::Back(text) => Err(NotOffered::Held(text)),
        }
    }

    /// The copy here is down already, and this node is known to own it. `snapshot`: that one and no other; else the newest
    /// healthy one.
    pub(super) async fn hand_over(&mut self, to: &NodeName, snapshot: Option<SnapshotId>) -> Handover {
        match self.ask(to, snapshot).await {
            Ok(epoch) => Handover::Taken { epoch },
            Err(NotTaken::NotAsked(text)) => Handover::Refused(text),
            Err(NotTaken::Refused(text)) => self.take_back(text, Some(to)).await,
            Err(NotTaken::Unknown(text)) => self.take_back(text, None).await,
        }
    }

    /// Whether the peer can be asked at all, for a move to find out while the container still serves.
    pub(super) async fn reach(&self, to: &NodeName, address: &str) -> Result<(), String> {
        let away = |why: String| format!("node {to} at {address} is not reached from here: {why}");
        let channel = self.ctx.security.connect(to, address).await.map_err(|error| away(crate::chain(&error)))?;
        let ping = PingRequest { envelope: Some(self.ctx.membership.service().envelope()), seq: 0 };
        let answer = tokio::time::timeout(ANSWER, PeerClient::new(channel).ping(ping)).await;
        let answer = answer.map_err(|_| away(format!("no answer within {ANSWER:?}")))?;
        answer.map(drop).map_err(|status| away(crate::chain(&status)))
    }

    async fn ask(&self, to: &NodeName, snapshot: Option<SnapshotId>) -> Result<u64, NotTaken> {
        let peers = self.ctx.membership.peers();
        let peer = peers
            .into_iter()
            .find(|peer| peer.name == *to)
            .ok_or_else(|| NotTaken::NotAsked(format!("node {to} is not known")))?;
        let away = |why: String| format!("node {to} at {} cannot take it: {why}", peer.address);
        let channel = self.ctx.security.connect(to, &peer.address).await;
        let channel = channel.map_err(|err| NotTaken::NotAsked(away(crate::chain(&err))))?;
        let request = TakeOverRequest {
            envelope: Some(self.ctx.membership.service().envelope()),
            container: self.name.to_string(),
            epoch: self.owner.epoch.0,
            snapshot: snapshot.map(|id| id.to_string()).unwrap_or_default(),
        };
        let mut client = PeerClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let reply = tokio::time::timeout(PATIENCE, client.take_over(request)).await;
        let reply = reply.map_err(|_| NotTaken::Unknown(away(format!("no answer within {PATIENCE:?}"))))?;
        let reply = reply.map_err(|status| NotTaken::Unknown(away(crate::chain(&status))))?.into_inner();
        if reply.error.is_empty() { Ok(reply.epoch) } else { Err(NotTaken::Refused(away(reply.error))) }
    }

    /// Whether the peer has a copy. `None`: it does not say.
    async fn has_copy(&self, peer: &NodeName) -> Option<bool> {
        let address = self.ctx.membership.peers().into_iter().find(|known| known.name == *peer)?.address;
        let asked = async {
            let channel = self.ctx.security.connect(peer, &address).await.ok()?;
            let envelope = Some(self.ctx.membership.service().envelope());
            let request = HasCopyRequest { envelope, container: self.name.to_string() };
            Some(PeerClient::new(channel).has_copy(request).await.ok()?.into_inner().copy)
        };
        tokio::time::timeout(ANSWER, asked).await.ok().flatten()
    }

    /// Whether the peer is the owner, or may yet become it, is settled by claiming an epoch of its own for this node. The one
    /// the peer was asked to claim comes first: when this node has it, a claim that is still on its way to the store fails. A
    /// peer that has it and said nothing answers for the container. One that said no (`refused_by`) did not have it then, but may
    /// have begun it since: the next epoch is claimed, after which it begins nothing, and then it is asked again.
    async fn take_back(&mut self, text: String, refused_by: Option<&NodeName>) -> Handover {
        let claimant = Claimant::new(self.ctx.config.node.clone());
        let before = self.owner.epoch;
        let mut refused: Option<Owner> = None;
        let mut wait = FIRST_WAIT;
        loop {
            let cause = match self.claim_back(before, refused.as_ref(), &claimant).await {
                Ok(Some(base)) if base.epoch > before => return Handover::Back(text),
                Ok(_) => return Handover::Refused(text),
                Err(NotBack::Lost(owner))
                    if refused_by == Some(&owner.node) && !owner.released && refused.is_none() =>
                {
                    refused = Some(owner);
                    continue;
                }
                Err(NotBack::Lost(owner)) => return Handover::Deposed(owner),
                Err(NotBack::AtRest(rest)) => {
                    let _ = self.found_at_rest(*rest).await;
                    return Handover::Interrupted;
                }
                Err(NotBack::Hopeless(cause)) => {
                    let text = format!("{text}; and it cannot be taken back: {cause}");
                    self.event("recovery.exhausted", &text, json!({"cause": cause}));
                    return Handover::Stuck(text);
                }
                Err(NotBack::Away(cause)) => cause,
            };
            let detail = json!({"cause": cause, "again_in_ms": u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)});
            self.event("recovery.waiting", &cause, detail);
            self.view.update(|view| view.failure = Some(cause));
            let again = tokio::time::sleep(wait);
            tokio::pin!(again);
            loop {
                tokio::select! {
                    () = &mut again => break,
                    command = self.inbox.recv() => if self.defer(command, "taken back from its peer") {
                        return Handover::Interrupted;
                    },
                }
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Becomes the owner after `before`, or after the peer that has `refused`. What to go on from.
    async fn claim_back(
        &mut self,
        before: Epoch,
        refused: Option<&Owner>,
        claimant: &Claimant,
    ) -> Result<Option<SnapshotId>, NotBack> {
        let (store, name) = (&self.ctx.store, &self.name);
        let expected = refused.map_or(before, |peer| peer.epoch);
        let owner = match ownership::claim(store, name, Some(expected), claimant).await.map_err(NotBack::from)? {
            Claim::Won(owner) => owner,
            // Claimed by this node while it waited for the peer's answer.
            Claim::Lost(owner) if owner.node == self.ctx.config.node && !owner.released => owner,
            Claim::Lost(owner) => return Err(NotBack::Lost(owner)),
        };
        if let Some(peer) = refused
            && self.has_copy(&peer.node).await != Some(false)
        {
            // It claims it back. Should it be dead, this claim is gone on with once it is silent, as any other.
            return Err(NotBack::Lost(peer.clone()));
        }
        let previous = self.owner.epoch;
        let (owner, taken) = match ownership::take_over(store, name, &owner).await {
            Ok(taken) => (owner, taken),
            Err(OwnershipError::Deposed { by, .. }) => self.again_after(&owner, *by).await?,
            Err(error) => return Err(NotBack::from(error)),
        };
        self.event("ownership.claimed", "taken back", json!({"epoch": owner.epoch, "previous": previous}));
        self.own(owner);
        taken.rest.map_or(Ok(taken.base), |rest| Err(NotBack::AtRest(Box::new(rest))))
    }

    /// `by` was claimed while `owner`, this node, settled its base. When that was first, this node is the one to go on, and nobody
    /// else does: it claims once more.
    async fn again_after(&self, owner: &Owner, by: Owner) -> Result<(Owner, Taken), NotBack> {
        let (store, name) = (&self.ctx.store, &self.name);
        let there = ownership::standing(store, name).await.map_err(NotBack::from)?;
        let Some(there) = there.filter(|there| there.may_go_on(&owner.node, owner.epoch)) else {
            return Err(NotBack::Lost(by));
        };
        let claimant = Claimant::new(owner.node.clone());
        let newest = match ownership::claim_back(store, name, &there.newest, &claimant).await.map_err(NotBack::from)? {
            Back::Mine(newest) => newest,
            Back::Gone(other) => return Err(NotBack::Lost(other)),
        };
        // Settled already: this looks it up.
        let taken = ownership::take_over(store, name, &newest).await.map_err(NotBack::from)?;
        Ok((newest, taken))
    }

    /// A later epoch exists than this copy goes by.
    pub(super) async fn outdated(&mut self, by: &Owner) -> ControlFlow<()> {
        match self.settle(by).await {
            Settled::Gone(flow) => flow,
            // It was broken off for this.
            Settled::Mine if matches!(self.state, State::Down(Down::Resting)) && self.is_to_run() => {
                self.recover(Scope::Container, "claimed back".into()).await
            }
            Settled::Mine => ControlFlow::Continue(()),
            Settled::Open(cause) => {
                // The next look at the store finds it again.
                tracing::warn!(container = %self.name, cause, "who owns it is not settled yet");
                ControlFlow::Continue(())
            }
        }
    }

    /// Finds out what a later epoch means: another node has begun the container, and this copy ends; or it was claimed only, while
    /// this node was not heard, and this copy goes on under the epoch after.
    pub(super) async fn settle(&mut self, by: &Owner) -> Settled {
        if by.epoch <= self.owner.epoch {
            return Settled::Mine;
        }
        let store = &self.ctx.store;
        let there = match ownership::standing(store, &self.name).await {
            Ok(Some(there)) if there.may_go_on(&self.ctx.config.node, self.owner.epoch) => there,
            Ok(_) => return Settled::Gone(self.deposed(by).await),
            Err(error) => return Settled::Open(crate::chain(&error)),
        };
        let claimant = Claimant::new(self.ctx.config.node.clone());
        match ownership::claim_back(store, &self.name, &there.newest, &claimant).await {
            Ok(Back::Mine(owner)) => {
                let from = &there.newest;
                let text = format!("claimed back from {}, which had begun nothing: nothing is lost", from.node);
                let detail = json!({"epoch": owner.epoch, "previous": from.epoch, "from": from.node});
                self.event("ownership.claimed", &text, detail);
                self.own(owner);
                self.save(self.local_phase());
                // What was under way to the store under the epoch before does not count any more.
                self.schedule.iter_mut().for_each(|schedule| schedule.due_now(Instant::now()));
                self.ctx.lease.renew_now();
                Settled::Mine
            }
            Ok(Back::Gone(_)) => Settled::Gone(self.deposed(&there.newest).await),
            Err(error) => Settled::Open(crate::chain(&error)),
        }
    }

    fn is_to_run(&self) -> bool {
        self.resting.is_none() && self.view.get().phase != Phase::Failed
    }

    /// Owner under a new epoch: snapshots are counted anew.
    pub(super) fn own(&mut self, owner: Owner) {
        self.view.update(|view| view.owner = owner.clone());
        self.owner = owner;
        self.next_seq = 1;
    }
}
