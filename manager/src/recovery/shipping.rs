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
    store::logs,
};

const SHIP_EVERY: Duration = Duration::from_secs(3);
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
    standing: Arc<Mutex<Standing>>,
    task: JoinHandle<()>,
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
        let task = tokio::spawn(run(ctx, name, place, Arc::clone(&standing)));
        Self { standing, task }
    }

    pub fn view(&self) -> ShippingView {
        ShippingView(Arc::clone(&self.standing))
    }
}

impl Drop for Shipping {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(ctx: Arc<Ctx>, name: ContainerName, place: Place, standing: Arc<Mutex<Standing>>) {
    loop {
        tokio::time::sleep(SHIP_EVERY).await;
        if let Err(error) = ship(&ctx, &name, &place, &standing).await {
            // Said by the store's own events when it is away; here it only waits.
            tracing::debug!(container = %name, error, "the log waits on this node");
        }
    }
}

async fn ship(ctx: &Ctx, name: &ContainerName, place: &Place, shared: &Mutex<Standing>) -> Result<(), String> {
    loop {
        let at = lock(shared).clone();
        let (channel, cursor) = (place.channel(), at.cursor.clone());
        let segment = blocking(move || {
            let dir = ChannelDir::open(&channel).map_err(|error| crate::chain(&error))?;
            LogShipper::new(dir).after(&cursor, logs::MAX_SEGMENT / 2).map_err(|error| crate::chain(&error))
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
        let put = logs::put(&ctx.store, name, at.epoch, at.number, Bytes::from(bytes)).await;
        put.map_err(|error| crate::chain(&error))?;
        let next = Standing { epoch: at.epoch, number: at.number + 1, cursor: segment.next };
        // What is in the store is not shipped again, whatever fails below.
        *lock(shared) = next.clone();
        save(place, &next).map_err(|error| error.to_string())?;
        if next.number.is_multiple_of(TRIM_EVERY) {
            let trimmed = logs::trim(&ctx.store, name, ctx.config.logs.max_bytes).await;
            trimmed.map_err(|error| crate::chain(&error))?;
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
