//! The listeners: the control socket for this node's root, the peer address for other nodes.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use ha_proto::{
    control::control_server::ControlServer,
    peer::{self, peer_server::PeerServer},
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::JoinHandle,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::{
    control::{Access, ControlService},
    peer::PeerService,
    unread::Unread,
};
use crate::{config::NodeConfig, node::Node, tls::Limits};

const PING_EVERY: Duration = Duration::from_secs(10);
const PING_PATIENCE: Duration = Duration::from_secs(5);

/// A specification may be this large, in bytes.
const CONTROL_MAX: usize = 4 << 20;

/// The running services. Streams that are open when they stop are cut off.
pub struct Servers {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<Result<(), tonic::transport::Error>>>,
    socket: PathBuf,
}

impl Servers {
    /// Returns only when a service ended by itself, which none should.
    pub async fn failed(&self) -> anyhow::Result<()> {
        // Listeners end only when their socket is destroyed under them: looked at now and then.
        while !self.tasks.iter().any(JoinHandle::is_finished) {
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        anyhow::bail!("a listener ended by itself")
    }

    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            // Followers of events and logs never end by themselves.
            let _ = tokio::time::timeout(Duration::from_millis(500), task).await;
        }
        let _ = fs::remove_file(&self.socket);
    }
}

/// Sockets that are bound, and not answered yet: who connects waits.
pub struct Listeners {
    tcp: TcpListener,
    unix: UnixListener,
    socket: PathBuf,
}

/// Before anything else is begun, so that a port in use is found while there is nothing to give up.
///
/// # Errors
/// With the address that cannot be listened on.
pub async fn bind(config: &NodeConfig) -> anyhow::Result<Listeners> {
    let tcp = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {} (`listen` in the configuration)", config.listen))?;
    let socket = config.control_socket();
    let unix = bind_socket(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    Ok(Listeners { tcp, unix, socket })
}

pub fn serve(node: Arc<Node>, Listeners { tcp, unix, socket }: Listeners) -> Servers {
    let (stop, stopped) = watch::channel(false);
    let wait = |mut stopped: watch::Receiver<bool>| async move {
        // An error means that the sender is gone: the same.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let control = |access| {
        ControlServer::new(ControlService { node: Arc::clone(&node), access }).max_decoding_message_size(CONTROL_MAX)
    };
    let peers = PeerServer::new(PeerService::new(Arc::clone(&node))).max_decoding_message_size(peer::MAX_MESSAGE);
    let local = Server::builder().add_service(control(Access::Root));
    let unread = Unread(node.ctx.membership.service());
    let mut remote = remote(PING_EVERY, PING_PATIENCE).layer(unread);
    let remote = remote.add_service(peers).add_service(control(Access::Peers));
    let incoming = node.ctx.security.incoming(tcp, Limits::default());
    let tasks = vec![
        tokio::spawn(local.serve_with_incoming_shutdown(UnixListenerStream::new(unix), wait(stopped.clone()))),
        tokio::spawn(remote.serve_with_incoming_shutdown(incoming, wait(stopped))),
    ];
    Servers { stop, tasks, socket }
}

/// A peer that has lost its power says nothing any more: without pings its connections would stay for good.
fn remote(ping_every: Duration, patience: Duration) -> Server {
    Server::builder().http2_keepalive_interval(Some(ping_every)).http2_keepalive_timeout(Some(patience))
}

/// Root only. A socket that is left from before is replaced: the lock on the state directory says that nobody listens there.
fn bind_socket(path: &Path) -> std::io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::tls::Security;

    #[tokio::test]
    async fn a_client_that_says_nothing_any_more_is_hung_up_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let every = Duration::from_millis(200);
        let server = remote(every, every).add_routes(tonic::service::Routes::default());
        let serving =
            tokio::spawn(server.serve_with_incoming(Security::insecure().incoming(listener, Limits::default())));
        let mut client = TcpStream::connect(address).await.unwrap();
        // A connection is opened, with no settings of its own; then the power goes: no ping is answered.
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let ends = async {
            let mut buffer = [0; 256];
            while client.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
        };
        tokio::time::timeout(Duration::from_secs(60), ends).await.expect("it is held for good");
        serving.abort();
    }
}
