//! What peers send: protobuf → `membership`'s reading of it → a core that lives through the whole sequence.
//!
//! ```text
//! step   = operation u8, wait u8, then for a message: which u8, length u16 (little-endian), that many bytes of protobuf
//! ```
#![no_main]

use std::{collections::BTreeSet, time::Duration};

use ha_manager::{
    fuzzing::{read_gossip, read_indirect, write_gossip},
    membership::{Boot, CallId, Config, Contacts, Core, Gossip, Input, MAX_RUMOURS, Me, Output, Request, Time, Touch},
    spec::NodeName,
};
use ha_proto::peer as pb;
use libfuzzer_sys::fuzz_target;
use prost::Message;

const CLUSTER: &str = "c";
const MAX_PEERS: usize = 4;
/// Milliseconds; the later ones are longer than anything the protocol waits for.
const WAITS: [u64; 8] = [0, 1, 10, 60, 150, 200, 700, 1500];
const MAX_STEPS: usize = 200;

fuzz_target!(|data: &[u8]| {
    let mut bench = Bench::new();
    let mut rest = data;
    for _ in 0..MAX_STEPS {
        let [operation, wait, after @ ..] = rest else { break };
        rest = after;
        bench.wait(*wait);
        match operation % 8 {
            0 | 1 => bench.ping(message(&mut rest)),
            2 => bench.ping_indirect(message(&mut rest)),
            3 | 4 => {
                let which = rest.first().copied().unwrap_or_default();
                rest = rest.get(1..).unwrap_or_default();
                bench.answered(which, message(&mut rest));
            }
            5 => bench.failed(message(&mut rest).first().copied().unwrap_or_default()),
            6 => bench.wait(wait.rotate_left(3)),
            _ if *operation == 255 => bench.take(Input::Leave),
            _ => bench.take(Input::Tick),
        }
    }
    bench.settle();
});

fn message<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let Some((length, after)) = rest.split_first_chunk::<2>() else { return std::mem::take(rest) };
    let (message, after) = after.split_at(usize::from(u16::from_le_bytes(*length)).min(after.len()));
    *rest = after;
    message
}

/// A core, and the books that its promises are checked against.
struct Bench {
    core: Core,
    now: Time,
    /// Asked, and not answered yet.
    open: BTreeSet<u64>,
    tokens: u64,
    calls: Vec<CallId>,
    highest_call: Option<CallId>,
    incarnation: u64,
    /// Announced, and so remembered before they are sent anything.
    known: BTreeSet<NodeName>,
}

impl Bench {
    fn new() -> Self {
        let config = Config { max_peers: MAX_PEERS, ..Config::new(CLUSTER) };
        let me = Me { name: "me".parse().unwrap(), address: "me:1".into(), boot: Boot([9; 16]) };
        let core = Core::new(config, me, vec!["seed:1".into()], Contacts::default(), 1, Time::ZERO).unwrap();
        let (now, open, calls) = (Time::ZERO, BTreeSet::new(), Vec::new());
        Self { core, now, open, tokens: 0, calls, highest_call: None, incarnation: 0, known: BTreeSet::new() }
    }

    /// Time passes: with its timers on time, or (the high bit) in one leap, as for a node that was not run.
    fn wait(&mut self, wait: u8) {
        let end = self.now + Duration::from_millis(WAITS[usize::from(wait % 8)]);
        while wait < 128 && self.core.deadline() <= end {
            self.now = self.now.max(self.core.deadline());
            self.take(Input::Tick);
        }
        self.now = end;
    }

    fn ping(&mut self, bytes: &[u8]) {
        let Ok(request) = pb::PingRequest::decode(bytes) else { return };
        if let Some(gossip) = read(request.envelope) {
            self.asked(gossip, Request::Ping);
        }
    }

    fn ping_indirect(&mut self, bytes: &[u8]) {
        let Ok(request) = pb::PingIndirectRequest::decode(bytes) else { return };
        if let (Some(gossip), Ok(asked)) = (read(request.envelope), read_indirect(request.target, request.timeout_ms)) {
            self.asked(gossip, asked);
        }
    }

