//! The core with real time and real calls.
//!
//! The core sits behind a mutex that is held for microseconds: the server answers a ping in the task that received it,
//! and one timer task sleeps until the core's next deadline. Nothing polls.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use ha_proto::peer as pb;
use tokio::sync::{Notify, broadcast, oneshot};
use tonic::Code;
use tracing::{debug, error, info, warn};

use super::{
    acquaintances::{Acquaintances, AcquaintancesError},
    contacts::Contacts,
    core::Core,
    lane::{Ask, Lane, LaneError},
    message::{CallId, Event, Gossip, Input, Output, Request, Time, Touch},
    wire::{self, WireError},
};
use crate::{once::Once, spec::NodeName, tls::Security};

/// Events kept for a subscriber that is slow; it then learns how many it missed.
const EVENTS: usize = 256;
/// A way to a peer not used for so long is closed.
const LANE_IDLE: Duration = Duration::from_secs(60);

/// Told of each node that becomes known, and when, before it is sent anything. Called with the membership locked.
pub type OnKnown = Arc<dyn Fn(&NodeName, Instant) + Send + Sync>;

pub(super) struct Shared {
    pub cluster: String,
    pub origin: Instant,
    inner: Mutex<Inner>,
    /// The timer has to be set anew.
    wake: Notify,
    /// A call has ended.
    pub settled: Notify,
    pub events: broadcast::Sender<Event>,
    refusals: Once,
    security: Security,
    on_known: OnKnown,
}

struct Inner {
    core: Core,
    acquaintances: Acquaintances,
    /// It has been said that acquaintances cannot be remembered.
    forgetful: bool,
    waiting: HashMap<u64, oneshot::Sender<(Gossip, bool)>>,
    next_token: u64,
    lanes: HashMap<String, Arc<Lane>>,
    /// What the timer is set to.
    timer: Time,
    out: Vec<Output>,
}

impl Shared {
    pub fn new(
        cluster: String,
        origin: Instant,
        core: Core,
        acquaintances: Acquaintances,
        security: Security,
        on_known: OnKnown,
    ) -> Arc<Self> {
        let inner = Inner {
            core,
            acquaintances,
            forgetful: false,
            waiting: HashMap::new(),
            next_token: 0,
            lanes: HashMap::new(),
            timer: Time::ZERO,
            out: Vec::new(),
        };
        Arc::new(Self {
            cluster,
            origin,
            inner: Mutex::new(inner),
            wake: Notify::new(),
            settled: Notify::new(),
            events: broadcast::Sender::new(EVENTS),
            refusals: Once::new("refused messages"),
            security,
            on_known,
        })
    }

    /// Reads the core.
    pub fn with<T>(&self, read: impl FnOnce(&Core) -> T) -> T {
        read(&self.lock().core)
    }

    /// Reads the contacts that are remembered.
    pub fn contacts<T>(&self, read: impl FnOnce(&Contacts) -> T) -> T {
        read(self.lock().acquaintances.contacts())
    }

    /// False when the node is alive or may be. Blocking.
    pub fn forget(&self, node: &NodeName) -> Result<bool, AcquaintancesError> {
        let inner = &mut *self.lock();
        if inner.core.lives(node) {
            return Ok(false);
        }
        inner.acquaintances.forget(node)?;
        inner.core.forget(node);
        Ok(true)
    }

    /// Blocking.
    pub fn remember(&self, node: &NodeName) -> Result<(), AcquaintancesError> {
        let inner = &mut *self.lock();
        inner.acquaintances.touch(node, Touch::Known)?;
        // What it announces has just been done.
        inner.core.touch(node, Touch::Known, &mut Vec::new());
        Ok(())
    }

    pub fn input(self: &Arc<Self>, input: Input) {
        self.step(&mut self.lock(), input);
    }

    /// Reports how a call ended.
    fn settle(self: &Arc<Self>, input: Input) {
        self.input(input);
        self.settled.notify_waiters();
    }

    /// Hands a peer's request to the core. The receiver gets the answer, at once for a ping.
    pub fn asked(self: &Arc<Self>, gossip: Gossip, request: Request) -> oneshot::Receiver<(Gossip, bool)> {
        let (answer, receiver) = oneshot::channel();
        let mut inner = self.lock();
        let token = inner.next_token;
        inner.next_token += 1;
        inner.waiting.insert(token, answer);
        self.step(&mut inner, Input::Asked { token, gossip, request });
        receiver
    }

    /// Sleeps until the core wants its tick, again and again. Ends by being aborted.
    pub async fn run(self: Arc<Self>) {
        loop {
            let deadline = {
                let mut inner = self.lock();
                inner.timer = inner.core.deadline();
                inner.timer
            };
            let longest = Duration::from_secs(3600);
            let sleep = deadline.saturating_sub(self.origin.elapsed()).min(longest);
            tokio::select! {
                () = tokio::time::sleep(sleep) => self.input(Input::Tick),
                () = self.wake.notified() => {}
            }
        }
    }

