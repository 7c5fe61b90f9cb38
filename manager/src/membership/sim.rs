//! A simulated network around real cores: everything follows from one seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use prost::Message;

use super::{
    contacts::Contacts,
    core::{Core, Me},
    message::{Boot, CallId, Event, Gossip, Input, Liveness, MAX_RUMOURS, Output, Request, Rumour, Time, Touch},
    rumours::Rumours,
    wire,
};
use crate::{membership::Config, spec::NodeName};

mod net;

pub use net::{Faults, Net};

/// So many milliseconds.
pub fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// A node: its core, and what its shell would know.
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
    /// While weighing: encoded envelopes, without gRPC's own headers.
    pub bytes_sent: u64,
    /// On its disk.
    pub contacts: Contacts,
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

/// Cores, and the network between them.
pub struct Sim {
    net: Net<Due>,
    pub nodes: Vec<Node>,
    pub events: Vec<(Time, usize, Event)>,
    pub messages: u64,
    refusing: BTreeSet<usize>,
    dropping: BTreeSet<usize>,
    /// Count the bytes of messages; off by default, it takes time.
    pub weighing: bool,
    config: Config,
    /// Token → who asked, in which life, and as which call.
    asked: BTreeMap<u64, (usize, u64, CallId)>,
    tokens: u64,
    boots: u64,
    by_name: BTreeMap<NodeName, usize>,
    by_address: BTreeMap<String, usize>,
    trace: Option<blake3::Hasher>,
}

impl Sim {
    /// `n` nodes that join by node 0, started within 100 ms.
    pub fn new(n: usize, seed: u64, config: Config, faults: Faults) -> Self {
        let mut sim = Self {
            net: Net::new(seed, faults),
            nodes: Vec::new(),
            events: Vec::new(),
            messages: 0,
            refusing: BTreeSet::new(),
            dropping: BTreeSet::new(),
            weighing: false,
            config,
            asked: BTreeMap::new(),
            tokens: 0,
            boots: 0,
            by_name: BTreeMap::new(),
            by_address: BTreeMap::new(),
            trace: None,
        };
        for i in 0..n {
            sim.add(&format!("n{i:03}"), &format!("n{i:03}:1"), &["n000:1"]);
            let at = ms(100) * sim.net.rng.below(100) as u32 / 100;
            sim.run_until(sim.net.now.max(at));
        }
        sim
    }

    pub fn now(&self) -> Time {
        self.net.now
    }

    pub fn faults(&mut self) -> &mut Faults {
        &mut self.net.faults
    }

