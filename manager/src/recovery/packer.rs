//! Dumps become drafts on this node's disk, whatever the store does.

use std::{sync::Arc, time::Instant};

use tokio::sync::mpsc;

use super::{
    launch::blocking,
    remove_tree::remove_tree,
    upload::{Job, Report, Shared},
};
use crate::snapshot::{self, PackOptions, Queue, SnapshotError};

pub(super) struct Packer {
    pub shared: Arc<Shared>,
    pub queue: Queue,
    /// Tells the committer that there is something; one message stands for any number of drafts.
    pub packed: mpsc::Sender<()>,
}

impl Packer {
    pub async fn run(self, mut inbox: mpsc::UnboundedReceiver<Job>) {
        while let Some(job) = inbox.recv().await {
            self.pack(job).await;
            // Full: it has not begun yet with what it was told of before.
            let _ = self.packed.try_send(());
        }
    }

    /// Until then every dump fails: there is nowhere to put it. False when no more will come.
    pub async fn refuse(
        shared: &Shared,
        inbox: &mut mpsc::UnboundedReceiver<Job>,
        cause: &str,
        until: Instant,
    ) -> bool {
        while let Ok(job) = tokio::time::timeout_at(until.into(), inbox.recv()).await {
            let Some(job) = job else { return false };
            let id = job.meta.id;
            discard(shared, job).await;
            shared.pending.send_modify(|pending| pending.dumps -= 1);
            shared.report(Report::Failed { id, cause: cause.to_owned() });
        }
        true
    }

    /// From here on the dump is a draft on this node's disk.
    async fn pack(&self, job: Job) {
        let id = job.meta.id;
        let setting = &self.shared.setting;
        let options = PackOptions { level: Some(setting.compression_level), ..PackOptions::default() };
        let max = setting.queue_max_bytes;
        {
            // Known before the draft is there: the committer may be quicker than this task.
            let mut drafts = self.shared.drafts();
            drafts.keep = job.keep;
            drafts.timings.insert(id, (job.frozen_at, job.wall));
        }
        let (queue, shared, meta, parts) =
            (self.queue.clone(), Arc::clone(&self.shared), job.meta.clone(), job.parts.clone());
        let packed = blocking(move || {
            snapshot::pack(&queue, meta, &parts, &options)?;
            // Locked: what is dropped here is not begun to be uploaded meanwhile.
            let drafts = shared.drafts();
            Ok(queue.enforce(max, drafts.uploading))
        })
        .await;
        discard(&self.shared, job).await;
        let arrived = u64::from(packed.is_ok());
        // At once, so that it never looks as if nothing were under way.
        self.shared.pending.send_modify(|pending| {
            (pending.dumps, pending.packed) = (pending.dumps - 1, pending.packed + arrived);
        });
        match packed {
            Ok(Err(error)) => {
                let name = &self.shared.setting.name;
                tracing::warn!(container = %name, error = crate::chain(&error), "no room was made in the queue of drafts");
            }
            Ok(Ok(dropped)) => {
                for id in dropped {
                    self.shared.drafts().timings.remove(&id);
                    let cause = "dropped: the queue of drafts was full and newer ones are in it".into();
                    self.shared.report(Report::Failed { id, cause });
                }
            }
            Err(error) => self.failed(id, &error),
        }
    }

    fn failed(&self, id: crate::spec::SnapshotId, error: &SnapshotError) {
        self.shared.drafts().timings.remove(&id);
        self.shared.report(Report::Failed { id, cause: crate::chain(error) });
    }
}

/// Removes the images and the captured files of a dump, in memory and on disk.
async fn discard(shared: &Shared, job: Job) {
    let name = shared.setting.name.clone();
    blocking(move || {
        for dir in job.parts.iter().map(|part| &part.dir).chain([&job.staging]) {
            if let Err(error) = remove_tree(dir) {
                tracing::warn!(container = %name, %error, "{} could not be removed", dir.display());
            }
        }
    })
    .await;
}
