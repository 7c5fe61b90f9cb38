//! The agent's side of `agent.sock`: a few connections, each one request and one reply, none of which may hold up the loop.

use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::MetadataExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use ha_proto::agent::{MAX_MESSAGE, Reply, Request};
use nix::{
    poll::PollFlags,
    sys::{
        socket::{getsockopt, sockopt::PeerCredentials},
        stat::{Mode, umask},
    },
};

use crate::wire;

/// Connections at a time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 8;

/// For the request to come in, and again for the reply to go out.
const DEADLINE: Duration = Duration::from_secs(1);

/// Identifies a connection for as long as it lives; never used twice.
pub type Id = u64;

#[derive(Debug)]
enum Stage {
    Reading(Vec<u8>),
    /// The request was handed out; its reply is awaited.
    Parked,
    Writing {
        bytes: Vec<u8>,
        done: usize,
    },
}

#[derive(Debug)]
struct Connection {
    id: Id,
    stream: UnixStream,
    deadline: Duration,
    stage: Stage,
}

/// Listener and connections.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// The socket's file, as it was bound: its inode.
    bound: Option<(UnixListener, u64)>,
    connections: Vec<Connection>,
    next_id: Id,
}

/// What `poll` watches for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Listener,
    Connection(Id),
}

impl Server {
    /// Nothing is bound yet; [`Server::verify`] does.
    pub fn new(path: PathBuf) -> Self {
        Self { path, bound: None, connections: Vec::new(), next_id: 1 }
    }

    /// Sees to it that `agent.sock` leads here. After a restore the file may be missing, or be another node's leftover.
    ///
    /// # Errors
    /// When the socket cannot be bound; the agent goes on and tries again.
    pub fn verify(&mut self) -> io::Result<()> {
        let inode = fs::symlink_metadata(&self.path).ok().map(|file| file.ino());
        if let (Some((_, bound)), Some(inode)) = (&mut self.bound, inode) {
            if *bound == inode {
                return Ok(());
            }
            // CRIU binds it anew: another inode, the same socket. Whether it is ours, a connection tells.
            if connects(&self.path) {
                *bound = inode;
                return Ok(());
            }
        }
        self.bound = None;
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(&self.path);
        umask(before);
        let listener = listener?;
        listener.set_nonblocking(true)?;
        self.bound = Some((listener, fs::symlink_metadata(&self.path)?.ino()));
        Ok(())
    }

    pub fn sources(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>, PollFlags)> {
        let listener = self.bound.iter().filter(|_| self.connections.len() < MAX_CONNECTIONS);
        listener.map(|(l, _)| (Source::Listener, l.as_fd(), PollFlags::POLLIN)).chain(self.connections.iter().map(
            |c| {
                let flags = match c.stage {
                    Stage::Reading(_) => PollFlags::POLLIN,
                    Stage::Parked => PollFlags::empty(), // A hang-up is always reported.
                    Stage::Writing { .. } => PollFlags::POLLOUT,
                };
                (Source::Connection(c.id), c.stream.as_fd(), flags)
            },
        ))
    }

    pub fn deadline(&self) -> Option<Duration> {
        self.connections.iter().map(|c| c.deadline).min()
    }

    /// Handles what `poll` reported; complete requests are handed out.
    pub fn ready(&mut self, source: Source, now: Duration) -> Option<(Id, Request)> {
        match source {
            Source::Listener => {
                self.accept(now);
                None
            }
            Source::Connection(id) => {
                let at = self.connections.iter().position(|c| c.id == id)?;
                match advance(&mut self.connections[at]) {
                    Progress::Pending => None,
                    Progress::Over => {
                        self.connections.swap_remove(at);
                        None
                    }
                    Progress::Request(request) => Some((id, request)),
                }
            }
        }
    }

