//! One container's actor: what wakes it and what it then does. The states are drawn in the room's documentation.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use ha_proto::agent::Event;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    checkpoint::NoCheckpoint,
    heed::{Found, PING_EVERY},
    launch::FENCED,
    live::Live,
    order::{Command, Order, ProgressSender},
    place::Place,
    record::{LocalPhase, LocalRecord, RECORD_VERSION},
    rest::Resting,
    shipping::{Shipping, ShippingView},
    unfit::Asked,
    upload::{Report, Setting, Uploads},
    view::{ContainerView, Phase, SharedView},
};
use crate::{
    agentlink::{Watchdog, WatchdogConfig},
    api::ApiError,
    node::Ctx,
    ownership::{Owner, Rest},
    policy::{Backoff, SETTLED, Schedule, Scope, Source},
    snapshot::{NetworkIdentity, SnapshotKind},
    spec::{ContainerName, RecoveryStep, SnapshotId, StateKind},
    store::apps::{App, AppContent},
};

/// Restarts are counted over this long, as the `recovery` annotation documents.
pub(super) const RESTART_WINDOW: Duration = Duration::from_secs(600);

/// How often a container that is frozen for want of a lease is looked at.
const FENCED_PAUSE: Duration = Duration::from_millis(250);

/// How an actor begins.
#[derive(Debug)]
pub enum Begin {
    /// Just applied: from the image.
    Cold { progress: ProgressSender, reply: oneshot::Sender<Result<serde_json::Value, ApiError>> },
    /// The node that ran it is dead and this one has claimed it, or this node came back and still owns it.
    TakeOver {
        scope: Scope,
        why: String,
        /// The number of its next snapshot: higher than 1 when this node took some under the same epoch.
        next_seq: u64,
    },
    /// Handed over by its owner: this snapshot and no other, or the newest that comes up.
    Handed { snapshot: Option<SnapshotId>, reply: oneshot::Sender<Result<(), String>> },
    /// Claimed by its operator from an owner that does not answer.
    Claimed {
        snapshot: Option<SnapshotId>,
        progress: ProgressSender,
        reply: oneshot::Sender<Result<serde_json::Value, ApiError>>,
    },
    /// It is at rest, and this node has become its owner or owns it again.
    AtRest(Box<Rest>),
    /// The manager was restarted and finds its copy.
    Adopt(Box<LocalRecord>),
}

/// How the rest of the node reaches an actor. When the inbox is closed the container is no longer here.
#[derive(Debug)]
pub struct ActorHandle {
    pub inbox: mpsc::Sender<Command>,
    pub view: SharedView,
    pub log: ShippingView,
    /// Ends with true when the container is neither up nor at rest, and nobody goes on with it until the next manager does.
    pub task: JoinHandle<bool>,
}

/// What keeps the container from being up, and what comes of it.
#[derive(Debug)]
pub(super) enum Down {
    /// To be tried again: what it waits for is away for now.
    Waiting { until: Instant, scope: Scope, why: String },
    /// Nothing more is tried by itself.
    Resting,
}

pub(super) enum State {
    Up(Box<Live>),
    Down(Down),
}

pub(super) struct Actor {
    pub ctx: Arc<Ctx>,
    pub name: ContainerName,
    pub generation: u64,
    pub app: AppContent,
    pub owner: Owner,
    pub identity: NetworkIdentity,
    pub place: Place,
    pub view: SharedView,
    pub state: State,
    pub schedule: Option<Schedule>,
    pub uploads: Uploads,
    /// Held: the log is shipped for as long as the actor lives.
    pub(super) shipping: Shipping,
    pub next_seq: u64,
    pub last_committed: Option<SnapshotId>,
    /// The steps of the ladder that brought it up here lately.
    pub tried: Vec<(Instant, Source, RecoveryStep)>,
    /// Operators waiting for the commit of a snapshot.
    pub waiting: Vec<(SnapshotId, oneshot::Sender<Result<serde_json::Value, ApiError>>)>,
    /// The agent's program that the copy runs.
    pub agent_digest: String,
    /// It is at rest. From then on nothing is begun under this epoch.
    pub(super) resting: Option<Resting>,
    /// From then on old snapshots may go.
    prune_at: Option<Instant>,
    /// How often in a row it ended soon.
    pub(super) backoff: Backoff,
    /// The last wait for something that was away; none since the container was up.
    pub waited: Option<Duration>,
    /// Snapshots wait on this node for the store, and that was said.
    pub store_away: bool,
    /// When it took one again.
    pub store_back: Option<Instant>,
    /// This node cannot run the newest snapshot: who else was asked. None since the container was up.
    pub(super) unfit: Option<Asked>,
    /// The last attempt was given up because somebody else has the address.
    pub conflict: bool,
    pub(super) watchdog: Watchdog,
    next_ping: Instant,
    pub(super) inbox: mpsc::Receiver<Command>,
    /// Heard in the middle of something that it ended.
    pub(super) deferred: Option<Command>,
}

