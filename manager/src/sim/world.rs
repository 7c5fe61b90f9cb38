//! Everything there is at one instant, and the queue of what happens next.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    rc::Rc,
    time::Instant,
};

use super::{
    Micros,
    exec::Task,
    gossip::{Packet, Wire},
    laws::Laws,
    node::{Manager, Node, time},
    scenario::Scenario,
    shell::Job,
    store::{Answer, Call, DEADLINE, Objects, Op, Quality},
};
use crate::membership::{Input, Rng};

/// Something that is due.
#[derive(Debug, Clone)]
pub enum Due {
    /// A task of a manager goes on.
    Wake(u64),
    Arrive(usize, Packet),
    /// Membership's timer: of which of the node's managers, and for which deadline.
    Tick(usize, u64, Micros),
    /// A call reaches the store; a listing begins.
    Reached(u64),
    /// A listing ends.
    Listed(u64),
    /// A call is answered, or (`None`) fails for its caller.
    Answered(u64, Option<Answer>),
    Watchdog(usize),
    Freeze(usize, u64),
    /// From the scenario.
    Fault(usize),
    /// A slow node is quick again.
    Quick(usize),
    Quiet,
}

struct Entry {
    at: Micros,
    order: u64,
    due: Due,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The greatest is the next one.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// A line of what happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub at: Micros,
    pub node: Option<usize>,
    pub what: String,
}

pub struct State {
    pub scenario: Rc<Scenario>,
    pub now: Micros,
    /// What every clock's zero is, as the cores' type of time.
    zero: Instant,
    pub rng: Rng,
    pub nodes: Vec<Node>,
    pub objects: Objects,
    pub laws: Laws,
    pub notes: Vec<Note>,
    pub wire: Wire,
    pub quality: Quality,
    pub tasks: BTreeMap<u64, Task>,
    pub jobs: Vec<(usize, Job)>,
    /// The task that runs just now.
    pub current: u64,
    pub replies: BTreeMap<u64, Option<Answer>>,
    queue: BinaryHeap<Entry>,
    order: u64,
    calls: BTreeMap<u64, Call>,
    waiting: BTreeMap<u64, u64>,
    ids: u64,
    nonces: u64,
    pub cut: BTreeSet<(usize, usize)>,
    /// What is being begun: by which node, by which of its managers, which container.
    pub beginning: BTreeSet<(usize, u64, usize)>,
}

impl State {
    pub fn new(scenario: Rc<Scenario>, zero: Instant) -> Self {
        let mut rng = Rng::new(scenario.seed ^ 0x5eed);
        let origin = |rng: &mut Rng| 60_000_000 + rng.below(1_000_000_000) as Micros;
        let drift = |index: usize| scenario.drifts.get(index).copied().unwrap_or(0);
        let nodes = (0..scenario.nodes).map(|i| Node::new(i, 0, origin(&mut rng), drift(i))).collect();
        Self {
            now: 0,
            zero,
            rng,
            nodes,
            objects: Objects::default(),
            laws: Laws::new(scenario.containers.len()),
            notes: Vec::new(),
            wire: Wire::new(&scenario),
            quality: scenario.store,
            tasks: BTreeMap::new(),
            jobs: Vec::new(),
            current: 0,
            replies: BTreeMap::new(),
            queue: BinaryHeap::new(),
            order: 0,
            calls: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ids: 0,
            nonces: 0,
            cut: BTreeSet::new(),
            beginning: BTreeSet::new(),
            scenario,
        }
    }

    pub fn push(&mut self, at: Micros, due: Due) {
        self.order += 1;
        self.queue.push(Entry { at, order: self.order, due });
    }

    /// The next thing, if it is due by `end`; time goes on to it.
    pub fn next(&mut self, end: Micros) -> Option<Due> {
        if self.queue.peek().is_none_or(|entry| entry.at > end) {
            return None;
        }
        let entry = self.queue.pop()?;
        self.now = self.now.max(entry.at);
        Some(entry.due)
    }

    pub fn note(&mut self, node: usize, what: impl Into<String>) {
        self.notes.push(Note { at: self.now, node: Some(node), what: what.into() });
    }

    /// A number that no other call of this gives.
    pub fn unique(&mut self) -> u64 {
        self.nonces += 1;
        self.nonces
    }

