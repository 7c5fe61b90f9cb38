//! What an actor is asked to do, and how it tells how far it is.

use ha_proto::control::Progress;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::{
    api::ApiError,
    ownership::Owner,
    spec::{NodeName, SnapshotId},
    store::apps::App,
};

/// An operator's order for one container.
#[derive(Debug, Clone)]
pub enum Order {
    Checkpoint,
    /// Without a `snapshot` the newest healthy one. A copy that works is checkpointed first, unless its state is to be discarded.
    Restore {
        snapshot: Option<SnapshotId>,
        discard: bool,
    },
    Move {
        to: NodeName,
    },
    Remove,
}

/// What comes into an actor's inbox.
#[derive(Debug)]
pub enum Command {
    Order {
        order: Order,
        progress: ProgressSender,
        reply: oneshot::Sender<Result<serde_json::Value, ApiError>>,
    },
    /// A new generation of its description that needs no new container.
    Update(Box<App>),
    /// A later epoch exists: begun elsewhere, or claimed only.
    Outdated(Owner),
    /// The manager ends; the container goes on.
    Shutdown,
}

/// Where a long command reports its steps. Reports never hold the command up: what a slow reader cannot take is left out.
#[derive(Debug, Clone)]
pub struct ProgressSender(Option<mpsc::Sender<Result<Progress, Status>>>);

impl ProgressSender {
    pub fn new(sender: mpsc::Sender<Result<Progress, Status>>) -> Self {
        Self(Some(sender))
    }

    /// For work nobody watches.
    pub fn silent() -> Self {
        Self(None)
    }

    pub fn step(&self, step: impl Into<String>) {
        self.bytes(step, 0, 0);
    }

    pub fn bytes(&self, step: impl Into<String>, done_bytes: u64, total_bytes: u64) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send(Ok(Progress { step: step.into(), done_bytes, total_bytes, ..Progress::default() }));
        }
    }
}
