//! Handing a container to a peer, and taking it back when the peer could not.

use std::time::Duration;

use ha_proto::peer::{MAX_MESSAGE, TakeOverRequest, peer_client::PeerClient};
use serde_json::json;
use tonic::transport::Endpoint;

use super::actor::Actor;
use crate::{
    ownership::{self, Claim, Claimant, Owner, OwnershipError},
    spec::{NodeName, SnapshotId},
};

/// Restoring there, with room for a large image.
const PATIENCE: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(2);

/// What became of it.
pub(super) enum Handover {
    /// It runs there.
    Taken { epoch: u64 },
    /// It does not run there, and this node owns it (again).
    Refused(String),
    /// Somebody else owns it by now.
    Deposed(Owner),
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
    /// The copy here is down already. `snapshot`: that one and no other; else the newest healthy one.
    pub(super) async fn hand_over(&mut self, to: &NodeName, snapshot: Option<SnapshotId>) -> Handover {
        match self.ask(to, snapshot).await {
            Ok(epoch) => Handover::Taken { epoch },
            Err(NotTaken::NotAsked(text)) => Handover::Refused(text),
            Err(NotTaken::Refused(text)) => self.take_back(text).await,
            Err(NotTaken::Unknown(text)) => self.settle_unknown(text).await,
        }
    }

    async fn ask(&self, to: &NodeName, snapshot: Option<SnapshotId>) -> Result<u64, NotTaken> {
        let peers = self.ctx.membership.peers();
        let peer = peers
            .into_iter()
            .find(|peer| peer.name == *to)
            .ok_or_else(|| NotTaken::NotAsked(format!("node {to} is not known")))?;
        let away = |why: String| format!("node {to} at {} cannot take it: {why}", peer.address);
        let endpoint = Endpoint::from_shared(format!("http://{}", peer.address))
            .map_err(|err| NotTaken::NotAsked(away(err.to_string())))?;
        let channel = endpoint.connect_timeout(CONNECT).timeout(PATIENCE).connect().await;
        let channel = channel.map_err(|err| NotTaken::NotAsked(away(crate::chain(&err))))?;
        let request = TakeOverRequest {
            envelope: Some(self.ctx.membership.service().envelope()),
            container: self.name.to_string(),
            epoch: self.owner.epoch.0,
            snapshot: snapshot.map(|id| id.to_string()).unwrap_or_default(),
        };
        let mut client = PeerClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let reply =
            client.take_over(request).await.map_err(|status| NotTaken::Unknown(away(status.message().to_owned())))?;
        let reply = reply.into_inner();
        if reply.error.is_empty() { Ok(reply.epoch) } else { Err(NotTaken::Refused(away(reply.error))) }
    }

    /// Who owns it is settled by claiming the epoch the peer was asked to claim: it has it already and answers for the
    /// container, going on by itself now that its caller is gone; or it can no longer become the owner of a container that has
    /// been begun again here.
    async fn settle_unknown(&mut self, text: String) -> Handover {
        let claimant = Claimant::new(self.ctx.config.node.clone());
        loop {
            let claimed = ownership::claim(&self.ctx.store, &self.name, Some(self.owner.epoch), &claimant).await;
            match self.claimed(claimed).await {
                Some(Ok(())) => return Handover::Refused(text),
                Some(Err(owner)) => return Handover::Deposed(owner),
                None => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    /// The peer may or may not have become the owner before it failed: the store knows.
    async fn take_back(&mut self, text: String) -> Handover {
        let claimant = Claimant::new(self.ctx.config.node.clone());
        loop {
            let store = &self.ctx.store;
            let outcome = match ownership::current(store, &self.name).await {
                Ok(Some(owner)) if owner == self.owner => return Handover::Refused(text),
                Ok(Some(owner)) => ownership::claim(store, &self.name, Some(owner.epoch), &claimant).await,
                Ok(None) => return Handover::Refused(text),
                Err(error) => Err(error),
            };
            match self.claimed(outcome).await {
                Some(Ok(())) => return Handover::Refused(text),
                Some(Err(owner)) => return Handover::Deposed(owner),
                None => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    /// What follows from a claim: `Ok` when this node is the owner again, `Err` with who is, `None` to try again.
    async fn claimed(&mut self, outcome: Result<Claim, OwnershipError>) -> Option<Result<(), Owner>> {
        let owner = match outcome {
            Ok(Claim::Won(owner)) => owner,
            Ok(Claim::Lost(owner)) => return Some(Err(owner)),
            Err(error) => {
                tracing::warn!(container = %self.name, error = crate::chain(&error), "taking back");
                return None;
            }
        };
        match ownership::take_base(&self.ctx.store, &self.name, &owner).await {
            Ok(_) => {
                let detail = json!({"epoch": owner.epoch, "previous": self.owner.epoch});
                self.event("ownership.claimed", "taken back", detail);
                self.own(owner);
                Some(Ok(()))
            }
            Err(OwnershipError::Deposed { by, .. }) => Some(Err(*by)),
            Err(error) => {
                tracing::warn!(container = %self.name, error = crate::chain(&error), "taking back");
                None
            }
        }
    }

    /// Owner under a new epoch: snapshots are counted anew.
    fn own(&mut self, owner: Owner) {
        self.view.update(|view| view.owner = owner.clone());
        self.owner = owner;
        self.next_seq = 1;
    }
}
