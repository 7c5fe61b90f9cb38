//! Which faults, when: a function of the seed and of nothing else.
//!
//! Between the beginnings of two faults are 2 to 6 s. At most two faults are at work at a time, never two of the same part
//! of a node, and at any time there is a node that no fault touches: it has power, the network, the store and a manager. The
//! one exception is a store that is away for all, for 8 s at most.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use super::fault::{Fault, Kind, Place};

/// How many nodes a session has.
pub const NODES: usize = 3;
const AT_ONCE: usize = 2;
/// After its end a fault keeps its parts for so long: a node has to boot, a manager to start, in milliseconds.
const AFTERWARDS: u64 = 1500;

/// SplitMix64.
#[derive(Debug, Clone)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`; the bias is of no matter here.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// Between the two, the short ones more often.
    fn rather_short(&mut self, least: u64, most: u64) -> u64 {
        least + (most - least) * self.below(1001).pow(2) / 1_000_000
    }
}

/// The endless list of a seed's faults.
#[derive(Debug, Clone)]
pub struct Schedule {
    rng: Rng,
    last: u64,
    number: usize,
    running: Vec<Fault>,
}

impl Schedule {
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng(seed), last: 0, number: 0, running: Vec::new() }
    }

    fn pick(&mut self) -> (Kind, u64) {
        let rng = &mut self.rng;
        let node = rng.below(NODES as u64) as usize;
        let n = Place(node);
        let peer = Place((node + 1 + rng.below(NODES as u64 - 1) as usize) % NODES);
        let (kind, least, most) = match rng.below(27) {
            0..3 => (Kind::Isolated(n), 1000, 25_000),
            3..5 => (Kind::CutOff(n), 1000, 20_000),
            5..7 => (Kind::Mute(n), 1000, 20_000),
            7..9 => (Kind::Deaf(n), 1000, 20_000),
            9..11 => (Kind::CutFrom(n, peer), 1000, 20_000),
            11..13 => (Kind::Unplugged(n), 1000, 15_000),
            13..15 => {
                let flaps = (0..rng.between(3, 8)).map(|_| (rng.between(50, 400), rng.between(50, 400)));
                let flaps: Vec<(u64, u64)> = flaps.collect();
                let all = flaps.iter().map(|(down, up)| down + up).sum();
                return (Kind::Flaps(n, flaps), all);
            }
            15..17 => (Kind::StoreAway(Some(n)), 1000, 20_000),
            17 => (Kind::StoreAway(None), 1000, 8000),
            18..20 => (Kind::Killed(n), 200, 8000),
            20..22 => (Kind::Terminated(n), 200, 8000),
            22..24 => (Kind::Stopped(n), 300, 15_000),
            24..26 => (Kind::PowerCut(n), 1000, 12_000),
            _ => (Kind::Load, 2000, 6000),
        };
        (kind, rng.rather_short(least, most))
    }
}

/// Whether a fault may begin beside those that are at work.
fn allowed(kind: &Kind, running: &[&Kind]) -> bool {
    let parts = kind.parts(NODES);
    let free = running.iter().all(|other| other.parts(NODES).iter().all(|part| !parts.contains(part)));
    let touched: Vec<Place> = running.iter().copied().chain([kind]).flat_map(Kind::touches).collect();
    free && running.len() < AT_ONCE && (0..NODES).any(|n| !touched.contains(&Place(n)))
}

impl Iterator for Schedule {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        let mut at = self.last + self.rng.between(2000, 6000);
        loop {
            self.running.retain(|fault| fault.until + AFTERWARDS > at);
            let (kind, lasts) = self.pick();
            let running: Vec<&Kind> = self.running.iter().map(|fault| &fault.kind).collect();
            if allowed(&kind, &running) {
                self.number += 1;
                self.last = at;
                let fault = Fault { number: self.number, at, until: at + lasts, kind };
                self.running.push(fault.clone());
                return Some(fault);
            }
            // No more of the waiting than is needed; a fault that is at work ends within half a minute.
            at += 50;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::fault::{NodeOp, Part, Step};

    fn faults(seed: u64, count: usize) -> Vec<Fault> {
        Schedule::new(seed).take(count).collect()
    }

    #[test]
    fn a_seed_gives_the_same_faults_and_another_seed_others() {
        assert_eq!(faults(7, 200), faults(7, 200));
        assert_eq!(faults(7, 200)[..50], faults(7, 50));
        assert_ne!(faults(7, 50), faults(8, 50));
    }

    #[test]
    fn every_kind_of_fault_comes() {
        let all = faults(1, 500);
        let kinds: std::collections::HashSet<_> = all.iter().map(|f| std::mem::discriminant(&f.kind)).collect();
        assert_eq!(kinds.len(), 13);
        assert!(all.iter().any(|f| f.kind == Kind::StoreAway(None)));
        assert!(all.iter().any(|f| matches!(f.kind, Kind::StoreAway(Some(_)))));
    }

    #[test]
    fn there_is_always_a_node_that_is_well_and_no_part_fails_twice_at_once() {
        for seed in 0..50 {
            let all = faults(seed, 200);
            for pair in all.windows(2) {
                assert!(pair[1].at >= pair[0].at + 2000, "{} {}", pair[0], pair[1]);
            }
            for fault in &all {
                let others: Vec<&Fault> =
                    all.iter().filter(|f| f.number < fault.number && f.until + AFTERWARDS > fault.at).collect();
                assert!(others.len() < AT_ONCE, "seed {seed}: {fault}");
                let touched: Vec<Place> =
                    others.iter().flat_map(|f| f.kind.touches()).chain(fault.kind.touches()).collect();
                assert!((0..NODES).any(|n| !touched.contains(&Place(n))), "seed {seed}: {fault} with {others:?}");
                let parts: Vec<Part> = others.iter().flat_map(|f| f.kind.parts(NODES)).collect();
                assert!(fault.kind.parts(NODES).iter().all(|part| !parts.contains(part)), "seed {seed}: {fault}");
            }
        }
    }

    #[test]
    fn whatever_is_begun_is_ended() {
        for fault in faults(3, 300) {
            let steps = fault.steps(NODES);
            assert!(steps.iter().all(|(at, _)| (fault.at..=fault.until).contains(at)), "{fault}: {steps:?}");
            let count = |wanted: fn(&Step) -> bool| steps.iter().filter(|(_, step)| wanted(step)).count();
            let begun = count(|step| {
                use NodeOp::{Kill, LinkDown, PowerCut, Stop, StoreAway, Terminate};
                matches!(step, Step::Block(_) | Step::LoadBegins)
                    || matches!(step, Step::Node(_, LinkDown | StoreAway | Kill | Terminate | Stop | PowerCut))
            });
            assert!(begun > 0 && begun * 2 == steps.len(), "{fault}: {steps:?}");
        }
    }
}
