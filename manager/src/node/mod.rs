//! One running manager: the rooms wired together.
//!
//! ```text
//!   run ─► lock, store, agent, network ─► membership ─► adopt what is here ─► serve ─► watch … SIGTERM ─► leave
//! ```
//!
//! [`Ctx`] is what the rooms' shells are called with; [`Node`] adds the containers. Containers have their own tasks
//! (`recovery`); the node gives them their beginning and passes on what happens around them.

mod advice;
mod agent;
mod alone;
mod apply;
mod claim;
mod ctx;
mod drive;
mod events;
mod fencing;
mod heard;
mod identity;
mod joined;
mod keeper;
mod life;
mod lock;
mod parking;
mod renewal;
mod retiring;
mod settings;
mod startup;
mod stopping;
mod takeover;
mod taking;
mod trust;
mod unused;
mod uplink;
mod watch;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

pub use agent::AgentBinary;
use chrono::Utc;
pub use ctx::Ctx;
pub use events::EventLog;
pub use joined::examine as examine_store;
pub use keeper::Keeper;
pub use settings::differences;
pub use startup::run;
use tokio::sync::oneshot;

use crate::{
    api::ApiError,
    membership::{Liveness, PeerView},
    ownership::{self, Owner},
    recovery::{self, ActorHandle, Begin, Command, ContainerView, Order, ProgressSender},
    snapshot::NetworkIdentity,
    spec::{ContainerName, NodeName},
    store::{
        apps::{self, App, AppContent},
        beats::Heart,
    },
    tls::Caller,
};
pub use claim::{Absence, Whereabouts};

/// This node and the containers it owns.
pub struct Node {
    pub ctx: Arc<Ctx>,
    actors: Mutex<HashMap<ContainerName, ActorHandle>>,
    problems: Mutex<Vec<String>>,
    /// How often the whole store was looked through.
    looks: AtomicU64,
    uplink: uplink::Uplink,
    heard: heard::Heard,
    lives: life::Lives,
    /// This node's beats in the store.
    heart: tokio::sync::Mutex<Heart>,
    taking: taking::Taking,
    fencing: fencing::Fencing,
    holds: Mutex<BTreeMap<ContainerName, life::Hold>>,
    stopping: stopping::Stopping,
}

impl Node {
    pub fn name(&self) -> &NodeName {
        &self.ctx.config.node
    }

    pub fn events(&self) -> &EventLog {
        &self.ctx.events
    }

    /// Peers that answer or did until just now.
    pub fn living_peers(&self) -> Vec<PeerView> {
        let mut peers = self.ctx.membership.peers();
        peers.retain(|peer| matches!(peer.liveness, Liveness::Alive | Liveness::Suspect));
        peers
    }

    /// Whether what a caller at the peer port passes on is heeded: it has shown a certificate of this cluster, or, where
    /// none is asked for, it has a peer's address. That is no proof; it keeps out whoever is merely in reach.
    pub async fn admits(&self, caller: Option<&Caller>) -> bool {
        match caller {
            None => false,
            Some(Caller { node: Some(_), .. }) => true,
            Some(Caller { node: None, address }) => self.is_peer_address(address.ip()).await,
        }
    }

    async fn is_peer_address(&self, from: IpAddr) -> bool {
        let from = from.to_canonical();
        for peer in self.ctx.membership.peers() {
            let matches = match peer.address.parse::<SocketAddr>() {
                Ok(address) => address.ip().to_canonical() == from,
                // A name; one that cannot be looked up matches nobody.
                Err(_) => tokio::net::lookup_host(&peer.address)
                    .await
                    .is_ok_and(|mut found| found.any(|address| address.ip().to_canonical() == from)),
            };
            if matches {
                return true;
            }
        }
        false
    }

    /// What this node runs.
    pub fn views(&self) -> Vec<ContainerView> {
        let mut views: Vec<_> = self.actors().values().map(|actor| actor.view.get()).collect();
        views.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        views
    }

    /// A container of this node, as its actor last described it.
    pub fn view(&self, name: &ContainerName) -> Option<ContainerView> {
        self.actors().get(name).map(|actor| actor.view.get())
    }

    pub fn has(&self, name: &ContainerName) -> bool {
        self.actors().contains_key(name)
    }

    /// How far a container's log is in the store; `None` when it does not run here.
    pub fn log_standing(&self, name: &ContainerName) -> Option<recovery::Standing> {
        self.actors().get(name).map(|actor| actor.log.standing())
    }

