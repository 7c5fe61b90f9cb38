//! The thread that asks the peers and carries out what follows.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{
        NetIdentity, NetworkError,
        arp::{Arp, Operation},
        bridge,
        kill::kill_tcp,
        netlink::Rtnl,
        packet::{ALL, PacketSocket},
        same_subnet,
    },
    AHEAD, BUSY, Fate, Shared, SurvivorLimits,
    decide::{Segment, Verdict, Watch},
    describe,
    images::Connection,
    wire,
};

/// Peers that answer do so within this; the first probes follow each other at this distance.
const EAGER: Duration = Duration::from_millis(20);
/// Between probes to a peer that was silent.
const PATIENT: Duration = Duration::from_millis(250);
/// How soon a cancelled job notices.
const SLICE: Duration = Duration::from_millis(20);
/// For the answers of some thousand peers at once, and the traffic of a busy bridge.
const BUFFER: usize = 8 << 20;
/// An Ethernet header and the longest IPv4 and TCP headers.
const CAPTURE: usize = 14 + 60 + 60;

/// Hears everything that passes the bridge: the answers are addressed to the container.
pub(super) fn open(on: &str) -> Result<PacketSocket, NetworkError> {
    let failed = |source| NetworkError::Kernel { doing: format!("listening on {on}"), source };
    let mut rtnl = Rtnl::open().map_err(failed)?;
    let (index, _) = bridge::find(&mut rtnl, on)?;
    let socket = PacketSocket::open(index, ALL).map_err(failed)?;
    socket.see_all().map_err(failed)?;
    socket.grow(BUFFER);
    Ok(socket)
}

/// One connection under watch.
pub(super) struct Peer {
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
    /// Whether that it answered has been made known.
    answered: bool,
    done: bool,
}

impl Peer {
    pub(super) fn of(connection: &Connection, identity: &NetIdentity) -> Result<Self, &'static str> {
        let (SocketAddr::V4(local), SocketAddr::V4(peer)) = (connection.local, connection.peer) else {
            return Err("only IPv4 connections are looked at");
        };
        if *local.ip() != identity.ip {
            return Err("it does not use the container's address");
        }
        let sequences = connection.sequences.ok_or("it was being closed at the checkpoint")?;
        let near = same_subnet(*peer.ip(), identity.ip, identity.prefix_len);
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
            answered: false,
            done: false,
        })
    }
}

pub(super) struct Job {
    shared: Arc<Shared>,
    socket: PacketSocket,
    identity: NetIdentity,
    /// With their places in the report.
    peers: Vec<(usize, Peer)>,
    by_address: HashMap<(SocketAddrV4, SocketAddrV4), usize>,
    hops: HashMap<Ipv4Addr, Option<[u8; 6]>>,
    limits: SurvivorLimits,
    start: Instant,
    /// How many peers are not done.
    open: usize,
    /// Frames were lost, so that something the restored container sent may not have been seen.
    blind: bool,
}

impl Job {
    pub(super) fn new(
        shared: Arc<Shared>,
        socket: PacketSocket,
        identity: NetIdentity,
        peers: Vec<(usize, Peer)>,
        limits: SurvivorLimits,
        start: Instant,
    ) -> Self {
        let by_address = peers.iter().enumerate().map(|(at, (_, peer))| ((peer.local, peer.peer), at)).collect();
        let hops = peers.iter().map(|(_, peer)| (peer.hop, None)).collect();
        let open = peers.len();
        Self { shared, socket, identity, peers, by_address, hops, limits, start, open, blind: false }
    }

    pub(super) fn run(mut self) {
        if let Err(error) = self.watch() {
            self.shared.lock().report.errors.push(format!("watching the container's peers: {error}"));
        }
        let mut state = self.shared.lock();
        state.silent = 0;
        self.shared.changed.notify_all();
    }

    fn watch(&mut self) -> io::Result<()> {
        let mut buffer = [0; CAPTURE];
        let mut probe_at = self.start;
        loop {
            let now = Instant::now();
            {
                let state = self.shared.lock();
                if state.cancelled {
                    return Ok(());
                }
                if state.netns.is_none() {
                    // Begins to count anew: while the container is mute nothing of it can be missed.
                    self.socket.lost_frames()?;
                }
            }
            if now >= probe_at {
                self.ask_all();
                probe_at = now + if now < self.start + self.limits.answer { EAGER } else { PATIENT };
            }
            let until = probe_at.min(now + SLICE);
            while let Some((frame, _)) = self.socket.receive(&mut buffer, until)? {
                self.frame(frame, Instant::now());
                if Instant::now() >= until || self.open == 0 {
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
            if over || self.open == 0 {
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

    /// Makes known what has been found out about a peer, and carries out its verdict, once.
    fn conclude(&mut self, at: usize) {
        let (place, ref peer) = self.peers[at];
        if peer.done || !peer.watch.answered() {
            return;
        }
        let (verdict, first) = (peer.watch.verdict(), !peer.answered);
        if verdict.is_none() && !first {
            return;
        }
        // One step for who waits in `settle`: a peer that is no longer silent has its fate.
        let mut state = self.shared.lock();
        if verdict == Some(Verdict::MovedOn) && state.netns.is_some() {
            self.blind = self.blind || self.socket.lost_frames().map_or(true, |lost| lost > 0);
        }
        let fate = match verdict {
            None => Fate::Unknown(AHEAD),
            Some(Verdict::Idle) => Fate::Kept,
            // Once the container is on the wire, what the peer acknowledges may be what the container has just sent.
            Some(Verdict::MovedOn) if self.blind => Fate::Unknown(BUSY),
            Some(Verdict::MovedOn | Verdict::Gone) => Fate::Reset,
        };
        if state.cancelled {
            return;
        }
        if let Some(connection) = state.report.connections.get_mut(place) {
            connection.fate = fate;
        }
        if first {
            state.silent = state.silent.saturating_sub(1);
        }
        if fate == Fate::Reset
            && let Some(netns) = state.netns.clone()
        {
            // Ours first: a living socket would answer the peer once more.
            let pair = (SocketAddr::V4(peer.local), SocketAddr::V4(peer.peer));
            if let Err(error) = kill_tcp(&netns, |socket| (socket.local, socket.peer) == pair) {
                state.report.errors.push(describe(&error));
            }
        }
        drop(state);
        if verdict == Some(Verdict::MovedOn)
            && fate == Fate::Reset
            && let (Some(path), Some((expected, ack))) = (self.path(peer), peer.last)
        {
            // Should it be lost, the peer's next segment finds no socket and is answered with another.
            let _ = self.socket.send(&wire::reset(&path, expected, ack));
        }
        let peer = &mut self.peers[at].1;
        (peer.answered, peer.done) = (true, verdict.is_some());
        self.open -= usize::from(verdict.is_some());
        self.shared.changed.notify_all();
    }
}
