//! What happens to a dump after the container runs again: packed, uploaded, committed, and the old ones pruned.
//!
//! One task per container, so that snapshots are committed in the order they were taken. A store that is away leaves drafts
//! on this node, bounded by `checkpoint.queue_max_bytes`; they are committed when it is back.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, watch};

use super::{launch::blocking, place::Place};
use crate::{
    node::Ctx,
    ownership::{Owner, OwnershipError},
    snapshot::{self, Manifest, PackOptions, PartSource, Pruned, Queue, SnapshotError, SnapshotMeta},
    spec::{ContainerName, SnapshotId},
};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// A dump to be made a snapshot.
pub(super) struct Job {
    pub meta: SnapshotMeta,
    /// Removed once they are packed.
    pub parts: Vec<PartSource>,
    pub staging: PathBuf,
    pub frozen_at: Instant,
    /// What the dump took.
    pub wall: Duration,
    pub keep: u32,
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
    Deposed(Owner),
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
    pending: watch::Sender<usize>,
    progress: watch::Receiver<Drains>,
    kick: Arc<Notify>,
}

/// How far the drafts on this node's disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drains {
    /// Attempts to bring them all into the store.
    ended: u64,
    /// Some are left: the store was away.
    parked: bool,
}

impl Uploads {
    pub fn start(ctx: Arc<Ctx>, name: ContainerName, place: Place, owner: &Owner, keep: u32) -> Self {
        // Unbounded by type, bounded by use: the actor pushes nothing while `pending` is at its limit, and each push makes at
        // most a few reports.
        let (jobs, inbox) = mpsc::unbounded_channel();
        let (outbox, reports) = mpsc::unbounded_channel();
        let pending = watch::Sender::new(0);
        // Until the worker has looked there may be some of an earlier manager.
        let drains = watch::Sender::new(Drains { ended: 0, parked: true });
        let (progress, kick) = (drains.subscribe(), Arc::new(Notify::new()));
        let worker = Worker {
            ctx,
            name,
            place,
            outbox,
            pending: pending.clone(),
            drains,
            kick: Arc::clone(&kick),
            timings: HashMap::new(),
            keep,
            retry: None,
            said_waiting: false,
        };
        tokio::spawn(worker.run(inbox, owner.clone()));
        Self { jobs, reports, pending, progress, kick }
    }

    /// Dumps that are neither packed nor given up.
    pub fn pending(&self) -> usize {
        *self.pending.borrow()
    }

    pub fn push(&self, job: Job) {
        self.pending.send_modify(|pending| *pending += 1);
        // The worker lives as long as the sender does.
        let _ = self.jobs.send(job);
    }

    pub async fn report(&mut self) -> Report {
        match self.reports.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }

    /// Has the drafts that wait on this node committed now, and waits for it, but not longer than `patience`. False when none
    /// waited.
    pub async fn flush(&self, patience: Duration) -> bool {
        let mut progress = self.progress.clone();
        let before = *progress.borrow_and_update();
        if !before.parked {
            return false;
        }
        self.kick.notify_one();
        // Running out of patience is an answer, as below.
        let _ = tokio::time::timeout(patience, progress.wait_for(|now| now.ended > before.ended)).await;
        true
    }

    /// Waits until nothing is under way any more, or `patience` has passed.
    pub async fn settle(&self, patience: Duration) {
        let mut pending = self.pending.subscribe();
        // Running out of patience is an answer: what is not committed by now is not waited for.
        let _ = tokio::time::timeout(patience, pending.wait_for(|pending| *pending == 0)).await;
    }
}

struct Retry {
    at: Instant,
    wait: Duration,
}

