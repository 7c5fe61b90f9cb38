//! A container's output: what is in the store, then what is on this node only, then what is still to come.

use std::{sync::Arc, time::Duration};

use ha_proto::control::LogChunk;
use tokio::sync::mpsc;
use tonic::Status;

use super::ApiError;
use crate::{
    agentlink::{ChannelDir, LogShipper},
    node::Node,
    recovery::Place,
    spec::ContainerName,
    store::{apps, logs},
};

const LOOK_EVERY: Duration = Duration::from_millis(250);
const READ_AT_ONCE: u64 = 256 << 10;

pub async fn stream(
    node: Arc<Node>,
    name: ContainerName,
    follow: bool,
    sender: mpsc::Sender<Result<LogChunk, Status>>,
) {
    if let Err(error) = send(&node, &name, follow, &sender).await {
        // The reader may be gone.
        let _ = sender.send(Err(error.into())).await;
    }
}

async fn send(
    node: &Node,
    name: &ContainerName,
    follow: bool,
    sender: &mpsc::Sender<Result<LogChunk, Status>>,
) -> Result<(), ApiError> {
    let unavailable = |error: &(dyn std::error::Error + 'static)| ApiError::Unavailable(crate::chain(error));
    let store = &node.ctx.store;
    let Some(standing) = node.log_standing(name) else {
        let app = apps::newest(store, name).await.map_err(|error| unavailable(&error))?;
        if app.is_none_or(|app| app.content.is_none()) {
            return Err(ApiError::NotFound(format!("there is no container {name}; `ha-manager status` lists them")));
        }
        return shipped(node, name, None, sender).await;
    };
    let mut cursor = standing.cursor.clone();
    shipped(node, name, Some((standing.epoch, standing.number)), sender).await?;
    let channel = Place::new(&node.ctx.config, name).channel();
    loop {
        let (dir, from) = (channel.clone(), cursor.clone());
        let read =
            tokio::task::spawn_blocking(move || LogShipper::new(ChannelDir::open(&dir)?).after(&from, READ_AT_ONCE))
                .await;
        match read.map_err(|error| ApiError::failed(&error))?.map_err(|error| ApiError::failed(&error))? {
            Some(segment) => {
                cursor = segment.next;
                if sender.send(Ok(LogChunk { data: segment.bytes })).await.is_err() {
                    return Ok(());
                }
            }
            None if follow && node.has(name) => {
                tokio::select! {
                    () = sender.closed() => return Ok(()),
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            }
            None => return Ok(()),
        }
    }
}

/// The segments before `end`, or all of them.
async fn shipped(
    node: &Node,
    name: &ContainerName,
    end: Option<(crate::spec::Epoch, u64)>,
    sender: &mpsc::Sender<Result<LogChunk, Status>>,
) -> Result<(), ApiError> {
    let store = &node.ctx.store;
    let segments = logs::list(store, name).await.map_err(|error| ApiError::Unavailable(crate::chain(&error)))?;
    for segment in segments {
        if end.is_some_and(|end| (segment.epoch, segment.number) >= end) {
            break;
        }
        let data = match logs::get(store, name, segment).await {
            Ok(data) => data,
            // Trimmed in between: it was the oldest.
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(ApiError::Unavailable(crate::chain(&error))),
        };
        if sender.send(Ok(LogChunk { data: data.into() })).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