enum Input {
    Command(Option<Command>),
    Agent(Event),
    Exited,
    Upload(Report),
    Tick,
}

pub fn spawn(
    ctx: Arc<Ctx>,
    app: App,
    content: AppContent,
    owner: Owner,
    identity: NetworkIdentity,
    begin: Begin,
) -> ActorHandle {
    let (sender, inbox) = mpsc::channel(32);
    let name = content.spec.name.clone();
    let place = Place::new(&ctx.config, &name);
    let view = SharedView::new(ContainerView {
        spec: content.spec.clone(),
        owner: owner.clone(),
        copy: place.exists(),
        network: identity.clone(),
        phase: Phase::Starting,
        health: health_at_first(&content),
        pid: 0,
        up_since: None,
        recoveries: 0,
        last_snapshot: None,
        last_frozen: None,
        checkpoint_problem: None,
        failure: None,
    });
    let now = Instant::now();
    let schedule = match content.spec.state {
        StateKind::Stateful { sensitivity } => {
            Some(Schedule::new(sensitivity, ctx.config.checkpoint.min_interval, now))
        }
        StateKind::Stateless => None,
    };
    let shipping = Shipping::start(Arc::clone(&ctx), name.clone(), place.clone(), owner.epoch);
    let log = shipping.view();
    let actor = Actor {
        uploads: Uploads::start(setting(&ctx, &name, &place), &owner, (&content.spec).into()),
        shipping,
        agent_digest: ctx.agent.digest(),
        resting: None,
        prune_at: None,
        backoff: Backoff::default(),
        waited: None,
        conflict: false,
        unfit: None,
        store_away: false,
        store_back: None,
        name,
        generation: app.generation,
        app: content,
        owner,
        identity,
        place,
        view: view.clone(),
        state: State::Down(Down::Resting),
        schedule,
        next_seq: 1,
        last_committed: None,
        tried: Vec::new(),
        waiting: Vec::new(),
        watchdog: Watchdog::new(WatchdogConfig::default(), now),
        next_ping: now,
        inbox,
        deferred: None,
        ctx,
    };
    ActorHandle { inbox: sender, view, log, task: tokio::spawn(actor.run(begin)) }
}

pub(super) fn setting(ctx: &Ctx, name: &ContainerName, place: &Place) -> Setting {
    Setting {
        store: ctx.store.clone(),
        name: name.clone(),
        queue: place.queue(),
        compression_level: ctx.config.checkpoint.compression_level,
        queue_max_bytes: ctx.config.checkpoint.queue_max_bytes,
    }
}

impl Actor {
    async fn run(mut self, begin: Begin) -> bool {
        if self.begin(begin).await.is_break() {
            return false;
        }
        loop {
            let flow = match self.next().await {
                Input::Command(Some(Command::Shutdown) | None) => return self.let_go().await,
                Input::Command(Some(command)) => self.command(command).await,
                Input::Agent(event) => self.agent_event(event).await,
                Input::Exited => self.exited().await,
                Input::Upload(report) => self.uploaded(report).await,
                Input::Tick => self.tick().await,
            };
            if flow.is_break() {
                return false;
            }
        }
    }

