//! A container's output on its way to the store, so that it is there after a failover.
//!
//! The agent writes a log on this node; every few seconds what is new in it becomes a segment in the store. Lines since the
//! last segment are lost with the node. Where shipping stands is kept beside the log, so that a restarted manager goes on.

use std::{
    fs, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::{launch::blocking, place::Place};
use crate::{
    agentlink::{ChannelDir, LogCursor, LogShipper},
    node::Ctx,
    spec::{ContainerName, Epoch},
    store::{StoreError, logs},
};

const SHIP_EVERY: Duration = Duration::from_secs(3);
/// The end of a log is waited for this long: mostly somebody waits for the container meanwhile.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);
/// After this many segments the store is looked through for what is too old to keep.
const TRIM_EVERY: u64 = 32;
const STANDING: &str = "log-shipped.json";

/// How far the log is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub epoch: Epoch,
    /// Of the next segment.
    pub number: u64,
    pub cursor: LogCursor,
}

/// The shipping of one container's log. Dropping it ends it; what is not shipped stays on this node.
pub struct Shipping {
    shipper: Arc<Shipper>,
    task: JoinHandle<()>,
}

struct Shipper {
    ctx: Arc<Ctx>,
    name: ContainerName,
    place: Place,
    standing: Arc<Mutex<Standing>>,
    /// One at a time: two would ship the same lines. False once nothing is to be shipped any more.
    busy: tokio::sync::Mutex<bool>,
}

/// For readers of the log.
#[derive(Debug, Clone)]
pub struct ShippingView(Arc<Mutex<Standing>>);

impl ShippingView {
    pub fn standing(&self) -> Standing {
        lock(&self.0).clone()
    }
}

impl Shipping {
    pub fn start(ctx: Arc<Ctx>, name: ContainerName, place: Place, epoch: Epoch) -> Self {
        let standing = load(&place).unwrap_or(Standing { epoch, number: 0, cursor: LogCursor::default() });
        // Segments of a new epoch are counted anew; the log itself goes on where it was.
        let standing = if standing.epoch == epoch { standing } else { Standing { epoch, number: 0, ..standing } };
        let standing = Arc::new(Mutex::new(standing));
        let shipper = Arc::new(Shipper { ctx, name, place, standing, busy: tokio::sync::Mutex::new(true) });
        let task = tokio::spawn(Arc::clone(&shipper).run());
        Self { shipper, task }
    }

    /// Ships what is there now, as far as the store takes it within some seconds.
    ///
    /// # Errors
    /// Why the rest is not in the store, in words.
    pub async fn flush(&self) -> Result<(), String> {
        let shipped = tokio::time::timeout(FLUSH_PATIENCE, self.shipper.ship()).await;
        shipped.unwrap_or_else(|_| Err(format!("the store did not take it within {FLUSH_PATIENCE:?}")))
    }

    /// Ships nothing from here on; what is under way is waited for, so that nothing appears in the store afterwards.
    pub async fn stop(&self) {
        let stop = async { *self.shipper.busy.lock().await = false };
        if tokio::time::timeout(FLUSH_PATIENCE, stop).await.is_err() {
            self.task.abort();
        }
    }

    pub fn view(&self) -> ShippingView {
        ShippingView(Arc::clone(&self.shipper.standing))
    }
}

impl Drop for Shipping {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shipper {
    async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SHIP_EVERY).await;
            if let Err(error) = self.ship().await {
                // Said by the store's own events when it is away; here it only waits.
                tracing::debug!(container = %self.name, error, "the log waits on this node");
            }
        }
    }

    async fn ship(&self) -> Result<(), String> {
        let goes_on = self.busy.lock().await;
        if !*goes_on {
            return Ok(());
        }
        let (ctx, name, place) = (&self.ctx, &self.name, &self.place);
        let max = ctx.config.logs.file_max_bytes();
        loop {
            let at = lock(&self.standing).clone();
            let (channel, cursor) = (place.channel(), at.cursor.clone());
            let segment = blocking(move || {
                let dir = ChannelDir::open(&channel).map_err(|error| crate::chain(&error))?;
                LogShipper::new(dir, max).after(&cursor, logs::MAX_SEGMENT / 2).map_err(|error| crate::chain(&error))
            })
            .await?;
            let Some(segment) = segment else { return Ok(()) };
            let mut bytes = segment.bytes;
            if segment.gap {
                bytes.splice(
                    0..0,
                    b"-- lines are missing here: the log rotated faster than it was shipped --\n".iter().copied(),
                );
            }
            let number =
                self.put(at.epoch, at.number, Bytes::from(bytes)).await.map_err(|error| crate::chain(&error))?;
            let next = Standing { epoch: at.epoch, number: number + 1, cursor: segment.next };
            // What is in the store is not shipped again, whatever fails below.
            *lock(&self.standing) = next.clone();
            save(place, &next).map_err(|error| error.to_string())?;
            if next.number.is_multiple_of(TRIM_EVERY) {
                let trimmed = logs::trim(&ctx.store, name, ctx.config.logs.max_bytes).await;
                trimmed.map_err(|error| crate::chain(&error))?;
            }
        }
    }
}

impl Shipper {
    /// Stores a segment under `number`, or after the ones a manager stored that ended before it could write that down: what
    /// they hold is not stored again. Returns the number it went to.
    async fn put(&self, epoch: Epoch, mut number: u64, mut bytes: Bytes) -> Result<u64, StoreError> {
        let (store, name) = (&self.ctx.store, &self.name);
        loop {
            match logs::put(store, name, epoch, number, bytes.clone()).await {
                Ok(()) => return Ok(number),
                Err(StoreError::Corrupt { .. }) => {
                    let stored = logs::get(store, name, logs::Segment { epoch, number, size: 0 }).await?;
                    if bytes.starts_with(&stored) {
                        bytes = bytes.slice(stored.len()..);
                    }
                    number += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn load(place: &Place) -> Option<Standing> {
    serde_json::from_slice(&fs::read(place.dir.join(STANDING)).ok()?).ok()
}

fn save(place: &Place, standing: &Standing) -> io::Result<()> {
    let temporary = place.dir.join("log-shipped.json.tmp");
    fs::write(&temporary, serde_json::to_vec(standing)?)?;
    fs::rename(temporary, place.dir.join(STANDING))
}

fn lock(standing: &Mutex<Standing>) -> MutexGuard<'_, Standing> {
    standing.lock().unwrap_or_else(PoisonError::into_inner)
}
