//! The listeners: the control socket for this node's root, the peer address for other nodes.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
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
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;

use super::{
    control::{Access, ControlService},
    peer::PeerService,
};
use crate::node::Node;

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
            tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        }
        anyhow::bail!("a listener ended by itself")
    }

    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            // Followers of events and logs never end by themselves.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(500), task).await;
        }
        let _ = fs::remove_file(&self.socket);
    }
}

pub async fn serve(node: Arc<Node>) -> anyhow::Result<Servers> {
    let config = &node.ctx.config;
    let tcp = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {} (`listen` in the configuration)", config.listen))?;
    let socket = config.control_socket();
    let unix = bind_socket(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
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
    let remote = Server::builder().tcp_nodelay(true).add_service(peers).add_service(control(Access::Peers));
    let tasks = vec![
        tokio::spawn(local.serve_with_incoming_shutdown(UnixListenerStream::new(unix), wait(stopped.clone()))),
        tokio::spawn(remote.serve_with_incoming_shutdown(TcpListenerStream::new(tcp), wait(stopped))),
    ];
    Ok(Servers { stop, tasks, socket })
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
