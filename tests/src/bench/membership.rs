//! The membership protocol in simulation, and foca's beside it on the same simulated network.
//!
//! Nothing here is wall time: the clock is simulated, so the figures are the same on every machine.

mod foca;
mod ours;

use std::time::Duration;

use ha_manager::membership::sim::{Faults, ms};

use super::Figure;

/// So long everything runs undisturbed before it is measured.
const SETTLE: Duration = Duration::from_secs(3);
/// No verdict is waited for longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lost of 10,000 messages.
const ONE_PERCENT: usize = 100;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Ours with its defaults.
    Ours,
    /// foca with our periods.
    Foca,
    /// foca as it suggests for a local network of this size.
    FocaLan,
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Ours, Protocol::Foca, Protocol::FocaLan];

/// What is measured, and what it means.
const WHAT: [(&str, &str); 3] = [
    ("detect_ms", "simulated: power cut of one of N nodes → every survivor holds it for dead; 0.1–2 ms delay, no loss"),
    (
        "bytes_per_node_s",
        "simulated: messages that each of N nodes sends while nothing happens, without transport headers",
    ),
    (
        "false_positives_1pct",
        "simulated: verdicts of death on N nodes that all live, each believer counted; 1 % loss, 0.1–20 ms delay",
    ),
];

/// How long each size of cluster is simulated; the larger, the shorter.
pub(super) struct Scale {
    pub(super) nodes: usize,
    /// Clusters begun for detection, and nodes cut off in each, one after the other.
    clusters: u64,
    cuts: usize,
    at_rest: Duration,
    lossy: Duration,
}

pub(super) const SCALES: [Scale; 4] = [
    Scale { nodes: 3, clusters: 30, cuts: 1, at_rest: Duration::from_secs(600), lossy: Duration::from_secs(3600) },
    Scale { nodes: 10, clusters: 10, cuts: 1, at_rest: Duration::from_secs(120), lossy: Duration::from_secs(900) },
    Scale { nodes: 100, clusters: 3, cuts: 3, at_rest: Duration::from_secs(20), lossy: Duration::from_secs(60) },
    Scale { nodes: 1000, clusters: 1, cuts: 1, at_rest: Duration::from_secs(3), lossy: Duration::from_secs(5) },
];

/// A node holds another for dead.
struct Death {
    at: Duration,
    of: usize,
}

/// Running nodes that all know each other.
trait Cluster {
    fn now(&self) -> Duration;
    fn run_for(&mut self, time: Duration);
    fn faults(&mut self) -> &mut Faults;
    fn power_off(&mut self, node: usize);
    /// Handed to the network by all nodes so far, headers of the transport not counted.
    fn bytes_sent(&self) -> u64;
    /// Since the last call.
    fn deaths(&mut self) -> Vec<Death>;
}

fn cluster(protocol: Protocol, nodes: usize, seed: u64) -> Box<dyn Cluster> {
    let mut cluster: Box<dyn Cluster> = match protocol {
        Protocol::Ours => Box::new(ours::Ours::new(nodes, seed)),
        Protocol::Foca => Box::new(foca::Cluster::new(nodes, seed, foca::same_periods(nodes))),
        Protocol::FocaLan => Box::new(foca::Cluster::new(nodes, seed, foca::lan(nodes))),
    };
    cluster.run_for(SETTLE);
    cluster.deaths();
    cluster
}

/// Every pair that is measured.
pub(super) fn all() -> impl Iterator<Item = (Protocol, &'static Scale)> {
    SCALES.iter().flat_map(|scale| PROTOCOLS.map(|protocol| (protocol, scale)))
}

/// The names of what [`measure`] finds.
pub(super) fn names_of(protocol: Protocol, scale: &Scale) -> [String; 3] {
    let of = match protocol {
        Protocol::Ours => "ours",
        Protocol::Foca => "foca",
        Protocol::FocaLan => "foca-lan",
    };
    WHAT.map(|(what, _)| format!("membership/{what}/{of}/{}", scale.nodes))
}

