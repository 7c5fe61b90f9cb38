//! A copy of a container that is up on this node: its process and its agent.

use std::{
    io,
    time::{Duration, Instant},
};

use ha_proto::agent::{Event, Health, Status};
use tokio::{io::unix::AsyncFd, sync::mpsc};

use crate::{
    agentlink::{self, AgentLink},
    runtime::ExitWatch,
};

/// Dropping it lets go of the copy and leaves it running.
pub struct Live {
    pub pid: i32,
    pub link: AgentLink,
    /// The agent's, drawn when it started: a restored copy has the same one, a copy begun anew has another.
    pub incarnation: Vec<u8>,
    pub events: mpsc::Receiver<Event>,
    pub exit: Exit,
}

impl Live {
    /// A copy that goes on. `link` has answered already; what it brought with that answer is the past: the status said what
    /// came of it.
    pub fn new(pid: i32, link: AgentLink, incarnation: Vec<u8>) -> io::Result<Self> {
        let mut live = Self::begun(pid, link, incarnation)?;
        while live.events.try_recv().is_ok() {}
        Ok(live)
    }

    /// A copy that has just begun: it has no past, and its end may be among what it has said already.
    pub fn begun(pid: i32, link: AgentLink, incarnation: Vec<u8>) -> io::Result<Self> {
        let events = link.events().ok_or_else(|| io::Error::other("the agent's events are taken already"))?;
        Ok(Self { pid, link, incarnation, events, exit: Exit::watch(pid)? })
    }
}

/// The end of the container's init, whoever its parent is.
pub struct Exit(AsyncFd<ExitWatch>);

impl Exit {
    #[allow(unsafe_code)]
    fn watch(pid: i32) -> io::Result<Self> {
        let watch = ExitWatch::new(pid)?;
        // SAFETY: the watch owns its descriptor, always returns the same one, and closes it only when it is dropped, which
        // the `AsyncFd` that owns it does after deregistering.
        Ok(Self(unsafe { AsyncFd::register(watch) }.map_err(io::Error::from)?))
    }

    /// Returns when it has ended; again at once when asked again.
    pub async fn wait(&self) {
        // An error would be the runtime's own end; then nobody waits for containers any more.
        if let Ok(mut ready) = self.0.readable().await {
            ready.retain_ready();
        }
    }
}

/// How long a new copy's agent is waited for.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts to reach an agent that is not listening yet.
const AGAIN: Duration = Duration::from_millis(5);

/// Why a copy that came up does not count as up.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("the agent does not answer")]
    Agent(#[source] agentlink::Error),
    #[error("the state is gone: agent {found} answers, the snapshot holds agent {expected}")]
    StateGone { expected: String, found: String },
    #[error("the main process is not running")]
    MainEnded,
    #[error("the healthcheck fails: {output}")]
    Unhealthy { output: String },
}

/// Asks a restored copy whether it works: by its healthcheck if there is one, else whether its main process is there.
///
/// It has to be the agent of the snapshot, with its memory: a restore that came up empty is no restore.
pub async fn probe(link: &AgentLink, expected: &[u8], healthcheck: Option<Duration>) -> Result<Status, ProbeError> {
    let status = first_answer(link).await?;
    if status.incarnation != expected {
        return Err(ProbeError::StateGone { expected: hex::encode(expected), found: hex::encode(&status.incarnation) });
    }
    if !status.main_running {
        return Err(ProbeError::MainEnded);
    }
    if let Some(timeout) = healthcheck {
        let reply = link.check_now(timeout).await.map_err(ProbeError::Agent)?;
        if let Some(check) = reply.check.filter(|check| !check.healthy) {
            return Err(ProbeError::Unhealthy { output: check.output });
        }
    }
    Ok(status)
}

/// The agent's first status: of a new container it takes a moment until it listens.
pub async fn first_answer(link: &AgentLink) -> Result<Status, ProbeError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match link.ping(PATIENCE).await {
            Ok(status) => return Ok(status),
            Err(agentlink::Error::Unreachable(_)) if Instant::now() < deadline => tokio::time::sleep(AGAIN).await,
            Err(error) => return Err(ProbeError::Agent(error)),
        }
    }
}

pub fn health_name(status: &Status) -> &'static str {
    match status.health() {
        Health::Unspecified | Health::None => "none",
        Health::Starting => "starting",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
}
