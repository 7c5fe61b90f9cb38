//! What happens to a dump after the container runs again: packed, uploaded, committed, and the old ones pruned.
//!
//! One task per container, so that snapshots are committed in the order they were taken. A store that is away leaves drafts
//! on this node, bounded by `checkpoint.queue_max_bytes`; they are committed when it is back.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, Notify, mpsc, watch};

use super::{launch::blocking, place::Place};
use crate::{
    node::Ctx,
    ownership::{Owner, OwnershipError},
    snapshot::{self, Manifest, PackOptions, PartSource, Pruned, Queue, SnapshotError, SnapshotMeta},
    spec::{ContainerName, Epoch, SnapshotId},
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
    pending: watch::Sender<Pending>,
    progress: watch::Receiver<Drains>,
    kick: Arc<Notify>,
    pruning: Arc<Pruning>,
}

/// Whether old snapshots may go: only while the container is up, for else one of them is being restored, or will be.
#[derive(Default)]
struct Pruning {
    allowed: AtomicBool,
    busy: Mutex<()>,
}

/// What is under way. Drafts that wait for a store that is away are not: they are safe on this node's disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pending {
    /// Dumps in memory that are neither packed nor given up.
    dumps: usize,
    /// Drafts are on their way to the store.
    uploading: bool,
    /// Grows with what has arrived there.
    moved: u64,
}

impl Pending {
    fn is_idle(&self) -> bool {
        self.dumps == 0 && !self.uploading
    }
}

/// How far the drafts on this node's disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drains {
    /// Attempts to bring them all into the store.
    ended: u64,
    committed: u64,
    /// Some are left: the store was away.
    parked: bool,
}

impl Uploads {
    pub fn start(ctx: Arc<Ctx>, name: ContainerName, place: Place, owner: &Owner, keep: u32) -> Self {
        // Unbounded by type, bounded by use: the actor pushes nothing while `pending` is at its limit, and each push makes at
        // most a few reports.
        let (jobs, inbox) = mpsc::unbounded_channel();
        let (outbox, reports) = mpsc::unbounded_channel();
        let pending = watch::Sender::new(Pending::default());
        // Until the worker has looked there may be some of an earlier manager.
        let drains = watch::Sender::new(Drains { ended: 0, committed: 0, parked: true });
        let (progress, kick) = (drains.subscribe(), Arc::new(Notify::new()));
        let pruning = Arc::new(Pruning::default());
        let worker = Worker {
            ctx,
            name,
            place,
            outbox,
            pending: pending.clone(),
            drains,
            kick: Arc::clone(&kick),
            pruning: Arc::clone(&pruning),
            timings: HashMap::new(),
            keep,
            retry: None,
            said_waiting: None,
        };
        tokio::spawn(worker.run(inbox, owner.clone()));
        Self { jobs, reports, pending, progress, kick, pruning }
    }

    /// Old snapshots may go or must stay. One that is just being removed may still go: see [`Self::hold`].
    pub fn may_prune(&self, may: bool) {
        self.pruning.allowed.store(may, Ordering::SeqCst);
    }

    /// From when this returns until it is allowed again, no snapshot is removed.
    pub async fn hold(&self) {
        self.may_prune(false);
        drop(self.pruning.busy.lock().await);
    }

    /// Waits until no dump is in memory any more: each is a draft on this node's disk or given up. Until then what it was
    /// taken into must not be cleared away.
    pub async fn packed(&self) {
        let mut pending = self.pending.subscribe();
        tokio::select! {
            _ = pending.wait_for(|pending| pending.dumps == 0) => {}
            // Its worker is gone: nobody packs it any more.
            () = self.jobs.closed() => {}
        }
    }

    /// Dumps in memory that are neither packed nor given up.
    pub fn pending(&self) -> usize {
        self.pending.borrow().dumps
    }

