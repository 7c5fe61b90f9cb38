//! What happens to a dump after the container runs again: packed, uploaded, committed, and the old ones pruned.
//!
//! ```text
//!   dump ──► Packer ──► draft on this node ──► Committer ──► store
//!              │          bounded by              │
//!              │      queue_max_bytes             └─ away or hung: drafts wait, tried again
//!              └──────────────────────────────── goes on all the same
//! ```
//!
//! The two go on beside each other: a store that hangs must not keep dumps in memory and checkpoints from being taken. Snapshots are
//! committed in the order they were taken.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};

use super::{committer::Committer, launch::blocking, packer::Packer};
use crate::{
    ownership::Owner,
    snapshot::{Keep, Manifest, PartSource, Pruned, Queue, SnapshotError, SnapshotMeta},
    spec::{ContainerName, SnapshotId},
    store::Store,
};

/// An upload under way when its container is removed may go on for so long.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// A directory of drafts that cannot be opened is tried again after this.
const OPEN_AGAIN: Duration = Duration::from_secs(5);

/// What is the same for all snapshots of a container on this node.
pub(super) struct Setting {
    pub store: Store,
    pub name: ContainerName,
    pub queue: PathBuf,
    pub compression_level: i32,
    pub queue_max_bytes: u64,
}

/// A dump to be made a snapshot.
pub(super) struct Job {
    pub meta: SnapshotMeta,
    /// Removed once they are packed.
    pub parts: Vec<PartSource>,
    pub staging: PathBuf,
    pub frozen_at: Instant,
    /// What the dump took.
    pub wall: Duration,
    pub keep: Keep,
}

/// What the actor hears of it.
pub(super) enum Report {
    Committed {
        manifest: Box<Manifest>,
        timing: Option<Timing>,
        pruned: Pruned,
    },
    /// There will be no such snapshot.
    Failed {
        id: SnapshotId,
        cause: String,
    },
    /// The store is away; the draft waits.
    Waiting {
        id: SnapshotId,
        cause: String,
    },
    /// A later epoch exists than the one the dump was made under.
    Deposed {
        id: SnapshotId,
        by: Owner,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub frozen_at: Instant,
    pub wall: Duration,
    pub committed: Instant,
}

pub(super) struct Uploads {
    jobs: mpsc::UnboundedSender<Job>,
    reports: mpsc::UnboundedReceiver<Report>,
    shared: Arc<Shared>,
    progress: watch::Receiver<Drains>,
    kick: Arc<Notify>,
    worker: JoinHandle<()>,
}

/// What is under way. Drafts that wait for a store that is away are not: they are safe on this node's disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pending {
    /// Dumps in memory that are neither packed nor given up.
    pub dumps: usize,
    /// Drafts that were packed, counted.
    pub packed: u64,
    /// How many of them were there when all that was there had last been brought into the store, or left to wait.
    pub drained: u64,
    /// Grows with what arrives in the store.
    pub moved: u64,
}

impl Pending {
    fn nothing(&self) -> bool {
        self.dumps == 0 && self.packed == self.drained
    }
}

/// How far the drafts on this node's disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drains {
    /// Attempts to bring them all into the store.
    pub ended: u64,
    pub committed: u64,
    /// Some are left: the store was away.
    pub parked: bool,
}

/// What the two tasks have in common.
pub(super) struct Shared {
    pub setting: Setting,
    pub outbox: mpsc::UnboundedSender<Report>,
    pub pending: watch::Sender<Pending>,
    drafts: Mutex<Drafts>,
    pub pruning: Pruning,
}

/// Whether old snapshots may go: only while the container is up, for else one of them is being restored, or will be.
#[derive(Debug, Default)]
pub(super) struct Pruning {
    pub allowed: AtomicBool,
    pub busy: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct Drafts {
    pub timings: HashMap<SnapshotId, (Instant, Duration)>,
    pub keep: Keep,
    /// On its way to the store: not to be dropped for want of room.
    pub uploading: Option<SnapshotId>,
}

impl Shared {
    /// Never held for longer than the queue's directory takes.
    pub fn drafts(&self) -> MutexGuard<'_, Drafts> {
        self.drafts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn report(&self, report: Report) {
        // Nobody listens only when the actor has ended.
        let _ = self.outbox.send(report);
    }
}

impl Uploads {
    pub fn start(setting: Setting, owner: &Owner, keep: Keep) -> Self {
        // Unbounded by type, bounded by use: the actor pushes nothing while `pending` is at its limit, and each push makes at
        // most a few reports.
        let (jobs, inbox) = mpsc::unbounded_channel();
        let (outbox, reports) = mpsc::unbounded_channel();
        // Until the committer has looked there may be some of an earlier manager.
        let drains = watch::Sender::new(Drains { ended: 0, committed: 0, parked: true });
        let (progress, kick) = (drains.subscribe(), Arc::new(Notify::new()));
        let drafts = Mutex::new(Drafts { keep, ..Drafts::default() });
        let shared = Arc::new(Shared {
            setting,
            outbox,
            pending: watch::Sender::default(),
            drafts,
            pruning: Pruning::default(),
        });
        let worker = tokio::spawn(run(Arc::clone(&shared), inbox, drains, Arc::clone(&kick), owner.clone()));
        Self { jobs, reports, shared, progress, kick, worker }
    }

