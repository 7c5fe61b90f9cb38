//! An operator's restore: the container is put back to a snapshot, and what it was before stays to be had.
//!
//! ```text
//!   up and works ─► checkpoint ─► committed ─► copy ended ─► restored ─► checkpoint of that at once
//!        ▲             │ failed      │ late         ▲
//!        └─────────────┴─────────────┘              └── not up, unhealthy, stateless, or told to discard
//! ```

use std::{ops::ControlFlow, time::Instant};

use serde_json::{Value, json};

use super::{
    actor::{Actor, State, health_at_first},
    commit_wait::Stopped,
    order::ProgressSender,
    orders::Reply,
    place::Volumes,
    recover::{ms, source_name},
    rest::Asleep,
    view::Phase,
};
use crate::{
    api::ApiError,
    policy::{Scope, Source},
    snapshot::SnapshotKind,
    spec::{SnapshotId, StateKind},
};

/// Why a restore does not begin.
enum Unkept {
    /// There is nothing to restore it from.
    Refused(ApiError),
    /// Its present state could not be made safe.
    Stopped(Stopped),
}

impl Actor {
    pub(super) async fn order_restore(
        &mut self,
        snapshot: Option<SnapshotId>,
        discard: bool,
        progress: ProgressSender,
        reply: Reply,
    ) -> ControlFlow<()> {
        // The snapshot that is chosen must not be pruned before it is fetched. Chosen first: the newest is soon another one.
        self.uploads.hold().await;
        if !self.bring_in_drafts().await && snapshot.is_none() && !discard {
            let text = format!(
                "the newest state of {} still waits on this node for the store; try again, or name a snapshot, or --discard it",
                self.name
            );
            return self.not_restored(Unkept::Refused(ApiError::Unavailable(text)), reply).await;
        }
        let chosen = match self.chosen(snapshot).await {
            Ok(from) if discard => Ok((from, None)),
            Ok(from) => self.secure(&progress).await.map(|present| (from, present)).map_err(Unkept::Stopped),
            Err(error) => Err(Unkept::Refused(error)),
        };
        let (from, present) = match chosen {
            Ok(chosen) => chosen,
            Err(unkept) => return self.not_restored(unkept, reply).await,
        };
        match self.awaken().await {
            Ok(()) => {}
            Err(Asleep::Deposed(by)) => {
                let _ = reply.send(Err(ApiError::Refused(format!("node {} owns {} now", by.node, self.name))));
                return self.deposed(&by).await;
            }
            Err(Asleep::Unavailable(error)) => {
                let _ = reply.send(Err(error));
                return ControlFlow::Continue(());
            }
        }
        let began = Instant::now();
        let shown = source_name(from);
        progress.step(format!("restoring {} from {shown}", self.name));
        // Somebody looks after it: whoever could not take it before is asked again.
        self.unfit = None;
        self.backoff.forget();
        let before = self.view.get().phase;
        let health = health_at_first(&self.app);
        self.view.update(|view| (view.phase, view.health) = (Phase::Recovering, health));
        self.event(
            "recovery.started",
            "its operator puts it back",
            json!({"why": "operator", "epoch": self.owner.epoch}),
        );
        match self.launch(from, Volumes::Stay).await {
            Ok(()) => {
                // Until there is a snapshot of this state, a failover would go back to the one that was not wanted.
                self.schedule.iter_mut().for_each(|schedule| schedule.due_now(Instant::now()));
                self.view.update(|view| view.recoveries += 1);
                let detail = json!({"ms": ms(began), "epoch": self.owner.epoch, "from": shown});
                self.event("recovery.serving", &format!("the container serves again, from {shown}"), detail);
                let _ = reply.send(Ok(self.restored(&shown, present)));
                ControlFlow::Continue(())
            }
            Err(error) if error.deposed_by().is_some() || matches!(self.state, State::Up(_)) => {
                let text = crate::chain(&error);
                let _ = reply.send(Err(ApiError::Failed(format!("{} was not restored: {text}", self.name))));
                if let Some(by) = error.deposed_by() {
                    return self.deposed(by).await;
                }
                // Nothing was touched: it goes on as it was.
                self.prune_again();
                self.view.update(|view| view.phase = before);
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

    /// What whoever ordered it is told.
    fn restored(&self, from: &str, present: Option<SnapshotId>) -> Value {
        let (name, node) = (&self.name, &self.ctx.config.node);
        let mut text = format!("{name} runs on {node} again, from {from}");
        if let Some(id) = present {
            text += &format!(
                "; as it was before it is {id}: `ha-manager restore {name} --snapshot {id}` goes back to that"
            );
        }
        json!({"message": text, "from": from, "node": node, "before": present})
    }

    /// A copy that works is not ended before what it is now is safe. `None`: there is nothing that could be lost, or that anybody
    /// would want back.
    async fn secure(&mut self, progress: &ProgressSender) -> Result<Option<SnapshotId>, Stopped> {
        let stateful = matches!(self.app.spec.state, StateKind::Stateful { .. });
        let works = matches!(self.state, State::Up(_)) && self.view.get().health != "unhealthy";
        if !stateful || !works {
            return Ok(None);
        }
        progress.step("checkpoint of the present state");
        let asked = Instant::now();
        let id = self.checkpoint(SnapshotKind::Manual).await?;
        progress.step(format!("{id}: packing and uploading"));
        self.commit_of(id, asked, self.ctx.config.checkpoint.timeout, "restored").await?;
        Ok(Some(id))
    }

    /// Nothing was ended for the restore.
    async fn not_restored(&mut self, unkept: Unkept, reply: Reply) -> ControlFlow<()> {
        let name = &self.name;
        let error = match unkept {
            Unkept::Refused(error) => error,
            Unkept::Stopped(Stopped::Failed(cause)) => ApiError::Refused(format!(
                "{name} works, and a checkpoint of its present state, which the restore would end, failed: {cause}. Nothing was \
                 changed; `ha-manager restore {name} --discard` restores without one, and loses that state"
            )),
            Unkept::Stopped(Stopped::Broken(cause)) => {
                let _ = reply.send(Err(ApiError::Failed(format!("{cause}; {name} is recovered as after a failure"))));
                return self.lost(Scope::Container, cause).await;
            }
            Unkept::Stopped(Stopped::Interrupted | Stopped::Ended) => {
                ApiError::Failed(format!("the restore of {name} was broken off; see `ha-manager events {name}`"))
            }
        };
        self.prune_again();
        let _ = reply.send(Err(error));
        ControlFlow::Continue(())
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
}