    async fn begin(&mut self, begin: Begin) -> ControlFlow<()> {
        match begin {
            Begin::Cold { progress, reply } => self.first_start(progress, reply).await,
            Begin::TakeOver { scope, why, next_seq } => {
                self.next_seq = next_seq;
                self.recover(scope, why).await
            }
            Begin::Handed { snapshot, reply } => self.handed(snapshot, reply).await,
            Begin::Claimed { snapshot, progress, reply } => {
                let flow = self.order_restore(snapshot, false, progress, reply).await;
                if flow.is_continue() && self.view.get().phase == Phase::Starting {
                    // Claimed, and not even begun: from here on it is this node's like any other.
                    return self.recover(Scope::Node, "its operator claimed it".into()).await;
                }
                flow
            }
            Begin::AtRest(rest) => self.found_at_rest(*rest).await,
            Begin::Adopt(record) => self.adopt(*record).await,
        }
    }

    async fn next(&mut self) -> Input {
        if let Some(command) = self.deferred.take() {
            return Input::Command(Some(command));
        }
        let wake = tokio::time::Instant::from_std(self.wake());
        match &mut self.state {
            State::Up(live) => {
                let Live { events, exit, .. } = &mut **live;
                // What the agent said last is heard before its end.
                tokio::select! {
                    biased;
                    command = self.inbox.recv() => Input::Command(command),
                    Some(event) = events.recv() => Input::Agent(event),
                    () = exit.wait() => Input::Exited,
                    report = self.uploads.report() => Input::Upload(report),
                    () = tokio::time::sleep_until(wake) => Input::Tick,
                }
            }
            State::Down(_) => tokio::select! {
                command = self.inbox.recv() => Input::Command(command),
                report = self.uploads.report() => Input::Upload(report),
                () = tokio::time::sleep_until(wake) => Input::Tick,
            },
        }
    }

