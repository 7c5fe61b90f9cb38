//! Which connections of a snapshot are still the ones their peers have.
//!
//! A restored connection is where it was at the checkpoint. If nothing went over it since, it goes on. If something did,
//! the two sides disagree about the stream: at best both wait for ever, at worst the restored program's new bytes are
//! taken for the continuation of the old ones. Such a connection is reset at once, on both sides.
//!
//! To find out, the peer is asked *while the container is being restored and not yet in the bridge*: a keepalive probe in
//! the container's name goes out of the bridge, and the peer's answer says where it stands ([`decide`]).
//!
//! ```text
//!   start ──► probing ──────────────► settle ─────────────► attach ─────► late verdicts ──► finish
//!             peers that moved on     restored sockets of    by the       of peers that are
//!             get their reset here    moved-on peers end     caller       ahead or silent
//! ```

mod decide;
mod images;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

pub use self::images::ImagesError;
use self::{
    decide::{Segment, Verdict, Watch},
    images::Connection,
};
use super::{
    NetIdentity, NetworkError,
    arp::{Arp, Operation},
    kill::kill_tcp,
    packet::{ALL, PacketSocket},
};

/// Peers that answer do so within this; the first probes follow each other at this distance.
const EAGER: Duration = Duration::from_millis(20);
/// Between probes to a peer that was silent.
const PATIENT: Duration = Duration::from_millis(250);
/// How soon a cancelled job notices.
const SLICE: Duration = Duration::from_millis(20);
/// An Ethernet header and the longest IPv4 and TCP headers.
const CAPTURE: usize = 14 + 60 + 60;

#[derive(Debug, Clone, Copy)]
pub struct SurvivorLimits {
    /// How long after the start [`Survivors::settle`] still waits for answers. Default 150 ms: no longer than a restore.
    pub answer: Duration,
    /// How long a peer that is ahead of us gets to send again what nobody acknowledged. Default 3 s: a peer that has been
    /// without an answer for 3 s sends again every 1.6 s or less.
    pub patience: Duration,
    /// After this time the peers that never answered are left to their own. Default 5 s.
    pub watch: Duration,
}

impl Default for SurvivorLimits {
    fn default() -> Self {
        Self { answer: Duration::from_millis(150), patience: Duration::from_secs(3), watch: Duration::from_secs(5) }
    }
}

