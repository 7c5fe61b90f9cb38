//! One connection between nodes, whichever way it is secured.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use super::refusals::{self, Refusals};
use crate::spec::NodeName;

/// Who calls: in the extensions of every request that came in by [`super::Security::incoming`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub address: SocketAddr,
    /// By its certificate; `None` where this node asks for none.
    pub node: Option<NodeName>,
}

#[derive(Debug)]
enum Stream {
    Open(TcpStream),
    Secured(Box<TlsStream<TcpStream>>),
}

#[derive(Debug)]
pub struct Conn {
    stream: Stream,
    caller: Caller,
    /// Of a connection that this node has made: the other side judges this node's certificate after ours is done, so that its
    /// refusal comes with the first bytes.
    watched: Option<(String, Arc<Refusals>)>,
}

impl Conn {
    pub(super) fn open(stream: TcpStream, address: SocketAddr) -> Self {
        Self { stream: Stream::Open(stream), caller: Caller { address, node: None }, watched: None }
    }

    pub(super) fn secured(stream: TlsStream<TcpStream>, address: SocketAddr, node: NodeName) -> Self {
        let caller = Caller { address, node: Some(node) };
        Self { stream: Stream::Secured(Box::new(stream)), caller, watched: None }
    }

    pub(super) fn watched(mut self, address: String, refusals: Arc<Refusals>) -> Self {
        self.watched = Some((address, refusals));
        self
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut (dyn Both + '_)> {
        match &mut self.get_mut().stream {
            Stream::Open(stream) => Pin::new(stream),
            Stream::Secured(stream) => Pin::new(&mut **stream),
        }
    }
}

trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

impl Connected for Conn {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.as_mut().stream().poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read
            && let Some((address, refusals)) = &self.watched
            && let Some(cause) = refusals::cause(error)
        {
            refusals.outgoing(address, &cause);
        }
        read
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Open(stream) => stream.is_write_vectored(),
            Stream::Secured(stream) => stream.is_write_vectored(),
        }
    }
}
