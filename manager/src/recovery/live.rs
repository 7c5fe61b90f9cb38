//! A copy of a container that is up on this node: its process, its agent, its place in the network.

use std::{io, time::Duration};

use ha_proto::agent::{Event, Health, Status};
use tokio::{io::unix::AsyncFd, sync::mpsc};

use crate::{
    agentlink::{AgentLink, LinkError},
    network::Attachment,
    runtime::ExitWatch,
};

/// Dropping it lets go of the copy and leaves it running.
pub struct Live {
    pub pid: i32,
    pub link: AgentLink,
    pub attachment: Attachment,
    /// The agent's, drawn when it started: a restored copy has the same one, a copy begun anew has another.
    pub incarnation: Vec<u8>,
    pub events: mpsc::Receiver<Event>,
    pub exit: Exit,
}

impl Live {
    pub fn new(pid: i32, mut link: AgentLink, attachment: Attachment, incarnation: Vec<u8>) -> io::Result<Self> {
        let events = link.take_events();
        Ok(Self { pid, link, attachment, incarnation, events, exit: Exit(AsyncFd::new(ExitWatch::new(pid)?)?) })
    }
}

/// The end of the container's init, whoever its parent is.
pub struct Exit(AsyncFd<ExitWatch>);

impl Exit {
    /// Returns when it has ended; again at once when asked again.
    pub async fn wait(&self) {
        // An error would be the runtime's own end; then nobody waits for containers any more.
        if let Ok(mut ready) = self.0.readable().await {
            ready.retain_ready();
        }
    }
}

/// Why a copy that came up does not count as up.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("the agent does not answer")]
    Agent(#[source] LinkError),
    #[error("the state is gone: agent {found} answers, the snapshot holds agent {expected}")]
    StateGone { expected: String, found: String },
    #[error("the main process is not running")]
    MainEnded,
    #[error("the healthcheck fails: {output}")]
    Unhealthy { output: String },
}

/// Asks a new copy whether it works: by its healthcheck if there is one, else whether its main process is there.
///
/// With `expected` it also has to be the agent of the snapshot, with its memory: a restore that came up empty is no restore.
pub async fn probe(
    link: &AgentLink,
    expected: Option<&[u8]>,
    healthcheck: Option<Duration>,
    patience: Duration,
) -> Result<Status, ProbeError> {
    let status = match healthcheck {
        Some(timeout) => link.check_now(timeout, patience + timeout).await,
        None => link.ping(patience).await,
    }
    .map_err(ProbeError::Agent)?;
    if let Some(expected) = expected
        && status.incarnation != expected
    {
        return Err(ProbeError::StateGone { expected: hex::encode(expected), found: hex::encode(&status.incarnation) });
    }
    if !status.main_running {
        return Err(ProbeError::MainEnded);
    }
    if healthcheck.is_some() && status.failing_streak > 0 {
        return Err(ProbeError::Unhealthy { output: status.health_output });
    }
    Ok(status)
}

pub fn health_name(status: &Status) -> &'static str {
    match status.health() {
        Health::Unspecified | Health::None => "none",
        Health::Starting => "starting",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
}
