//! The manager stops: from then on nothing is claimed or begun here, for nobody would go on with it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::sync::{RwLock, RwLockReadGuard};

use super::Node;

/// What has begun is waited for so long; it waits for the store.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Stopping {
    begun: AtomicBool,
    /// Read from before a claim until the claimed container has an actor.
    claims: RwLock<()>,
}

impl Stopping {
    /// To be held from before a claim until its container has an actor.
    ///
    /// # Errors
    /// The manager stops.
    pub(super) async fn may_begin(&self) -> Result<RwLockReadGuard<'_, ()>, String> {
        let claim = self.claims.read().await;
        if self.begun.load(Ordering::SeqCst) {
            return Err("the manager of this node is being stopped; ask another node".into());
        }
        Ok(claim)
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    /// From when this returns, what was claimed has an actor, and nothing more is claimed.
    async fn begin(&self) {
        self.begun.store(true, Ordering::SeqCst);
        if tokio::time::timeout(PATIENCE, self.claims.write()).await.is_err() {
            tracing::warn!("what this node was just claiming did not begin within {PATIENCE:?}");
        }
    }
}

impl Node {
    pub(super) async fn begin_to_stop(&self) {
        self.stopping.begin().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stopping_waits_for_what_is_being_claimed_and_lets_nothing_more_begin() {
        let stopping = Stopping::default();
        let claim = stopping.may_begin().await.unwrap();
        let stop = stopping.begin();
        tokio::pin!(stop);
        let ended = tokio::time::timeout(Duration::from_millis(20), &mut stop).await;
        assert!(ended.is_err(), "a claim under way was not waited for");
        drop(claim);
        stop.await;
        assert!(stopping.may_begin().await.unwrap_err().contains("being stopped"));
    }
}