    /// What is wrong with this node as a whole, for `status`.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
        problems.extend(self.ctx.security.trouble(Utc::now().timestamp()));
        problems.extend(self.ctx.lease.problem(self.uplink.has_carrier()));
        problems.extend(self.lives.is_retired().then(|| retiring::RETIRED.to_owned()));
        problems.extend(self.alone());
        problems
    }

    /// How often this node has looked through the store since its manager was started.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    fn set_problems(&self, problems: Vec<String>) {
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = problems;
    }

    /// The peer that owns a container and answers for it; `None` when it is this node's, or nobody's.
    ///
    /// # Errors
    /// Its owner is dead, has stopped its manager, or was never heard of: with what can be done about it.
    pub async fn owner_elsewhere(&self, name: &ContainerName) -> Result<Option<PeerView>, ApiError> {
        match self.place_of(name).await? {
            Whereabouts::Peer(peer) => Ok(Some(peer)),
            Whereabouts::Absent(owner, why) => Err(ApiError::Refused(self.advice(name, &owner, why))),
            Whereabouts::Here => Ok(None),
        }
    }

    /// Why a node does not answer, if it does not; never for this node.
    pub fn absence(&self, node: &NodeName) -> Option<Absence> {
        if node == self.name() {
            return None;
        }
        match self.ctx.membership.peers().into_iter().find(|peer| peer.name == *node).map(|peer| peer.liveness) {
            None => Some(Absence::Unheard),
            Some(Liveness::Alive | Liveness::Suspect) => None,
            Some(Liveness::Dead) => Some(Absence::Dead),
            Some(Liveness::Left) => Some(Absence::Left),
        }
    }

    /// Who answers for a container.
    pub async fn place_of(&self, name: &ContainerName) -> Result<Whereabouts, ApiError> {
        if self.has(name) {
            return Ok(Whereabouts::Here);
        }
        let owner =
            ownership::current(&self.ctx.store, name).await.map_err(|err| ApiError::Unavailable(crate::chain(&err)))?;
        match owner {
            Some(owner) if !owner.released && owner.node != *self.name() => {
                let peers = self.living_peers();
                Ok(match (self.absence(&owner.node), peers.into_iter().find(|peer| peer.name == owner.node)) {
                    (Some(why), _) => Whereabouts::Absent(owner, why),
                    (None, Some(peer)) => Whereabouts::Peer(peer),
                    (None, None) => Whereabouts::Absent(owner, Absence::Dead),
                })
            }
            _ => Ok(Whereabouts::Here),
        }
    }

    /// Gives an order to a container's actor and waits for its outcome.
    pub async fn order(
        &self,
        name: &ContainerName,
        order: Order,
        progress: ProgressSender,
    ) -> Result<serde_json::Value, ApiError> {
        let inbox = self.actors().get(name).map(|actor| actor.inbox.clone());
        let Some(inbox) = inbox else {
            self.not_being_begun(name).await?;
            return match order {
                Order::Remove => self.remove_ownerless(name).await,
                _ => Err(ApiError::no_container(name)),
            };
        };
        let (reply, outcome) = oneshot::channel();
        let gone = || ApiError::Unavailable(format!("{name} is no longer on this node; try again"));
        inbox.send(Command::Order { order, progress, reply }).await.map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }

    /// A container of this node that nobody works on yet: the manager has just been started, or its task is to be begun
    /// again. Taken for nobody's, its snapshots would be deleted.
    async fn not_being_begun(&self, name: &ContainerName) -> Result<(), ApiError> {
        let owner =
            ownership::current(&self.ctx.store, name).await.map_err(|err| ApiError::Unavailable(crate::chain(&err)))?;
        let app = apps::newest(&self.ctx.store, name).await.map_err(|err| ApiError::Unavailable(crate::chain(&err)))?;
        // One that nobody describes any more was being removed.
        let described = app.is_some_and(|app| app.content.is_some());
        if described && owner.is_some_and(|owner| !owner.released && owner.node == *self.name()) && !self.has(name) {
            return Err(ApiError::Unavailable(format!(
                "{name} is just being begun on this node; try again in some seconds"
            )));
        }
        Ok(())
    }

    /// Removes a container that is described but that nobody runs: its owner is gone, or its start never succeeded.
    async fn remove_ownerless(&self, name: &ContainerName) -> Result<serde_json::Value, ApiError> {
        let store = &self.ctx.store;
        let unavailable = |err: &(dyn std::error::Error + 'static)| ApiError::Unavailable(crate::chain(err));
        let app = apps::newest(store, name).await.map_err(|err| unavailable(&err))?;
        let owner = ownership::current(store, name).await.map_err(|err| unavailable(&err))?;
        // One that is still owned was being removed when the store went away.
        let owned = owner.as_ref().is_some_and(|owner| !owner.released);
        match app.filter(|app| app.content.is_some() || owned) {
            Some(app) => recovery::forget(&self.ctx, name, app.generation, None).await?,
            // Or the store went away after that.
            None if owner.is_some() && recovery::forget_objects(&self.ctx, name).await? => {}
            None if recovery::Place::new(&self.ctx.config, name).exists() => {
                // Left alone when the manager started, for the store knew nothing of it.
                recovery::clear_leftovers(&self.ctx, name).await.map_err(ApiError::Failed)?;
                return Ok(serde_json::json!({"message": format!("the copy of {name} on this node removed")}));
            }
            None => return Err(ApiError::no_container(name)),
        }
        Ok(serde_json::json!({"message": format!("{name} removed")}))
    }

    /// Begins a container's actor. Refused when it has one.
    fn start(&self, app: App, content: AppContent, owner: Owner, identity: NetworkIdentity, begin: Begin) -> bool {
        let name = content.spec.name.clone();
        let mut actors = self.actors();
        if actors.contains_key(&name) {
            return false;
        }
        let handle = recovery::spawn(Arc::clone(&self.ctx), app, content, owner, identity, begin);
        actors.insert(name, handle);
        true
    }

    fn actors(&self) -> MutexGuard<'_, HashMap<ContainerName, ActorHandle>> {
        let mut actors = self.actors.lock().unwrap_or_else(PoisonError::into_inner);
        // An actor that ended has given its container up; its handle is only in the way.
        actors.retain(|_, actor| !actor.inbox.is_closed());
        actors
    }
}
