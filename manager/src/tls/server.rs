//! Connections from peers.
//!
//! ```text
//! accept ─► waiting (bounded: the oldest is hung up on) ── handshake within its time ──► served
//!                          │ no certificate of the cluster, no TLS, too slow
//!                          ▼
//!                      refused, said once per address and cause
//! ```

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Security,
    conn::Conn,
    identity::{self, IdentityError},
    refusals::{self, Cause},
};

/// Connections that are authenticated and that the server has not taken up yet.
const BACKLOG: usize = 16;
/// After a failure to accept (no file descriptor is free) the next try waits this long.
const PAUSE: Duration = Duration::from_millis(100);
/// One that is refused may read why before it is hung up on.
const LINGER: Duration = Duration::from_millis(500);

/// How much is done for those that have not shown who they are.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A handshake takes at most this long.
    pub handshake: Duration,
    /// Handshakes under way at once. With one more the oldest is given up: whoever keeps connections open keeps no node out,
    /// whose handshake takes milliseconds.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { handshake: Duration::from_secs(5), waiting: 64 }
    }
}

impl Security {
    /// What comes in on `listener` and may be served, until the stream is dropped.
    pub fn incoming(&self, listener: TcpListener, limits: Limits) -> ReceiverStream<io::Result<Conn>> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(accept(self.clone(), listener, limits, sender));
        ReceiverStream::new(receiver)
    }
}

async fn accept(security: Security, listener: TcpListener, limits: Limits, sender: mpsc::Sender<io::Result<Conn>>) {
    let mut handshakes = JoinSet::new();
    // By the order in which they came.
    let mut waiting: BTreeMap<u64, AbortHandle> = BTreeMap::new();
    let (mut next, mut failing) = (0, false);
    loop {
        let (stream, from) = tokio::select! {
            () = sender.closed() => return,
            Some(ended) = handshakes.join_next() => {
                if let Ok(number) = ended {
                    waiting.remove(&number);
                }
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok(accepted) => {
                    failing = false;
                    accepted
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "cannot accept connections; it is tried again");
                    }
                    failing = true;
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
        };
        let (security, sender, number) = (security.clone(), sender.clone(), next);
        let handle = handshakes.spawn(async move {
            if let Some(conn) = greet(&security, stream, from, limits.handshake).await {
                // The server has ended.
                let _ = sender.send(Ok(conn)).await;
            }
            number
        });
        waiting.insert(number, handle);
        next += 1;
        if waiting.len() > limits.waiting
            && let Some((_, oldest)) = waiting.pop_first()
        {
            oldest.abort();
        }
    }
}

/// `None`: refused.
async fn greet(security: &Security, stream: TcpStream, from: SocketAddr, patience: Duration) -> Option<Conn> {
    // Without it answers to probes would wait for more to send. An error means that the connection has ended.
    stream.set_nodelay(true).ok()?;
    let Some(credentials) = security.credentials() else { return Some(Conn::open(stream, from)) };
    let accepting = TlsAcceptor::from(Arc::clone(&credentials.server)).accept(stream).into_fallible();
    let cause = match tokio::time::timeout(patience, accepting).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            match certificate.ok_or(IdentityError::Nameless).and_then(identity::certified) {
                Ok(node) => return Some(Conn::secured(stream.into(), from, node)),
                Err(error) => Cause::new("no node", error.to_string()),
            }
        }
        Ok(Err((error, stream))) => {
            let cause = refusals::cause(&error).unwrap_or_else(|| Cause::broken_off(&error));
            security.refusals().incoming(from.ip(), &cause);
            linger(stream).await;
            return None;
        }
        Err(_) => Cause::too_slow(patience),
    };
    security.refusals().incoming(from.ip(), &cause);
    None
}

/// Closing while something is unread would throw away the alert that was sent.
async fn linger(mut stream: TcpStream) {
    let drain = async {
        stream.shutdown().await?;
        let mut unread = [0; 1024];
        while stream.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    // However it ends, the connection is closed.
    let _ = tokio::time::timeout(LINGER, drain).await;
}
