//! The state machine itself: `(state, input, now) → outputs`. No clock, no I/O, and a generator of its own.

// Pure: time comes in as an argument.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::{collections::BTreeMap, time::Duration};

use super::{
    config::{Config, ConfigError},
    contacts::{Book, Contacts},
    health::Health,
    message::{Boot, CallId, Event, Gossip, Input, Liveness, MAX_RUMOURS, Output, Request, Rumour, Time, Touch},
    probe::{Pending, Probe},
    rng::Rng,
    rumours::{Rumours, retransmissions},
    suspicion::{self, Suspicion},
};
use crate::spec::NodeName;

/// Records of the table that ride along when there is room: what a lost rumour left wrong is put right by these.
const FILLER: usize = 2;
/// How many peers are told at once that we leave.
const LEAVE_FANOUT: usize = 8;

/// Who we are.
#[derive(Debug, Clone)]
pub struct Me {
    pub name: NodeName,
    /// `host:port` under which others reach our peer service.
    pub address: String,
    pub boot: Boot,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub address: String,
    pub boot: Boot,
    pub incarnation: u64,
    pub liveness: Liveness,
    pub since: Time,
    /// When the last message came from it itself.
    pub heard: Option<Time>,
    /// When the last call of ours that it answered was sent: it saw us then, or later.
    pub saw_us: Option<Time>,
    /// The boot before, its address, and how often it came back after having been replaced.
    pub before: Option<(Boot, String)>,
    pub returns: u8,
}

#[derive(Debug)]
pub(super) struct Seed {
    pub address: String,
    /// Who answered there.
    pub name: Option<NodeName>,
}

/// What is known of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerState {
    pub name: NodeName,
    pub address: String,
    pub boot: Boot,
    pub incarnation: u64,
    pub liveness: Liveness,
    pub since: Time,
    pub saw_us: Option<Time>,
    /// When we last sent it itself a reply.
    pub answered: Option<Time>,
}

/// One node's view of the cluster.
#[derive(Debug)]
pub struct Core {
    pub(super) config: Config,
    pub(super) me: Me,
    pub(super) incarnation: u64,
    pub(super) left: bool,
    pub(super) peers: BTreeMap<NodeName, Peer>,
    pub(super) suspicions: BTreeMap<NodeName, Suspicion>,
    pub(super) seeds: Vec<Seed>,
    pub(super) calls: BTreeMap<CallId, Pending>,
    /// Keyed by their direct call.
    pub(super) probes: BTreeMap<CallId, Probe>,
    pub(super) rota: Vec<NodeName>,
    pub(super) revived: Option<NodeName>,
    pub(super) rumours: Rumours,
    pub(super) health: Health,
    pub(super) rng: Rng,
    pub(super) next_call: u64,
    pub(super) next_probe: Time,
    pub(super) next_revive: Time,
    pub(super) last_nudge: Option<Time>,
    /// An earlier boot of our name that we had to outbid, and how often it came back.
    pub(super) outbid: Option<(Boot, u8)>,
    pub(super) conflict_told: bool,
    pub(super) crowd_told: bool,
    filler: Option<NodeName>,
    pub(super) book: Book,
}

impl Core {
    /// A node that knows no peers yet but the addresses of its seeds; `contacts` are those of its earlier starts. The first
    /// [`Input::Tick`] is due at once.
    ///
    /// # Errors
    /// As [`Config::check`].
    pub fn new(
        config: Config,
        me: Me,
        seeds: Vec<String>,
        contacts: Contacts,
        seed: u64,
        now: Time,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let seeds = seeds
            .into_iter()
            .filter(|address| *address != me.address)
            .map(|address| Seed { address, name: None })
            .collect();
        Ok(Self {
            health: Health::new(config.max_health),
            book: Book::new(contacts, config.max_contacts()),
            config,
            me,
            incarnation: 0,
            left: false,
            peers: BTreeMap::new(),
            suspicions: BTreeMap::new(),
            seeds,
            calls: BTreeMap::new(),
            probes: BTreeMap::new(),
            rota: Vec::new(),
            revived: None,
            rumours: Rumours::default(),
            rng: Rng::new(seed),
            next_call: 0,
            next_probe: now,
            next_revive: now,
            last_nudge: None,
            outbid: None,
            conflict_told: false,
            crowd_told: false,
            filler: None,
        })
    }

    /// Takes one input; what is to be done is appended to `out`. `now` never goes backwards.
    pub fn handle(&mut self, input: Input, now: Time, out: &mut Vec<Output>) {
        self.notice_stall(now, out);
        match input {
            Input::Tick => {}
            Input::Asked { token, gossip, request } => self.asked(token, &gossip, request, now, out),
            Input::Answered { call, gossip, answered } => self.answered(call, &gossip, answered, now, out),
            Input::Failed { call } => self.failed(call, now, out),
            Input::Dropped { call } => self.dropped(call, now, out),
            Input::Leave => self.leave(now, out),
        }
        self.tick(now, out);
    }

