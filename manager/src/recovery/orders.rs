//! What an actor does on orders, and with what its uploads report.

use std::{ops::ControlFlow, sync::Arc, time::Instant};

use ha_proto::control::SnapshotInfo;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    actor::{Actor, State, setting},
    checkpoint::{NoCheckpoint, millis},
    launch,
    order::ProgressSender,
    place::Place,
    shipping::Shipping,
    teardown::{self, Extent},
    upload::{Report, Uploads},
};
use crate::{
    api::{ApiError, snapshot_info},
    node::Ctx,
    ownership::{self, Claim, Claimant, Owner},
    policy::Scope,
    snapshot::{self, SnapshotKind},
    spec::{ContainerName, SnapshotId, StateKind},
    store::{addresses, apps},
};

pub(super) type Reply = oneshot::Sender<Result<Value, ApiError>>;

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

    pub(super) async fn order_remove(&mut self, progress: ProgressSender, reply: Reply) -> ControlFlow<()> {
        progress.step(format!("stopping {}", self.name));
        if let State::Up(live) = &mut self.state {
            let grace = std::time::Duration::from_secs(10);
            // One that does not answer is killed below.
            let _ = live.link.stop(grace).await;
            let _ = tokio::time::timeout(grace + std::time::Duration::from_secs(1), live.exit.wait()).await;
        }
        // While its objects are deleted a later epoch of nobody's is there, and this copy would keep the node's lease from being
        // renewed.
        let _ = self.clear(Extent::Running).await;
        progress.step("removing its snapshots");
        // What they still wrote would stay in the store for good, and be taken for the next container's of that name.
        tokio::join!(self.uploads.stop(), self.shipping.stop());
        let outcome = forget(&self.ctx, &self.name, self.generation, Some(&self.owner)).await;
        if let Err(error) = outcome {
            let _ = reply.send(Err(error));
            // Reported; the next `rm` clears again.
            let _ = self.clear(Extent::Running).await;
            // Its operator may restore it instead: it is not to run without snapshots and log.
            let setting = setting(&self.ctx, &self.name, &self.place);
            self.uploads = Uploads::start(setting, &self.owner, (&self.app.spec).into());
            let (ctx, name, place) = (Arc::clone(&self.ctx), self.name.clone(), self.place.clone());
            self.shipping = Shipping::start(ctx, name, place, self.owner.epoch);
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
                if std::mem::take(&mut self.store_away) {
                    self.store_back = Some(Instant::now());
                }
                if let Some(timing) = timing {
                    let took = timing.committed - timing.frozen_at;
                    detail["wall_ms"] = json!(millis(timing.wall));
                    detail["commit_ms"] = json!(millis(took));
                    // One that waited while the store was away says nothing about how long a commit takes.
                    if self.store_back.is_none_or(|back| timing.frozen_at > back) {
                        self.schedule.iter_mut().for_each(|schedule| schedule.committed(took));
                    }
                }
                self.event(
                    "checkpoint.committed",
                    &format!("{id}, frozen for {:.1} ms", manifest.meta.frozen_ms),
                    detail,
                );
                self.last_committed = Some(id);
                self.view.update(|view| {
                    view.last_snapshot = Some(info.clone());
                    view.last_frozen = timing.map(|timing| timing.frozen_at);
                    view.checkpoint_problem = None;
                });
                self.save(self.local_phase());
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
            Report::Deposed { by, .. } if by.epoch > self.owner.epoch => return self.outdated(&by).await,
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
    // One that is released was on its way out already.
    if let (Some(held), Some(current)) = (held, &current)
        && held != current
        && !current.released
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
    forget_objects(ctx, name).await.map(drop)
}

/// Deletes what the store has of a container that nobody describes or owns any more. True when there was something: a removal
/// had been interrupted.
pub async fn forget_objects(ctx: &Ctx, name: &ContainerName) -> Result<bool, ApiError> {
    let store = &ctx.store;
    let removed = async {
        let mut found = snapshot::remove_all(store, name).await.map_err(|error| crate::chain(&error))?;
        found += store.delete_prefix(&crate::store::keys::logs(name)).await.map_err(|error| crate::chain(&error))?;
        for (address, container) in addresses::all(store).await.map_err(|error| crate::chain(&error))? {
            if container == *name {
                addresses::release(store, name, address).await.map_err(|error| crate::chain(&error))?;
                found += 1;
            }
        }
        Ok::<_, String>(found > 0)
    };
    removed.await.map_err(ApiError::Unavailable)
}

/// Ends what runs of a container here. Its files stay.
pub async fn end_running(ctx: &Arc<Ctx>, name: &ContainerName) -> Result<(), String> {
    let (ctx, name) = (Arc::clone(ctx), name.clone());
    let place = Place::new(&ctx.config, &name);
    launch::blocking(move || teardown::clear(&ctx, &name, &place, Extent::Running))
        .await
        .map_err(|error| error.to_string())
}

/// Clears away whatever is on this node of a container that it does not own.
pub async fn clear_leftovers(ctx: &Arc<Ctx>, name: &ContainerName) -> Result<(), String> {
    let (ctx, name) = (Arc::clone(ctx), name.clone());
    let place = Place::new(&ctx.config, &name);
    launch::blocking(move || teardown::clear(&ctx, &name, &place, Extent::All)).await.map_err(|error| error.to_string())
}
