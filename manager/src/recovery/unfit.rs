//! A node whose CPU cannot run a snapshot: a failure of the node, not of the state, which is whole.
//!
//! An older snapshot would lose state, and may not fit either. So the same one is offered to each living peer, where the policy
//! lets it fail over; when none can take it, it waits here until one is found that does.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{actor::Actor, handover::NotOffered};
use crate::{
    membership::Liveness,
    policy::{self, Attempt, Candidate, Scope},
    spec::{NodeName, RecoveryStep, SnapshotId},
};

/// A peer that did not take it is not asked again for so long: each time costs two epochs.
const ASK_AGAIN: Duration = Duration::from_secs(600);

/// Peers that were asked and did not take it, and when.
pub(super) type Asked = Vec<(NodeName, Instant)>;

impl Actor {
    pub(super) async fn unfit(
        &mut self,
        scope: Scope,
        why: String,
        snapshot: SnapshotId,
        mut cause: String,
    ) -> ControlFlow<()> {
        if self.unfit.is_none() {
            self.event("node.unfit", &format!("{snapshot}: {cause}"), json!({"snapshot": snapshot, "cause": cause}));
        }
        let mut asked = self.unfit.take().unwrap_or_default();
        asked.retain(|(_, at)| at.elapsed() < ASK_AGAIN);
        let peers = self.ctx.membership.peers().into_iter().filter(|peer| peer.liveness == Liveness::Alive);
        let may_leave = self.app.spec.recovery.steps.contains(&RecoveryStep::Failover);
        let peers = peers.filter(|_| may_leave);
        let candidates = peers.map(|peer| Candidate { node: peer.name, containers: 0 }).collect();
        for node in policy::rank(&self.name, candidates) {
            if asked.iter().any(|(name, _)| *name == node) {
                continue;
            }
            self.announce(&Attempt::Peer { node: node.clone() });
            match self.offer(&node, Some(snapshot)).await {
                Ok(flow) => return flow,
                Err(NotOffered::Held(text)) => {
                    self.unfit = Some(asked);
                    return self.wait(scope, why, text);
                }
                Err(NotOffered::Refused(text)) => {
                    self.event("recovery.failed", &text, json!({"cause": text}));
                    asked.push((node, Instant::now()));
                }
            }
        }
        self.unfit = Some(asked);
        cause.push_str("; no other node took it, and it waits for one that can");
        self.wait(scope, why, cause)
    }
}
