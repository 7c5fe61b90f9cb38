//! Ours: the cores of ha-manager, with the defaults.

use std::time::Duration;

use ha_manager::membership::{
    Config, Event,
    sim::{Faults, Sim},
};

use super::{Cluster, Death};

pub(super) struct Ours(Sim);

impl Ours {
    pub(super) fn new(nodes: usize, seed: u64) -> Self {
        let mut sim = Sim::new(nodes, seed, Config::new("bench"), Faults::lan());
        sim.weighing = true;
        sim.introduce();
        Self(sim)
    }
}

impl Cluster for Ours {
    fn now(&self) -> Duration {
        self.0.now()
    }

    fn run_for(&mut self, time: Duration) {
        self.0.run_for(time);
    }

    fn faults(&mut self) -> &mut Faults {
        self.0.faults()
    }

    fn power_off(&mut self, node: usize) {
        self.0.power_off(node);
    }

    fn bytes_sent(&self) -> u64 {
        self.0.nodes.iter().map(|node| node.bytes_sent).sum()
    }

    fn deaths(&mut self) -> Vec<Death> {
        let events = std::mem::take(&mut self.0.events);
        let dead = events.into_iter().filter_map(|(at, _, event)| match event {
            Event::Dead { node } => Some(Death { at, of: self.0.index(&node)? }),
            _ => None,
        });
        dead.collect()
    }
}
