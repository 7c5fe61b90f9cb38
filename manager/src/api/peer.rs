//! The peer service: membership's calls, and the handing over of containers.

use std::sync::Arc;

use ha_proto::peer::{
    HasCopyReply, HasCopyRequest, PingIndirectReply, PingIndirectRequest, PingReply, PingRequest, TakeOverReply,
    TakeOverRequest, peer_server::Peer,
};
use tonic::{Request, Response, Status};

use super::ApiError;
use crate::{
    membership::MembershipService,
    node::Node,
    spec::{ContainerName, Epoch, SnapshotId},
};

pub struct PeerService {
    node: Arc<Node>,
    membership: MembershipService,
}

impl PeerService {
    pub fn new(node: Arc<Node>) -> Self {
        Self { membership: node.ctx.membership.service(), node }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        self.membership.ping(request).await
    }

    async fn ping_indirect(
        &self,
        request: Request<PingIndirectRequest>,
    ) -> Result<Response<PingIndirectReply>, Status> {
        self.membership.ping_indirect(request).await
    }

    async fn take_over(&self, request: Request<TakeOverRequest>) -> Result<Response<TakeOverReply>, Status> {
        if !self.node.admits(request.extensions().get()).await {
            return Err(Status::permission_denied("containers are taken over from this cluster's nodes only"));
        }
        let envelope = request.get_ref().envelope.clone();
        let from = self.membership.caller(&request, envelope)?;
        let request = request.into_inner();
        let container: ContainerName = request.container.parse().map_err(ApiError::from)?;
        let snapshot = match request.snapshot.as_str() {
            "" => None,
            id => Some(id.parse::<SnapshotId>().map_err(ApiError::from)?),
        };
        tracing::info!(%from, %container, epoch = request.epoch, "asked to take a container over");
        let node = Arc::clone(&self.node);
        // In a task of its own: a call that its caller gives up is dropped, and what it has begun must not stay half done.
        let taking =
            tokio::spawn(async move { node.take_handed(&container, &from, Epoch(request.epoch), snapshot).await });
        let outcome = taking.await.map_err(|_| Status::internal("taking the container over was given up"))?;
        let (epoch, error) = match outcome {
            Ok(epoch) => (epoch.0, String::new()),
            Err(error) => (0, error),
        };
        Ok(Response::new(TakeOverReply { envelope: Some(self.membership.envelope()), epoch, error }))
    }

    async fn has_copy(&self, request: Request<HasCopyRequest>) -> Result<Response<HasCopyReply>, Status> {
        let envelope = request.get_ref().envelope.clone();
        self.membership.caller(&request, envelope)?;
        let container: ContainerName = request.into_inner().container.parse().map_err(ApiError::from)?;
        let copy = self.node.has_copy(&container);
        Ok(Response::new(HasCopyReply { envelope: Some(self.membership.envelope()), copy }))
    }
}