    fn wake(&self) -> Instant {
        match &self.state {
            State::Up(_) if !self.ctx.lease.may_run() => Instant::now() + FENCED_PAUSE,
            State::Up(_) => {
                let due = self.schedule.as_ref().map(Schedule::due);
                self.next_ping.min(due.unwrap_or(self.next_ping)).min(self.prune_at.unwrap_or(self.next_ping))
            }
            State::Down(Down::Waiting { until, .. }) => *until,
            State::Down(Down::Resting) => self.tell_at().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)),
        }
    }

    async fn tick(&mut self) -> ControlFlow<()> {
        let now = Instant::now();
        if let State::Down(Down::Waiting { until, scope, why }) = &self.state {
            if now < *until {
                return ControlFlow::Continue(());
            }
            let (scope, why) = (*scope, why.clone());
            return self.recover(scope, why).await;
        }
        if self.tell_at().is_some_and(|at| now >= at) {
            return self.tell_rest().await;
        }
        self.prune_again();
        if !self.ctx.lease.may_run() {
            // Frozen: its silence says nothing, and it cannot be dumped.
            self.watchdog.answered(now);
            self.next_ping = now;
            return ControlFlow::Continue(());
        }
        if now >= self.next_ping {
            self.next_ping = now + PING_EVERY;
            match self.ping().await {
                Found::Well => {}
                Found::Lost(scope, why) => return self.lost(scope, why).await,
                Found::Done(end) => return self.finished(&end).await,
            }
        }
        if self.schedule.as_ref().is_some_and(|s| s.due() <= Instant::now()) && matches!(self.state, State::Up(_)) {
            match self.checkpoint(SnapshotKind::Periodic).await {
                // The failure was reported and the schedule has moved on; the container goes on.
                Ok(_) | Err(NoCheckpoint::Goes(_)) => {}
                Err(NoCheckpoint::Broken(why)) => return self.lost(Scope::Container, why).await,
            }
        }
        ControlFlow::Continue(())
    }

    async fn command(&mut self, command: Command) -> ControlFlow<()> {
        let command = match command {
            Command::Order { order, reply, .. } if !matches!(order, Order::Remove) && !self.ctx.lease.may_run() => {
                let text = format!("{} cannot be worked on now: {FENCED}", self.name);
                let _ = reply.send(Err(ApiError::Unavailable(text)));
                return ControlFlow::Continue(());
            }
            command => command,
        };
        match command {
            Command::Order { order, progress, reply } => match order {
                Order::Checkpoint => self.order_checkpoint(progress, reply).await,
                Order::Restore { snapshot, discard } => self.order_restore(snapshot, discard, progress, reply).await,
                Order::Move { to } => self.order_move(to, progress, reply).await,
                Order::Remove => self.order_remove(progress, reply).await,
            },
            Command::Update(app) => {
                self.update(*app);
                ControlFlow::Continue(())
            }
            Command::Outdated(by) => self.outdated(&by).await,
            // Heard by `run`.
            Command::Shutdown => ControlFlow::Break(()),
        }
    }

    /// Takes a new generation that changes nothing of the running container.
    pub(super) fn update(&mut self, app: App) {
        let Some(content) = app.content else { return };
        self.generation = app.generation;
        if let (StateKind::Stateful { sensitivity }, Some(schedule)) = (content.spec.state, &mut self.schedule) {
            schedule.set_sensitivity(sensitivity, Instant::now());
        }
        self.view.update(|view| view.spec = content.spec.clone());
        self.app = content;
        self.save(self.local_phase());
    }

    /// What the next manager is to make of the copy as it is now.
    pub(super) fn local_phase(&self) -> LocalPhase {
        match &self.state {
            State::Up(_) => LocalPhase::Up,
            State::Down(_) if self.resting.is_some() => LocalPhase::Stopped,
            State::Down(_) => LocalPhase::Launching,
        }
    }

    /// The copy is up: from here on it is watched and checkpointed.
    pub(super) fn up(&mut self, live: Live) {
        let pid = live.pid.cast_unsigned();
        self.view.update(|view| {
            (view.phase, view.pid, view.failure, view.up_since) = (Phase::Running, pid, None, Some(Instant::now()));
            view.copy = true;
        });
        self.watchdog = Watchdog::new(WatchdogConfig::default(), Instant::now());
        (self.waited, self.conflict, self.unfit) = (None, false, None);
        self.next_ping = Instant::now() + PING_EVERY;
        self.prune_at = Some(Instant::now() + SETTLED);
        self.state = State::Up(Box::new(live));
        self.save(LocalPhase::Up);
    }

    /// Old snapshots may go while the container is up and has shown that it stays so: until then one of them may have to be gone
    /// back to, and must not give way to snapshots of a state that ends.
    pub(super) fn prune_again(&mut self) {
        if matches!(self.state, State::Up(_)) && self.prune_at.is_none_or(|at| Instant::now() >= at) {
            self.prune_at = None;
            self.uploads.may_prune(true);
        }
    }

    /// The rest of the log, before another node goes on with the container and the log here is removed.
    pub(super) async fn ship_log(&self) {
        if let Err(error) = self.shipping.flush().await {
            tracing::warn!(container = %self.name, error, "the end of the log stays behind");
        }
    }

    pub(super) fn event(&self, kind: &str, message: &str, detail: serde_json::Value) {
        self.ctx.events.emit(Some(&self.name), kind, message, detail);
    }

    /// Remembers the copy for the next manager. Without the record a restarted manager recovers instead of adopting.
    pub(super) fn save(&self, phase: LocalPhase) {
        let incarnation = match &self.state {
            State::Up(live) => hex::encode(&live.incarnation),
            State::Down(_) => String::new(),
        };
        let record = LocalRecord {
            version: RECORD_VERSION,
            container: self.name.clone(),
            owner: self.owner.clone(),
            phase,
            generation: self.generation,
            network: self.identity.clone(),
            incarnation,
            next_seq: self.next_seq,
            last_committed: self.last_committed,
            rest: self.resting.as_ref().map(|resting| resting.rest.clone()),
        };
        // It waits for the disk.
        if let Err(error) = tokio::task::block_in_place(|| record.save(&self.place)) {
            tracing::warn!(container = %self.name, %error, "the local record could not be written");
        }
    }
}

/// Before the agent has said anything: what has a healthcheck is not healthy until it says so.
pub(super) fn health_at_first(app: &AppContent) -> &'static str {
    if app.spec.healthcheck.is_some() { "starting" } else { "none" }
}
