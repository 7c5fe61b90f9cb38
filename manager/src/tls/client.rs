//! Connections to peers. Every channel between nodes is made here.
//!
//! A channel is pinned to the node that it has first met: its later connections, which tonic makes by itself, are to the same
//! one or fail. So an answer is from the node whose certificate was seen.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Error, Uri};

use super::{
    Security,
    conn::Conn,
    identity::{self, IdentityError},
    refusals,
};
use crate::spec::NodeName;

const CONNECT: Duration = Duration::from_secs(2);
/// A node whose power is cut says nothing: one that does not answer a ping for this long is gone, and with it every call.
const ALIVE: Duration = Duration::from_secs(2);

/// The node at the other end of a channel, once it has shown its certificate.
#[derive(Debug, Clone, Default)]
pub struct Pin(Arc<OnceLock<NodeName>>);

impl Pin {
    pub fn node(&self) -> Option<&NodeName> {
        self.0.get()
    }

    fn hold(&self, node: &NodeName) -> Result<(), IdentityError> {
        let expected = self.0.get_or_init(|| node.clone());
        if expected == node {
            return Ok(());
        }
        Err(IdentityError::Node { certified: node.clone(), expected: expected.clone() })
    }
}

impl Security {
    /// A connection to `node`, for calls that may take long: it is pinged.
    ///
    /// # Errors
    /// When it does not come about within 2 s, or when another node answers.
    pub async fn connect(&self, node: &NodeName, address: &str) -> Result<Channel, Error> {
        let pin = Pin(Arc::new(OnceLock::from(node.clone())));
        let endpoint = endpoint(address)?;
        let endpoint = endpoint.http2_keep_alive_interval(ALIVE).keep_alive_timeout(ALIVE).keep_alive_while_idle(true);
        endpoint.connect_with_connector(self.connector(address, CONNECT, pin)).await
    }

    /// A channel to whoever is at `address`, connected by its first call within `patience`.
    ///
    /// # Errors
    /// When `address` is none.
    pub fn lazy(
        &self,
        address: &str,
        patience: Duration,
        tune: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<(Channel, Pin), Error> {
        let pin = Pin::default();
        let connector = self.connector(address, patience, pin.clone());
        Ok((tune(endpoint(address)?).connect_with_connector_lazy(connector), pin))
    }

    fn connector(
        &self,
        address: &str,
        patience: Duration,
        pin: Pin,
    ) -> impl tower::Service<Uri, Response = TokioIo<Conn>, Error = io::Error, Future: Send> + Send + 'static {
        let (security, address) = (self.clone(), Arc::<str>::from(address));
        tower::service_fn(move |_: Uri| {
            let (security, address, pin) = (security.clone(), Arc::clone(&address), pin.clone());
            async move {
                let dialled = tokio::time::timeout(patience, security.dial(&address, &pin)).await;
                let dialled = dialled.unwrap_or_else(|_| {
                    Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {patience:?}")))
                });
                if let Err(error) = &dialled
                    && let Some(cause) = refusals::cause(error)
                {
                    security.refusals().outgoing(&address, &cause);
                }
                dialled.map(TokioIo::new)
            }
        })
    }

    pub(super) async fn dial(&self, address: &str, pin: &Pin) -> io::Result<Conn> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let remote = stream.peer_addr()?;
        let Some(credentials) = self.credentials() else { return Ok(Conn::open(stream, remote)) };
        // Not looked at and not sent: a certificate's node is.
        let nobody = ServerName::IpAddress(remote.ip().into());
        let stream = TlsConnector::from(Arc::clone(&credentials.client)).connect(nobody, stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let node = certificate.ok_or(IdentityError::Nameless).and_then(identity::certified);
        let node = node.map_err(io::Error::other)?;
        pin.hold(&node).map_err(io::Error::other)?;
        Ok(Conn::secured(stream.into(), remote, node).watched(address.to_owned(), self.refusals()))
    }
}

fn endpoint(address: &str) -> Result<Endpoint, Error> {
    // The scheme is what the frames inside are called; how they travel is the connector's affair.
    Endpoint::from_shared(format!("http://{address}"))
}
