//! A machine: its clock, its disk, its containers, the watchdog that freezes them, and the manager while one runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Micros, clock::Clock, world::Due};
use crate::{
    membership::Core,
    ownership::{
        lease::{Lease, Terms},
        silence::Silence,
    },
    spec::{Epoch, NodeName},
};

/// What outlives the manager and the power.
#[derive(Debug, Default)]
pub struct Disk {
    /// Whom this node has sent anything: they may have met it.
    pub known: BTreeSet<NodeName>,
    /// Who has sent this node anything.
    pub met: BTreeSet<NodeName>,
    /// Managers started.
    pub starts: u64,
    /// Snapshots taken here of each container: no number is used twice.
    pub snapshots: BTreeMap<usize, u64>,
}

/// A container's processes on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// The epoch that the node's record of it says.
    pub epoch: Epoch,
}

/// When the watchdog freezes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    Never,
    /// By the node's clock.
    At(Micros),
}

/// The process that freezes the containers when the lease ends, whatever the manager does.
#[derive(Debug)]
pub struct Watchdog {
    pub deadline: Deadline,
    /// It has frozen, or is about to: only a lease that was revived undoes it.
    pub fired: bool,
    /// The manager knows that it has fired.
    pub heeded: bool,
    /// The node is parked: there is no deadline.
    pub parked: bool,
    /// Counts thaws: what is left of a freeze from before one is not due any more.
    pub turn: u64,
    /// When it looks next.
    pub armed: Option<Micros>,
}

/// What a manager has in its memory.
pub struct Manager {
    pub core: Core,
    pub lease: Lease,
    pub silence: Silence,
    /// By which times others are taken for silent.
    pub judged: Terms,
    pub started: Instant,
    /// When it last answered each, or heard from it.
    pub contact: BTreeMap<NodeName, Instant>,
    /// When the last answer of each arrived.
    pub arrived: BTreeMap<NodeName, Instant>,
    /// What this node owns, has begun or is about to.
    pub own: BTreeMap<usize, Epoch>,
    /// Containers that something is being done about.
    pub busy: BTreeSet<usize>,
    /// Numbers of the own beats that may be in the store.
    pub beats: BTreeSet<u64>,
    pub next_beat: u64,
    /// SIGTERM was received.
    pub ending: bool,
}

pub struct Node {
    pub name: NodeName,
    pub clock: Clock,
    pub power: bool,
    /// The manager gets no time until it is continued.
    pub stopped: bool,
    pub deferred: Vec<Due>,
    /// Counts managers: what was meant for an earlier one is dropped.
    pub life: u64,
    pub manager: Option<Manager>,
    pub disk: Disk,
    pub copies: BTreeMap<usize, Copy>,
    pub frozen: bool,
    pub watchdog: Watchdog,
    pub store_down: bool,
    pub tick: Micros,
}

impl Node {
    pub fn new(index: usize, now: Micros, origin: Micros, drift: i64) -> Self {
        Self {
            name: name(index),
            clock: Clock::new(now, origin, drift),
            power: false,
            stopped: false,
            deferred: Vec::new(),
            life: 0,
            manager: None,
            disk: Disk::default(),
            copies: BTreeMap::new(),
            frozen: true,
            watchdog: Watchdog::new(),
            store_down: false,
            tick: Micros::MAX,
        }
    }

    /// A process that runs.
    pub fn runs(&self, container: usize) -> bool {
        self.power && !self.frozen && self.copies.contains_key(&container)
    }
}

impl Watchdog {
    /// As it starts with the machine: nothing may run until a lease says so.
    pub fn new() -> Self {
        Self { deadline: Deadline::Never, fired: true, heeded: true, parked: false, turn: 0, armed: None }
    }
}

impl Manager {
    pub fn new(core: Core, lease: Lease, terms: Terms, started: Instant, next_beat: u64) -> Self {
        Self {
            core,
            lease,
            silence: Silence::new(started),
            judged: terms,
            started,
            contact: BTreeMap::new(),
            arrived: BTreeMap::new(),
            own: BTreeMap::new(),
            busy: BTreeSet::new(),
            beats: BTreeSet::new(),
            next_beat,
            ending: false,
        }
    }
}

pub fn name(index: usize) -> NodeName {
    // A letter and digits are a name.
    format!("n{}", index + 1).parse().expect("is a name")
}

pub fn number(name: &NodeName) -> Option<usize> {
    name.as_str().strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1)
}

pub fn time(micros: Micros) -> Duration {
    Duration::from_micros(micros)
}