/// What became of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Kept,
    /// It had moved on since the checkpoint, or the peer does not have it any more: ended on both sides.
    Reset,
    /// Nothing could be found out. It is left as restored.
    Unknown(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionFate {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub fate: Fate,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SurvivorReport {
    pub connections: Vec<ConnectionFate>,
    /// What kept the job from doing all of it, in words.
    pub errors: Vec<String>,
}

impl SurvivorReport {
    pub fn kept(&self) -> usize {
        self.count(|fate| fate == Fate::Kept)
    }

    pub fn reset(&self) -> usize {
        self.count(|fate| fate == Fate::Reset)
    }

    pub fn unknown(&self) -> usize {
        self.count(|fate| matches!(fate, Fate::Unknown(_)))
    }

    fn count(&self, which: impl Fn(Fate) -> bool) -> usize {
        self.connections.iter().filter(|connection| which(connection.fate)).count()
    }
}

/// The job for one restore. Dropping it ends it: nothing more is sent or reset.
pub struct Survivors {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    answers_until: Instant,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    report: SurvivorReport,
    undecided: usize,
    cancelled: bool,
    /// Set by `settle`: from then on the restored sockets exist.
    netns: Option<PathBuf>,
}

impl Survivors {
    /// Reads the connections in the CRIU images directory `images` and begins asking their peers, out of the link `on`
    /// (the bridge) of the calling thread's network namespace.
    ///
    /// Call it when the container is owned and its address is known to be free, and before it is attached.
    ///
    /// # Errors
    /// The images are broken, or frames cannot be sent. Without images or connections there is nothing to do.
    pub fn start(
        on: &str,
        identity: &NetIdentity,
        images: &Path,
        limits: SurvivorLimits,
    ) -> Result<Self, NetworkError> {
        let start = Instant::now();
        let connections = images::read(images).map_err(NetworkError::Images)?;
        let mut state = State::default();
        let mut peers = Vec::new();
        for connection in connections {
            let fate = match Peer::of(&connection, identity) {
                Ok(peer) => {
                    peers.push((state.report.connections.len(), peer));
                    Fate::Unknown("the peer has not answered")
                }
                Err(why) => Fate::Unknown(why),
            };
            state.report.connections.push(ConnectionFate { local: connection.local, peer: connection.peer, fate });
        }
        state.undecided = peers.len();
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut thread = None;
        if !peers.is_empty() {
            let failed =
                |source| NetworkError::Kernel { doing: format!("asking the container's peers on {on}"), source };
            let socket = open(on)?;
            let job = Job::new(shared.clone(), socket, identity.clone(), peers, limits, start);
            let run = move || job.run();
            thread = Some(thread::Builder::new().name("ha-survivors".into()).spawn(run).map_err(failed)?);
        }
        Ok(Self { shared, thread, answers_until: start + limits.answer })
    }

    /// After the restore and before `attach`: waits for the answers that are still due, at most until the limit counted
    /// from the start, and ends the restored sockets whose peers have moved on. Later verdicts are carried out by the job.
    pub fn settle(&self, netns: &Path) -> SurvivorReport {
        let mut state = self.shared.lock();
        while state.undecided > 0 {
            let left = self.answers_until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let ended: HashSet<_> = state
            .report
            .connections
            .iter()
            .filter(|connection| connection.fate == Fate::Reset)
            .map(|connection| (connection.local, connection.peer))
            .collect();
        // Under the lock, so that each verdict is carried out by exactly one of this and the job.
        if !ended.is_empty()
            && let Err(error) = kill_tcp(netns, |socket| ended.contains(&(socket.local, socket.peer)))
        {
            state.report.errors.push(describe(&error));
        }
        state.netns = Some(netns.to_owned());
        state.report.clone()
    }

    /// What is known so far.
    pub fn report(&self) -> SurvivorReport {
        self.shared.lock().report.clone()
    }

    /// Waits for the last verdict, at most [`SurvivorLimits::watch`] from the start.
    pub fn finish(mut self) -> SurvivorReport {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.shared.lock().report.errors.push("the job panicked".to_owned());
        }
        self.report()
    }
}

impl Drop for Survivors {
    fn drop(&mut self) {
        self.shared.lock().cancelled = true;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(on: &str) -> Result<PacketSocket, NetworkError> {
    let failed = |source| NetworkError::Kernel { doing: format!("listening on {on}"), source };
    let mut rtnl = super::netlink::Rtnl::open().map_err(failed)?;
    let (index, _) = super::bridge::find(&mut rtnl, on)?;
    let socket = PacketSocket::open(index, ALL).map_err(failed)?;
    // The answers are addressed to the container.
    socket.see_all().map_err(failed)?;
    Ok(socket)
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// One connection under watch.
struct Peer {
    local: SocketAddrV4,
    peer: SocketAddrV4,
    /// Whose MAC address reaches the peer: its own, or the gateway's.
    hop: Ipv4Addr,
    snd_una: u32,
    rcv_nxt: u32,
    window: u16,
    timestamp: Option<u32>,
    watch: Watch,
    /// What the peer expects and has sent, from its newest segment: the numbers of its reset.
    last: Option<(u32, u32)>,
    done: bool,
}

impl Peer {
    fn of(connection: &Connection, identity: &NetIdentity) -> Result<Self, &'static str> {
        let (SocketAddr::V4(local), SocketAddr::V4(peer)) = (connection.local, connection.peer) else {
            return Err("only IPv4 connections are looked at");
        };
        if *local.ip() != identity.ip {
            return Err("it does not use the container's address");
        }
        let sequences = connection.sequences.ok_or("it was being closed at the checkpoint")?;
        let mask = u32::MAX.checked_shl(32 - u32::from(identity.prefix_len)).unwrap_or(0);
        let near = (u32::from(*peer.ip()) ^ u32::from(identity.ip)) & mask == 0;
        let hop = if near { Some(*peer.ip()) } else { identity.gateway };
        Ok(Self {
            local,
            peer,
            hop: hop.ok_or("its peer is in another subnet, and there is no gateway")?,
            snd_una: sequences.snd_una,
            rcv_nxt: sequences.rcv_nxt,
            window: connection.window,
            timestamp: connection.timestamp,
            watch: Watch::new(sequences),
            last: None,
            done: false,
        })
    }
}

struct Job {
    shared: Arc<Shared>,
    socket: PacketSocket,
    identity: NetIdentity,
    /// With their places in the report.
    peers: Vec<(usize, Peer)>,
    by_address: HashMap<(SocketAddrV4, SocketAddrV4), usize>,
    hops: HashMap<Ipv4Addr, Option<[u8; 6]>>,
    limits: SurvivorLimits,
    start: Instant,
}

impl Job {
    fn new(
        shared: Arc<Shared>,
        socket: PacketSocket,
        identity: NetIdentity,
        peers: Vec<(usize, Peer)>,
        limits: SurvivorLimits,
        start: Instant,
    ) -> Self {
        let by_address = peers.iter().enumerate().map(|(at, (_, peer))| ((peer.local, peer.peer), at)).collect();
        let hops = peers.iter().map(|(_, peer)| (peer.hop, None)).collect();
        Self { shared, socket, identity, peers, by_address, hops, limits, start }
    }

    fn run(mut self) {
        if let Err(error) = self.watch() {
            self.shared.lock().report.errors.push(format!("watching the container's peers: {error}"));
        }
        let mut state = self.shared.lock();
        state.undecided = 0;
        self.shared.changed.notify_all();
    }

    fn watch(&mut self) -> io::Result<()> {
        let mut buffer = [0; CAPTURE];
        let mut probe_at = self.start;
        loop {
            let now = Instant::now();
            if self.shared.lock().cancelled {
                return Ok(());
            }
            if now >= probe_at {
                self.ask_all();
                probe_at = now + if now < self.start + self.limits.answer { EAGER } else { PATIENT };
            }
            let until = probe_at.min(now + SLICE);
            while let Some((frame, _)) = self.socket.receive(&mut buffer, until)? {
                self.frame(frame, Instant::now());
                if Instant::now() >= until || self.peers.iter().all(|(_, peer)| peer.done) {
                    break;
                }
            }
            let now = Instant::now();
            let over = now >= self.start + self.limits.watch;
            for at in 0..self.peers.len() {
                let patience = if over { Duration::ZERO } else { self.limits.patience };
                self.peers[at].1.watch.tick(now, patience);
                self.conclude(at);
            }
            if over || self.peers.iter().all(|(_, peer)| peer.done) {
                return Ok(());
            }
        }
    }

    /// A frame that is lost, or refused for want of buffers, is made up for by the next round.
    fn ask_all(&self) {
        for (hop, mac) in &self.hops {
            if mac.is_none() {
                let question = Arp::request(self.identity.ip, self.identity.mac, *hop);
                let _ = self.socket.send(&question.frame());
            }
        }
        for (_, peer) in &self.peers {
            self.ask(peer);
        }
    }

    fn ask(&self, peer: &Peer) {
        if let (false, Some(path)) = (peer.done, self.path(peer)) {
            let probe = wire::keepalive(&path, peer.snd_una, peer.rcv_nxt, peer.window, peer.timestamp);
            let _ = self.socket.send(&probe);
        }
    }

    fn path(&self, peer: &Peer) -> Option<wire::Path> {
        let to_mac = (*self.hops.get(&peer.hop)?)?;
        Some(wire::Path { from_mac: self.identity.mac, to_mac, from: peer.local, to: peer.peer })
    }

    fn frame(&mut self, frame: &[u8], now: Instant) {
        if let Some(arp) = Arp::parse(frame) {
            self.neighbour(&arp);
        } else if let Some((from, to, segment)) = wire::parse(frame) {
            self.segment(from, to, &segment, now);
        }
    }

    fn neighbour(&mut self, arp: &Arp) {
        if arp.sender_mac[0] & 1 == 1 || (arp.operation == Operation::Request && arp.sender_ip.is_unspecified()) {
            return;
        }
        if let Some(mac) = self.hops.get_mut(&arp.sender_ip)
            && mac.is_none()
        {
            *mac = Some(arp.sender_mac);
            for (_, peer) in self.peers.iter().filter(|(_, peer)| peer.hop == arp.sender_ip) {
                self.ask(peer);
            }
        }
    }

    fn segment(&mut self, from: SocketAddrV4, to: SocketAddrV4, segment: &Segment, now: Instant) {
        if let Some(&at) = self.by_address.get(&(from, to)) {
            self.peers[at].1.watch.container_sent(segment);
        } else if let Some(&at) = self.by_address.get(&(to, from)) {
            let peer = &mut self.peers[at].1;
            peer.watch.peer_sent(segment, now);
            if let Some(ack) = segment.ack {
                peer.last = Some((ack, segment.seq.wrapping_add(segment.length)));
            }
            self.conclude(at);
        }
    }

    /// Carries out a verdict, once.
    fn conclude(&mut self, at: usize) {
        let (place, peer) = &self.peers[at];
        let Some(verdict) = peer.watch.verdict().filter(|_| !peer.done) else { return };
        let mut state = self.shared.lock();
        if state.cancelled {
            return;
        }
        let fate = if verdict == Verdict::Idle { Fate::Kept } else { Fate::Reset };
        if let Some(connection) = state.report.connections.get_mut(*place) {
            connection.fate = fate;
        }
        state.undecided = state.undecided.saturating_sub(1);
        if fate == Fate::Reset
            && let Some(netns) = state.netns.clone()
        {
            // Ours first: a living socket would answer the peer once more.
            let pair = (IpAddr::V4(*peer.local.ip()), peer.local.port(), SocketAddr::V4(peer.peer));
            let killed = kill_tcp(&netns, |s| (s.local.ip(), s.local.port(), s.peer) == pair);
            if let Err(error) = killed {
                state.report.errors.push(describe(&error));
            }
        }
        drop(state);
        if verdict == Verdict::MovedOn
            && let (Some(path), Some((expected, ack))) = (self.path(peer), peer.last)
        {
            let _ = self.socket.send(&wire::reset(&path, expected, ack));
        }
        self.peers[at].1.done = true;
        self.shared.changed.notify_all();
    }
}
