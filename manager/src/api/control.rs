//! The control service: each call is carried out here or passed on to the node that owns the container.

use std::{pin::Pin, sync::Arc};

use ha_proto::control::{
    ApplyRequest, CheckpointRequest, Event, EventsRequest, LogChunk, LogsRequest, MoveRequest, Progress, RemoveRequest,
    RestoreRequest, RetireRequest, SnapshotsReply, SnapshotsRequest, StatusReply, StatusRequest,
    control_server::Control,
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::{ApiError, forward, logs, status};
use crate::{
    node::{Node, Whereabouts},
    recovery::{Order, ProgressSender},
    spec::{ContainerName, ContainerSpec, NodeName, SnapshotId},
};

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Items a slow reader may be behind before a command waits for it.
const BACKLOG: usize = 64;

/// Who reaches this service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// This node's root, through the control socket: everything.
    Root,
    /// Nodes of this cluster, through the peer port: only what they pass on. What brings a new program or a host's directory
    /// into a container is said by root on the node itself.
    Peers,
}

#[derive(Clone)]
pub struct ControlService {
    pub node: Arc<Node>,
    pub access: Access,
}

impl ControlService {
    async fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        if self.access == Access::Root {
            return Ok(());
        }
        if self.node.admits(request.extensions().get()).await {
            return Ok(());
        }
        Err(Status::permission_denied(
            "the peer port takes orders from this cluster's nodes only; use the control socket",
        ))
    }

    /// Sends an order to the container's actor, or the whole request to the node that owns the container.
    async fn order<R, F>(
        &self,
        name: &str,
        request: R,
        order: Order,
        remote: F,
    ) -> Result<Response<Reply<Progress>>, Status>
    where
        F: AsyncFnOnce(forward::Client, R) -> Result<Response<tonic::Streaming<Progress>>, Status>,
    {
        let name: ContainerName = name.parse().map_err(ApiError::from)?;
        if let Some(peer) = self.node.owner_elsewhere(&name).await? {
            let client = forward::connect(&self.node.ctx.security, &peer).await?;
            let stream = remote(client, request).await?.into_inner();
            return Ok(Response::new(Box::pin(stream)));
        }
        let node = Arc::clone(&self.node);
        Ok(long(move |progress| async move { node.order(&name, order, progress).await }))
    }
}

/// Runs a long command as a stream of its steps; the last carries the result. The command goes on when the caller goes away.
fn long<F, Fut>(work: F) -> Response<Reply<Progress>>
where
    F: FnOnce(ProgressSender) -> Fut + Send + 'static,
    Fut: Future<Output = Result<serde_json::Value, ApiError>> + Send,
{
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let outcome = work(ProgressSender::new(sender.clone())).await;
        let last = outcome
            .map(|result| Progress { done: true, result_json: result.to_string(), ..Progress::default() })
            .map_err(Status::from);
        let _ = sender.send(last).await;
    });
    Response::new(Box::pin(ReceiverStream::new(receiver)))
}

#[tonic::async_trait]
impl Control for ControlService {
    type ApplyStream = Reply<Progress>;
    type CheckpointStream = Reply<Progress>;
    type RestoreStream = Reply<Progress>;
    type MoveStream = Reply<Progress>;
    type RemoveStream = Reply<Progress>;
    type RetireStream = Reply<Progress>;
    type EventsStream = Reply<Event>;
    type LogsStream = Reply<LogChunk>;

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<Self::ApplyStream>, Status> {
        if self.access != Access::Root {
            return Err(Status::permission_denied("apply through the control socket of the node"));
        }
        let request = request.into_inner();
        let spec: ContainerSpec = serde_json::from_str(&request.spec_json)
            .map_err(|err| ApiError::Invalid(format!("the specification cannot be read: {err}")))?;
        let owner = self.node.owner_elsewhere(&spec.name).await?;
        let node = Arc::clone(&self.node);
        Ok(long(move |progress| async move {
            let (spec, image) = node.prepare(spec, request.base_dir.into(), &progress).await?;
            match owner {
                None => node.apply(spec, image, request.recreate, progress).await,
                // What may be bound into containers is said by root on their node, not by another node.
                Some(peer) => node.compare(spec, image, &peer.name).await,
            }
        }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        self.admit(&request).await?;
        Ok(Response::new(status::gather(&self.node, request.into_inner().local).await))
    }

    async fn checkpoint(
        &self,
        request: Request<CheckpointRequest>,
    ) -> Result<Response<Self::CheckpointStream>, Status> {
        self.admit(&request).await?;
        let request = request.into_inner();
        let name = request.name.clone();
        self.order(&name, request, Order::Checkpoint, async |mut peer, request| peer.checkpoint(request).await).await
    }

    async fn restore(&self, request: Request<RestoreRequest>) -> Result<Response<Self::RestoreStream>, Status> {
        self.admit(&request).await?;
        let request = request.into_inner();
        let snapshot = match request.snapshot.as_str() {
            "" => None,
            id => Some(id.parse::<SnapshotId>().map_err(ApiError::from)?),
        };
        let name = request.name.clone();
        if request.force {
            let wanted: ContainerName = name.parse().map_err(ApiError::from)?;
            if let Whereabouts::Absent(owner, _) = self.node.place_of(&wanted).await? {
                let node = Arc::clone(&self.node);
                return Ok(long(move |progress| async move {
                    node.claim_absent(&wanted, &owner, snapshot, progress).await
                }));
            }
        }
        let order = Order::Restore { snapshot, discard: request.discard };
        self.order(&name, request, order, async |mut peer, request| peer.restore(request).await).await
    }

    async fn r#move(&self, request: Request<MoveRequest>) -> Result<Response<Self::MoveStream>, Status> {
        self.admit(&request).await?;
        let request = request.into_inner();
        let to: NodeName = request.to.parse().map_err(ApiError::from)?;
        let name = request.name.clone();
        self.order(&name, request, Order::Move { to }, async |mut peer, request| peer.r#move(request).await).await
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<Self::RemoveStream>, Status> {
        self.admit(&request).await?;
        let request = request.into_inner();
        let name = request.name.clone();
        self.order(&name, request, Order::Remove, async |mut peer, request| peer.remove(request).await).await
    }

    async fn retire(&self, request: Request<RetireRequest>) -> Result<Response<Self::RetireStream>, Status> {
        if self.access != Access::Root {
            return Err(Status::permission_denied("retire through the control socket of a node"));
        }
        let name: NodeName = request.into_inner().node.parse().map_err(ApiError::from)?;
        let node = Arc::clone(&self.node);
        Ok(long(move |progress| async move { node.retire(&name, progress).await }))
    }

    async fn snapshots(&self, request: Request<SnapshotsRequest>) -> Result<Response<SnapshotsReply>, Status> {
        self.admit(&request).await?;
        let name: ContainerName = request.into_inner().name.parse().map_err(ApiError::from)?;
        Ok(Response::new(SnapshotsReply { snapshots: status::snapshots(&self.node, &name).await? }))
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        self.admit(&request).await?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(forward::events(Arc::clone(&self.node), request.into_inner(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        self.admit(&request).await?;
        let request = request.into_inner();
        let name: ContainerName = request.name.parse().map_err(ApiError::from)?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(logs::stream(Arc::clone(&self.node), name, request, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
