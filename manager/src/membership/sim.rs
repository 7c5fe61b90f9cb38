//! A simulated network around real cores: everything follows from one seed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use prost::Message;

use super::{
    core::{Core, Me},
    message::{Boot, CallId, Event, Gossip, Input, Liveness, Output, Request, Time},
    rng::Rng,
    wire,
};
use crate::{membership::Config, spec::NodeName};

pub fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// What the network does to each message, one way.
#[derive(Debug, Clone)]
pub struct Faults {
    /// Lost and duplicated per 10,000 messages.
    pub loss: usize,
    pub duplicate: usize,
    /// Drawn anew for each message, so messages overtake each other.
    pub delay: (Duration, Duration),
    /// Pairs (from, to) whose messages vanish.
    pub cut: BTreeSet<(usize, usize)>,
}

impl Faults {
    pub fn lan() -> Self {
        Self { loss: 0, duplicate: 0, delay: (Duration::from_micros(100), ms(2)), cut: BTreeSet::new() }
    }

    pub fn lossy(loss: usize) -> Self {
        Self { loss, duplicate: 20, delay: (Duration::from_micros(100), ms(20)), ..Self::lan() }
    }

    pub fn split(&mut self, one: &[usize], other: &[usize]) {
        for a in one {
            for b in other {
                self.cut.insert((*a, *b));
                self.cut.insert((*b, *a));
            }
        }
    }
}

pub struct Node {
    /// `None` while its power is off.
    pub core: Option<Core>,
    name: NodeName,
    address: String,
    /// Counts starts: an answer to an earlier life is dropped.
    life: u64,
    wake: Time,
    /// Nothing runs here before; what arrives waits.
    pub paused: Time,
    pub bytes_sent: u64,
}

#[derive(Debug, Clone)]
enum Packet {
    Ask { back: (usize, u64, CallId), request: Request, gossip: Gossip },
    Answer { life: u64, call: CallId, gossip: Gossip, answered: bool },
}

#[derive(Debug, Clone)]
enum Due {
    Wake(usize),
    Arrive(usize, Packet),
    /// From the node's own shell.
    Report(usize, Input),
}

pub struct Sim {
    pub now: Time,
    pub nodes: Vec<Node>,
    pub faults: Faults,
    pub events: Vec<(Time, usize, Event)>,
    pub messages: u64,
    refusing: BTreeSet<usize>,
    dropping: BTreeSet<usize>,
    /// Count the bytes of messages; off by default, it takes time.
    pub weighing: bool,
    config: Config,
    rng: Rng,
    queue: BinaryHeap<Reverse<(Time, u64, usize)>>,
    due: BTreeMap<usize, Due>,
    order: u64,
    /// Token → who asked, in which life, and as which call.
    asked: BTreeMap<u64, (usize, u64, CallId)>,
    tokens: u64,
    boots: u64,
    trace: Option<blake3::Hasher>,
}

impl Sim {
    /// `n` nodes that join by node 0, started within 100 ms.
    pub fn new(n: usize, seed: u64, config: Config, faults: Faults) -> Self {
        let mut sim = Self {
            now: Time::ZERO,
            nodes: Vec::new(),
            faults,
            events: Vec::new(),
            messages: 0,
            refusing: BTreeSet::new(),
            dropping: BTreeSet::new(),
            weighing: false,
            config,
            rng: Rng::new(seed),
            queue: BinaryHeap::new(),
            due: BTreeMap::new(),
            order: 0,
            asked: BTreeMap::new(),
            tokens: 0,
            boots: 0,
            trace: None,
        };
        for i in 0..n {
            sim.add(&format!("n{i:03}"), &format!("n{i:03}:1"), &["n000:1"]);
            let at = ms(100) * sim.rng.below(100) as u32 / 100;
            sim.run_until(sim.now.max(at));
        }
        sim
    }

    pub fn record(&mut self) {
        self.trace = Some(blake3::Hasher::new());
    }

    /// The hash over everything every node took in and gave out.
    pub fn trace(&self) -> String {
        self.trace.as_ref().unwrap().finalize().to_hex().to_string()
    }

    pub fn add(&mut self, name: &str, address: &str, seeds: &[&str]) -> usize {
        self.nodes.push(Node {
            core: None,
            name: name.parse().unwrap(),
            address: address.to_owned(),
            life: 0,
            wake: Time::MAX,
            paused: Time::ZERO,
            bytes_sent: 0,
        });
        let index = self.nodes.len() - 1;
        self.start(index, seeds);
        index
    }

    /// Starts a node, with nothing remembered.
    pub fn start(&mut self, index: usize, seeds: &[&str]) {
        self.boots += 1;
        let mut boot = [0; 16];
        boot[..8].copy_from_slice(&self.boots.to_be_bytes());
        let node = &mut self.nodes[index];
        let me = Me { name: node.name.clone(), address: node.address.clone(), boot: Boot(boot) };
        let seeds = seeds.iter().map(|s| s.to_string()).collect();
        node.core = Some(Core::new(self.config.clone(), me, seeds, self.rng.next(), self.now).unwrap());
        node.life += 1;
        node.paused = Time::ZERO;
        node.wake = self.now;
        self.push(self.now, Due::Wake(index));
    }

    /// Connections to this node are refused at once, as while its program restarts.
    pub fn refuse_from(&mut self, index: usize) {
        self.refusing.insert(index);
    }

    /// Every call of this node finds its queue full.
    pub fn drop_calls_of(&mut self, index: usize) {
        self.dropping.insert(index);
    }

    pub fn power_off(&mut self, index: usize) {
        self.nodes[index].core = None;
    }