struct Worker {
    ctx: Arc<Ctx>,
    name: ContainerName,
    place: Place,
    outbox: mpsc::UnboundedSender<Report>,
    pending: watch::Sender<usize>,
    drains: watch::Sender<Drains>,
    kick: Arc<Notify>,
    timings: HashMap<SnapshotId, (Instant, Duration)>,
    keep: u32,
    retry: Option<Retry>,
    said_waiting: bool,
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Job>, owner: Owner) {
        let dir = self.place.queue();
        let opened = blocking(move || {
            let queue = Queue::open(&dir)?;
            // Drafts of an earlier epoch of this node: somebody else went on from there.
            queue.drop_deposed(owner.epoch)?;
            Ok::<_, SnapshotError>(queue)
        })
        .await;
        let queue = match opened {
            Ok(queue) => queue,
            Err(error) => {
                let cause = crate::chain(&error);
                while let Some(job) = inbox.recv().await {
                    self.discard(&job);
                    self.finished(Report::Failed { id: job.meta.id, cause: cause.clone() });
                }
                return;
            }
        };
        loop {
            if self.drain(&queue).await.is_some() {
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
                job = inbox.recv() => match job {
                    Some(job) => self.pack(&queue, job).await,
                    None => return,
                },
                () = self.kick.notified() => self.retry = self.retry.take().map(|retry| Retry { at: Instant::now(), ..retry }),
                () = retry => self.retry = self.retry.take().map(|retry| Retry { at: Instant::now(), ..retry }),
            }
        }
    }

    /// From here on the dump is a draft on this node's disk.
    async fn pack(&mut self, queue: &Queue, job: Job) {
        let id = job.meta.id;
        self.keep = job.keep;
        let options =
            PackOptions { level: Some(self.ctx.config.checkpoint.compression_level), ..PackOptions::default() };
        let max = self.ctx.config.checkpoint.queue_max_bytes;
        let (packing, meta, parts) = (queue.clone(), job.meta.clone(), job.parts.clone());
        let packed = blocking(move || {
            snapshot::pack(&packing, meta, &parts, &options)?;
            packing.enforce(max)
        })
        .await;
        self.discard(&job);
        match packed {
            Ok(dropped) => {
                self.timings.insert(id, (job.frozen_at, job.wall));
                for id in dropped {
                    self.timings.remove(&id);
                    let cause = "dropped: the queue of drafts was full and newer ones are in it".into();
                    self.finished(Report::Failed { id, cause });
                }
            }
            Err(error) => self.finished(Report::Failed { id, cause: crate::chain(&error) }),
        }
    }

    /// Uploads what waits, oldest first, until it is all there or the store is away. `None`: it is too early to try again.
    async fn drain(&mut self, queue: &Queue) -> Option<()> {
        if self.retry.as_ref().is_some_and(|retry| Instant::now() < retry.at) {
            self.park();
            return None;
        }
        while let Some(id) = self.oldest(queue).await {
            match self.commit(queue, id).await {
                Ok(report) => {
                    (self.retry, self.said_waiting) = (None, false);
                    self.remove(queue, id).await;
                    self.finished(report);
                }
                Err(error) if error.is_retryable() => {
                    let wait = self.retry.as_ref().map_or(FIRST_RETRY, |retry| (retry.wait * 2).min(LONGEST_RETRY));
                    self.retry = Some(Retry { at: Instant::now() + wait, wait });
                    if !std::mem::replace(&mut self.said_waiting, true) {
                        // Nobody listens only when the actor has ended.
                        let _ = self.outbox.send(Report::Waiting { id, cause: crate::chain(&error) });
                    }
                    self.park();
                    return Some(());
                }
                Err(error) => {
                    self.remove(queue, id).await;
                    let cause = crate::chain(&error);
                    self.finished(match error {
                        SnapshotError::Ownership { source, .. } => match *source {
                            OwnershipError::Deposed { by, .. } => Report::Deposed(*by),
                            _ => Report::Failed { id, cause },
                        },
                        _ => Report::Failed { id, cause },
                    });
                }
            }
        }
        self.retry = None;
        Some(())
    }

    /// Drafts on disk are no dumps in memory: the container goes on being checkpointed while they wait.
    fn park(&self) {
        self.pending.send_modify(|pending| *pending = 0);
    }

    async fn commit(&mut self, queue: &Queue, id: SnapshotId) -> Result<Report, SnapshotError> {
        let loading = queue.clone();
        let draft = blocking(move || loading.load(id)).await?;
        let manifest = snapshot::upload(&self.ctx.store, &draft, &|_| {}).await?;
        let committed = Instant::now();
        let timing = self.timings.remove(&id).map(|(frozen_at, wall)| Timing { frozen_at, wall, committed });
        // The snapshot is safe; what is too many is removed now or after the next one.
        let pruned = match snapshot::prune(&self.ctx.store, &self.name, self.keep, id.epoch).await {
            Ok(pruned) => pruned,
            Err(error) => {
                tracing::warn!(container = %self.name, error = crate::chain(&error), "old snapshots could not be removed");
                Pruned::default()
            }
        };
        Ok(Report::Committed { manifest: Box::new(manifest), timing, pruned })
    }

    async fn oldest(&self, queue: &Queue) -> Option<SnapshotId> {
        let queue = queue.clone();
        match blocking(move || queue.list()).await {
            Ok(ids) => ids.first().copied(),
            Err(error) => {
                tracing::warn!(container = %self.name, error = crate::chain(&error), "the drafts cannot be listed");
                None
            }
        }
    }

    async fn remove(&self, queue: &Queue, id: SnapshotId) {
        let queue = queue.clone();
        if let Err(error) = blocking(move || queue.remove(id)).await {
            tracing::warn!(container = %self.name, error = crate::chain(&error), "a draft could not be removed");
        }
    }

    /// The images and the captured files of a dump, in memory and on disk.
    fn discard(&self, job: &Job) {
        for dir in job.parts.iter().map(|part| &part.dir).chain([&job.staging]) {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(container = %self.name, %error, "{} could not be removed", dir.display());
                }
                _ => {}
            }
        }
    }

    fn finished(&self, report: Report) {
        self.pending.send_modify(|pending| *pending = pending.saturating_sub(1));
        // Nobody listens only when the actor has ended.
        let _ = self.outbox.send(report);
    }
}