    pub fn push(&self, job: Job) {
        self.pending.send_modify(|pending| pending.dumps += 1);
        // The worker lives as long as the sender does.
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

    /// Waits until nothing is under way any more, for `patience` without any progress, and for `longest` in all.
    pub async fn settle(&self, patience: Duration, longest: Duration) {
        let mut pending = self.pending.subscribe();
        let end = Instant::now() + longest;
        loop {
            let moved = pending.borrow_and_update().moved;
            let next = pending.wait_for(|now| now.is_idle() || now.moved != moved);
            // Running out of patience is an answer: what is not committed by now is not waited for.
            let Ok(Ok(goes_on)) = tokio::time::timeout(patience, next).await.map(|now| now.map(|now| !now.is_idle()))
            else {
                return;
            };
            if !goes_on || Instant::now() >= end {
                return;
            }
        }
    }
}

struct Retry {
    at: Instant,
    wait: Duration,
    cause: String,
}

struct Worker {
    ctx: Arc<Ctx>,
    name: ContainerName,
    place: Place,
    outbox: mpsc::UnboundedSender<Report>,
    pending: watch::Sender<Pending>,
    drains: watch::Sender<Drains>,
    kick: Arc<Notify>,
    pruning: Arc<Pruning>,
    timings: HashMap<SnapshotId, (Instant, Duration)>,
    keep: u32,
    retry: Option<Retry>,
    /// The newest snapshot that was reported to wait.
    said_waiting: Option<SnapshotId>,
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
                self.drains.send_modify(|drains| (drains.ended, drains.parked) = (1, false));
                while let Some(job) = inbox.recv().await {
                    let id = job.meta.id;
                    self.discard(job).await;
                    self.packed(false);
                    self.report(Report::Failed { id, cause: cause.clone() });
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
        let timing = (job.frozen_at, job.wall);
        self.discard(job).await;
        self.packed(packed.is_ok());
        match packed {
            Ok(dropped) => {
                self.timings.insert(id, timing);
                for id in dropped {
                    self.timings.remove(&id);
                    let cause = "dropped: the queue of drafts was full and newer ones are in it".into();
                    self.report(Report::Failed { id, cause });
                }
            }
            Err(error) => self.report(Report::Failed { id, cause: crate::chain(&error) }),
        }
    }

    /// Uploads what waits, oldest first, until it is all there or the store is away. `None`: it is too early to try again.
    async fn drain(&mut self, queue: &Queue) -> Option<()> {
        if let Some(retry) = self.retry.as_ref().filter(|retry| Instant::now() < retry.at) {
            let cause = retry.cause.clone();
            self.park(queue, cause).await;
            return None;
        }
        self.pending.send_modify(|pending| pending.uploading = true);
        while let Some(id) = self.list(queue).await.first().copied() {
            match self.commit(queue, id).await {
                Ok(report) => {
                    self.retry = None;
                    self.drains.send_modify(|drains| drains.committed += 1);
                    self.remove(queue, id).await;
                    self.report(report);
                    blocking(give_back_memory).await;
                }
                Err(error) if error.is_retryable() => {
                    let wait = self.retry.as_ref().map_or(FIRST_RETRY, |retry| (retry.wait * 2).min(LONGEST_RETRY));
                    let cause = crate::chain(&error);
                    self.retry = Some(Retry { at: Instant::now() + wait, wait, cause: cause.clone() });
                    self.park(queue, cause).await;
                    return Some(());
                }
                Err(error) => {
                    self.remove(queue, id).await;
                    let cause = crate::chain(&error);
                    self.timings.remove(&id);
                    self.report(match error {
                        SnapshotError::Ownership { source, .. } => match *source {
                            OwnershipError::Deposed { by, .. } => Report::Deposed { id, by: *by },
                            _ => Report::Failed { id, cause },
                        },
                        _ => Report::Failed { id, cause },
                    });
                }
            }
        }
        self.retry = None;
        self.pending.send_modify(|pending| pending.uploading = false);
        Some(())
    }

    /// The store is away: what is in the queue stays there for now. Said once of each snapshot, for somebody may wait for it.
    async fn park(&mut self, queue: &Queue, cause: String) {
        for id in self.list(queue).await {
            if self.said_waiting.is_none_or(|said| id > said) {
                self.said_waiting = Some(id);
                self.report(Report::Waiting { id, cause: cause.clone() });
            }
        }
        self.pending.send_modify(|pending| pending.uploading = false);
    }

    /// One dump is no longer in memory; `Pending` never says in between that nothing is under way.
    fn packed(&self, uploading: bool) {
        self.pending.send_modify(|pending| {
            pending.dumps -= 1;
            pending.uploading = uploading;
        });
    }

    async fn commit(&mut self, queue: &Queue, id: SnapshotId) -> Result<Report, SnapshotError> {
        let loading = queue.clone();
        let draft = blocking(move || loading.load(id)).await?;
        let moved = |_| self.pending.send_modify(|pending| pending.moved += 1);
        let manifest = snapshot::upload(&self.ctx.store, &draft, &moved).await?;
        let committed = Instant::now();
        let timing = self.timings.remove(&id).map(|(frozen_at, wall)| Timing { frozen_at, wall, committed });
        let pruned = self.prune(id.epoch).await;
        Ok(Report::Committed { manifest: Box::new(manifest), timing, pruned })
    }

    /// The newest is safe; what is too many is removed now or after a later one.
    async fn prune(&self, epoch: Epoch) -> Pruned {
        let _busy = self.pruning.busy.lock().await;
        if !self.pruning.allowed.load(Ordering::SeqCst) {
            return Pruned::default();
        }
        snapshot::prune(&self.ctx.store, &self.name, self.keep, epoch).await.unwrap_or_else(|error| {
            tracing::warn!(container = %self.name, error = crate::chain(&error), "old snapshots could not be removed");
            Pruned::default()
        })
    }

