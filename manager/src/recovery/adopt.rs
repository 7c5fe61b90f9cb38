//! Going on with a copy that an earlier manager of this node left running.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    actor::Actor,
    launch,
    live::{Live, first_answer},
    record::{LocalPhase, LocalRecord},
};
use crate::{
    agentlink::AgentLink,
    policy::Scope,
    runtime::{Runtime, Status},
    spec::StateKind,
};

/// A CRIU whose manager was killed fails at its next question; one that hangs is ended after this.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(5);

/// Between looks at a copy that is frozen.
const FROZEN_PAUSE: Duration = Duration::from_millis(500);

impl Actor {
    /// Goes on with a copy that an earlier manager of this node left running.
    pub(super) async fn adopt(&mut self, record: LocalRecord) -> ControlFlow<()> {
        self.next_seq = record.next_seq;
        self.last_committed = record.last_committed;
        if record.phase == LocalPhase::Stopped {
            return self.still_at_rest(record.rest).await;
        }
        let moment = self.ctx.lease.moment();
        match self.find(&record).await {
            Ok(live) => {
                let detail = json!({"pid": live.pid, "epoch": self.owner.epoch});
                self.up(live);
                self.event("container.adopted", "it ran on while the manager was away", detail);
                ControlFlow::Continue(())
            }
            Err(_) if !self.ctx.lease.undisturbed_since(moment) => {
                // Frozen meanwhile: its silence says nothing. It is come back to once it may run.
                let wait = Instant::now() + FROZEN_PAUSE;
                tokio::select! {
                    () = tokio::time::sleep_until(wait.into()) => {}
                    command = self.inbox.recv() => if self.defer(command, "gone on with") {
                        return ControlFlow::Continue(());
                    },
                }
                Box::pin(self.adopt(record)).await
            }
            Err(text) => self.lost(Scope::Container, format!("it did not survive the manager's absence: {text}")).await,
        }
    }

    async fn find(&self, record: &LocalRecord) -> Result<Live, String> {
        let text = |error: &(dyn std::error::Error + 'static)| crate::chain(error);
        let (ctx, name, identity) = (Arc::clone(&self.ctx), self.name.clone(), self.network_identity());
        let place = self.place.clone();
        let pid = launch::blocking(move || {
            let state = ctx
                .runtime
                .state(&ctx.runtime_id(&name), ctx.config.checkpoint.timeout)
                .map_err(|error| text(&error))?;
            let state = state.filter(|state| state.status != Status::Stopped).ok_or("its process is gone")?;
            let remains = crate::checkpoint::settle_orphan(
                Path::new(&ctx.config.criu),
                state.pid,
                &place.bundle(),
                ORPHAN_PATIENCE,
            );
            if !remains.is_running() {
                return Err(remains.to_string());
            }
            if let Err(error) = place.clear_dumps() {
                tracing::warn!(container = %name, %error, "what unfinished dumps left could not be removed");
            }
            let found = ctx.network.find(&name, &identity).map_err(|error| text(&error))?;
            let attachment = found.ok_or("its network is gone")?;
            // A manager that was killed in a checkpoint left the gate closed, or one in a restore the link outside.
            ctx.network.attach(&attachment).map_err(|error| text(&error))?;
            ctx.network.gate(&name).and_then(|mut gate| gate.open()).map_err(|error| text(&error))?;
            Ok::<_, String>(state.pid)
        })
        .await?;
        let link = AgentLink::open(&self.place.channel(), self.name.clone()).map_err(|error| text(&error))?;
        let status = first_answer(&link).await.map_err(|error| text(&error))?;
        if hex::encode(&status.incarnation) != record.incarnation {
            return Err("another agent answers than the one that was left".into());
        }
        if !status.main_running && matches!(self.app.spec.state, StateKind::Stateful { .. }) {
            return Err("its main process has ended".into());
        }
        Live::new(pid, link, status.incarnation).map_err(|error| error.to_string())
    }
}
