//! Quiet for a checkpoint: no healthcheck runs in the freeze, and what the last one found is what the snapshot says.
//!
//! Asked for before the first copy of the files, so that a check which is waited for does not lie between the copy and the freeze;
//! and once more right before the freeze when the copy took longer than the hold: checks have run by then, and what they found
//! counts. Then one that is under way may be waited for after all, and what is written meanwhile is copied in the freeze.

use std::time::{Duration, Instant};

use ha_proto::agent::{Health, Status};

use crate::{
    agentlink::{self, AgentLink},
    snapshot::SnapshotHealth,
};

/// No healthcheck begins for this long after the asking.
const HOLD: Duration = Duration::from_secs(2);
/// Of this the freeze needs some to begin in.
const LASTS: Duration = Duration::from_secs(1);

pub(super) struct Quiet {
    link: AgentLink,
    /// How long a healthcheck may take.
    check: Duration,
    since: Instant,
    status: Status,
}

impl Quiet {
    /// # Errors
    /// As [`AgentLink::quiesce`].
    pub async fn ask(link: AgentLink, check: Duration) -> Result<Self, agentlink::Error> {
        let status = link.quiesce(HOLD, check).await?;
        Ok(Self { link, check, since: Instant::now(), status })
    }

    /// Right before the freeze.
    ///
    /// # Errors
    /// As [`AgentLink::quiesce`].
    pub async fn renew(&mut self) -> Result<(), agentlink::Error> {
        if self.since.elapsed() > LASTS {
            *self = Self::ask(self.link.clone(), self.check).await?;
        }
        Ok(())
    }

    /// Else checkpoints in quick succession would keep healthchecks off for ever. A hold that cannot be ended ends by itself, and
    /// the agent's silence is the next ping's to judge.
    pub async fn end(link: &AgentLink) {
        // What it answers is of after the freeze.
        let _ = link.quiesce(Duration::ZERO, Duration::ZERO).await;
    }

    pub fn incarnation(&self) -> &[u8] {
        &self.status.incarnation
    }

    pub fn health(&self) -> SnapshotHealth {
        match self.status.health() {
            // Not unhealthy by its retries yet, but the last check has failed: no state to go back to.
            _ if self.status.failing_streak > 0 => SnapshotHealth::Unhealthy,
            Health::Healthy => SnapshotHealth::Healthy,
            Health::Unhealthy => SnapshotHealth::Unhealthy,
            Health::Unspecified | Health::None | Health::Starting => SnapshotHealth::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use ha_proto::agent::{Reply, Request};
    use prost::Message;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;

    /// An agent whose checks fail from the second request on.
    async fn agent(listener: UnixListener) {
        for failing_streak in 0.. {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut body = vec![0; peer.read_u32().await.unwrap() as usize];
            peer.read_exact(&mut body).await.unwrap();
            let nonce = Request::decode(body.as_slice()).unwrap().nonce;
            let status =
                Status { health: Health::Healthy.into(), failing_streak, incarnation: vec![1], ..Status::default() };
            let reply = Reply { nonce, status: Some(status), ..Reply::default() }.encode_to_vec();
            peer.write_all(&[&(reply.len() as u32).to_be_bytes()[..], &reply].concat()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_failed_while_the_files_were_copied_is_in_the_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        tokio::spawn(agent(UnixListener::bind(dir.path().join("agent.sock")).unwrap()));
        let link = AgentLink::open(dir.path(), "test".parse().unwrap()).unwrap();
        let mut quiet = Quiet::ask(link, Duration::ZERO).await.unwrap();
        quiet.since = Instant::now();
        quiet.renew().await.unwrap();
        assert_eq!(quiet.health(), SnapshotHealth::Healthy, "asked again while the hold lasts");
        quiet.since -= HOLD;
        quiet.renew().await.unwrap();
        assert_eq!(quiet.health(), SnapshotHealth::Unhealthy);
        assert!(quiet.since.elapsed() < HOLD, "it is quiet anew");
    }
}
