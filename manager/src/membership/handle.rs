//! What the rest of the manager holds: the running membership, and the service its peers call.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use ha_proto::peer as pb;
use tokio::{sync::broadcast, task::JoinHandle};
use tonic::{Code, Request, Response, Status};

use super::{
    acquaintances::{Acquaintances, AcquaintancesError},
    config::{Config, ConfigError},
    core::{Core, Me},
    message::{Boot, Event, Gossip, Input, Liveness, Request as Asked},
    shell::{OnKnown, Shared},
    wire::{self, WireError},
};
use crate::{
    spec::NodeName,
    tls::{Caller, Security},
};

/// Why membership did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The advertised address or a seed is not `host:port`.
    #[error("membership: {0}")]
    Address(WireError),
}

/// Why a node was not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    #[error("{0} is alive, or has not been silent for long enough: stop it first")]
    Lives(NodeName),
    #[error(transparent)]
    Acquaintances(#[from] AcquaintancesError),
}

/// A peer as we see it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    pub name: NodeName,
    /// `host:port` of its peer service.
    pub address: String,
    pub boot: Boot,
    pub incarnation: u64,
    pub liveness: Liveness,
    /// When it became so.
    pub since: Instant,
    /// When the newest of our pings that it answered was *sent*: it has seen us then or later.
    pub saw_us: Option<Instant>,
}

/// The running membership. Dropping it stops probing, without telling anybody; see [`Membership::leave`].
pub struct Membership {
    pub(super) shared: Arc<Shared>,
    timer: JoinHandle<()>,
    patience: Duration,
}

impl Membership {
    /// Starts probing, on the current tokio runtime. `seeds` are addresses to join by; the boot
    /// of `me` is drawn at each start. `security` makes the connections;
    /// `acquaintances` outlive this start; `on_known` is told of new ones.
    ///
    /// # Errors
    /// A number out of range, or an address that is not `host:port`.
    pub fn start(
        config: Config,
        me: Me,
        seeds: Vec<String>,
        security: Security,
        acquaintances: Acquaintances,
        on_known: OnKnown,
    ) -> Result<Self, StartError> {
        wire::check_address("advertised address", &me.address).map_err(StartError::Address)?;
        for seed in &seeds {
            wire::check_address("peer", seed).map_err(StartError::Address)?;
        }
        let cluster = config.cluster.clone();
        let patience = config.probe_timeout * (config.max_health + 1);
        let contacts = acquaintances.contacts().clone();
        let core = Core::new(config, me, seeds, contacts, rand::random(), Duration::ZERO)?;
        let shared = Shared::new(cluster, Instant::now(), core, acquaintances, security, on_known);
        let timer = tokio::spawn(shared.clone().run());
        Ok(Self { shared, timer, patience })
    }

    /// All peers, by name; ourselves excluded.
    pub fn peers(&self) -> Vec<PeerView> {
        let origin = self.shared.origin;
        self.shared.with(|core| {
            let view = |peer: super::core::PeerState| PeerView {
                name: peer.name,
                address: peer.address,
                boot: peer.boot,
                incarnation: peer.incarnation,
                liveness: peer.liveness,
                since: origin + peer.since,
                saw_us: peer.saw_us.map(|at| origin + at),
            };
            core.peers().map(view).collect()
        })
    }

    /// When this node last had to do with another: answered it, or heard from it itself; `None`: not since the start.
    pub fn last_contact(&self, node: &NodeName) -> Option<Instant> {
        self.shared.with(|core| core.last_contact(node)).map(|at| self.shared.origin + at)
    }

    /// Every node that this one ever sent a message to or answered, in this start or an earlier one. Whoever has met this node
    /// is among them.
    pub fn known(&self) -> BTreeSet<NodeName> {
        self.shared.contacts(|contacts| contacts.known.clone())
    }

    /// Every node that ever sent this one a message meant for it, in this start or an earlier one.
    pub fn met(&self) -> BTreeSet<NodeName> {
        self.shared.contacts(|contacts| contacts.met.clone())
    }

    /// Forgets a node that is gone for good, here only: it is not known any more, and has not been met. Should it come back, it
    /// is a new one. Blocking, for as long as a file takes to be written.
    ///
    /// # Errors
    /// It is alive or suspected, or the file cannot be written; then nothing is changed.
    pub fn forget(&self, node: &NodeName) -> Result<(), ForgetError> {
        if self.shared.forget(node)? { Ok(()) } else { Err(ForgetError::Lives(node.clone())) }
    }

    /// Has a node that was forgotten too early known again, as before it is sent something. The caller counts it. Blocking, for as
    /// long as a file takes to be written.
    ///
    /// # Errors
    /// The file cannot be written, or is full; then nothing is changed.
    pub fn remember(&self, node: &NodeName) -> Result<(), AcquaintancesError> {
        self.shared.remember(node)
    }

    /// What changes from now on. Subscribe first, then read [`Membership::peers`]; a receiver that lags reads it again.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// 0 when this node is well; its timeouts are this plus one times as long.
    pub fn health(&self) -> u32 {
        self.shared.with(Core::health)
    }

