//! A container's output: what is in the store, then what is on its node only, then what is still to come, wherever that is.
//!
//! A follower stays with the container: each chunk carries a position that means the same on every node, so that the node that
//! is asked can go on with the next owner after a move or a failover, and with the same one after its manager's restart.

use std::{sync::Arc, time::Duration};

use ha_proto::control::{LogChunk, LogsRequest};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tonic::Status;

use super::{ApiError, forward};
use crate::{
    agentlink::{ChannelDir, LogCursor, LogShipper},
    node::{Node, Whereabouts},
    recovery::Place,
    spec::{ContainerName, Epoch},
    store::{apps, logs},
};

/// How often the end of a log is looked at. A handover takes longer, so that a source's last lines are seen before they go.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two looks for the container's new owner.
const SEEK_EVERY: Duration = Duration::from_millis(500);
const READ_AT_ONCE: u64 = 256 << 10;

/// Where a reader is: everything of earlier epochs is behind it, and of this one's log what is before the cursor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    epoch: Epoch,
    /// Of the owner's own log; none when only the store was read.
    cursor: Option<LogCursor>,
}

type Sender = mpsc::Sender<Result<LogChunk, Status>>;

/// Sends a container's output from the node that has it, for as long as it exists when it is followed.
pub async fn stream(node: Arc<Node>, name: ContainerName, request: LogsRequest, sender: Sender) {
    let outcome = tokio::select! {
        outcome = follow(&node, &name, request, &sender) => outcome,
        () = sender.closed() => return,
    };
    if let Err(error) = outcome {
        // The reader may be gone.
        let _ = sender.send(Err(error.into())).await;
    }
}

async fn follow(node: &Node, name: &ContainerName, request: LogsRequest, sender: &Sender) -> Result<(), ApiError> {
    let mut after = parse(&request.after)?;
    // A manager that passes a request on follows itself: here only what this node has is wanted.
    let passed_on = request.local;
    described(node, name).await?;
    loop {
        let place = if passed_on { Whereabouts::Here } else { node.place_of(name).await? };
        match place {
            Whereabouts::Here if node.has(name) => own(node, name, request.follow, &mut after, sender).await?,
            Whereabouts::Here | Whereabouts::Absent(..) => shipped(node, name, None, &mut after, sender).await?,
            Whereabouts::Peer(peer) => {
                let ask = LogsRequest { after: shown(after.as_ref()), local: true, ..request.clone() };
                match remote(node, &peer, ask, &mut after, sender).await {
                    // It may have ended just now: where the container went is looked up again.
                    Err(_) if request.follow => {}
                    other => other?,
                }
            }
        }
        if !request.follow || passed_on || described(node, name).await.is_err() {
            return Ok(());
        }
        tokio::time::sleep(SEEK_EVERY).await;
    }
}

fn parse(text: &str) -> Result<Option<Position>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad = |err| ApiError::Invalid(format!("{text:?} is no position in a log: {err}"));
    serde_json::from_str(text).map(Some).map_err(bad)
}

fn shown(position: Option<&Position>) -> String {
    // A position is numbers and texts: it can be written.
    position.and_then(|position| serde_json::to_string(position).ok()).unwrap_or_default()
}

async fn described(node: &Node, name: &ContainerName) -> Result<(), ApiError> {
    let app = apps::newest(&node.ctx.store, name).await.map_err(|error| ApiError::Unavailable(crate::chain(&error)))?;
    match app.and_then(|app| app.content) {
        Some(_) => Ok(()),
        None => Err(ApiError::no_container(name)),
    }
}

async fn send(sender: &Sender, data: Vec<u8>, position: &Position) -> Result<(), ApiError> {
    let chunk = LogChunk { data, position: shown(Some(position)) };
    sender.send(Ok(chunk)).await.map_err(|_| ApiError::Failed("nobody reads the log any more".into()))
}

async fn remote(
    node: &Node,
    peer: &crate::membership::PeerView,
    ask: LogsRequest,
    after: &mut Option<Position>,
    sender: &Sender,
) -> Result<(), ApiError> {
    let mut client = forward::connect(&node.ctx.security, peer).await?;
    let passed = |status: Status| ApiError::Unavailable(format!("node {}: {}", peer.name, status.message()));
    let mut stream = client.logs(ask).await.map_err(passed)?.into_inner();
    while let Some(chunk) = stream.message().await.map_err(passed)? {
        *after = parse(&chunk.position)?;
        sender.send(Ok(chunk)).await.map_err(|_| ApiError::Failed("nobody reads the log any more".into()))?;
    }
    Ok(())
}

/// What this node's container has written; with `follow` until it is not here any more.
async fn own(
    node: &Node,
    name: &ContainerName,
    follow: bool,
    after: &mut Option<Position>,
    sender: &Sender,
) -> Result<(), ApiError> {
    let Some(standing) = node.log_standing(name) else { return Ok(()) };
    let epoch = standing.epoch;
    let mut cursor = match after.as_ref().filter(|after| after.epoch == epoch).and_then(|after| after.cursor.clone()) {
        Some(cursor) => cursor,
        None => {
            shipped(node, name, Some((epoch, standing.number)), after, sender).await?;
            standing.cursor
        }
    };
    let channel = Place::new(&node.ctx.config, name).channel();
    let max = node.ctx.config.logs.file_max_bytes();
    loop {
        let (dir, from) = (channel.clone(), cursor.clone());
        let read = tokio::task::spawn_blocking(move || {
            LogShipper::new(ChannelDir::open(&dir)?, max).after(&from, READ_AT_ONCE)
        })
        .await
        .map_err(|error| ApiError::failed(&error))?;
        match read {
            Ok(Some(segment)) => {
                cursor = segment.next;
                let position = Position { epoch, cursor: Some(cursor.clone()) };
                send(sender, segment.bytes, &position).await?;
                *after = Some(position);
            }
            Ok(None) if follow && node.has(name) => tokio::time::sleep(LOOK_EVERY).await,
            Ok(None) => return Ok(()),
            // Its directory is gone: so is the container.
            Err(_) if !node.has(name) => return Ok(()),
            Err(_) if follow => tokio::time::sleep(LOOK_EVERY).await,
            // Nothing of it has run here yet: it is at rest, or being brought up.
            Err(_) if !channel.exists() => return Ok(()),
            Err(error) => return Err(ApiError::failed(&error)),
        }
    }
}

/// The segments in the store after a position and before `end`, or all of them.
async fn shipped(
    node: &Node,
    name: &ContainerName,
    end: Option<(Epoch, u64)>,
    after: &mut Option<Position>,
    sender: &Sender,
) -> Result<(), ApiError> {
    let store = &node.ctx.store;
    let begun = after.as_ref().map(|after| after.epoch);
    let segments = logs::list(store, name).await.map_err(|error| ApiError::Unavailable(crate::chain(&error)))?;
    for segment in segments {
        if end.is_some_and(|end| (segment.epoch, segment.number) >= end) {
            break;
        }
        if begun.is_some_and(|begun| segment.epoch <= begun) {
            continue;
        }
        let data = match logs::get(store, name, segment).await {
            Ok(data) => data,
            // Trimmed in between: it was the oldest.
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(ApiError::Unavailable(crate::chain(&error))),
        };
        let position = Position { epoch: segment.epoch, cursor: None };
        send(sender, data.into(), &position).await?;
        *after = Some(position);
    }
    Ok(())
}
