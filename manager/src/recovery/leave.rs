//! The manager stops: what is up runs on, what is not is given to a peer, for here nobody would work on it.

use std::{ops::ControlFlow, time::Duration};

use super::{
    actor::{Actor, Down, State},
    handover::NotOffered,
    teardown::Extent,
};
use crate::policy::{self, Attempt, Scope};

/// What is being packed and uploaded when the manager ends is waited for this long.
const PACK_PATIENCE: Duration = Duration::from_secs(10);

impl Actor {
    /// Returns true when the container is down and stays so until the next manager.
    pub(super) async fn let_go(mut self) -> bool {
        // A dump in memory is lost with the manager; packed, it waits on the disk for the next one.
        self.uploads.settle(PACK_PATIENCE, PACK_PATIENCE).await;
        let down = match &self.state {
            State::Up(_) => false,
            State::Down(Down::Waiting { .. }) => self.pass_on().await.is_continue(),
            State::Down(Down::Resting) => self.resting.is_none(),
        };
        if down {
            // A link without a container behind it would still answer for its address, and no peer would take it over.
            let _ = self.clear(Extent::Running).await;
        }
        down
    }

    /// Offers a container that is not up to the peers its policy allows.
    async fn pass_on(&mut self) -> ControlFlow<()> {
        let Ok(snapshots) = self.known_snapshots().await else { return ControlFlow::Continue(()) };
        let situation = self.situation(Scope::Container, snapshots).await;
        for attempt in policy::plan(&self.app.spec.recovery, &situation) {
            let Attempt::Peer { node } = &attempt else { continue };
            self.announce(&attempt);
            match self.offer(node, None).await {
                Ok(flow) => return flow,
                Err(NotOffered::Held(_)) => break,
                Err(NotOffered::Refused(cause)) => {
                    tracing::warn!(container = %self.name, %node, cause, "not handed over");
                }
            }
        }
        ControlFlow::Continue(())
    }
}
