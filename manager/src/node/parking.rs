//! The manager stops and its containers run on: a mark in the store keeps everybody from them, and takes the lease's place.
//!
//! ```text
//!   mark in the store ──► the epochs, once more ──► watchdog: no deadline; what it has frozen goes on ──► parked
//!        │ not there            │ a later one             │ it cannot let them go on
//!        └──────────────────────┴─────────────────────────┴──► the mark is taken away: the lease ends, others take over
//! ```
//!
//! The order is what makes it safe. A taker claims an epoch and then looks for marks; here the mark is written and then the epochs
//! are read. Whichever came second sees the other. Nothing else counts: also what was frozen before the epochs were read may go on.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{Node, keeper::Keeper};
use crate::{
    fence::FenceError,
    ownership::OwnershipError,
    store::{StoreError, parked},
};

/// How often a mark is tried again of which it is not known whether it is there.
const TRIES: u32 = 2;
const AGAIN: Duration = Duration::from_millis(250);

impl Node {
    /// Marks the containers that go on running as nobody's to take, since no manager renews this node's lease from now on. False
    /// when they are left to the watchdog: it freezes them, or has, and they are taken over.
    pub(super) async fn park(self: &Arc<Self>) -> bool {
        if !self.has_copies() {
            return true;
        }
        let (store, marks) = (&self.ctx.store, [parked::mark(self.name())]);
        let mark = || parked::park(store, self.name(), &marks[0]);
        let outcome = park(&self.ctx.lease, mark, || self.are_newest(), || parked::unpark(store, &marks)).await;
        let Err(cause) = outcome else { return true };
        let text = "this node is not parked: its containers are frozen when its lease ends, and may then be taken over";
        self.events().emit(None, "node.not-parked", text, json!({"cause": cause}));
        false
    }
}

/// `mark` puts the mark, `newest` looks whether no copy here has a later epoch, `unmark` takes the mark away.
///
/// # Errors
/// Why the node is not parked, and whether the mark is left all the same.
async fn park(
    lease: &Keeper,
    mark: impl AsyncFn() -> Result<(), StoreError>,
    newest: impl AsyncFn() -> Result<bool, OwnershipError>,
    unmark: impl AsyncFn() -> Result<(), StoreError>,
) -> Result<(), String> {
    if !lease.may_run() {
        return Err("this node's lease is over".into());
    }
    let cause = match put(mark).await {
        Ok(()) => match newest().await {
            Ok(true) => match lease.park().await {
                Ok(()) => return Ok(()),
                Err(error @ FenceError::NotReleased { .. }) => crate::chain(&error),
                // They may run on without a deadline, so the mark has to stay.
                Err(error) => return Err(format!("{}; and the mark stays", crate::chain(&error))),
            },
            Ok(false) => "another node has claimed a container that runs here".into(),
            Err(error) => crate::chain(&error),
        },
        Err(error) => crate::chain(&error),
    };
    // With it nobody would take over what the watchdog freezes. One whose writing hangs may yet come; the next manager removes it.
    match unmark().await {
        Ok(()) => Err(cause),
        Err(error) => Err(format!("{cause}; and the mark stays: {}", crate::chain(&error))),
    }
}