    fn asked(&mut self, gossip: Gossip, request: Request) {
        let (token, at_once) = (self.tokens, request == Request::Ping);
        self.tokens += 1;
        self.open.insert(token);
        self.take(Input::Asked { token, gossip, request });
        assert!(!at_once || !self.open.contains(&token), "a ping that is not answered at once");
    }

    fn answered(&mut self, which: u8, bytes: &[u8]) {
        let Ok(reply) = pb::PingIndirectReply::decode(bytes) else { return };
        let Some(gossip) = read(reply.envelope) else { return };
        let call = self.call(which);
        self.take(Input::Answered { call, gossip, answered: reply.answered });
    }

    fn failed(&mut self, which: u8) {
        let call = self.call(which);
        self.take(if which < 128 { Input::Failed { call } } else { Input::Dropped { call } });
    }

    /// One of the newest calls, whether or not it is still waited for.
    fn call(&self, which: u8) -> CallId {
        let back = usize::from(which % 32).min(self.calls.len());
        self.calls.get(self.calls.len() - back).or(self.calls.last()).copied().unwrap_or(CallId(u64::from(which)))
    }

    fn take(&mut self, input: Input) {
        let mut out = Vec::new();
        self.core.handle(input, self.now, &mut out);
        for output in out {
            match output {
                Output::Reply { token, gossip, .. } => {
                    assert!(self.open.remove(&token), "answered twice, or never asked");
                    self.may_send(&gossip);
                }
                Output::Call { id, gossip, timeout, .. } => {
                    assert!(Some(id) > self.highest_call, "a call's name is used twice");
                    assert!(timeout > Duration::ZERO);
                    self.highest_call = Some(id);
                    self.calls.push(id);
                    self.may_send(&gossip);
                }
                Output::Touch { node, kind } => drop((kind == Touch::Known).then(|| self.known.insert(node))),
                Output::Event(_) => {}
            }
        }
        assert!(self.core.incarnation() >= self.incarnation, "our own incarnation went back");
        self.incarnation = self.core.incarnation();
        let peers = self.core.peers().count();
        assert!(peers <= MAX_PEERS, "{peers} peers");
        assert!(self.core.peers().all(|peer| peer.name.as_str() != "me"), "we are a peer of ourselves");
        assert!(self.core.rumours_pending() <= 1 + MAX_PEERS * 3, "{} rumours", self.core.rumours_pending());
        assert!(self.core.calls_pending() < 200, "{} calls", self.core.calls_pending());
        assert!(self.core.probes_pending() <= peers, "{} to probe of {peers}", self.core.probes_pending());
        assert!(self.core.deadline() > self.now, "a busy loop: due at {:?} at {:?}", self.core.deadline(), self.now);
    }

    /// What goes out is accepted by every peer, and goes to nobody by name who was not announced before.
    fn may_send(&self, gossip: &Gossip) {
        readable(gossip);
        let unknown = gossip.to.as_ref().filter(|to| !self.known.contains(*to));
        assert!(unknown.is_none(), "{unknown:?} is sent something and was not announced");
    }

    /// Whoever asked gets an answer.
    fn settle(&mut self) {
        let end = self.now + Duration::from_secs(2);
        while self.core.deadline() <= end {
            self.now = self.core.deadline();
            self.take(Input::Tick);
            for call in std::mem::take(&mut self.calls) {
                self.take(Input::Failed { call });
            }
        }
        assert!(self.open.is_empty(), "never answered: {:?}", self.open);
    }
}

/// What is accepted means the same when it is sent on.
fn read(envelope: Option<pb::Envelope>) -> Option<Gossip> {
    let gossip = read_gossip(CLUSTER, envelope).ok()?;
    assert_eq!(readable(&gossip), gossip);
    Some(gossip)
}

/// What we send is what every peer accepts.
fn readable(gossip: &Gossip) -> Gossip {
    assert!(gossip.rumours.len() <= MAX_RUMOURS);
    let bytes = write_gossip(CLUSTER, gossip.clone()).encode_to_vec();
    assert!(bytes.len() < pb::MAX_MESSAGE, "{} bytes", bytes.len());
    let read = read_gossip(CLUSTER, Some(pb::Envelope::decode(&bytes[..]).unwrap())).unwrap();
    assert_eq!(read, *gossip);
    read
}