    pub fn move_to(&mut self, index: usize, address: &str) {
        self.nodes[index].address = address.to_owned();
    }

    pub fn pause(&mut self, index: usize, time: Duration) {
        self.nodes[index].paused = self.now + time;
    }

    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    pub fn run_until(&mut self, end: Time) {
        while let Some(Reverse((at, _, slot))) = self.queue.peek().copied() {
            if at > end {
                break;
            }
            self.queue.pop();
            self.now = at;
            if let Some(due) = self.due.remove(&slot) {
                self.happen(due);
            }
        }
        self.now = end;
    }

    pub fn input(&mut self, index: usize, input: Input) {
        let mut out = Vec::new();
        let node = &mut self.nodes[index];
        let Some(core) = &mut node.core else { return };
        let taken = self.trace.as_ref().map(|_| format!("{input:?}"));
        core.handle(input, self.now, &mut out);
        let deadline = core.deadline();
        if let (Some(trace), Some(taken)) = (&mut self.trace, taken) {
            trace.update(format!("{:?} {index} {taken} -> {out:?}\n", self.now).as_bytes());
        }
        if deadline != node.wake && deadline < Time::MAX {
            node.wake = deadline;
            self.push(deadline, Due::Wake(index));
        }
        let life = self.nodes[index].life;
        for output in out {
            match output {
                Output::Event(event) => self.events.push((self.now, index, event)),
                Output::Call { id, to, request, gossip, .. } => {
                    self.weigh(index, &gossip);
                    let to = self.nodes.iter().position(|n| n.address == to);
                    if self.dropping.contains(&index) {
                        self.push(self.now, Due::Report(index, Input::Dropped { call: id }));
                    } else if to.is_some_and(|to| self.refusing.contains(&to)) {
                        self.push(self.now + ms(1), Due::Report(index, Input::Failed { call: id }));
                    } else if let Some(to) = to {
                        self.send(index, to, Packet::Ask { back: (index, life, id), request, gossip });
                    }
                }
                Output::Reply { token, gossip, answered } => {
                    self.weigh(index, &gossip);
                    let (to, life, call) = self.asked.remove(&token).unwrap();
                    self.send(index, to, Packet::Answer { life, call, gossip, answered });
                }
            }
        }
    }

    /// What `viewer` believes of `node`.
    pub fn liveness(&self, viewer: usize, node: usize) -> Option<Liveness> {
        let name = &self.nodes[node].name;
        self.nodes[viewer].core.as_ref()?.peers().find(|p| p.name == *name).map(|p| p.liveness)
    }

    /// Every running node holds every other running one for alive.
    pub fn agreed(&self) -> bool {
        let running: Vec<_> = (0..self.nodes.len()).filter(|i| self.nodes[*i].core.is_some()).collect();
        let names: BTreeSet<_> = running.iter().map(|i| &self.nodes[*i].name).collect();
        running.iter().filter_map(|i| self.nodes[*i].core.as_ref()).all(|core| {
            let alive = core.peers().filter(|p| p.liveness == Liveness::Alive && names.contains(&p.name)).count();
            alive + 1 == names.len()
        })
    }

    /// Runs until all agree and returns how long that took.
    pub fn settle(&mut self, within: Duration) -> Duration {
        let began = self.now;
        while !self.agreed() {
            assert!(self.now - began < within, "no agreement after {within:?}");
            self.run_for(ms(10));
        }
        self.now - began
    }

    pub fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|(_, _, event)| wanted(event)).count()
    }

    fn happen(&mut self, due: Due) {
        let index = match &due {
            Due::Wake(index) | Due::Arrive(index, _) | Due::Report(index, _) => *index,
        };
        let paused = self.nodes[index].paused;
        if self.now < paused {
            self.push(paused, due);
            return;
        }
        match due {
            Due::Wake(_) => {
                // A wake that a later one has replaced is not due any more.
                if self.nodes[index].core.as_ref().is_some_and(|core| core.deadline() <= self.now) {
                    self.nodes[index].wake = Time::MAX;
                    self.input(index, Input::Tick);
                }
            }
            Due::Report(_, input) => self.input(index, input),
            Due::Arrive(_, Packet::Ask { back: (from, life, call), request, gossip }) => {
                let token = self.tokens;
                self.tokens += 1;
                self.asked.insert(token, (from, life, call));
                self.input(index, Input::Asked { token, gossip, request });
            }
            Due::Arrive(_, Packet::Answer { life, call, gossip, answered }) => {
                if self.nodes[index].life == life {
                    self.input(index, Input::Answered { call, gossip, answered });
                }
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, packet: Packet) {
        self.messages += 1;
        let copies = if self.rng.below(10_000) < self.faults.duplicate { 2 } else { 1 };
        for _ in 0..copies {
            if self.faults.cut.contains(&(from, to)) || self.rng.below(10_000) < self.faults.loss {
                continue;
            }
            let (least, most) = self.faults.delay;
            let spread = (most - least).as_micros() as usize;
            let delay = least + Duration::from_micros(self.rng.below(spread + 1) as u64);
            self.push(self.now + delay, Due::Arrive(to, packet.clone()));
        }
    }

    fn weigh(&mut self, index: usize, gossip: &Gossip) {
        if self.weighing {
            self.nodes[index].bytes_sent += wire::envelope("c", gossip.clone()).encoded_len() as u64;
        }
    }

    fn push(&mut self, at: Time, due: Due) {
        self.order += 1;
        let slot = self.order as usize;
        self.due.insert(slot, due);
        self.queue.push(Reverse((at, self.order, slot)));
    }
}
