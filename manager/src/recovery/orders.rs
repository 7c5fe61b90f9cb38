//! What an actor does on orders, and with what its uploads report.

use std::{ops::ControlFlow, sync::Arc, time::Instant};

use ha_proto::control::SnapshotInfo;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    actor::{Actor, State},
    checkpoint::{NoCheckpoint, open_gate},
    handover::Handover,
    launch,
    order::ProgressSender,
    place::Place,
    recover::{ms, source_name},
    teardown::{self, Extent},
    upload::Report,
    view::Phase,
};
use crate::{
    api::{ApiError, snapshot_info},
    node::Ctx,
    ownership::{self, Claim, Claimant, Owner},
    policy::{Scope, Source},
    snapshot::{self, SnapshotKind},
    spec::{ContainerName, NodeName, SnapshotId, StateKind},
    store::{addresses, apps},
};

type Reply = oneshot::Sender<Result<Value, ApiError>>;

/// Why a move stops before anything was ended here.
enum NoSnapshot {
    /// The container goes on here.
    Failed(String),
    /// It does not run here any more, or cannot be reached.
    Broken(String),
    /// Another node owns it by now.
    Deposed(Owner),
}

impl Actor {
    pub(super) async fn order_checkpoint(&mut self, progress: ProgressSender, reply: Reply) -> ControlFlow<()> {
        if matches!(self.app.spec.state, StateKind::Stateless) {
            let text =
                format!("{} is stateless: it has no state to checkpoint (annotation io.ha-manager.state)", self.name);
            let _ = reply.send(Err(ApiError::Refused(text)));
            return ControlFlow::Continue(());
        }
        if !matches!(self.state, State::Up(_)) {
            let _ = reply.send(Err(ApiError::Refused(format!("{} is not running", self.name))));
            return ControlFlow::Continue(());
        }
        progress.step("freezing and dumping");
        match self.checkpoint(SnapshotKind::Manual).await {
            Ok(id) => {
                progress.step(format!("{id}: packing and uploading"));
                self.waiting.push((id, reply));
            }
            Err(error) => {
                let _ = reply.send(Err(ApiError::Failed(error.to_string())));
                if let NoCheckpoint::Broken(why) = error {
                    return self.lost(Scope::Container, why).await;
                }
            }
        }
        ControlFlow::Continue(())
    }

    pub(super) async fn order_restore(
        &mut self,
        snapshot: Option<SnapshotId>,
        progress: ProgressSender,
        reply: Reply,
    ) -> ControlFlow<()> {
        let began = Instant::now();
        let from = match self.chosen(snapshot).await {
            Ok(from) => from,
            Err(error) => {
                let _ = reply.send(Err(error));
                return ControlFlow::Continue(());
            }
        };
        let shown = source_name(from);
        progress.step(format!("restoring {} from {shown}", self.name));
        // Somebody looks after it: whoever could not take it before is asked again.
        self.unfit = None;
        self.view.update(|view| view.phase = Phase::Recovering);
        self.event(
            "recovery.started",
            "its operator puts it back",
            json!({"why": "operator", "epoch": self.owner.epoch}),
        );
        match self.launch(from).await {
            Ok(()) => {
                // Until there is a snapshot of this state, a failover would go back to the one that was not wanted.
                self.schedule.iter_mut().for_each(|schedule| schedule.due_now(Instant::now()));
                self.view.update(|view| view.recoveries += 1);
                let detail = json!({"ms": ms(began), "epoch": self.owner.epoch, "from": shown});
                self.event("recovery.serving", &format!("the container serves again, from {shown}"), detail);
                let text = format!("{} runs on {} again, from {shown}", self.name, self.ctx.config.node);
                let _ = reply.send(Ok(json!({"message": text, "from": shown, "node": self.ctx.config.node})));
                ControlFlow::Continue(())
            }
            Err(error) => {
                let text = crate::chain(&error);
                self.event("recovery.failed", &text, json!({"cause": text}));
                let _ = reply.send(Err(ApiError::Failed(format!(
                    "{shown} could not be restored: {text}; {} is recovered as after a failure",
                    self.name
                ))));
                self.recover(Scope::Container, text).await
            }
        }
    }