/// Every name with its meaning.
pub(super) fn names() -> Vec<(String, String)> {
    let named = |(protocol, scale)| names_of(protocol, scale).into_iter().zip(WHAT);
    let described = |(name, (_, meaning)): (String, (&str, &str))| (name, meaning.to_owned());
    all().flat_map(named).map(described).collect()
}

/// The three figures of `protocol` in clusters of this size.
pub(super) fn measure(protocol: Protocol, scale: &Scale) -> Vec<Option<Figure>> {
    let names = names_of(protocol, scale);
    let (detected, missed) = detect(protocol, scale);
    let note = format!("simulated: {} clusters, {} cuts in each", scale.clusters, scale.cuts);
    let note = if missed == 0 { note } else { format!("{note}; {missed} times not all knew within {PATIENCE:?}") };
    let mut cluster = cluster(protocol, scale.nodes, 1);
    let before = cluster.bytes_sent();
    cluster.run_for(scale.at_rest);
    let bytes = (cluster.bytes_sent() - before) as f64 / scale.nodes as f64 / scale.at_rest.as_secs_f64();
    *cluster.faults() = Faults::lossy(ONE_PERCENT);
    cluster.deaths();
    cluster.run_for(scale.lossy);
    let died = cluster.deaths().len() as f64;
    let figure = |name: &str, unit, samples: &[f64], note: String| {
        Figure::new(name, unit, samples).map(|figure| figure.with_note(note))
    };
    vec![
        figure(&names[0], "ms", &detected, note),
        figure(&names[1], "B/s", &[bytes], format!("simulated: {:?}", scale.at_rest)),
        figure(&names[2], "verdicts", &[died], format!("simulated: {:?}", scale.lossy)),
    ]
}

/// From each cut until every survivor knew, in milliseconds; and how often that was not so in time.
fn detect(protocol: Protocol, scale: &Scale) -> (Vec<f64>, usize) {
    let (mut detected, mut missed) = (Vec::new(), 0);
    for seed in 0..scale.clusters {
        let mut cluster = cluster(protocol, scale.nodes, 100 + seed);
        for cut in 0..scale.cuts {
            // At another moment of the round each time.
            cluster.run_for(Duration::from_micros((seed * 7919 + cut as u64 * 104_729) % 1_000_000));
            let (victim, began) = ((seed as usize * 31 + cut * 37 + 1) % scale.nodes, cluster.now());
            cluster.deaths();
            cluster.power_off(victim);
            let (mut knowing, mut last) = (0, PATIENCE);
            while knowing < scale.nodes - 1 - cut && cluster.now() - began < PATIENCE {
                cluster.run_for(ms(10));
                for death in cluster.deaths().iter().filter(|death| death.of == victim) {
                    knowing += 1;
                    last = death.at - began;
                }
            }
            if knowing < scale.nodes - 1 - cut {
                (missed, last) = (missed + 1, PATIENCE);
            }
            detected.push(last.as_secs_f64() * 1000.0);
        }
    }
    (detected, missed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_protocols_see_a_cut_and_nothing_else() {
        let scale = Scale { nodes: 5, clusters: 2, cuts: 1, at_rest: Duration::from_secs(5), lossy: Duration::ZERO };
        for protocol in [Protocol::Ours, Protocol::Foca, Protocol::FocaLan] {
            let figures: Vec<_> = measure(protocol, &scale).into_iter().flatten().collect();
            let [detect, bytes, died] = &figures[..] else { panic!("{figures:?}") };
            assert!(detect.min > 500.0 && detect.max < 10_000.0, "{protocol:?}: {detect:?}");
            assert!(bytes.value > 10.0 && died.value == 0.0, "{protocol:?}: {bytes:?} {died:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_figures() {
        let scale = Scale { nodes: 4, clusters: 3, cuts: 1, at_rest: ms(500), lossy: Duration::from_secs(30) };
        for protocol in [Protocol::Ours, Protocol::Foca] {
            assert_eq!(measure(protocol, &scale), measure(protocol, &scale));
        }
    }
}
