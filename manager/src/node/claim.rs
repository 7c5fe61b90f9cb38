//! A container whose owner does not answer, and an operator who wants it here all the same.
//!
//! A dead owner's container is taken over by itself when its policy says so. What is left for an operator are policies
//! without failover, and owners that stopped their manager: those are not dead, their containers go on running. So nothing is
//! claimed while anything answers at the container's address: two copies of one container are worse than none. A copy that was
//! not heard then is cleared away by its node's manager as soon as that reads the later epoch in the store.

use std::{sync::Arc, time::Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    Node,
    drive::{NotTaken, Word},
};
use crate::{
    api::ApiError,
    membership::PeerView,
    network,
    ownership::Owner,
    recovery::{Begin, ProgressSender},
    snapshot::{self, SnapshotHealth},
    spec::{ContainerName, SnapshotId, StateKind},
    store::apps::{self, AppContent},
};

/// Who answers for a container.
#[derive(Debug)]
pub enum Whereabouts {
    /// This node, or nobody.
    Here,
    Peer(PeerView),
    /// Its owner does not answer.
    Absent(Owner, Absence),
}

/// Why an owner does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    Dead,
    /// Its manager was stopped; its containers run on.
    Left,
    /// This node has never heard of it.
    Unheard,
}

impl Node {
    /// Claims a container whose owner does not answer and restores it here.
    ///
    /// # Errors
    /// Before anything is claimed: something answers at its address, or there is no snapshot to go back to.
    pub async fn claim_absent(
        self: &Arc<Self>,
        name: &ContainerName,
        from: &Owner,
        snapshot: Option<SnapshotId>,
        progress: ProgressSender,
    ) -> Result<Value, ApiError> {
        let began = Instant::now();
        let unavailable = |error: &(dyn std::error::Error + 'static)| ApiError::Unavailable(crate::chain(error));
        let app = apps::newest(&self.ctx.store, name).await.map_err(|error| unavailable(&error))?;
        let Some((app, content)) = app.and_then(|app| app.content.clone().map(|content| (app, content))) else {
            return Err(ApiError::no_container(name));
        };
        self.has_snapshot(&content, snapshot).await?;
        progress.step(format!("asking whether anything answers at the address of {name}"));
        // Where no address is reserved for it, nothing can answer there.
        if let Some(identity) = self.known_identity(&content).await.map_err(|error| unavailable(&error))? {
            self.is_silent(name, from, &identity).await?;
        }
        let identity = self.identity(&content).await.map_err(|error| unavailable(&error))?;
        progress.step(format!("claiming {name}, which {} owns under epoch {}", from.node, from.epoch));
        let claim = self.stopping.may_begin().await.map_err(ApiError::Unavailable)?;
        let Some(_one) = self.taking.begin(name) else {
            return Err(ApiError::Unavailable(format!("{name} is just being taken over by this node; try again")));
        };
        let (owner, _) = self.take_from_silent(name, from, &Word::Operator(from.node.clone())).await.map_err(
            |error| match error {
                NotTaken::Held(_, _, text) => {
                    ApiError::Refused(format!("{name} is not claimed: {text}. Nothing was changed"))
                }
                NotTaken::Lost(text) => ApiError::Refused(text),
                NotTaken::Away(text) => ApiError::Unavailable(text),
            },
        )?;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let detail = json!({"epoch": owner.epoch, "previous": from.epoch, "ms": ms});
        let text = format!("its operator claimed it from node {} (epoch {})", from.node, owner.epoch);
        self.events().emit(Some(name), "ownership.claimed", &text, detail);
        let (reply, outcome) = oneshot::channel();
        if !self.start(app, content, owner, identity, Begin::Claimed { snapshot, progress, reply }) {
            return Err(ApiError::Refused(format!("{name} is being started here already")));
        }
        drop(claim);
        outcome.await.map_err(|_| ApiError::Failed(format!("{name}: given up; see `ha-manager events {name}`")))?
    }

    async fn has_snapshot(&self, content: &AppContent, wanted: Option<SnapshotId>) -> Result<(), ApiError> {
        let name = &content.spec.name;
        if matches!(content.spec.state, StateKind::Stateless) {
            return Ok(());
        }
        let known = snapshot::list_valid(&self.ctx.store, name).await;
        let known = known.map_err(|error| ApiError::Unavailable(crate::chain(&error)))?;
        let found = match wanted {
            Some(id) => known.iter().any(|manifest| manifest.meta.id == id),
            None => known.iter().any(|manifest| manifest.meta.health != SnapshotHealth::Unhealthy),
        };
        if found {
            return Ok(());
        }
        let what = wanted.map_or("no healthy snapshot".to_owned(), |id| format!("no snapshot {id}"));
        Err(ApiError::NotFound(format!("{name} has {what}; `ha-manager snapshots {name}` lists what there is")))
    }

    async fn is_silent(
        &self,
        name: &ContainerName,
        from: &Owner,
        identity: &snapshot::NetworkIdentity,
    ) -> Result<(), ApiError> {
        let (ip, mac) = (identity.ip, identity.mac);
        let (bridge, timeout) = (self.ctx.config.network.bridge.clone(), self.ctx.config.network.probe_timeout);
        let asked = tokio::task::spawn_blocking(move || network::probe(ip, &bridge, timeout, mac)).await;
        match asked.map_err(|error| ApiError::failed(&error))?.map_err(|error| ApiError::failed(&error))? {
            None => Ok(()),
            Some(conflict) => Err(ApiError::Refused(format!(
                "{} answers at {ip}, so {name} seems to run still (node {node} owned it last): start the manager of {node} and \
                 use `ha-manager move {name} --to {here}`, or power {node} off first. Nothing was changed",
                conflict.mac,
                node = from.node,
                here = self.name(),
            ))),
        }
    }
}