    /// What an operator's restore begins from.
    async fn chosen(&mut self, wanted: Option<SnapshotId>) -> Result<Source, ApiError> {
        if matches!(self.app.spec.state, StateKind::Stateless) {
            return match wanted {
                None => Ok(Source::Image),
                Some(_) => Err(ApiError::Refused(format!(
                    "{} is stateless: it has no snapshots (annotation io.ha-manager.state)",
                    self.name
                ))),
            };
        }
        let known = self.known_snapshots().await.map_err(ApiError::Unavailable)?;
        let found = match wanted {
            Some(id) => known.iter().find(|snapshot| snapshot.id == id && snapshot.readable),
            None => known.iter().find(|snapshot| snapshot.healthy),
        };
        found.map(|snapshot| Source::Snapshot(snapshot.id)).ok_or_else(|| {
            let what =
                wanted.map_or("no healthy snapshot".to_owned(), |id| format!("no snapshot {id} that can be read here"));
            ApiError::NotFound(format!("{0} has {what}; `ha-manager snapshots {0}` lists what there is", self.name))
        })
    }

    pub(super) async fn order_move(&mut self, to: NodeName, progress: ProgressSender, reply: Reply) -> ControlFlow<()> {
        if let Err(refused) = self.may_move(&to) {
            let _ = reply.send(Err(refused));
            return ControlFlow::Continue(());
        }
        let began = Instant::now();
        let snapshot = match self.last_snapshot_for_move(&progress).await {
            Ok(snapshot) => snapshot,
            Err(NoSnapshot::Failed(text)) => {
                let text = format!("{text}; {} goes on here", self.name);
                let _ = reply.send(Err(ApiError::Failed(text)));
                return ControlFlow::Continue(());
            }
            Err(NoSnapshot::Broken(text)) => {
                let told = format!("{text}; {} is recovered as after a failure", self.name);
                let _ = reply.send(Err(ApiError::Failed(told)));
                return self.lost(Scope::Container, text).await;
            }
            Err(NoSnapshot::Deposed(by)) => {
                let _ = reply.send(Err(ApiError::Failed(format!("node {} owns {} now", by.node, self.name))));
                return self.deposed(&by).await;
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
            Handover::Refused(text) => {
                self.event("move.failed", &text, json!({"to": to, "cause": text}));
                // From the very state it was to move with, whatever the policy says: nothing has failed here.
                let outcome = match self.launch(snapshot.map_or(Source::Image, Source::Snapshot)).await {
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

    fn may_move(&self, to: &NodeName) -> Result<(), ApiError> {
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
            Some(_) => Ok(()),
        }
    }

    /// The last state, committed, with the container cut off from the network since it was frozen. `None` for a stateless
    /// container. On an error the container is on the network again.
    async fn last_snapshot_for_move(&mut self, progress: &ProgressSender) -> Result<Option<SnapshotId>, NoSnapshot> {
        if matches!(self.app.spec.state, StateKind::Stateless) {
            return Ok(None);
        }
        progress.step("last checkpoint");
        let id = self.checkpoint(SnapshotKind::Final).await.map_err(|error| match error {
            NoCheckpoint::Goes(text) => NoSnapshot::Failed(text),
            NoCheckpoint::Broken(text) => NoSnapshot::Broken(text),
        })?;
        progress.step(format!("{id}: packing and uploading"));
        let cause = loop {
            match self.uploads.report().await {
                // Older drafts that wait keep this one waiting behind them.
                Report::Waiting { id, cause } => {
                    let _ = self.uploaded(Report::Waiting { id, cause: cause.clone() }).await;
                    break cause;
                }
                Report::Committed { manifest, .. } if manifest.meta.id == id => return Ok(Some(id)),
                Report::Failed { id: failed, cause } if failed == id => break cause,
                Report::Deposed { by, .. } if self.is_deposed_by(&by) => return Err(NoSnapshot::Deposed(by)),
                earlier => drop(self.uploaded(earlier).await),
            }
        };
        let (ctx, name) = (Arc::clone(&self.ctx), self.name.clone());
        Err(match launch::blocking(move || open_gate(&ctx.network, &name)).await {
            Ok(()) => NoSnapshot::Failed(cause),
            Err(error) => NoSnapshot::Broken(format!("{cause}; and then: {}", crate::chain(&error))),
        })
    }

    pub(super) async fn order_remove(&mut self, progress: ProgressSender, reply: Reply) -> ControlFlow<()> {
        progress.step(format!("stopping {}", self.name));
        if let State::Up(live) = &mut self.state {
            let grace = std::time::Duration::from_secs(10);
            // One that does not answer is killed below.
            let _ = live.link.stop(grace).await;
            let _ = tokio::time::timeout(grace + std::time::Duration::from_secs(1), live.exit.wait()).await;
        }
        progress.step("removing its snapshots");
        // What they still wrote would stay in the store for good, and be taken for the next container's of that name.
        tokio::join!(self.uploads.stop(), self.shipping.stop());
        let outcome = forget(&self.ctx, &self.name, self.generation, Some(&self.owner)).await;
        if let Err(error) = outcome {
            let _ = reply.send(Err(error));
            // Reported; the next `rm` clears again.
            let _ = self.clear(Extent::Running).await;
            self.fail("it was to be removed, but the store did not take it; `rm` it again".into());
            return ControlFlow::Continue(());
        }
        let cleared = self.clear(Extent::All).await;
        self.event("container.removed", "removed with its snapshots and volumes", json!({}));
        let _ = reply.send(match &cleared {
            Ok(()) => Ok(json!({"message": format!("{} removed", self.name)})),
            Err(error) => {
                Err(ApiError::Failed(format!("{} is removed from the store, but {error}; tried again", self.name)))
            }
        });
        if cleared.is_ok() { ControlFlow::Break(()) } else { self.end().await }
    }

    pub(super) async fn uploaded(&mut self, report: Report) -> ControlFlow<()> {
        match report {
            Report::Committed { manifest, timing, pruned } => {
                let id = manifest.meta.id;
                let info = snapshot_info(&manifest);
                let mut detail = json!({
                    "snapshot": id, "frozen_ms": manifest.meta.frozen_ms, "raw_bytes": info.raw_bytes,
                    "stored_bytes": info.stored_bytes, "health": info.health, "kind": info.kind,
                    "frozen_at": info.frozen_at, "pruned": pruned.snapshots,
                });
                if let Some(timing) = timing {
                    let took = timing.committed - timing.frozen_at;
                    detail["wall_ms"] = json!(timing.wall.as_secs_f64() * 1000.0);
                    detail["commit_ms"] = json!(took.as_secs_f64() * 1000.0);
                    self.schedule.iter_mut().for_each(|schedule| schedule.committed(took));
                }
                self.event(
                    "checkpoint.committed",
                    &format!("{id}, frozen for {:.1} ms", manifest.meta.frozen_ms),
                    detail,
                );
                self.last_committed = Some(id);
                self.store_away = false;
                self.view.update(|view| {
                    view.last_snapshot = Some(info.clone());
                    view.last_frozen = timing.map(|timing| timing.frozen_at);
                    view.checkpoint_problem = None;
                });
                self.save(match self.state {
                    State::Up(_) => super::record::LocalPhase::Up,
                    State::Down(_) => super::record::LocalPhase::Launching,
                });
                self.answer(id, Ok(committed(&info)));
            }
            Report::Failed { id, cause } => {
                self.event("checkpoint.failed", &format!("{id}: {cause}"), json!({"snapshot": id, "cause": cause}));
                self.view.update(|view| view.checkpoint_problem = Some(cause.clone()));
                self.answer(id, Err(ApiError::Failed(cause)));
            }
            Report::Waiting { id, cause } => {
                // Once for the whole absence of the store, whatever else has failed before.
                if !std::mem::replace(&mut self.store_away, true) {
                    let text = format!("{id} waits on this node: {cause}");
                    self.event("checkpoint.waiting", &text, json!({"snapshot": id, "cause": cause}));
                }
                self.view.update(|view| view.checkpoint_problem = Some(cause.clone()));
                self.answer(id, Err(ApiError::Unavailable(format!("{id} is taken and waits on this node: {cause}"))));
            }
            Report::Deposed { by, .. } if self.is_deposed_by(&by) => return self.deposed(&by).await,
            // A dump from before a move that failed; this node owns the container again and went on from the snapshot after it.
            Report::Deposed { id, .. } => {
                let text = format!("{id} is of an epoch that has ended");
                self.answer(id, Err(ApiError::Failed(text)));
            }
        }
        ControlFlow::Continue(())
    }

    fn answer(&mut self, id: SnapshotId, outcome: Result<Value, ApiError>) {
        if let Some(at) = self.waiting.iter().position(|(waiting, _)| *waiting == id) {
            let (_, reply) = self.waiting.swap_remove(at);
            let _ = reply.send(outcome);
        }
    }
}

fn committed(info: &SnapshotInfo) -> Value {
    let text =
        format!("{} committed: {} bytes stored, frozen for {:.1} ms", info.id, info.stored_bytes, info.frozen_ms);
    json!({"message": text, "snapshot": info.id, "stored_bytes": info.stored_bytes, "frozen_ms": info.frozen_ms})
}

/// Takes a container out of the store: nobody owns it, nothing describes it, its snapshots and logs are deleted.
pub async fn forget(ctx: &Ctx, name: &ContainerName, generation: u64, held: Option<&Owner>) -> Result<(), ApiError> {
    let store = &ctx.store;
    let unavailable = |error: &(dyn std::error::Error + 'static)| ApiError::Unavailable(crate::chain(error));
    let current = ownership::current(store, name).await.map_err(|error| unavailable(&error))?;
    if let (Some(held), Some(current)) = (held, &current)
        && held != current
    {
        return Err(ApiError::Refused(format!("node {} owns {name} now; remove it there", current.node)));
    }
    // The description goes first: from here on nobody starts it any more.
    match apps::put(store, name, generation, None).await.map_err(|error| unavailable(&error))? {
        apps::PutApp::Stored(_) => {}
        // An earlier removal came as far as this.
        apps::PutApp::Conflict(there) if there.content.is_none() => {}
        apps::PutApp::Conflict(_) => {
            return Err(ApiError::Refused(format!("{name} was changed by somebody else at the same time; try again")));
        }
    }
    if let Some(owner) = current.filter(|owner| !owner.released) {
        let claimant = Claimant::new(ctx.config.node.clone());
        let released =
            ownership::release(store, name, owner.epoch, &claimant).await.map_err(|error| unavailable(&error))?;
        if let Claim::Lost(other) = released {
            return Err(ApiError::Refused(format!("node {} took {name} over at the same time; try again", other.node)));
        }
    }
    let removed = async {
        snapshot::remove_all(store, name).await.map_err(|error| crate::chain(&error))?;
        store.delete_prefix(&crate::store::keys::logs(name)).await.map_err(|error| crate::chain(&error))?;
        for (address, container) in addresses::all(store).await.map_err(|error| crate::chain(&error))? {
            if container == *name {
                addresses::release(store, name, address).await.map_err(|error| crate::chain(&error))?;
            }
        }
        Ok::<_, String>(())
    };
    removed.await.map_err(ApiError::Unavailable)
}

/// Clears away whatever is on this node of a container that it does not own.
pub async fn clear_leftovers(ctx: &Arc<Ctx>, name: &ContainerName) -> Result<(), String> {
    let (ctx, name) = (Arc::clone(ctx), name.clone());
    let place = Place::new(&ctx.config, &name);
    launch::blocking(move || teardown::clear(&ctx, &name, &place, Extent::All)).await.map_err(|error| error.to_string())
}
