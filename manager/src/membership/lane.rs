//! The way to one peer: a connection, opened when needed and thrown away when it fails.
//!
//! After a link was down, TCP retransmits at growing intervals and a connection would stay mute for seconds although
//! the link is back. So the first call that fails takes its connection with it, and the next one begins with a fresh
//! SYN. For the same reason no keep-alive is needed: the probes are one.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ha_proto::peer::{self as pb, peer_client::PeerClient};
use tokio::sync::Semaphore;
use tonic::{Code, Status, transport::Channel};

use crate::{
    spec::NodeName,
    tls::{Pin, Security},
};

/// Calls to one peer under way at once. Further ones are dropped: an old probe is worth nothing.
const IN_FLIGHT: usize = 8;

/// Why a call failed. All but the first are a failed probe.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaneError {
    #[error("{IN_FLIGHT} calls to it are under way already")]
    Full,
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("{0:?} cannot be dialled")]
    Address(String, #[source] tonic::transport::Error),
    #[error("the call failed: {}", .0.message())]
    Call(Box<Status>),
}

type Client = PeerClient<Channel>;

pub(super) enum Ask {
    Ping(pb::PingRequest),
    Indirect(pb::PingIndirectRequest),
}

pub(super) struct Answer {
    /// Whose certificate the connection has, where certificates are asked for.
    pub certified: Option<NodeName>,
    pub envelope: Option<pb::Envelope>,
    pub seq: u64,
    pub answered: bool,
}

struct Open {
    client: Client,
    pin: Pin,
    /// Tells a connection from the one that took its place.
    generation: u64,
}

pub(super) struct Lane {
    address: String,
    security: Security,
    open: Mutex<(Option<Open>, u64)>,
    slots: Semaphore,
    last_used: Mutex<Instant>,
}

impl Lane {
    pub fn new(address: String, security: Security) -> Self {
        Self {
            address,
            security,
            open: Mutex::new((None, 0)),
            slots: Semaphore::new(IN_FLIGHT),
            last_used: Mutex::new(Instant::now()),
        }
    }

    pub fn touch(&self) {
        *self.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub fn idle_for(&self) -> Duration {
        self.last_used.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// One call, answered or failed within `timeout`.
    pub async fn call(&self, ask: &Ask, timeout: Duration) -> Result<Answer, LaneError> {
        let _slot = self.slots.try_acquire().map_err(|_| LaneError::Full)?;
        let (way, generation, reused) = self.way(timeout)?;
        let result = tokio::time::timeout(timeout, async {
            match send(way, ask).await {
                // The other side closed an idle connection or was started anew: that says nothing about it now.
                Err(status) if reused && broken(&status) => {
                    self.discard(generation);
                    let (way, generation, _) = self.way(timeout)?;
                    send(way, ask).await.map_err(|status| self.failure(status, generation))
                }
                other => other.map_err(|status| self.failure(status, generation)),
            }
        })
        .await;
        result.unwrap_or_else(|_| {
            // The generation may be the retry's by now; a connection that did not answer in time goes either way.
            self.discard_all();
            Err(LaneError::TimedOut(timeout))
        })
    }

    fn failure(&self, status: Status, generation: u64) -> LaneError {
        if broken(&status) {
            self.discard(generation);
        }
        LaneError::Call(Box::new(status))
    }

    fn way(&self, timeout: Duration) -> Result<((Client, Pin), u64, bool), LaneError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(Open { client, pin, generation }), _) = &*open {
            return Ok(((client.clone(), pin.clone()), *generation, true));
        }
        let lazy = self.security.lazy(&self.address, timeout, |endpoint| {
            endpoint
                .initial_stream_window_size(pb::MAX_MESSAGE as u32)
                .initial_connection_window_size(4 * pb::MAX_MESSAGE as u32)
                .buffer_size(2 * IN_FLIGHT)
        });
        let (channel, pin) = lazy.map_err(|source| LaneError::Address(self.address.clone(), source))?;
        let client = PeerClient::new(channel)
            .max_decoding_message_size(pb::MAX_MESSAGE)
            .max_encoding_message_size(pb::MAX_MESSAGE);
        open.1 += 1;
        let generation = open.1;
        open.0 = Some(Open { client: client.clone(), pin: pin.clone(), generation });
        Ok(((client, pin), generation, false))
    }

    fn discard(&self, generation: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.0.as_ref().is_some_and(|open| open.generation == generation) {
            open.0 = None;
        }
    }

    fn discard_all(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).0 = None;
    }
}

/// The connection, not the peer's program, gave this status.
fn broken(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}

async fn send((mut client, pin): (Client, Pin), ask: &Ask) -> Result<Answer, Status> {
    let (envelope, seq, answered) = match ask {
        Ask::Ping(request) => {
            let reply = client.ping(request.clone()).await?.into_inner();
            (reply.envelope, reply.seq, true)
        }
        Ask::Indirect(request) => {
            let reply = client.ping_indirect(request.clone()).await?.into_inner();
            (reply.envelope, reply.seq, reply.answered)
        }
    };
    Ok(Answer { certified: pin.node().cloned(), envelope, seq, answered })
}