async fn put(mark: impl AsyncFn() -> Result<(), StoreError>) -> Result<(), StoreError> {
    for _ in 0..TRIES {
        match mark().await {
            Err(error) if error.is_retryable() => tokio::time::sleep(AGAIN).await,
            other => return other,
        }
    }
    mark().await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::{
        fence::{
            Deadline,
            testing::{Fake, Manner},
        },
        node::keeper::tests::{frozen, held},
        spec::NodeName,
        store::{Store, parked},
    };

    struct Scene {
        store: Store,
        node: NodeName,
        marks: [String; 1],
        _dir: tempfile::TempDir,
    }

    impl Scene {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&format!("file://{}", dir.path().display())).await.unwrap();
            let node: NodeName = "n1".parse().unwrap();
            let marks = [parked::mark(&node)];
            Self { store, node, marks, _dir: dir }
        }

        async fn mark(&self) -> Result<(), StoreError> {
            parked::park(&self.store, &self.node, &self.marks[0]).await
        }

        async fn unmark(&self) -> Result<(), StoreError> {
            parked::unpark(&self.store, &self.marks).await
        }

        async fn is_marked(&self) -> bool {
            parked::marks(&self.store, &self.node).await.unwrap() == self.marks
        }
    }

    fn late() -> StoreError {
        let deadline = Duration::from_secs(5);
        StoreError::Deadline { url: "file:///s".into(), op: "create", key: "k".into(), deadline }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_frozen_while_the_store_was_slow_goes_on() {
        let (watchdog, scene) = (Fake::start(), Scene::new().await);
        let lease = held(&watchdog).await;
        let slow = async || {
            frozen(&lease, &watchdog).await;
            scene.mark().await
        };
        assert_eq!(park(&lease, slow, async || Ok(true), || scene.unmark()).await, Ok(()));
        assert!(watchdog.is_parked() && scene.is_marked().await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_watchdog_cannot_let_go_on_is_left_to_others() {
        let (watchdog, scene) = (Fake::start(), Scene::new().await);
        let lease = held(&watchdog).await;
        watchdog.is(Manner::Failing);
        let slow = async || {
            frozen(&lease, &watchdog).await;
            scene.mark().await
        };
        let cause = park(&lease, slow, async || Ok(true), || scene.unmark()).await.unwrap_err();
        assert!(cause.contains("does not come up") && !cause.contains("stays"), "{cause}");
        assert!(watchdog.fired() && !scene.is_marked().await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_may_run_without_a_deadline_stays_marked() {
        let (watchdog, scene) = (Fake::start(), Scene::new().await);
        let lease = held(&watchdog).await;
        watchdog.is(Manner::Losing);
        let cause = park(&lease, || scene.mark(), async || Ok(true), || scene.unmark()).await.unwrap_err();
        assert!(cause.ends_with("and the mark stays"), "{cause}");
        assert!(watchdog.is_parked() && scene.is_marked().await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_claim_that_came_before_the_mark_takes_it_away() {
        let (watchdog, scene) = (Fake::start(), Scene::new().await);
        let lease = held(&watchdog).await;
        let cause = park(&lease, || scene.mark(), async || Ok(false), || scene.unmark()).await.unwrap_err();
        assert!(cause.contains("has claimed"), "{cause}");
        assert!(!watchdog.is_parked() && !scene.is_marked().await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_mark_that_came_after_its_error_is_the_mark() {
        let (watchdog, scene) = (Fake::start(), Scene::new().await);
        let (lease, tries) = (held(&watchdog).await, AtomicU32::new(0));
        let slow = async || {
            scene.mark().await?;
            if tries.fetch_add(1, Ordering::SeqCst) == 0 { Err(late()) } else { Ok(()) }
        };
        assert_eq!(park(&lease, slow, async || Ok(true), || scene.unmark()).await, Ok(()));
        assert!(watchdog.is_parked() && scene.is_marked().await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_mark_that_is_not_known_to_be_there_is_taken_away() {
        let (watchdog, scene) = (Fake::start(), Scene::new().await);
        let lease = held(&watchdog).await;
        let slow = async || {
            scene.mark().await?;
            Err(late())
        };
        let cause = park(&lease, slow, async || Ok(true), || scene.unmark()).await.unwrap_err();
        assert!(cause.contains("create") && !cause.contains("stays"), "{cause}");
        assert!(!watchdog.is_parked() && !scene.is_marked().await);
        let cause = park(&lease, slow, async || Ok(true), async || Err(late())).await.unwrap_err();
        assert!(cause.contains("and the mark stays") && scene.is_marked().await, "{cause}");
    }

    /// A renewal that found the node not yet parking may be telling the watchdog a deadline.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_renewal_under_way_does_not_bring_the_deadline_back() {
        let watchdog = Fake::start();
        let lease = Arc::new(held(&watchdog).await);
        let renewal = lease.renewing().await;
        let parking = Arc::clone(&lease);
        let parking = tokio::spawn(async move { parking.park().await });
        let far = std::time::Instant::now() + Duration::from_secs(3600);
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!parking.is_finished(), "it has not waited for the renewal");
        }
        lease.guard().release(Deadline::At(far)).await.unwrap();
        drop(renewal);
        parking.await.unwrap().unwrap();
        assert!(watchdog.is_parked());
    }
}
