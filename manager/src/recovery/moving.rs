//! A planned move: a last checkpoint of a container that is cut off from the network, and its restore on a peer.
//!
//! ```text
//!   running ─► ordinary checkpoint ─► last checkpoint ─► committed ─► copy ended ─► the peer restores
//!      ▲          │ not committed        │ gate closed      │                            │ refused
//!      └──────────┴──────────────────────┴── gate open ─────┘ taken back, restored here ◄┘
//! ```
//!
//! The ordinary checkpoint shows, while the container still serves, whether the store takes it and in what time: the last one,
//! during which the container is off the network, may take little more.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    actor::{Actor, State},
    checkpoint::open_gate,
    commit_wait::Stopped,
    handover::Handover,
    launch,
    order::{Command, Order, ProgressSender},
    orders::Reply,
    place::Volumes,
    recover::ms,
    teardown::Extent,
    view::Phase,
};
use crate::{
    api::ApiError,
    ownership::{self, OwnershipError},
    policy::{Scope, Source},
    snapshot::SnapshotKind,
    spec::{NodeName, SnapshotId, StateKind},
};

/// What the last commit may take beyond a multiple of the one before: a store that answers is not always as quick.
const SLACK: Duration = Duration::from_secs(2);

/// What happens to the container, for whoever orders something else of it.
const MOVED: &str = "moved";

impl Actor {
    pub(super) async fn order_move(&mut self, to: NodeName, progress: ProgressSender, reply: Reply) -> ControlFlow<()> {
        if let Err(refused) = self.may_move(&to).await {
            let _ = reply.send(Err(refused));
            return ControlFlow::Continue(());
        }
        let began = Instant::now();
        let snapshot = match self.last_snapshot(&progress).await {
            Ok(snapshot) => snapshot,
            Err(Stopped::Broken(text)) => {
                let told = format!("{text}; {} is recovered as after a failure", self.name);
                let _ = reply.send(Err(ApiError::Failed(told)));
                return self.lost(Scope::Container, text).await;
            }
            Err(stopped) => {
                let text = match stopped {
                    Stopped::Failed(text) | Stopped::Broken(text) => format!("{text}; {} goes on here", self.name),
                    Stopped::Interrupted | Stopped::Ended => format!("the move of {} was broken off", self.name),
                };
                let _ = reply.send(Err(ApiError::Failed(text)));
                return ControlFlow::Continue(());
            }
        };
        self.view.update(|view| view.phase = Phase::Moving);
        progress.step(format!("ending the copy on {}", self.ctx.config.node));
        if let Err(error) = self.clear(Extent::Running).await {
            let _ = reply.send(Err(ApiError::Failed(format!("{error}; {} stays here", self.name))));
            return self.recover(Scope::Container, format!("the move to {to} failed")).await;
        }
        self.ship_log().await;
        progress.step(format!("restoring on {to}"));
        match self.hand_over(&to, snapshot).await {
            Handover::Taken { epoch } => {
                let text = format!("{} runs on {to} (epoch {epoch}, {} ms)", self.name, ms(began));
                let _ = reply.send(Ok(json!({"message": text, "node": to, "epoch": epoch, "ms": ms(began)})));
                self.gone(&to).await
            }
            Handover::Deposed(by) => {
                let _ = reply.send(Err(ApiError::Failed(format!("node {} owns {} now", by.node, self.name))));
                self.deposed(&by).await
            }
            Handover::Interrupted => {
                let text = format!("{to} could not take {}, and taking it back was broken off", self.name);
                let _ = reply.send(Err(ApiError::Failed(text)));
                ControlFlow::Continue(())
            }
            Handover::Stuck(text) => {
                let _ = reply.send(Err(ApiError::Failed(text.clone())));
                self.fail(text);
                ControlFlow::Continue(())
            }
            Handover::Back(text) => {
                self.event("move.failed", &text, json!({"to": to, "cause": text}));
                let told =
                    format!("{text}; {} ran there for a while, and goes on here from its newest state", self.name);
                let _ = reply.send(Err(ApiError::Failed(told)));
                self.recover(Scope::Container, format!("the move to {to} failed")).await
            }
            Handover::Refused(text) => {
                self.event("move.failed", &text, json!({"to": to, "cause": text}));
                // From the very state it was to move with, whatever the policy says: nothing has failed here.
                let from = snapshot.map_or(Source::Image, Source::Snapshot);
                let outcome = match self.launch(from, Volumes::Stay).await {
                    Ok(()) => {
                        let _ = reply.send(Err(ApiError::Failed(format!("{text}; {} goes on here", self.name))));
                        return ControlFlow::Continue(());
                    }
                    Err(error) => crate::chain(&error),
                };
                let told = format!("{text}; and here: {outcome}; {} is recovered as after a failure", self.name);
                let _ = reply.send(Err(ApiError::Failed(told)));
                self.recover(Scope::Container, format!("the move to {to} failed")).await
            }
        }
    }