    /// Dumps in memory that are neither packed nor given up.
    pub fn pending(&self) -> usize {
        self.shared.pending.borrow().dumps
    }

    pub fn push(&self, job: Job) {
        self.shared.pending.send_modify(|pending| pending.dumps += 1);
        // The packer lives as long as the sender does.
        let _ = self.jobs.send(job);
    }

    pub async fn report(&mut self) -> Report {
        match self.reports.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }

    /// Has the drafts that wait on this node committed now, and waits for it, but not longer than `patience`. True when some
    /// were.
    pub async fn flush(&self, patience: Duration) -> bool {
        let mut progress = self.progress.clone();
        let before = *progress.borrow_and_update();
        if !before.parked {
            return false;
        }
        self.kick.notify_one();
        // Running out of patience is an answer, as below.
        let _ = tokio::time::timeout(patience, progress.wait_for(|now| now.ended > before.ended)).await;
        progress.borrow().committed > before.committed
    }

    /// Whether nothing is under way, and no draft waits on this node.
    pub fn are_in(&self) -> bool {
        self.shared.pending.borrow().nothing() && !self.progress.borrow().parked
    }

    /// Ends the uploads for good, for a container that is removed: from its return on nothing is begun. What was on its way to the
    /// store for longer than that may still arrive there.
    pub async fn stop(&mut self) {
        // Without a sender the worker ends when it is through with what it does.
        self.jobs = mpsc::unbounded_channel().0;
        if tokio::time::timeout(STOP_PATIENCE, &mut self.worker).await.is_err() {
            self.worker.abort();
            // Cancelled, as wanted.
            let _ = (&mut self.worker).await;
        }
    }

    /// Old snapshots may go or must stay. One that is just being removed may still go: see [`Self::hold`].
    pub fn may_prune(&self, may: bool) {
        self.shared.pruning.allowed.store(may, Ordering::SeqCst);
    }

    /// From when this returns until it is allowed again, no snapshot is removed.
    pub async fn hold(&self) {
        self.may_prune(false);
        drop(self.shared.pruning.busy.lock().await);
    }

    /// Waits until no dump is in memory any more: each is a draft on this node's disk or given up. Until then what it was
    /// taken into must not be cleared away.
    pub async fn packed(&self) {
        let mut pending = self.shared.pending.subscribe();
        tokio::select! {
            _ = pending.wait_for(|pending| pending.dumps == 0) => {}
            // Its packer is gone: nobody packs it any more.
            () = self.jobs.closed() => {}
        }
    }

    /// Waits until nothing is under way any more, for `patience` without any progress, and for `longest` in all.
    pub async fn settle(&self, patience: Duration, longest: Duration) {
        let mut pending = self.shared.pending.subscribe();
        let end = Instant::now() + longest;
        loop {
            let moved = pending.borrow_and_update().moved;
            let next = pending.wait_for(|now| now.nothing() || now.moved != moved);
            // Running out of patience is an answer: what is not committed by now is not waited for.
            let Ok(Ok(goes_on)) = tokio::time::timeout(patience, next).await.map(|now| now.map(|now| !now.nothing()))
            else {
                return;
            };
            if !goes_on || Instant::now() >= end {
                return;
            }
        }
    }
}

async fn run(
    shared: Arc<Shared>,
    mut inbox: mpsc::UnboundedReceiver<Job>,
    drains: watch::Sender<Drains>,
    kick: Arc<Notify>,
    owner: Owner,
) {
    let queue = loop {
        let dir = shared.setting.queue.clone();
        let opened = blocking(move || {
            let queue = Queue::open(&dir)?;
            // Drafts of an earlier epoch of this node: somebody else went on from there.
            queue.drop_deposed(owner.epoch)?;
            Ok::<_, SnapshotError>(queue)
        });
        match opened.await {
            Ok(queue) => break queue,
            Err(error) => {
                // There may be drafts in it.
                drains.send_modify(|drains| drains.ended += 1);
                let again = Instant::now() + OPEN_AGAIN;
                if !Packer::refuse(&shared, &mut inbox, &crate::chain(&error), again).await {
                    return;
                }
            }
        }
    };
    // Its end is the committer's, too.
    let (packed, arrivals) = mpsc::channel(1);
    let committer = Committer::new(Arc::clone(&shared), queue.clone(), drains, kick);
    let packer = Packer { shared, queue, packed };
    tokio::join!(packer.run(inbox), committer.run(arrivals));
}

#[cfg(test)]
mod tests;
