//! Requests to one agent, and its events.

use std::{
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ha_proto::agent::{
    Check, Event, MAX_MESSAGE, Ping, QUIESCE_WAIT_MS, Quiesce, Reply, Request as Message, Status, Stop, request::Kind,
};
use prost::Message as _;
use tokio::{
    io::AsyncWriteExt,
    net::{UnixDatagram, UnixStream},
    sync::mpsc,
    task::JoinHandle,
    time,
};

use super::{
    ChannelDir, Error,
    inbox::{self, Seen},
};
use crate::spec::ContainerName;

/// Events that wait for the node to read them; more wait in the socket, then in the agent.
const QUEUE: usize = 256;

/// Added to a request's own duration.
const MARGIN: Duration = Duration::from_secs(2);

/// The link to one container's agent. Cheap to clone; the last one dropped stops listening.
#[derive(Debug, Clone)]
pub struct AgentLink {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    container: ContainerName,
    dir: ChannelDir,
    nonce: AtomicU64,
    seen: Arc<Mutex<Seen>>,
    sender: mpsc::Sender<Event>,
    receiver: Mutex<Option<mpsc::Receiver<Event>>>,
    listener: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl AgentLink {
    /// Listens for the agent's events in `channel`, in place of any manager that did before. The agent need not run yet.
    /// Within a tokio runtime only.
    ///
    /// # Errors
    /// [`Error::Channel`].
    pub fn open(channel: &Path, container: ContainerName) -> Result<Self, Error> {
        const SOCKET: &str = "manager.sock";
        let dir = ChannelDir::open(channel)?;
        dir.remove(SOCKET)?;
        let socket = UnixDatagram::bind(dir.bind_path(SOCKET)).map_err(dir.error("bind", SOCKET))?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let seen = Arc::new(Mutex::new(Seen::new(Instant::now())));
        let listener = tokio::spawn(listen(socket, sender.clone(), Arc::clone(&seen), container.clone()));
        let nonce = AtomicU64::new(rand::random());
        let receiver = Mutex::new(Some(receiver));
        Ok(Self { inner: Arc::new(Inner { container, dir, nonce, seen, sender, receiver, listener }) })
    }

    pub fn container(&self) -> &ContainerName {
        &self.inner.container
    }

    /// The agent's events, each once and in order per incarnation, those a status brought included. Only the first
    /// call gets them.
    pub fn events(&self) -> Option<mpsc::Receiver<Event>> {
        lock(&self.inner.receiver).take()
    }

    /// One request and its answer. The connection is closed before this returns: nothing of it is in a later dump.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when nobody listens, [`Error::Timeout`], [`Error::Protocol`], and [`Error::Refused`] with
    /// the agent's reason.
    pub async fn request(&self, kind: Kind, timeout: Duration) -> Result<Reply, Error> {
        let nonce = self.inner.nonce.fetch_add(1, Ordering::Relaxed);
        let exchange = self.exchange(Message { nonce, kind: Some(kind) });
        let reply = time::timeout(timeout, exchange).await.map_err(|_| Error::Timeout(timeout))??;
        lock(&self.inner.seen).answer(reply, nonce, Instant::now(), &self.inner.sender)
    }

    /// The status; events that were missed arrive at [`AgentLink::events`].
    ///
    /// # Errors
    /// As [`AgentLink::request`].
    pub async fn ping(&self, timeout: Duration) -> Result<Status, Error> {
        // All that is kept: a container put back to an earlier state counts from an earlier number under the same
        // incarnation, and what the link has seen says nothing about it.
        let reply = self.request(Kind::Ping(Ping { seen_seq: 0 }), timeout).await?;
        reply.status.ok_or(Error::Protocol("there is no status"))
    }

    /// Runs the healthcheck now. `Reply.check` is absent when the container has none.
    ///
    /// # Errors
    /// As [`AgentLink::request`].
    pub async fn check_now(&self, timeout: Duration) -> Result<Reply, Error> {
        let timeout_ms = millis(timeout);
        self.request(Kind::Check(Check { timeout_ms }), timeout.saturating_add(MARGIN)).await
    }

    /// No healthcheck runs when this returns, and none begins for `hold`. Usually at once; a check that may not be broken off
    /// is waited for, up to its own time limit `check` (zero without a healthcheck).
    ///
    /// # Errors
    /// As [`AgentLink::request`]; a check that was killed and does not end is a refusal.
    pub async fn quiesce(&self, hold: Duration, check: Duration) -> Result<Status, Error> {
        let timeout = check.min(Duration::from_millis(QUIESCE_WAIT_MS)) + MARGIN;
        let reply = self.request(Kind::Quiesce(Quiesce { hold_ms: millis(hold) }), timeout).await?;
        reply.status.ok_or(Error::Protocol("there is no status"))
    }

    /// Begins the container's end: its stop signal, then SIGKILL after `grace`. Returns when it was taken, not at the end.
    ///
    /// # Errors
    /// As [`AgentLink::request`].
    pub async fn stop(&self, grace: Duration) -> Result<(), Error> {
        self.request(Kind::Stop(Stop { grace_ms: millis(grace) }), MARGIN).await.map(drop)
    }

    async fn exchange(&self, request: Message) -> Result<Reply, Error> {
        let mut stream = self.connect().await?;
        let body = request.encode_to_vec();
        let length = u32::try_from(body.len()).map_err(|_| Error::Protocol("the request is too large"))?;
        stream.write_all(&[&length.to_be_bytes()[..], &body].concat()).await.map_err(Error::Unreachable)?;
        inbox::read_reply(&mut stream).await
    }

    /// Waits while the agent's queue is full, as a stopped agent's will be.
    async fn connect(&self) -> Result<UnixStream, Error> {
        loop {
            let socket = self.inner.dir.socket("agent.sock")?;
            let path = PathBuf::from(format!("/proc/self/fd/{}", socket.as_raw_fd()));
            match UnixStream::connect(path).await {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => time::sleep(Duration::from_millis(10)).await,
                Err(error) => return Err(Error::Unreachable(error)),
            }
        }
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// What is locked is never left half changed, so a panic elsewhere is no reason to stop.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn listen(socket: UnixDatagram, sender: mpsc::Sender<Event>, seen: Arc<Mutex<Seen>>, container: ContainerName) {
    let mut buffer = vec![0; MAX_MESSAGE + 1];
    loop {
        let length = match socket.recv(&mut buffer).await {
            Ok(length) => length,
            Err(error) => {
                tracing::warn!(%container, %error, "cannot receive the agent's events");
                time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        match inbox::datagram(&buffer[..length]) {
            Some(event) => {
                // Room first: while the node does not read, the socket's own queue holds the agent back.
                let Ok(permit) = sender.reserve().await else { return };
                drop(permit);
                let wait = lock(&seen).wait(Instant::now());
                time::sleep(wait).await;
                lock(&seen).hand_on(event, Instant::now(), &sender);
            }
            None => tracing::debug!(%container, length, "a datagram that is no event was dropped"),
        }
    }
}

#[cfg(test)]
mod tests;
