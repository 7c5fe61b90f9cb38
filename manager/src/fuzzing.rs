//! Doors for the fuzz targets in `fuzz/`: what in the rooms takes bytes that somebody else made, and what is held against it.
//! Behind the feature `fuzzing`, which nothing else turns on; the rooms' own interfaces stay as they are.

use bytes::Bytes;
use ha_proto::{agent, peer};

use crate::{
    agentlink, compose,
    membership::{self, Gossip, Request, WireError},
    recovery,
    snapshot::{self, Chunk, SnapshotError},
    spec::{ContainerSpec, ImageConfig},
};

/// A peer's envelope, as the service and the callers read it.
///
/// # Errors
/// As for a peer.
pub fn read_gossip(cluster: &str, envelope: Option<peer::Envelope>) -> Result<Gossip, WireError> {
    membership::gossip(cluster, None, envelope)
}

pub fn write_gossip(cluster: &str, gossip: Gossip) -> peer::Envelope {
    membership::envelope(cluster, gossip)
}

/// What an indirect ping asks for.
///
/// # Errors
/// As for a peer.
pub fn read_indirect(target: String, timeout_ms: u32) -> Result<Request, WireError> {
    membership::indirect(target, timeout_ms)
}

/// A chunk from the store: checked, then expanded.
///
/// # Errors
/// As for a restore.
pub fn open_chunk(stored: Bytes, chunk: &Chunk) -> Result<Bytes, SnapshotError> {
    snapshot::open("the chunk", stored, chunk)
}

/// A chunk on its way into the store, compressed where that pays.
///
/// # Errors
/// As for a checkpoint.
pub fn seal_chunk(raw: &[u8]) -> Result<(Vec<u8>, Chunk), SnapshotError> {
    let mut buffer = Vec::new();
    snapshot::seal("the chunk", raw, Some(1), &mut buffer).map(|(stored, chunk)| (stored.to_vec(), chunk))
}

/// A Compose file that asks for these containers.
pub fn render_compose(specs: &[ContainerSpec]) -> String {
    compose::render(specs).to_string()
}

/// What the agent of such a container is told; `None` when there is nothing to run.
pub fn agent_config(spec: &ContainerSpec, image: &ImageConfig) -> Option<agent::Config> {
    recovery::described(spec, image).ok()
}

/// How a main process ended, as events and people have it.
pub fn ending(end: &agent::ProcessEnded) -> (String, serde_json::Value) {
    (recovery::sentence(end), recovery::facts(end))
}

/// The manager's end of the channel to one agent, without sockets.
pub struct Inbox {
    seen: agentlink::Seen,
    sender: tokio::sync::mpsc::Sender<agent::Event>,
    pub events: tokio::sync::mpsc::Receiver<agent::Event>,
}

impl Inbox {
    /// One that queues `room` events.
    pub fn new(room: usize, now: std::time::Instant) -> Self {
        let (sender, events) = tokio::sync::mpsc::channel(room);
        Self { seen: agentlink::Seen::new(now), sender, events }
    }

    /// A datagram arrives.
    pub fn datagram(&mut self, bytes: &[u8], now: std::time::Instant) {
        if let Some(event) = agentlink::datagram(bytes) {
            self.seen.hand_on(event, now, &self.sender);
        }
    }

    /// What an agent writes in answer to the request with `nonce`.
    ///
    /// # Errors
    /// As for a request.
    pub async fn answer(
        &mut self,
        mut stream: &[u8],
        nonce: u64,
        now: std::time::Instant,
    ) -> Result<agent::Reply, agentlink::Error> {
        let reply = agentlink::read_reply(&mut stream).await?;
        self.seen.answer(reply, nonce, now, &self.sender)
    }
}
