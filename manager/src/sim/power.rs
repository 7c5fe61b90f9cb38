//! What befalls the nodes, and the watchdog that outlives their managers.

use std::time::Instant;

use super::{
    mutation::Mutation,
    node::{Deadline, Manager, Watchdog, time},
    scenario::Fault,
    shell::Job,
    store::Quality,
    world::{Due, State},
};
use crate::{
    membership::{Boot, Config, Core, Me},
    ownership::lease::{Beginning, End, Lease},
    spec::NodeName,
};

/// From the watchdog's decision to the last frozen process, in microseconds.
const FREEZE: (u64, u64) = (0, 20_000);

impl State {
    pub fn befall(&mut self, fault: Fault) {
        match fault {
            Fault::CutOneWay(from, to) => drop(self.cut.insert((from, to))),
            Fault::Heal => self.cut.clear(),
            Fault::PowerCut(node) => self.power_cut(node),
            Fault::Boot(node) => self.boot(node),
            Fault::KillManager(node) => self.kill(node, "manager killed"),
            Fault::StopManager(node) => self.stop(node),
            Fault::Continue(node) => self.cont(node),
            Fault::Slow(node, time) => {
                self.stop(node);
                self.push(self.now + time, Due::Quick(node));
            }
            Fault::Terminate(node) => {
                if self.nodes[node].manager.is_some() {
                    self.note(node, "SIGTERM");
                    self.jobs.push((node, Job::Terminate));
                }
            }
            Fault::Start(node) => {
                if self.nodes[node].power && self.nodes[node].manager.is_none() {
                    self.start(node);
                }
            }
            Fault::StoreDown(node) => self.reach(node, true),
            Fault::StoreUp(node) => self.reach(node, false),
            Fault::StoreQuality(quality) => self.quality = quality,
            Fault::Delay(least, most) => self.wire.delay = (least, most),
            Fault::Loss(share) => self.wire.loss = share,
            Fault::ClockDrift(node, drift) => {
                let now = self.now;
                self.nodes[node].clock.set_drift(now, drift);
                self.push(now, Due::Watchdog(node));
                self.nodes[node].tick = u64::MAX;
                self.arm_tick(node);
            }
            Fault::ClockJump(node, by) => self.note(node, format!("wall clock jumps by {by} us")),
        }
    }

    /// The faults are over: what is left off stays so, everything else is well.
    pub fn quiet(&mut self) {
        self.cut.clear();
        self.wire.delay = (100, 2_000);
        (self.wire.loss, self.wire.duplicates) = (0, 0);
        self.quality = Quality::good();
        self.reach(None, false);
    }

    fn reach(&mut self, node: Option<usize>, down: bool) {
        for (index, there) in self.nodes.iter_mut().enumerate() {
            if node.is_none_or(|node| node == index) {
                there.store_down = down;
            }
        }
    }

    pub fn boot(&mut self, node: usize) {
        if self.nodes[node].power {
            return;
        }
        let origin = 60_000_000 + self.rng.below(1_000_000_000) as u64;
        let now = self.now;
        let there = &mut self.nodes[node];
        there.power = true;
        let drift = self.scenario.drifts.get(node).copied().unwrap_or(0);
        there.clock = super::clock::Clock::new(now, origin, drift);
        there.watchdog = Watchdog::new();
        there.frozen = true;
        self.start(node);
    }

    /// A new manager, with what the disk and the watchdog know.
    fn start(&mut self, node: usize) {
        self.note(node, "manager starts");
        let now = self.instant(node);
        let terms = self.scenario.terms;
        let there = &mut self.nodes[node];
        there.life += 1;
        there.disk.starts += 1;
        there.stopped = false;
        there.tick = u64::MAX;
        let beginning = match there.watchdog {
            Watchdog { parked: true, .. } => Beginning::Parked,
            Watchdog { fired: true, .. } => Beginning::Nothing,
            Watchdog { deadline: Deadline::Never, .. } => Beginning::Nothing,
            Watchdog { deadline: Deadline::At(shown), .. } => Beginning::Inherited(self.zero() + time(shown)),
        };
        let core = self.core(node);
        let there = &mut self.nodes[node];
        let lease = Lease::new(terms, there.disk.known.iter().cloned(), beginning, now);
        let reused = self.scenario.is(Mutation::BeatNumbersReused);
        let next_beat = if reused { 1 } else { there.disk.starts << 20 };
        let mut judged = terms;
        if self.scenario.is(Mutation::NoWaitForShort) {
            judged.short = std::time::Duration::ZERO;
        }
        if self.scenario.is(Mutation::NoWaitForLong) {
            judged.long = std::time::Duration::ZERO;
        }
        let since = if self.scenario.is(Mutation::StartForgotten) { now - terms.long } else { now };
        let mut manager = Manager::new(core, lease, judged, since, next_beat);
        manager.started = now;
        manager.own = there.copies.iter().map(|(container, copy)| (*container, copy.epoch)).collect();
        let own: Vec<usize> = manager.own.keys().copied().collect();
        there.manager = Some(manager);
        self.poll_lease(node);
        let checkpoints = own.into_iter().map(Job::Checkpoints);
        let jobs = [Job::Keep, Job::Renew, Job::Scan].into_iter().chain(checkpoints);
        self.jobs.extend(jobs.map(|job| (node, job)));
        self.arm_tick(node);
    }

