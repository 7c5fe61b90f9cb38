//! Handing a container to a peer, and taking it back when the peer could not.

use std::time::Duration;

use ha_proto::peer::{MAX_MESSAGE, TakeOverRequest, peer_client::PeerClient};
use serde_json::json;
use tonic::transport::Endpoint;

use super::actor::Actor;
use crate::{
    ownership::{self, Claim, Claimant, Owner},
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
    /// The peer says that it does not run there.
    Refused(String),
    /// No answer: the store knows whether the peer became the owner.
    Unknown(String),
}

impl Actor {
    /// The copy here is down already. `snapshot`: that one and no other; else the newest healthy one.
    pub(super) async fn hand_over(&mut self, to: &NodeName, snapshot: Option<SnapshotId>) -> Handover {
        match self.ask(to, snapshot).await {
            Ok(epoch) => Handover::Taken { epoch },
            Err(NotTaken::Refused(text)) => self.take_back(text).await,
            Err(NotTaken::Unknown(text)) => match ownership::current(&self.ctx.store, &self.name).await {
                // It answers for the container now, and goes on trying by itself when its caller is gone.
                Ok(Some(owner)) if owner != self.owner => Handover::Deposed(owner),
                _ => Handover::Refused(text),
            },
        }
    }

    async fn ask(&self, to: &NodeName, snapshot: Option<SnapshotId>) -> Result<u64, NotTaken> {
        let peers = self.ctx.membership.peers();
        let peer = peers
            .into_iter()
            .find(|peer| peer.name == *to)
            .ok_or_else(|| NotTaken::Unknown(format!("node {to} is not known")))?;
        let away = |why: String| format!("node {to} at {} cannot take it: {why}", peer.address);
        let endpoint = Endpoint::from_shared(format!("http://{}", peer.address))
            .map_err(|err| NotTaken::Unknown(away(err.to_string())))?;
        let channel = endpoint.connect_timeout(CONNECT).timeout(PATIENCE).connect().await;
        let channel = channel.map_err(|err| NotTaken::Unknown(away(crate::chain(&err))))?;
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

    /// The peer may or may not have become the owner before it failed: the store knows.
    async fn take_back(&mut self, text: String) -> Handover {
        let store = &self.ctx.store;
        let claimant = Claimant::new(self.ctx.config.node.clone());
        loop {
            let outcome = match ownership::current(store, &self.name).await {
                Ok(Some(owner)) if owner == self.owner => return Handover::Refused(text),
                Ok(Some(owner)) => ownership::claim(store, &self.name, Some(owner.epoch), &claimant).await,
                Ok(None) => return Handover::Refused(text),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(Claim::Won(owner)) => match ownership::take_base(store, &self.name, &owner).await {
                    Ok(_) => {
                        self.event(
                            "ownership.claimed",
                            "taken back",
                            json!({"epoch": owner.epoch, "previous": self.owner.epoch}),
                        );
                        self.own(owner);
                        return Handover::Refused(text);
                    }
                    Err(ownership::OwnershipError::Deposed { by, .. }) => return Handover::Deposed(*by),
                    Err(error) => tracing::warn!(container = %self.name, error = crate::chain(&error), "taking back"),
                },
                Ok(Claim::Lost(owner)) => return Handover::Deposed(owner),
                Err(error) => tracing::warn!(container = %self.name, error = crate::chain(&error), "taking back"),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Owner under a new epoch: snapshots are counted anew.
    fn own(&mut self, owner: Owner) {
        self.view.update(|view| view.owner = owner.clone());
        self.owner = owner;
        self.next_seq = 1;
    }
}
