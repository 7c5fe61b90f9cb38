//! Drafts become snapshots: uploaded, committed, oldest first, and the old ones pruned.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, watch};

use super::{
    launch::blocking,
    upload::{Drains, Report, Shared, Timing},
};
use crate::{
    ownership::OwnershipError,
    snapshot::{self, Keep, Pruned, Queue, SnapshotError},
    spec::{Epoch, SnapshotId},
};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

struct Retry {
    at: Instant,
    wait: Duration,
    cause: String,
}

pub(super) struct Committer {
    shared: Arc<Shared>,
    queue: Queue,
    drains: watch::Sender<Drains>,
    kick: Arc<Notify>,
    retry: Option<Retry>,
    /// The newest snapshot that was reported to wait.
    said_waiting: Option<SnapshotId>,
}

impl Committer {
    pub fn new(shared: Arc<Shared>, queue: Queue, drains: watch::Sender<Drains>, kick: Arc<Notify>) -> Self {
        Self { shared, queue, drains, kick, retry: None, said_waiting: None }
    }

    pub async fn run(mut self, mut arrivals: mpsc::Receiver<()>) {
        loop {
            if self.drain().await.is_some() {
                let parked = self.retry.is_some();
                self.drains.send_modify(|drains| (drains.ended, drains.parked) = (drains.ended + 1, parked));
            }
            let retry = async {
                match &self.retry {
                    Some(retry) => tokio::time::sleep_until(retry.at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                arrived = arrivals.recv() => match arrived {
                    Some(()) => {}
                    None => return,
                },
                () = self.kick.notified() => self.retry_now(),
                () = retry => self.retry_now(),
            }
        }
    }

    fn retry_now(&mut self) {
        self.retry = self.retry.take().map(|retry| Retry { at: Instant::now(), ..retry });
    }

    /// Uploads what waits, oldest first, until it is all there or the store is away. `None`: it is too early to try again.
    async fn drain(&mut self) -> Option<()> {
        if let Some(retry) = self.retry.as_ref().filter(|retry| Instant::now() < retry.at) {
            let cause = retry.cause.clone();
            self.park(cause).await;
            return None;
        }
        loop {
            let packed = self.shared.pending.borrow().packed;
            let id = match self.next().await {
                Ok(Some(id)) => id,
                Ok(None) => {
                    self.retry = None;
                    self.drained(packed);
                    return Some(());
                }
                Err(error) => return self.later(&error).await,
            };
            let outcome = self.commit(id).await;
            self.shared.drafts().uploading = None;
            match outcome {
                Ok(report) => {
                    self.retry = None;
                    self.drains.send_modify(|drains| drains.committed += 1);
                    let removed = self.remove(id).await;
                    self.shared.report(report);
                    blocking(give_back_memory).await;
                    if !removed {
                        return self.stuck().await;
                    }
                }
                Err(error) if !error.is_of_the_snapshot() => return self.later(&error).await,
                Err(error) => {
                    let removed = self.remove(id).await;
                    self.shared.drafts().timings.remove(&id);
                    let cause = crate::chain(&error);
                    self.shared.report(match error {
                        SnapshotError::Ownership { source, .. } => match *source {
                            OwnershipError::Deposed { by, .. } => Report::Deposed { id, by: *by },
                            _ => Report::Failed { id, cause },
                        },
                        _ => Report::Failed { id, cause },
                    });
                    if !removed {
                        return self.stuck().await;
                    }
                }
            }
        }
    }

    /// The oldest draft, which from now on is not dropped for want of room.
    async fn next(&self) -> Result<Option<SnapshotId>, SnapshotError> {
        let (shared, queue) = (Arc::clone(&self.shared), self.queue.clone());
        blocking(move || {
            let mut drafts = shared.drafts();
            let oldest = queue.list()?.first().copied();
            drafts.uploading = oldest;
            Ok(oldest)
        })
        .await
    }

    /// Nothing is wrong with the draft: the same again after a while.
    async fn later(&mut self, error: &SnapshotError) -> Option<()> {
        let wait = self.retry.as_ref().map_or(FIRST_RETRY, |retry| (retry.wait * 2).min(LONGEST_RETRY));
        let cause = crate::chain(error);
        self.retry = Some(Retry { at: Instant::now() + wait, wait, cause: cause.clone() });
        self.park(cause).await;
        Some(())
    }

    /// What is in the queue stays there for now. Said once of each snapshot, for somebody may wait for it.
    async fn park(&mut self, cause: String) {
        let packed = self.shared.pending.borrow().packed;
        let queue = self.queue.clone();
        let waiting = blocking(move || queue.list()).await.unwrap_or_else(|error| {
            let name = &self.shared.setting.name;
            tracing::warn!(container = %name, error = crate::chain(&error), "the drafts cannot be listed");
            Vec::new()
        });
        for id in waiting {
            if self.said_waiting.is_none_or(|said| id > said) {
                self.said_waiting = Some(id);
                self.shared.report(Report::Waiting { id, cause: cause.clone() });
            }
        }
        self.drained(packed);
    }

    fn drained(&self, packed: u64) {
        self.shared.pending.send_modify(|pending| pending.drained = packed);
    }

    async fn commit(&self, id: SnapshotId) -> Result<Report, SnapshotError> {
        let queue = self.queue.clone();
        let draft = blocking(move || queue.load(id)).await?;
        let store = &self.shared.setting.store;
        let moved = |_| self.shared.pending.send_modify(|pending| pending.moved += 1);
        let manifest = snapshot::upload(store, &draft, &moved).await?;
        let committed = Instant::now();
        let (timing, keep) = {
            let mut drafts = self.shared.drafts();
            (drafts.timings.remove(&id), drafts.keep)
        };
        let timing = timing.map(|(frozen_at, wall)| Timing { frozen_at, wall, committed });
        let pruned = self.prune(keep, id.epoch).await;
        Ok(Report::Committed { manifest: Box::new(manifest), timing, pruned })
    }

    /// The newest is safe; what is too many is removed now or after a later one.
    async fn prune(&self, keep: Keep, epoch: Epoch) -> Pruned {
        let _busy = self.shared.pruning.busy.lock().await;
        if !self.shared.pruning.allowed.load(Ordering::SeqCst) {
            return Pruned::default();
        }
        let (store, name) = (&self.shared.setting.store, &self.shared.setting.name);
        snapshot::prune(store, name, keep, epoch).await.unwrap_or_else(|error| {
            tracing::warn!(container = %name, error = crate::chain(&error), "old snapshots could not be removed");
            Pruned::default()
        })
    }

    /// The oldest draft does not go away: not again at once.
    async fn stuck(&mut self) -> Option<()> {
        let cause = "a draft on this node's disk cannot be removed".to_owned();
        self.retry = Some(Retry { at: Instant::now() + LONGEST_RETRY, wait: LONGEST_RETRY, cause: cause.clone() });
        self.park(cause).await;
        Some(())
    }

    /// False when it is still there.
    async fn remove(&self, id: SnapshotId) -> bool {
        let queue = self.queue.clone();
        let Err(error) = blocking(move || queue.remove(id)).await else { return true };
        let name = &self.shared.setting.name;
        tracing::warn!(container = %name, error = crate::chain(&error), "a draft could not be removed");
        false
    }
}

/// The buffers of a snapshot are large and, between checkpoints, in nobody's use; the allocator would keep them resident.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer and may be called at any time, from any thread; the allocator locks itself.
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}
