//! A container that its owner has handed to this node: tried from its newest state, then from older ones as its policy allows, or
//! from the one that its owner named. Where none comes up its owner takes it back.

use std::{ops::ControlFlow, time::Instant};

use serde_json::json;
use tokio::sync::oneshot;

use super::{
    actor::Actor,
    recover::{Climb, Climbed, PLANS, Role},
    teardown::Extent,
    view::Phase,
};
use crate::spec::SnapshotId;

impl Actor {
    pub(super) async fn handed(
        &mut self,
        snapshot: Option<SnapshotId>,
        reply: oneshot::Sender<Result<(), String>>,
    ) -> ControlFlow<()> {
        let began = Instant::now();
        self.view.update(|view| view.phase = Phase::Recovering);
        let detail = json!({"why": "handed over", "epoch": self.owner.epoch});
        self.event("recovery.started", "handed over by its owner", detail);
        let mut climb = Climb::new("it has no healthy snapshot, and is not begun without its state".to_owned());
        let mut text = None;
        for _ in 0..PLANS {
            match self.climb(Role::Handed(snapshot), "handed over", began, &mut climb).await {
                Climbed::Done(flow) => {
                    if flow.is_continue() {
                        let _ = reply.send(Ok(()));
                    }
                    return flow;
                }
                Climbed::Again => {}
                // A peer may do better, or its owner.
                Climbed::Waits(cause) | Climbed::Unfit { cause, .. } => {
                    text = Some(cause);
                    break;
                }
                Climbed::Exhausted => break,
            }
        }
        let text = text.unwrap_or(climb.last);
        self.event("recovery.failed", &text, json!({"cause": text}));
        // Before the answer, on which its owner begins it again.
        let cleared = self.clear(Extent::All).await;
        // When nobody takes it back, this node's next looks at the store find that it owns it, and resume it.
        let _ = reply.send(Err(text));
        if cleared.is_ok() { ControlFlow::Break(()) } else { self.end().await }
    }
}
