//! [foca](https://caio.co/de/foca/): SWIM as a library, driven by the simulated network in place of UDP.

use std::{
    num::{NonZeroU8, NonZeroU32, NonZeroUsize},
    time::Duration,
};

use foca::{
    AccumulatingRuntime, Config, Foca, Identity, Member, NoCustomBroadcast, OwnedNotification, PostcardCodec, Timer,
};
use ha_manager::membership::{
    self,
    sim::{Faults, Net, ms},
};
use rand::{SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use super::Death;

/// foca with our periods: a probe every `probe_interval`, of which half is for the direct answer and half for the indirect ones
/// (the verdict falls at the period's end, where ours takes two `probe_timeout`s); our least suspicion time and number of
/// repetitions; neither periodic gossip nor announcements, since ours has no such messages.
pub(super) fn same_periods(nodes: usize) -> Config {
    let ours = membership::Config::new("bench");
    let log = |count: usize| (count as f64).log10();
    let repetitions = (f64::from(ours.retransmit_factor) * log(nodes + 1)).ceil().max(1.0);
    Config {
        probe_period: ours.probe_interval,
        probe_rtt: ours.probe_interval / 2,
        num_indirect_probes: NonZeroUsize::new(ours.indirect_probes).expect("three by default"),
        max_transmissions: NonZeroU8::new(repetitions as u8).expect("at least one"),
        suspect_to_down_after: ours.suspicion.mul_f64(log(nodes).max(1.0)),
        ..Config::simple()
    }
}

/// What foca's documentation suggests for a local network.
pub(super) fn lan(nodes: usize) -> Config {
    Config::new_lan(NonZeroU32::new(nodes as u32).expect("nodes"))
}

/// What our messages say of a node, too: name, address and boot, of the same lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Id {
    name: [u8; 4],
    address: [u8; 6],
    boot: [u8; 16],
}

impl Id {
    fn new(index: usize) -> Self {
        let digits = [index / 100, index / 10 % 10, index % 10].map(|digit| b'0' + digit as u8);
        let [a, b, c] = digits;
        Self { name: [b'n', a, b, c], address: [b'n', a, b, c, b':', b'1'], boot: [0; 16] }
    }

    fn index(&self) -> usize {
        self.name[1..].iter().fold(0, |index, digit| index * 10 + usize::from(digit - b'0'))
    }
}

impl Identity for Id {
    type Addr = [u8; 6];

    fn addr(&self) -> [u8; 6] {
        self.address
    }

    /// A node that was declared dead comes back by itself.
    fn renew(&self) -> Option<Self> {
        let boot = u128::from_be_bytes(self.boot) + 1;
        Some(Self { boot: boot.to_be_bytes(), ..*self })
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.boot > adversary.boot
    }
}

#[derive(Clone)]
enum Due {
    Timer(usize, Timer<Id>),
    Arrive(usize, Vec<u8>),
}

struct Node {
    foca: Foca<Id, PostcardCodec, StdRng, NoCustomBroadcast>,
    on: bool,
}

pub(super) struct Cluster {
    net: Net<Due>,
    nodes: Vec<Node>,
    runtime: AccumulatingRuntime<Id>,
    deaths: Vec<Death>,
    bytes: u64,
}

impl Cluster {
    /// Nodes that start within 100 ms and know each other.
    pub(super) fn new(nodes: usize, seed: u64, config: Config) -> Self {
        let node = |index: usize| {
            let rng = StdRng::seed_from_u64(seed.wrapping_mul(10_007).wrapping_add(index as u64));
            Node { foca: Foca::new(Id::new(index), config.clone(), rng, PostcardCodec), on: true }
        };
        let mut cluster = Self {
            net: Net::new(seed, Faults::lan()),
            nodes: (0..nodes).map(node).collect(),
            runtime: AccumulatingRuntime::new(),
            deaths: Vec::new(),
            bytes: 0,
        };
        for index in 0..nodes {
            let at = ms(100) * index as u32 / nodes as u32;
            let until = at - cluster.net.now;
            super::Cluster::run_for(&mut cluster, until);
            let others = (0..nodes).filter(|other| *other != index).map(|other| Member::alive(Id::new(other)));
            let met = cluster.nodes[index].foca.apply_many(others, false, &mut cluster.runtime);
            met.expect("every identity is another");
            cluster.carry_out(index);
        }
        cluster
    }

    fn happen(&mut self, due: Due) {
        let (Due::Timer(index, _) | Due::Arrive(index, _)) = &due;
        let (index, node) = (*index, &mut self.nodes[*index]);
        if !node.on {
            return;
        }
        // foca reports what it does not take (a packet for an earlier boot, a timer too late): nothing is owed for it.
        let _ = match due {
            Due::Timer(_, timer) => node.foca.handle_timer(timer, &mut self.runtime),
            Due::Arrive(_, packet) => node.foca.handle_data(&packet, &mut self.runtime),
        };
        self.carry_out(index);
    }

    /// What `node` wants done.
    fn carry_out(&mut self, node: usize) {
        while let Some((to, packet)) = self.runtime.to_send() {
            self.bytes += packet.len() as u64;
            self.net.send(node, to.index(), Due::Arrive(to.index(), packet.to_vec()));
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.net.at(self.net.now + after, Due::Timer(node, timer));
        }
        while let Some(notification) = self.runtime.to_notify() {
            if let OwnedNotification::MemberDown(id) = notification {
                self.deaths.push(Death { at: self.net.now, of: id.index() });
            }
        }
    }
}

impl super::Cluster for Cluster {
    fn now(&self) -> Duration {
        self.net.now
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.net.now + time;
        while let Some(due) = self.net.next(end) {
            self.happen(due);
        }
    }

    fn faults(&mut self) -> &mut Faults {
        &mut self.net.faults
    }

    fn power_off(&mut self, node: usize) {
        self.nodes[node].on = false;
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes
    }

    fn deaths(&mut self) -> Vec<Death> {
        std::mem::take(&mut self.deaths)
    }
}