    pub fn between(&mut self, (least, most): (Micros, Micros)) -> Micros {
        least + self.rng.below((most.saturating_sub(least) + 1) as usize) as Micros
    }

    pub fn chance(&mut self, thousandths: usize) -> bool {
        thousandths > 0 && self.rng.below(1000) < thousandths
    }

    /// What a node's clock shows, as the cores take it.
    pub fn instant(&self, node: usize) -> Instant {
        self.zero + time(self.nodes[node].clock.read(self.now))
    }

    /// The other way round.
    pub fn shown(&self, instant: Instant) -> Micros {
        super::scenario::micros(instant.saturating_duration_since(self.zero))
    }

    pub fn zero(&self) -> Instant {
        self.zero
    }

    /// The manager that a task belongs to: it is there while the task is.
    pub fn manager(&mut self, node: usize) -> &mut Manager {
        self.nodes[node].manager.as_mut().expect("a task ends with its manager")
    }

    /// Sends a call to the store; `task` goes on when it is answered.
    pub fn call(&mut self, node: usize, op: Op) -> u64 {
        self.ids += 1;
        let id = self.ids;
        self.waiting.insert(id, self.current);
        let refused = self.nodes[node].store_down;
        if refused && self.chance(500) {
            let at = self.now + self.between((1_000, 20_000));
            self.push(at, Due::Answered(id, None));
            return id;
        }
        self.push(self.now + DEADLINE, Due::Answered(id, None));
        if !refused {
            let repeated = matches!(op, Op::Create(..)) && self.chance(self.quality.repeated);
            self.calls.insert(id, Call::new(node, op, repeated));
            let way = if self.chance(self.quality.late) { (DEADLINE, 5 * DEADLINE) } else { self.quality.latency };
            let at = self.now + self.between(way);
            self.push(at, Due::Reached(id));
        }
        id
    }

    /// A call reaches the store, or a listing that did has ended.
    pub fn serve(&mut self, id: u64, ended: bool) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let node = call.node;
        if let (false, Op::List(_)) = (ended, call.op) {
            self.objects.begin_list(call);
            let at = self.now + self.between(self.quality.listing);
            return self.push(at, Due::Listed(id));
        }
        let Some(call) = self.calls.remove(&id) else { return };
        let down = self.nodes[node].store_down;
        if down && self.chance(500) {
            return;
        }
        let answer = self.objects.apply(&call, &mut self.rng);
        self.laws.stored(&call.op, &answer, self.now, &self.objects);
        if down {
            return;
        }
        let at = self.now + self.between(self.quality.latency);
        if !self.chance(self.quality.unanswered) {
            self.push(at, Due::Answered(id, Some(answer)));
        } else if self.chance(500) {
            self.push(at, Due::Answered(id, None));
        }
    }

    fn answered(&mut self, id: u64, answer: Option<Answer>) {
        if let Some(task) = self.waiting.remove(&id)
            && self.tasks.contains_key(&task)
        {
            self.replies.insert(id, answer);
            self.push(self.now, Due::Wake(task));
        }
    }

    /// Whatever is not a task's. What is for a manager that gets no time waits.
    pub fn happen(&mut self, due: Due) {
        let node = match &due {
            Due::Wake(task) => self.tasks.get(task).map(|task| task.node),
            Due::Arrive(node, _) | Due::Tick(node, ..) => Some(*node),
            _ => None,
        };
        if let Some(node) = node.filter(|node| self.nodes[*node].stopped) {
            self.nodes[node].deferred.push(due);
            return;
        }
        match due {
            Due::Wake(_) => {}
            Due::Arrive(node, packet) => self.arrive(node, packet),
            Due::Tick(node, life, deadline) => {
                let there = &mut self.nodes[node];
                // One that another has replaced is not due any more.
                if there.life == life && there.tick == deadline {
                    there.tick = Micros::MAX;
                    self.input(node, Input::Tick);
                }
            }
            Due::Reached(id) => self.serve(id, false),
            Due::Listed(id) => self.serve(id, true),
            Due::Answered(id, answer) => self.answered(id, answer),
            Due::Watchdog(node) => self.watch(node),
            Due::Freeze(node, turn) => self.freeze(node, turn),
            Due::Fault(index) => {
                let fault = self.scenario.timeline[index].1.clone();
                self.befall(fault);
            }
            Due::Quick(node) => self.cont(node),
            Due::Quiet => self.quiet(),
        }
    }
}