    /// Says once per source and cause that its messages are refused.
    pub fn refused(&self, source: &str, error: &WireError) {
        if self.refusals.first(&format!("from {source} {}", error.kind())) {
            warn!(source, %error, "a peer message was refused; further ones from there are refused silently");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(self: &Arc<Self>, inner: &mut Inner, input: Input) {
        // Read under the lock, so that the core's time never goes backwards.
        let now = self.origin.elapsed();
        let mut out = std::mem::take(&mut inner.out);
        inner.core.handle(input, now, &mut out);
        for output in out.drain(..) {
            match output {
                Output::Event(event) => {
                    log(&event);
                    // Without subscribers there is nobody to tell.
                    let _ = self.events.send(event);
                }
                Output::Touch { node, kind } => {
                    inner.remember(&node, kind);
                    if kind == Touch::Known && inner.acquaintances.contacts().known.contains(&node) {
                        (self.on_known)(&node, self.origin + now);
                    }
                }
                Output::Reply { token, gossip, answered } => {
                    let waiting = inner.waiting.remove(&token);
                    if let Some(waiting) = waiting.filter(|_| inner.may_send(&gossip)) {
                        // The caller may have gone.
                        let _ = waiting.send((gossip, answered));
                    }
                }
                Output::Call { id, gossip, .. } if !inner.may_send(&gossip) => {
                    // Not from here: the core is not run while its outputs are executed.
                    let shared = self.clone();
                    tokio::spawn(async move { shared.settle(Input::Failed { call: id }) });
                }
                Output::Call { id, to, request, gossip, timeout } => {
                    let lane = inner.lane(to.clone(), &self.security);
                    let ask = self.ask(id, request, gossip);
                    tokio::spawn(call(Arc::downgrade(self), lane, to, id, ask, timeout));
                }
            }
        }
        inner.out = out;
        // Later deadlines too: resetting a timer costs less than waking up for nothing when a probe was answered.
        if inner.core.deadline() != inner.timer {
            self.wake.notify_one();
        }
    }

    fn ask(&self, id: CallId, request: Request, gossip: Gossip) -> Ask {
        let envelope = Some(wire::envelope(&self.cluster, gossip));
        match request {
            Request::Ping => Ask::Ping(pb::PingRequest { envelope, seq: id.0 }),
            Request::PingIndirect { target, timeout } => {
                let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
                Ask::Indirect(pb::PingIndirectRequest { envelope, seq: id.0, target: target.into(), timeout_ms })
            }
        }
    }
}

impl Inner {
    /// On the disk before anything else is done.
    fn remember(&mut self, node: &NodeName, kind: Touch) {
        match self.acquaintances.touch(node, kind) {
            Ok(()) => self.forgetful = false,
            Err(problem) => {
                self.core.touch_failed(node, kind);
                if !std::mem::replace(&mut self.forgetful, true) {
                    error!(%node, error = crate::chain(&problem), "an acquaintance cannot be remembered");
                }
            }
        }
    }

    /// Whoever gets a message of ours could take over from us, so it has to be counted first.
    fn may_send(&self, gossip: &Gossip) -> bool {
        gossip.to.as_ref().is_none_or(|node| self.acquaintances.contacts().known.contains(node))
    }

    fn lane(&mut self, address: String, security: &Security) -> Arc<Lane> {
        if !self.lanes.contains_key(&address) {
            self.lanes.retain(|_, lane| lane.idle_for() < LANE_IDLE);
        }
        let new = |address: &String| Arc::new(Lane::new(address.clone(), security.clone()));
        let lane = self.lanes.entry(address).or_insert_with_key(new);
        lane.touch();
        lane.clone()
    }
}

async fn call(shared: Weak<Shared>, lane: Arc<Lane>, address: String, id: CallId, ask: Ask, timeout: Duration) {
    let result = lane.call(&ask, timeout).await;
    let Some(shared) = shared.upgrade() else { return };
    let input = match result {
        Ok(answer) if answer.seq != id.0 => {
            debug!(address, expected = id.0, got = answer.seq, "a peer answered another question");
            Input::Failed { call: id }
        }
        Ok(answer) => match wire::gossip(&shared.cluster, answer.certified.as_ref(), answer.envelope) {
            Ok(gossip) => Input::Answered { call: id, gossip, answered: answer.answered },
            Err(error) => {
                shared.refused(&address, &error);
                Input::Failed { call: id }
            }
        },
        Err(LaneError::Full) => Input::Dropped { call: id },
        Err(LaneError::Call(status))
            if matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument | Code::PermissionDenied)
                && shared.refusals.first(&format!("by {address} {}", status.code())) =>
        {
            warn!(address, reason = status.message(), "a peer refuses our messages; this is not said again");
            Input::Failed { call: id }
        }
        Err(error) => {
            debug!(address, %error, "a probe failed");
            Input::Failed { call: id }
        }
    };
    shared.settle(input);
}

fn log(event: &Event) {
    match event {
        Event::Up { node, address, restarted, .. } => info!(%node, address, restarted, "peer is up"),
        Event::Suspect { node, accuser } => info!(%node, %accuser, "peer is suspected"),
        Event::ConfirmedByPeer { node, accuser } => info!(%node, %accuser, "suspicion confirmed"),
        Event::Refuted { node } => info!(%node, "suspicion refuted"),
        Event::Dead { node } => warn!(%node, "peer is dead"),
        Event::Left { node } => info!(%node, "peer has left"),
        Event::RefutedSelf { liveness, accuser } => {
            info!(said = liveness.as_str(), accuser = accuser.as_ref().map(|n| n.as_str()), "we were thought dead");
        }
        Event::NameConflict { node, address, other_address } => {
            warn!(%node, address, other_address, "two running nodes have one name: stop one or rename it");
        }
        Event::Stalled { late } => warn!(?late, "this manager was not run for a while; nobody is judged by that time"),
        Event::TooManyPeers { refused } => {
            warn!(%refused, "too many peer names; this one and further ones are ignored")
        }
    }
}