    fn core(&mut self, node: usize) -> Core {
        let mut boot = [0; 16];
        boot[..8].copy_from_slice(&self.unique().to_be_bytes());
        let name = self.nodes[node].name.clone();
        let me = Me { name, address: super::gossip::address(node), boot: Boot(boot) };
        let seeds = (0..self.nodes.len()).filter(|i| *i != node).map(super::gossip::address).collect();
        let shown = time(self.nodes[node].clock.read(self.now));
        let disk = &self.nodes[node].disk;
        let contacts = crate::membership::Contacts { known: disk.known.clone(), met: disk.met.clone() };
        Core::new(Config::new("c"), me, seeds, contacts, self.rng.next(), shown).expect("the defaults are in range")
    }

    pub fn kill(&mut self, node: usize, why: &str) {
        if self.nodes[node].manager.take().is_none() {
            return;
        }
        self.note(node, why);
        let there = &mut self.nodes[node];
        there.life += 1;
        there.stopped = false;
        there.deferred.clear();
        self.tasks.retain(|_, task| task.node != node);
    }

    fn power_cut(&mut self, node: usize) {
        if !self.nodes[node].power {
            return;
        }
        self.kill(node, "manager ends with the power");
        self.note(node, "power cut");
        let there = &mut self.nodes[node];
        there.power = false;
        there.copies.clear();
        there.watchdog = Watchdog::new();
        there.frozen = true;
    }

    fn stop(&mut self, node: usize) {
        if self.nodes[node].manager.is_some() {
            self.note(node, "manager gets no time");
            self.nodes[node].stopped = true;
        }
    }

    pub fn cont(&mut self, node: usize) {
        if std::mem::take(&mut self.nodes[node].stopped) {
            self.note(node, "manager goes on");
            for due in std::mem::take(&mut self.nodes[node].deferred) {
                let at = self.now + self.between((0, 500));
                self.push(at, due);
            }
        }
    }

    /// What is left of the proofs goes to the watchdog; what it has done comes back.
    pub fn poll_lease(&mut self, node: usize) {
        let (now, zero) = (self.instant(node), self.zero());
        let from_arrival = self.scenario.is(Mutation::CountedFromTheArrival);
        let revived = self.scenario.is(Mutation::RevivedByAnswers);
        let terms = self.scenario.terms;
        let there = &mut self.nodes[node];
        let Some(manager) = &mut there.manager else { return };
        if there.watchdog.fired && !there.watchdog.heeded {
            there.watchdog.heeded = true;
            manager.lease.lapse();
        }
        let mut answers: Vec<(NodeName, Instant)> =
            manager.core.peers().filter_map(|peer| Some((peer.name, zero + peer.saw_us?))).collect();
        if from_arrival {
            answers = manager.arrived.iter().map(|(name, at)| (name.clone(), *at)).collect();
        }
        for (name, sent) in &answers {
            manager.lease.answered(name, *sent, now);
        }
        let fresh = |name: &NodeName| answers.iter().any(|(of, at)| of == name && now - *at < terms.short / 3);
        if revived && manager.lease.end(now) == End::Lapsed && there.disk.known.iter().all(fresh) {
            let until = Beginning::Inherited(now + terms.short / 2);
            manager.lease = Lease::new(terms, there.disk.known.iter().cloned(), until, now);
        }
        let end = manager.lease.end(now);
        self.tell(node, end);
    }

    /// The manager tells the watchdog when the lease ends.
    pub fn tell(&mut self, node: usize, end: End) {
        let deadline = match end {
            End::Lapsed => return self.fire(node, true),
            End::Never => Deadline::Never,
            End::At(instant) => Deadline::At(self.shown(instant)),
        };
        let now = self.now;
        let there = &mut self.nodes[node];
        there.watchdog.deadline = deadline;
        if std::mem::take(&mut there.watchdog.fired) {
            there.watchdog.turn += 1;
            let thawed = std::mem::take(&mut there.frozen) && !there.copies.is_empty();
            self.laws.changed = true;
            if thawed {
                self.note(node, "thaws its containers");
            }
        }
        let there = &mut self.nodes[node];
        if let Deadline::At(shown) = deadline {
            let at = there.clock.when(shown).max(now);
            if there.watchdog.armed.is_none_or(|armed| at < armed) {
                there.watchdog.armed = Some(at);
                self.push(at, Due::Watchdog(node));
            }
        }
    }

    /// The watchdog's timer.
    pub fn watch(&mut self, node: usize) {
        let no_watchdog = self.scenario.is(Mutation::NoWatchdog);
        let now = self.now;
        let there = &mut self.nodes[node];
        there.watchdog.armed = None;
        let Deadline::At(shown) = there.watchdog.deadline else { return };
        if !there.power || there.watchdog.fired || (no_watchdog && (there.manager.is_none() || there.stopped)) {
            return;
        }
        if there.clock.read(now) >= shown {
            return self.fire(node, false);
        }
        let at = there.clock.when(shown);
        there.watchdog.armed = Some(at);
        self.push(at, Due::Watchdog(node));
    }

    fn fire(&mut self, node: usize, heeded: bool) {
        let there = &mut self.nodes[node];
        there.watchdog.heeded |= heeded;
        if !there.watchdog.fired {
            there.watchdog.fired = true;
            there.watchdog.heeded = heeded;
            let turn = there.watchdog.turn;
            let at = self.now + self.between(FREEZE);
            self.push(at, Due::Freeze(node, turn));
        }
    }

    pub fn freeze(&mut self, node: usize, turn: u64) {
        let there = &mut self.nodes[node];
        if there.power && there.watchdog.fired && there.watchdog.turn == turn && !there.frozen {
            there.frozen = true;
            if !there.copies.is_empty() {
                self.note(node, "watchdog freezes its containers");
            }
        }
    }
}