    /// Allows the reply to take until `deadline`.
    pub fn park(&mut self, id: Id, deadline: Duration) {
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) {
            connection.deadline = deadline;
        }
    }

    /// Sends the reply, or begins to. Without effect when the peer has gone.
    pub fn reply(&mut self, id: Id, reply: &Reply, now: Duration) {
        if let Some(at) = self.connections.iter().position(|c| c.id == id) {
            let connection = &mut self.connections[at];
            connection.deadline = now + DEADLINE;
            connection.stage = Stage::Writing { bytes: wire::encode(reply), done: 0 };
            if matches!(advance(connection), Progress::Over) {
                self.connections.swap_remove(at);
            }
        }
    }

    /// Closes what took too long.
    pub fn expire(&mut self, now: Duration) {
        self.connections.retain(|c| c.deadline > now);
    }

    fn accept(&mut self, now: Duration) {
        let Some((listener, _)) = &self.bound else { return };
        while self.connections.len() < MAX_CONNECTIONS {
            let Ok((stream, _)) = listener.accept() else { return };
            if !peer_is_root(&stream) || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let stage = Stage::Reading(Vec::new());
            self.connections.push(Connection { id: self.next_id, stream, deadline: now + DEADLINE, stage });
            self.next_id += 1;
        }
    }
}

fn peer_is_root(stream: &UnixStream) -> bool {
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.uid() == 0)
}

/// Whether someone listens at `path`. Does not block: a queue that is full is an answer, too.
fn connects(path: &Path) -> bool {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let Ok(address) = UnixAddr::new(path) else { return false };
    let Ok(probe) = socket(AddressFamily::Unix, SockType::Stream, flags, None) else { return false };
    use std::os::fd::AsRawFd;
    matches!(connect(probe.as_raw_fd(), &address), Ok(()) | Err(nix::errno::Errno::EAGAIN))
}

enum Progress {
    Pending,
    Over,
    Request(Request),
}

fn advance(connection: &mut Connection) -> Progress {
    match &mut connection.stage {
        Stage::Parked => Progress::Over, // Only a hang-up wakes it.
        Stage::Reading(bytes) => match read_request(&mut connection.stream, bytes) {
            Progress::Request(request) => {
                connection.stage = Stage::Parked;
                Progress::Request(request)
            }
            other => other,
        },
        Stage::Writing { bytes, done } => loop {
            match connection.stream.write(&bytes[*done..]) {
                Ok(0) => return Progress::Over,
                Ok(written) => *done += written,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Pending,
                Err(_) => return Progress::Over,
            }
            if *done == bytes.len() {
                return Progress::Over;
            }
        },
    }
}

fn read_request(stream: &mut UnixStream, bytes: &mut Vec<u8>) -> Progress {
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Progress::Over,
            Ok(length) => bytes.extend_from_slice(&chunk[..length]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Pending,
            Err(_) => return Progress::Over,
        }
        match wire::decode(bytes) {
            Ok(Some(request)) => return Progress::Request(request),
            Ok(None) if bytes.len() <= MAX_MESSAGE + 4 => {}
            Ok(None) | Err(_) => return Progress::Over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> (tempfile::TempDir, Server) {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::new(dir.path().join("agent.sock"));
        server.verify().unwrap();
        (dir, server)
    }

    #[test]
    fn a_missing_or_foreign_socket_file_is_replaced() {
        let (dir, mut server) = bound();
        let path = dir.path().join("agent.sock");
        fs::remove_file(&path).unwrap();
        server.verify().unwrap();
        assert!(connects(&path));
        fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        assert!(!connects(&path), "a dead socket file");
        server.verify().unwrap();
        assert!(connects(&path));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn connections_are_few_and_expire() {
        let (dir, mut server) = bound();
        let path = dir.path().join("agent.sock");
        let clients: Vec<UnixStream> = (0..20).map(|_| UnixStream::connect(&path).unwrap()).collect();
        server.ready(Source::Listener, Duration::ZERO);
        assert_eq!(server.connections.len(), MAX_CONNECTIONS);
        assert!(!server.sources().any(|(source, ..)| source == Source::Listener));
        server.expire(DEADLINE);
        assert_eq!(server.connections.len(), 0);
        server.ready(Source::Listener, DEADLINE);
        assert_eq!(server.connections.len(), MAX_CONNECTIONS);
        drop(clients);
    }
}