    /// Tells every node of every other one, as if each had met them all: what joining by one node takes long for.
    pub fn introduce(&mut self) {
        let of = |node: &Node| node.core.as_ref().map(|core| core.me().clone());
        let everybody: Vec<_> = self.nodes.iter().filter_map(of).collect();
        let rumour = |me: &Me| Rumour {
            node: me.name.clone(),
            address: me.address.clone(),
            boot: me.boot,
            incarnation: 0,
            liveness: Liveness::Alive,
            accuser: None,
        };
        let (now, mut out) = (self.net.now, Vec::new());
        for core in self.nodes.iter_mut().filter_map(|node| node.core.as_mut()) {
            for some in everybody.chunks(MAX_RUMOURS) {
                let Me { name: from, address, boot } = some[0].clone();
                let gossip = Gossip {
                    from,
                    to: None,
                    address,
                    boot,
                    incarnation: 0,
                    rumours: some.iter().map(rumour).collect(),
                };
                core.handle(Input::Answered { call: CallId(u64::MAX), gossip, answered: true }, now, &mut out);
                out.clear();
            }
            // Of what everybody knows there is nothing to tell.
            core.rumours = Rumours::default();
        }
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
            contacts: Contacts::default(),
        });
        let index = self.nodes.len() - 1;
        self.by_name.insert(self.nodes[index].name.clone(), index);
        self.by_address.insert(address.to_owned(), index);
        self.start(index, seeds);
        index
    }

    /// Starts a node, with nothing remembered but its contacts.
    pub fn start(&mut self, index: usize, seeds: &[&str]) {
        self.boots += 1;
        let mut boot = [0; 16];
        boot[..8].copy_from_slice(&self.boots.to_be_bytes());
        let node = &mut self.nodes[index];
        let me = Me { name: node.name.clone(), address: node.address.clone(), boot: Boot(boot) };
        let seeds = seeds.iter().map(|s| s.to_string()).collect();
        let (config, contacts) = (self.config.clone(), node.contacts.clone());
        node.core = Some(Core::new(config, me, seeds, contacts, self.net.rng.next(), self.net.now).unwrap());
        node.life += 1;
        node.paused = Time::ZERO;
        node.wake = self.net.now;
        self.net.at(self.net.now, Due::Wake(index));
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
        let before = std::mem::replace(&mut self.nodes[index].address, address.to_owned());
        self.by_address.remove(&before);
        self.by_address.insert(address.to_owned(), index);
    }

    pub fn pause(&mut self, index: usize, time: Duration) {
        self.nodes[index].paused = self.net.now + time;
    }

    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.net.now + time);
    }

    pub fn run_until(&mut self, end: Time) {
        while let Some(due) = self.net.next(end) {
            self.happen(due);
        }
    }

    pub fn input(&mut self, index: usize, input: Input) {
        let mut out = Vec::new();
        let node = &mut self.nodes[index];
        let Some(core) = &mut node.core else { return };
        let taken = self.trace.as_ref().map(|_| format!("{input:?}"));
        core.handle(input, self.net.now, &mut out);
        let deadline = core.deadline();
        if let (Some(trace), Some(taken)) = (&mut self.trace, taken) {
            trace.update(format!("{:?} {index} {taken} -> {out:?}\n", self.net.now).as_bytes());
        }
        if deadline != node.wake && deadline < Time::MAX {
            node.wake = deadline;
            self.net.at(deadline, Due::Wake(index));
        }
        let life = self.nodes[index].life;
        for output in out {
            match output {
                Output::Event(event) => self.events.push((self.net.now, index, event)),
                Output::Touch { node, kind } => self.touch(index, node, kind),
                Output::Call { id, to, request, gossip, .. } => {
                    self.weigh(index, &gossip);
                    let to = self.by_address.get(&to).copied();
                    if self.dropping.contains(&index) {
                        self.net.at(self.net.now, Due::Report(index, Input::Dropped { call: id }));
                    } else if to.is_some_and(|to| self.refusing.contains(&to)) {
                        self.net.at(self.net.now + ms(1), Due::Report(index, Input::Failed { call: id }));
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

    /// What a taker relies on: whoever has met a node is known to it.
    fn touch(&mut self, index: usize, node: NodeName, kind: Touch) {
        let me = &self.nodes[index].name;
        let knows = |other: &Node| other.name == node && other.contacts.known.contains(me);
        // An impostor has the name, too, and is the one that is found by it.
        let known = self.index(&node).is_some_and(|found| knows(&self.nodes[found])) || self.nodes.iter().any(knows);
        assert!(kind == Touch::Known || known, "{me} has met {node}, which does not know it");
        assert!(self.nodes[index].contacts.of_mut(kind).insert(node), "said twice");
    }

    /// What `viewer` believes of `node`.
    pub fn liveness(&self, viewer: usize, node: usize) -> Option<Liveness> {
        let name = &self.nodes[node].name;
        self.nodes[viewer].core.as_ref()?.peers().find(|p| p.name == *name).map(|p| p.liveness)
    }

    /// The number of the node of this name.
    pub fn index(&self, name: &NodeName) -> Option<usize> {
        self.by_name.get(name).copied()
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
        let began = self.net.now;
        while !self.agreed() {
            assert!(self.net.now - began < within, "no agreement after {within:?}");
            self.run_for(ms(10));
        }
        self.net.now - began
    }

    pub fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|(_, _, event)| wanted(event)).count()
    }

    fn happen(&mut self, due: Due) {
        let index = match &due {
            Due::Wake(index) | Due::Arrive(index, _) | Due::Report(index, _) => *index,
        };
        let paused = self.nodes[index].paused;
        if self.net.now < paused {
            self.net.at(paused, due);
            return;
        }
        match due {
            Due::Wake(_) => {
                // A wake that a later one has replaced is not due any more.
                if self.nodes[index].core.as_ref().is_some_and(|core| core.deadline() <= self.net.now) {
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
        self.net.send(from, to, Due::Arrive(to, packet));
    }

    fn weigh(&mut self, index: usize, gossip: &Gossip) {
        if self.weighing {
            self.nodes[index].bytes_sent += wire::envelope("c", gossip.clone()).encoded_len() as u64;
        }
    }
}
