//! A scenario from a seed: cluster, times and faults are drawn.

use std::time::Duration;

use super::{
    Micros,
    scenario::{Container, Fault, Scenario},
    store::Quality,
};
use crate::{membership::Rng, ownership::lease::Terms};

const SECOND: Micros = 1_000_000;
/// When everything has begun, and how long faults begin for.
const BEGUN: Micros = 8 * SECOND;
const TROUBLE: Micros = 40 * SECOND;

/// Which kinds of fault a scenario has.
#[derive(Debug, Clone, Copy)]
struct Kinds {
    network: bool,
    store: bool,
    power: bool,
    managers: bool,
}

impl Scenario {
    /// Everything about it follows from the seed.
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let nodes = [2, 2, 3, 3, 3, 4, 5][rng.below(7)];
        let terms = [(1000, 15_000), (1000, 5000), (500, 5000)][rng.below(3)];
        let terms = Terms { short: Duration::from_millis(terms.0), long: Duration::from_millis(terms.1) };
        let all = Kinds { network: true, store: true, power: true, managers: true };
        let none = Kinds { network: false, store: false, power: false, managers: false };
        let kinds = match rng.below(8) {
            0 => Kinds { network: true, ..none },
            1 => Kinds { network: true, store: true, ..none },
            2 => Kinds { power: true, store: true, ..none },
            3 => Kinds { managers: true, network: true, ..none },
            4 => Kinds { power: false, ..all },
            _ => all,
        };
        let containers = (0..1 + rng.below(3)).map(|index| container(index, nodes, &mut rng)).collect();
        let quiet = BEGUN + TROUBLE + 5 * SECOND;
        let mut timeline = timeline(nodes, kinds, &mut rng);
        timeline.iter_mut().for_each(|(at, _)| *at = (*at).min(quiet));
        timeline.sort_by_key(|(at, _)| *at);
        Scenario {
            seed,
            nodes,
            containers,
            terms,
            delay: [(100, 2000), (100, 20_000), (1000, 120_000)][rng.below(3)],
            loss: [0, 0, 5, 50][rng.below(4)],
            duplicates: [0, 20][rng.below(2)],
            store: if kinds.store { quality(&mut rng) } else { Quality::good() },
            met: rng.below(4) > 0,
            eager: rng.below(2) > 0,
            drifts: (0..nodes).map(|_| drift(&mut rng)).collect(),
            timeline,
            quiet,
            end: quiet + Self::patience(terms),
            expects: Vec::new(),
            mutation: None,
        }
    }
}

fn container(index: usize, nodes: usize, rng: &mut Rng) -> Container {
    Container {
        name: format!("c{index}"),
        owner: rng.below(nodes),
        failover: rng.below(8) > 0,
        every: SECOND / 2 + rng.below(2_500_000) as Micros,
        restore: [(50_000, 300_000), (200_000, 2 * SECOND)][rng.below(2)],
    }
}

fn drift(rng: &mut Rng) -> i64 {
    match rng.below(3) {
        0 => 0,
        1 => rng.below(20_001) as i64 - 10_000,
        _ => [-10_000, 10_000][rng.below(2)],
    }
}

fn quality(rng: &mut Rng) -> Quality {
    let latency = [(1000, 5000), (5000, 60_000), (20_000, 400_000), (1000, 1_500_000)][rng.below(4)];
    let listing = [(500, 5000), (1000, 100_000), (10_000, SECOND)][rng.below(3)];
    let share = |rng: &mut Rng| [0, 5, 50][rng.below(3)];
    Quality { latency, listing, unanswered: share(rng), repeated: share(rng), late: [0, 0, 5, 30][rng.below(4)] }
}

fn timeline(nodes: usize, kinds: Kinds, rng: &mut Rng) -> Vec<(Micros, Fault)> {
    let mut faults = Vec::new();
    for _ in 0..1 + rng.below(8) {
        let at = BEGUN + rng.below(TROUBLE as usize) as Micros;
        let lasting = if rng.below(2) == 0 { rng.below(3_000_000) } else { rng.below(25_000_000) } as Micros + 20_000;
        let until = at + lasting;
        let node = rng.below(nodes);
        let kind = rng.below(4);
        match kind {
            0 if kinds.network => network(node, nodes, at, until, rng, &mut faults),
            1 if kinds.store => store(node, at, until, rng, &mut faults),
            2 if kinds.power => {
                faults.push((at, Fault::PowerCut(node)));
                if rng.below(3) > 0 {
                    faults.push((until, Fault::Boot(node)));
                }
            }
            3 if kinds.managers => manager(node, at, lasting, rng, &mut faults),
            _ => clocks(node, at, rng, &mut faults),
        }
    }
    faults
}

fn network(node: usize, nodes: usize, at: Micros, until: Micros, rng: &mut Rng, faults: &mut Vec<(Micros, Fault)>) {
    let other = (node + 1 + rng.below(nodes - 1)) % nodes;
    match rng.below(6) {
        0 => faults.push((at, Fault::CutOneWay(node, other))),
        1 => faults.extend([(at, Fault::CutOneWay(node, other)), (at, Fault::CutOneWay(other, node))]),
        2 | 3 => {
            for other in (0..nodes).filter(|other| *other != node) {
                faults.extend([(at, Fault::CutOneWay(node, other)), (at, Fault::CutOneWay(other, node))]);
            }
        }
        4 => {
            faults.push((at, Fault::Loss(100 + rng.below(500))));
            faults.push((until, Fault::Loss(0)));
            return;
        }
        _ => {
            faults.push((at, Fault::Delay(10_000, 200_000 + rng.below(1_500_000) as Micros)));
            faults.push((until, Fault::Delay(100, 2000)));
            return;
        }
    }
    faults.push((until, Fault::Heal));
}

fn store(node: usize, at: Micros, until: Micros, rng: &mut Rng, faults: &mut Vec<(Micros, Fault)>) {
    match rng.below(4) {
        0 => faults.extend([(at, Fault::StoreDown(None)), (until, Fault::StoreUp(None))]),
        1 => faults.extend([(at, Fault::StoreQuality(quality(rng))), (until, Fault::StoreQuality(quality(rng)))]),
        _ => faults.extend([(at, Fault::StoreDown(Some(node))), (until, Fault::StoreUp(Some(node)))]),
    }
}

fn manager(node: usize, at: Micros, lasting: Micros, rng: &mut Rng, faults: &mut Vec<(Micros, Fault)>) {
    let until = at + lasting;
    let comes_back = rng.below(3) > 0;
    match rng.below(4) {
        0 => {
            faults.push((at, Fault::KillManager(node)));
            if comes_back {
                faults.push((until, Fault::Start(node)));
            }
        }
        1 => {
            faults.push((at, Fault::StopManager(node)));
            if comes_back {
                faults.push((until, Fault::Continue(node)));
            }
        }
        2 => faults.push((at, Fault::Slow(node, lasting))),
        _ => {
            faults.push((at, Fault::Terminate(node)));
            if comes_back {
                faults.push((until, Fault::Start(node)));
            }
            if rng.below(3) == 0 {
                faults.extend([(until + SECOND, Fault::Terminate(node)), (until + 4 * SECOND, Fault::Start(node))]);
            }
        }
    }
}

fn clocks(node: usize, at: Micros, rng: &mut Rng, faults: &mut Vec<(Micros, Fault)>) {
    if rng.below(2) == 0 {
        faults.push((at, Fault::ClockDrift(node, drift(rng))));
    } else {
        faults.push((at, Fault::ClockJump(node, rng.below(7_200_000_000) as i64 - 3_600_000_000)));
    }
}