    /// When [`Input::Tick`] is due; [`Time::MAX`] after leaving.
    pub fn deadline(&self) -> Time {
        let calls = self.calls.values().map(|call| call.deadline);
        let probes = self.probes.values().filter_map(Probe::indirect_deadline);
        let own = calls.chain(probes).min().unwrap_or(Time::MAX);
        if self.left {
            return own;
        }
        let ends = self.suspicion_ends().map(|(_, end)| end).min().unwrap_or(Time::MAX);
        own.min(ends).min(self.next_probe).min(self.next_revive)
    }

    /// Everybody but ourselves, by name.
    pub fn peers(&self) -> impl Iterator<Item = PeerState> + '_ {
        self.peers.iter().map(|(name, peer)| PeerState {
            name: name.clone(),
            address: peer.address.clone(),
            boot: peer.boot,
            incarnation: peer.incarnation,
            liveness: peer.liveness,
            since: peer.since,
            saw_us: peer.saw_us,
            answered: self.book.answered(name),
        })
    }

    pub fn me(&self) -> &Me {
        &self.me
    }

    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// 0 when we are well; timeouts are this plus one times as long.
    pub fn health(&self) -> u32 {
        self.health.score()
    }

    /// Calls under way.
    pub fn calls_pending(&self) -> usize {
        self.calls.len()
    }

    /// Peers that this round of probes has still before it, and those met since it began.
    pub fn probes_pending(&self) -> usize {
        self.rota.len()
    }

    /// Rumours still to be told.
    pub fn rumours_pending(&self) -> usize {
        self.rumours.len()
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Output>) {
        self.expire_calls(now, out);
        if self.left {
            return;
        }
        let over: Vec<_> = self.suspicion_ends().filter(|(_, end)| *end <= now).map(|(name, _)| name.clone()).collect();
        for name in over {
            if let Some(claim) = self.claim(&name, Liveness::Dead) {
                self.believe(claim, now, out);
            }
        }
        if now >= self.next_probe {
            self.next_probe = now + self.health.scale(self.config.probe_interval);
            self.probe_round(now, out);
        }
        if now >= self.next_revive {
            self.next_revive = now + self.config.revive_interval;
            self.forget_old(now);
            self.revive_round(now, out);
        }
    }

    /// Whether nothing ran us for long. What was under way then says nothing about the others: it is dropped, suspects
    /// get the lost time back and the chance of one more probe, and a new round begins at once.
    fn notice_stall(&mut self, now: Time, out: &mut Vec<Output>) {
        let due = self.deadline();
        if self.left || now <= due.saturating_add(self.config.late_after) {
            return;
        }
        let late = now - due;
        out.push(Output::Event(Event::Stalled { late }));
        self.health.worse();
        let fresh = self.health.scale(self.config.probe_interval + self.config.probe_timeout);
        for suspicion in self.suspicions.values_mut() {
            suspicion.excuse(late, now, fresh);
        }
        self.drop_calls(now, out);
        self.next_probe = now;
    }

    fn leave(&mut self, now: Time, out: &mut Vec<Output>) {
        if self.left {
            return;
        }
        self.left = true;
        self.drop_calls(now, out);
        let rumour = self.own_rumour();
        self.rumours.push(rumour);
        for name in self.sample(LEAVE_FANOUT, None) {
            self.ping(&name, super::probe::Purpose::Word, now, out);
        }
    }

    pub(super) fn own_rumour(&self) -> Rumour {
        Rumour {
            node: self.me.name.clone(),
            address: self.me.address.clone(),
            boot: self.me.boot,
            incarnation: self.incarnation,
            liveness: if self.left { Liveness::Left } else { Liveness::Alive },
            accuser: None,
        }
    }

    fn record(&self, name: &NodeName) -> Option<Rumour> {
        self.peers.get(name).map(|peer| Rumour {
            node: name.clone(),
            address: peer.address.clone(),
            boot: peer.boot,
            incarnation: peer.incarnation,
            liveness: peer.liveness,
            accuser: self.suspicions.get(name).map(|s| s.accuser().clone()),
        })
    }

    /// Our own finding about a peer at the incarnation we know.
    pub(super) fn claim(&self, name: &NodeName, liveness: Liveness) -> Option<Rumour> {
        let record = self.record(name)?;
        Some(Rumour { liveness, accuser: Some(self.me.name.clone()), ..record })
    }

    /// Known nodes, ourselves included, that are not dead or gone.
    pub(super) fn size(&self) -> usize {
        1 + self.peers.values().filter(|p| p.liveness <= Liveness::Suspect).count()
    }

    /// How many others could confirm a suspicion.
    pub(super) fn confirmers(&self, suspect: &NodeName) -> usize {
        let others = self.peers.iter().filter(|(n, p)| *n != suspect && p.liveness == Liveness::Alive);
        others.take(self.config.confirmations).count()
    }

    fn suspicion_ends(&self) -> impl Iterator<Item = (&NodeName, Time)> + '_ {
        let least = if self.suspicions.is_empty() {
            Duration::ZERO
        } else {
            suspicion::least(self.config.suspicion, self.size())
        };
        self.suspicions.iter().map(move |(name, suspicion)| {
            (name, suspicion.deadline(least, self.config.suspicion_factor, self.confirmers(name)))
        })
    }

    /// Up to `count` living peers drawn at random, without `not`.
    pub(super) fn sample(&mut self, count: usize, not: Option<&NodeName>) -> Vec<NodeName> {
        let living = self.peers.iter().filter(|(n, p)| p.liveness == Liveness::Alive && Some(*n) != not);
        let mut names: Vec<_> = living.map(|(n, _)| n.clone()).collect();
        for i in 0..count.min(names.len()) {
            let j = i + self.rng.below(names.len() - i);
            names.swap(i, j);
        }
        names.truncate(count);
        names
    }

    /// A message for `to`, which is known from here on. What we hold against the receiver goes first, so that it can answer
    /// at once; `whole` sends as much of the table as fits, for one that has just joined.
    pub(super) fn gossip(
        &mut self,
        to: Option<&NodeName>,
        correct: bool,
        whole: bool,
        out: &mut Vec<Output>,
    ) -> Gossip {
        // Another node of our name is told of it, and is not to be held for an acquaintance of itself.
        let to = to.filter(|name| **name != self.me.name);
        if let Some(name) = to {
            self.touch(name, Touch::Known, out);
        }
        let mut rumours = Vec::new();
        if correct && let Some(record) = to.and_then(|name| self.record(name)) {
            rumours.push(record);
        }
        let limit = retransmissions(self.config.retransmit_factor, self.size());
        rumours.extend(self.rumours.take(MAX_RUMOURS - rumours.len(), limit));
        let room = MAX_RUMOURS - rumours.len();
        for name in self.next_filler(if whole { room } else { room.min(FILLER) }) {
            let told = Some(&name) == to || rumours.iter().any(|r| r.node == name);
            if let Some(record) = self.record(&name).filter(|_| !told) {
                rumours.push(record);
            }
        }
        Gossip {
            from: self.me.name.clone(),
            to: to.cloned(),
            address: self.me.address.clone(),
            boot: self.me.boot,
            incarnation: self.incarnation,
            rumours,
        }
    }

    /// The next names of the table, round and round.
    fn next_filler(&mut self, count: usize) -> Vec<NodeName> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = self.filler.take();
        let after = from.clone().map_or(Unbounded, Excluded);
        let tail = self.peers.range((after, Unbounded));
        let head = self.peers.iter().take_while(|(name, _)| from.as_ref().is_some_and(|from| *name <= from));
        let names: Vec<_> = tail.chain(head).take(count).map(|(name, _)| name.clone()).collect();
        self.filler = names.last().cloned().or(from);
        names
    }

    fn forget_old(&mut self, now: Time) {
        let old = |peer: &Peer| peer.liveness >= Liveness::Dead && now - peer.since >= self.config.forget_after;
        let gone: Vec<_> = self.peers.iter().filter(|(_, p)| old(p)).map(|(n, _)| n.clone()).collect();
        for name in gone {
            self.drop_peer(&name);
        }
    }

    /// Also its turn in the round: one that comes and goes would have many otherwise, and the others none.
    pub(super) fn drop_peer(&mut self, name: &NodeName) {
        self.peers.remove(name);
        self.rumours.forget(name);
        self.rota.retain(|other| other != name);
    }

    fn asked(&mut self, token: u64, gossip: &Gossip, request: Request, now: Time, out: &mut Vec<Output>) {
        let newcomer = self.absorb(gossip, now, out);
        match request {
            Request::Ping => self.reply(token, gossip, newcomer, true, now, out),
            Request::PingIndirect { target, timeout } => {
                if !self.relay(token, gossip.from.clone(), &target, timeout, now, out) {
                    self.reply(token, gossip, newcomer, false, now, out);
                }
            }
        }
    }

    fn reply(&mut self, token: u64, to: &Gossip, whole: bool, answered: bool, now: Time, out: &mut Vec<Output>) {
        let correct = self.peers.get(&to.from).is_some_and(|peer| {
            peer.liveness != Liveness::Alive || peer.boot != to.boot || peer.incarnation != to.incarnation
        });
        let gossip = self.gossip(Some(&to.from), correct, whole, out);
        self.answer(token, &to.from, gossip, answered, now, out);
    }
}
