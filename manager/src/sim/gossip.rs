//! Membership's messages: what the shell around its core does with them, and the network they go through.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Micros,
    node::{number, time},
    scenario::{Scenario, micros},
    shell::Job,
    world::{Due, State},
};
use crate::{
    membership::{CallId, Event, Gossip, Input, Output, Request, Touch},
    spec::NodeName,
};

/// Between two nodes.
#[derive(Debug, Clone)]
pub enum Packet {
    Ask { back: (usize, u64, CallId), request: Request, gossip: Gossip },
    Answer { from: usize, life: u64, call: CallId, gossip: Gossip, answered: bool },
}

/// What the network does to each message.
#[derive(Debug)]
pub struct Wire {
    /// Drawn anew for each, so messages overtake each other.
    pub delay: (Micros, Micros),
    /// In thousandths.
    pub loss: usize,
    pub duplicates: usize,
    /// Token → who asked, with which manager, as which call.
    asked: BTreeMap<u64, (usize, u64, CallId)>,
}

impl Wire {
    pub fn new(scenario: &Scenario) -> Self {
        let Scenario { delay, loss, duplicates, .. } = *scenario;
        Self { delay, loss, duplicates, asked: BTreeMap::new() }
    }
}

pub fn address(node: usize) -> String {
    format!("n{}:1", node + 1)
}

impl State {
    /// Gives the membership core one input and does what it says.
    pub fn input(&mut self, node: usize, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let shown = time(self.nodes[node].clock.read(self.now));
            let Some(manager) = &mut self.nodes[node].manager else { return };
            let mut out = Vec::new();
            manager.core.handle(input, shown, &mut out);
            for output in out {
                match output {
                    Output::Event(event) => self.heard(node, event),
                    Output::Call { id, to, request, gossip, .. } => {
                        let Some(to) = to.strip_suffix(":1").and_then(|name| number(&name.parse().ok()?)) else {
                            continue;
                        };
                        let back = (node, self.nodes[node].life, id);
                        self.send(node, to, Packet::Ask { back, request, gossip });
                    }
                    Output::Touch { node: name, kind } => self.touch(node, name, kind),
                    Output::Reply { token, gossip, answered } => {
                        let Some((to, life, call)) = self.wire.asked.remove(&token) else { continue };
                        let (now, name) = (self.instant(node), self.nodes[to].name.clone());
                        self.manager(node).contact.insert(name, now);
                        self.send(node, to, Packet::Answer { from: node, life, call, gossip, answered });
                    }
                }
            }
        }
        self.arm_tick(node);
    }

    pub fn arm_tick(&mut self, node: usize) {
        let Some(manager) = &self.nodes[node].manager else { return };
        let due = manager.core.deadline();
        if due == Duration::MAX {
            return;
        }
        // Rounded up: a tick before it is due would come again and again.
        let deadline = micros(due + Duration::from_nanos(999));
        if deadline != self.nodes[node].tick {
            self.nodes[node].tick = deadline;
            let at = self.nodes[node].clock.when(deadline).max(self.now);
            self.push(at, Due::Tick(node, self.nodes[node].life, deadline));
        }
    }

    pub fn arrive(&mut self, node: usize, packet: Packet) {
        if self.nodes[node].manager.is_none() {
            return;
        }
        match packet {
            Packet::Ask { back, request, gossip } => {
                let now = self.instant(node);
                self.manager(node).contact.insert(gossip.from.clone(), now);
                let token = self.unique();
                self.wire.asked.insert(token, back);
                self.input(node, Input::Asked { token, gossip, request });
            }
            Packet::Answer { from, life, call, gossip, answered } => {
                if self.nodes[node].life != life {
                    return;
                }
                let (now, name) = (self.instant(node), self.nodes[from].name.clone());
                self.manager(node).contact.insert(gossip.from.clone(), now);
                self.manager(node).arrived.insert(name, now);
                self.input(node, Input::Answered { call, gossip, answered });
            }
        }
    }

    /// Written down, and told to the lease and the watchdog, before the message that it is about goes out.
    fn touch(&mut self, node: usize, name: NodeName, kind: Touch) {
        let now = self.instant(node);
        match kind {
            Touch::Known => {
                self.nodes[node].disk.known.insert(name.clone());
                self.manager(node).lease.know(&name, Some(now), now);
                self.poll_lease(node);
            }
            Touch::Met => drop(self.nodes[node].disk.met.insert(name)),
        }
    }

    fn send(&mut self, from: usize, to: usize, packet: Packet) {
        let copies = if self.chance(self.wire.duplicates) { 2 } else { 1 };
        for _ in 0..copies {
            if self.cut.contains(&(from, to)) || self.chance(self.wire.loss) {
                continue;
            }
            let at = self.now + self.between(self.wire.delay);
            self.push(at, Due::Arrive(to, packet.clone()));
        }
    }

    fn heard(&mut self, node: usize, event: Event) {
        match event {
            Event::Dead { node: dead } => {
                self.note(node, format!("holds {dead} dead"));
                self.jobs.push((node, Job::Died(dead)));
            }
            Event::Left { node: left } => self.note(node, format!("hears that {left} has left")),
            _ => {}
        }
    }
}