    /// Tells the others that we stop, and returns when they know or a probe's time has passed. Peers then hold us for
    /// left instead of searching; our own probing is over.
    pub async fn leave(&self) {
        self.shared.input(Input::Leave);
        let told = async {
            loop {
                let settled = self.shared.settled.notified();
                tokio::pin!(settled);
                settled.as_mut().enable();
                if self.shared.with(Core::calls_pending) == 0 {
                    return;
                }
                settled.await;
            }
        };
        // Whom the word has not reached finds out by probing.
        let _ = tokio::time::timeout(self.patience, told).await;
    }

    /// Until the calls to peers that are under way, or come, have ended, answered or failed: what [`Membership::peers`] says may
    /// have changed.
    pub async fn settled(&self) {
        loop {
            self.shared.settled.notified().await;
            if self.shared.with(Core::calls_pending) == 0 {
                return;
            }
        }
    }

    /// To be called from the implementation of `ha.peer.v1.Peer`.
    pub fn service(&self) -> MembershipService {
        MembershipService { shared: self.shared.clone() }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

/// Answers what peers ask. Cheap to clone. Serve it with `max_decoding_message_size(ha_proto::peer::MAX_MESSAGE)`.
#[derive(Clone)]
pub struct MembershipService {
    shared: Arc<Shared>,
}

impl MembershipService {
    /// `ha.peer.v1.Peer/Ping`.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` for another cluster, `PERMISSION_DENIED` for a message in another node's name,
    /// `INVALID_ARGUMENT` for a malformed one.
    pub async fn ping(&self, request: Request<pb::PingRequest>) -> Result<Response<pb::PingReply>, Status> {
        let caller = caller(&request)?;
        let pb::PingRequest { envelope, seq } = request.into_inner();
        let gossip = self.read(envelope, &caller)?;
        let (gossip, _) = self.ask(gossip, Asked::Ping).await?;
        Ok(Response::new(pb::PingReply { envelope: Some(wire::envelope(&self.shared.cluster, gossip)), seq }))
    }

    /// `ha.peer.v1.Peer/PingIndirect`.
    ///
    /// # Errors
    /// As [`MembershipService::ping`].
    pub async fn ping_indirect(
        &self,
        request: Request<pb::PingIndirectRequest>,
    ) -> Result<Response<pb::PingIndirectReply>, Status> {
        let caller = caller(&request)?;
        let pb::PingIndirectRequest { envelope, seq, target, timeout_ms } = request.into_inner();
        let gossip = self.read(envelope, &caller)?;
        let asked = wire::indirect(target, timeout_ms).map_err(|error| self.refuse(&caller, &error))?;
        let (gossip, answered) = self.ask(gossip, asked).await?;
        let envelope = Some(wire::envelope(&self.shared.cluster, gossip));
        Ok(Response::new(pb::PingIndirectReply { envelope, seq, answered }))
    }

    /// For the other calls of the peer service: who calls, when the envelope is sound and of our cluster.
    ///
    /// # Errors
    /// As [`MembershipService::ping`].
    pub fn caller<T>(&self, request: &Request<T>, envelope: Option<pb::Envelope>) -> Result<NodeName, Status> {
        self.read(envelope, &caller(request)?).map(|gossip| gossip.from)
    }

    /// For the other calls of the peer service: our envelope, without news.
    pub fn envelope(&self) -> pb::Envelope {
        let gossip = self.shared.with(|core| Gossip {
            from: core.me().name.clone(),
            to: None,
            address: core.me().address.clone(),
            boot: core.me().boot,
            incarnation: core.incarnation(),
            rumours: Vec::new(),
        });
        wire::envelope(&self.shared.cluster, gossip)
    }

    /// To be called for a message that gRPC itself has refused; `code` says why.
    pub fn unread(&self, caller: &Caller, code: Code) {
        self.shared.refused(&caller.address.ip().to_string(), &WireError::Unread { code });
    }

    fn read(&self, envelope: Option<pb::Envelope>, caller: &Caller) -> Result<Gossip, Status> {
        let read = wire::gossip(&self.shared.cluster, caller.node.as_ref(), envelope);
        read.map_err(|error| self.refuse(caller, &error))
    }

    fn refuse(&self, caller: &Caller, error: &WireError) -> Status {
        self.shared.refused(&caller.address.ip().to_string(), error);
        match error {
            WireError::Impostor { .. } => Status::permission_denied(error.to_string()),
            WireError::Cluster { .. } => Status::failed_precondition(error.to_string()),
            _ => Status::invalid_argument(error.to_string()),
        }
    }

    async fn ask(&self, gossip: Gossip, request: Asked) -> Result<(Gossip, bool), Status> {
        let answer = self.shared.asked(gossip, request);
        // The core answers everything it is asked.
        let lost =
            |_| Status::unavailable("this manager is stopping, or cannot remember its caller (its log says why)");
        answer.await.map_err(lost)
    }
}

/// Who calls, as the listener saw it.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let unknown = || Status::internal("the caller of this connection is not known");
    request.extensions().get::<Caller>().cloned().ok_or_else(unknown)
}