    async fn may_move(&self, to: &NodeName) -> Result<(), ApiError> {
        if *to == self.ctx.config.node {
            return Err(ApiError::Refused(format!("{} is on {to} already", self.name)));
        }
        let peers = self.ctx.membership.peers();
        match peers.iter().find(|peer| peer.name == *to) {
            None => Err(ApiError::NotFound(format!("there is no node {to}; `ha-manager status` lists them"))),
            Some(peer) if peer.liveness != crate::membership::Liveness::Alive => Err(ApiError::Refused(format!(
                "node {to} is {}: start it first, or choose another (`ha-manager status`)",
                peer.liveness.as_str()
            ))),
            Some(_) if !matches!(self.state, State::Up(_)) => {
                Err(ApiError::Refused(format!("{} is not running", self.name)))
            }
            // Heartbeats may come over a connection from the peer: that this node can make one is another question.
            Some(peer) => self
                .reach(to, &peer.address)
                .await
                .map_err(|why| ApiError::Refused(format!("{why}; {} goes on here", self.name))),
        }
    }

    /// The last state, committed, with the container cut off from the network since it was frozen. `None` for a stateless
    /// container. On an error the container is on the network again.
    async fn last_snapshot(&mut self, progress: &ProgressSender) -> Result<Option<SnapshotId>, Stopped> {
        if matches!(self.app.spec.state, StateKind::Stateless) {
            // Where there is state, its commit looks.
            return match ownership::ensure_current(&self.ctx.store, &self.name, &self.owner).await {
                Ok(()) => Ok(None),
                Err(OwnershipError::Deposed { by, .. }) => {
                    self.deferred = Some(Command::Outdated(*by));
                    Err(Stopped::Interrupted)
                }
                Err(error) => Err(Stopped::Failed(crate::chain(&error))),
            };
        }
        let timeout = self.ctx.config.checkpoint.timeout;
        progress.step("checkpoint while it runs");
        let asked = Instant::now();
        let id = self.checkpoint(SnapshotKind::Periodic).await?;
        progress.step(format!("{id}: packing and uploading"));
        self.commit_of(id, asked, timeout, MOVED).await?;
        let allowed = timeout.min(asked.elapsed() * 3 + SLACK);
        progress.step("last checkpoint");
        let (asked, moment) = (Instant::now(), self.ctx.lease.moment());
        let id = self.checkpoint(SnapshotKind::Final).await?;
        progress.step(format!("{id}: packing and uploading"));
        let committed = match self.commit_of(id, asked, allowed, MOVED).await {
            // A link that goes down and up again opens the gate: what the container said since is in no snapshot.
            Ok(()) if !self.ctx.lease.undisturbed_since(moment) => {
                Err(Stopped::Failed(format!("{} was fenced on this node during its last checkpoint", self.name)))
            }
            committed => committed,
        };
        if matches!(&committed, Err(stopped) if !matches!(stopped, Stopped::Ended)) {
            let (ctx, name) = (Arc::clone(&self.ctx), self.name.clone());
            if let Err(error) = launch::blocking(move || open_gate(&ctx.network, &name)).await {
                return Err(Stopped::Broken(crate::chain(&error)));
            }
        }
        committed.map(|()| Some(id))
    }

    /// What comes in while the actor waits for something. True when it ends the waiting: it is kept and heeded next. Orders that
    /// have to wait are told so.
    pub(super) fn defer(&mut self, command: Option<Command>, doing: &str) -> bool {
        match command {
            Some(Command::Update(app)) => self.update(*app),
            Some(Command::Outdated(by)) if by.epoch <= self.owner.epoch => {}
            Some(Command::Order { order, reply, .. }) if !matches!(order, Order::Remove) => {
                let text = format!("{} is just being {doing}; try again when that is over", self.name);
                let _ = reply.send(Err(ApiError::Unavailable(text)));
            }
            ends => {
                self.deferred = Some(ends.unwrap_or(Command::Shutdown));
                return true;
            }
        }
        false
    }
}