    /// The drafts, oldest first.
    async fn list(&self, queue: &Queue) -> Vec<SnapshotId> {
        let queue = queue.clone();
        blocking(move || queue.list()).await.unwrap_or_else(|error| {
            tracing::warn!(container = %self.name, error = crate::chain(&error), "the drafts cannot be listed");
            Vec::new()
        })
    }

    async fn remove(&self, queue: &Queue, id: SnapshotId) {
        let queue = queue.clone();
        if let Err(error) = blocking(move || queue.remove(id)).await {
            tracing::warn!(container = %self.name, error = crate::chain(&error), "a draft could not be removed");
        }
    }

    /// The images and the captured files of a dump, in memory and on disk.
    async fn discard(&self, job: Job) {
        let name = self.name.clone();
        blocking(move || {
            for dir in job.parts.iter().map(|part| &part.dir).chain([&job.staging]) {
                match fs::remove_dir_all(dir) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        tracing::warn!(container = %name, %error, "{} could not be removed", dir.display());
                    }
                    _ => {}
                }
            }
        })
        .await;
    }

    fn report(&self, report: Report) {
        // Nobody listens only when the actor has ended.
        let _ = self.outbox.send(report);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn uploads() -> (Uploads, watch::Sender<Pending>) {
        let pending = watch::Sender::new(Pending::default());
        let (jobs, reports) = (mpsc::unbounded_channel().0, mpsc::unbounded_channel().1);
        let progress = watch::Sender::new(Drains { ended: 0, committed: 0, parked: false }).subscribe();
        let kick = Arc::new(Notify::new());
        let pruning = Arc::default();
        (Uploads { jobs, reports, pending: pending.clone(), progress, kick, pruning }, pending)
    }

    #[tokio::test]
    async fn settling_waits_for_dumps_and_for_drafts_on_their_way() {
        let (uploads, pending) = uploads();
        let settled = async |uploads: &Uploads| {
            let long = Duration::from_secs(60);
            tokio::time::timeout(Duration::from_millis(20), uploads.settle(long, long)).await.is_ok()
        };
        assert!(settled(&uploads).await);
        pending.send_modify(|pending| pending.dumps = 1);
        assert!(!settled(&uploads).await && uploads.pending() == 1);
        pending.send_replace(Pending { dumps: 0, uploading: true, moved: 0 });
        assert!(!settled(&uploads).await && uploads.pending() == 0, "a draft is no dump in memory");
        pending.send_replace(Pending::default());
        assert!(settled(&uploads).await);
    }

    #[tokio::test]
    async fn an_upload_that_makes_progress_is_waited_for_longer_than_one_that_does_not() {
        let (uploads, pending) = uploads();
        pending.send_replace(Pending { dumps: 0, uploading: true, moved: 0 });
        // Without progress: patience is all there is.
        uploads.settle(Duration::from_millis(1), Duration::from_secs(60)).await;
        let moving = pending.clone();
        let upload = tokio::spawn(async move {
            for _ in 0..5 {
                moving.send_modify(|pending| pending.moved += 1);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            moving.send_modify(|pending| pending.uploading = false);
        });
        uploads.settle(Duration::from_secs(60), Duration::from_secs(60)).await;
        assert!(pending.borrow().is_idle());
        upload.await.unwrap();
        // For ever it is not.
        let moving = pending.clone();
        pending.send_modify(|pending| pending.uploading = true);
        let endless = tokio::spawn(async move {
            loop {
                moving.send_modify(|pending| pending.moved += 1);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        uploads.settle(Duration::from_secs(60), Duration::from_millis(5)).await;
        endless.abort();
    }

    #[tokio::test]
    async fn what_is_being_packed_is_waited_for_and_a_dead_worker_is_not() {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let (mut uploads, pending) = uploads();
        uploads.jobs = jobs;
        pending.send_modify(|pending| pending.dumps = 1);
        let short = Duration::from_millis(20);
        assert!(tokio::time::timeout(short, uploads.packed()).await.is_err());
        let packer = pending.clone();
        tokio::join!(uploads.packed(), async move { packer.send_modify(|pending| pending.dumps = 0) });
        pending.send_modify(|pending| pending.dumps = 1);
        drop(inbox);
        uploads.packed().await;
    }

    #[tokio::test]
    async fn holding_waits_for_the_removal_that_is_under_way() {
        let (uploads, _pending) = uploads();
        uploads.may_prune(true);
        let busy = Arc::clone(&uploads.pruning);
        let removing = busy.busy.lock().await;
        assert!(tokio::time::timeout(Duration::from_millis(20), uploads.hold()).await.is_err());
        assert!(!busy.allowed.load(Ordering::SeqCst));
        drop(removing);
        uploads.hold().await;
    }
}
