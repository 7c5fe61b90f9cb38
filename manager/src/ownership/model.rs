//! Two nodes and every order of their steps: what is restored never comes from after a take-over, and what was reported
//! as committed is never lost.
//!
//! The model's store is a set of names with atomic operations, as the real one; the decisions are [`History`]'s own.
//! Each step of a node is one operation on the store, so that a proptest schedule interleaves them freely, stalls a
//! node for as long as it likes, and crashes it. Writes can also arrive after their writer stopped waiting for them.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::History;
use crate::spec::{Epoch, SnapshotId};

/// Whether the owner looks at the epoch again after its manifest. Turning it off has to make the test fail.
const SECOND_LOOK: bool = true;
/// Whether an owner settles the bases that earlier epochs lack before its own. Turning it off has to make the test fail.
const SETTLE_BEFORE: bool = true;

#[derive(Default)]
struct World {
    now: u64,
    owners: BTreeMap<Epoch, usize>,
    bases: BTreeMap<Epoch, Option<SnapshotId>>,
    /// With the time of their appearance.
    manifests: BTreeMap<SnapshotId, u64>,
    /// When the container started under an epoch: from then on its predecessor's state is another history.
    started: BTreeMap<Epoch, u64>,
    acknowledged: BTreeSet<SnapshotId>,
    /// Manifest writes that are still on their way; their writer does not know.
    late: Vec<SnapshotId>,
    /// For the rule that something was tested at all.
    restores: usize,
    refused_late: usize,
}

impl World {
    fn history(&self) -> History {
        let mut history = History::default();
        self.owners.keys().for_each(|e| history.add_epoch(*e));
        self.bases.iter().for_each(|(e, base)| history.add_base(*e, *base));
        history
    }

    fn newest(&self) -> Option<Epoch> {
        self.owners.keys().next_back().copied()
    }

    fn create_manifest(&mut self, id: SnapshotId) {
        let now = self.now;
        self.manifests.entry(id).or_insert(now);
    }
}

/// Where a node stands; each variant is left by one operation on the store.
#[derive(Clone, Debug)]
enum Node {
    Watching,
    Observed {
        expected: Option<Epoch>,
    },
    Claimed {
        epoch: Epoch,
    },
    ReadHistory {
        epoch: Epoch,
        history: History,
    },
    /// An earlier epoch's base is missing; what it will be, from a listing.
    Settling {
        epoch: Epoch,
        gap: Epoch,
        base: Option<SnapshotId>,
    },
    Listed {
        epoch: Epoch,
        base: Option<SnapshotId>,
    },
    BaseWritten {
        epoch: Epoch,
        base: Option<SnapshotId>,
    },
    Running {
        epoch: Epoch,
        seq: u64,
    },
    Checked {
        epoch: Epoch,
        seq: u64,
    },
    Written {
        epoch: Epoch,
        seq: u64,
    },
    /// Pruning: the listing, and whether the epoch was confirmed after it.
    Pruning {
        epoch: Epoch,
        seq: u64,
        doomed: Vec<SnapshotId>,
        confirmed: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Step(usize),
    Crash(usize),
    /// The node's next manifest write is delayed: it is told "no answer" and tries again.
    Delay(usize),
    /// As `Delay`, but the draft is then dropped to make room and the next one goes on.
    Abandon(usize),
    Arrive(usize),
    Prune(usize),
}

fn apply(world: &mut World, nodes: &mut [Node], event: Event) -> Result<(), TestCaseError> {
    world.now += 1;
    match event {
        Event::Crash(n) => nodes[n] = Node::Watching,
        Event::Arrive(n) => {
            if !world.late.is_empty() {
                let id = world.late.remove(n % world.late.len());
                world.create_manifest(id);
            }
        }
        Event::Delay(n) => {
            if let Node::Checked { epoch, seq } = nodes[n] {
                world.late.push(SnapshotId { epoch, seq });
                // No answer: the whole upload is repeated later, beginning with the epoch.
                nodes[n] = Node::Running { epoch, seq };
            }
        }
        Event::Abandon(n) => {
            if let Node::Checked { epoch, seq } = nodes[n] {
                world.late.push(SnapshotId { epoch, seq });
                nodes[n] = Node::Running { epoch, seq: seq + 1 };
            }
        }
        Event::Prune(n) => {
            if let Node::Running { epoch, seq } = nodes[n] {
                let history = world.history();
                let keep = history.newest_valid(world.manifests.keys().copied());
                let doomed =
                    world.manifests.keys().copied().filter(|id| Some(*id) < keep && id.epoch <= epoch).collect();
                nodes[n] = Node::Pruning { epoch, seq, doomed, confirmed: false };
            }
        }
        Event::Step(n) => nodes[n] = step(world, n, nodes[n].clone())?,
    }
    Ok(())
}

fn step(world: &mut World, me: usize, node: Node) -> Result<Node, TestCaseError> {
    let later = |world: &World, epoch: Epoch| world.owners.contains_key(&epoch.next());
    Ok(match node {
        Node::Watching => Node::Observed { expected: world.newest() },
        Node::Observed { expected } => {
            let epoch = expected.map_or(Epoch(1), Epoch::next);
            // Create-only: the first one stays.
            if *world.owners.entry(epoch).or_insert(me) == me { Node::Claimed { epoch } } else { Node::Watching }
        }
        Node::Claimed { epoch } => Node::ReadHistory { epoch, history: world.history() },
        Node::ReadHistory { epoch, history } if SETTLE_BEFORE && history.without_base(epoch).is_some() => {
            let gap = history.without_base(epoch).unwrap_or(epoch);
            Node::Settling { epoch, gap, base: history.base_for(gap, world.manifests.keys().copied()) }
        }
        Node::Settling { epoch, gap, base } => {
            world.bases.entry(gap).or_insert(base);
            Node::Claimed { epoch }
        }
        Node::ReadHistory { epoch, history } => {
            Node::Listed { epoch, base: history.base_for(epoch, world.manifests.keys().copied()) }
        }
        Node::Listed { epoch, base } => {
            let base = *world.bases.entry(epoch).or_insert(base);
            Node::BaseWritten { epoch, base }
        }
        Node::BaseWritten { epoch, .. } if later(world, epoch) => Node::Watching,
        Node::BaseWritten { epoch, base } => {
            restored(world, epoch, base)?;
            world.started.insert(epoch, world.now);
            Node::Running { epoch, seq: 1 }
        }
        Node::Running { epoch, .. } if later(world, epoch) => Node::Watching,
        Node::Running { epoch, seq } => Node::Checked { epoch, seq },
        Node::Checked { epoch, seq } => {
            world.create_manifest(SnapshotId { epoch, seq });
            Node::Written { epoch, seq }
        }
        Node::Written { epoch, .. } if SECOND_LOOK && later(world, epoch) => Node::Watching,
        Node::Written { epoch, seq } => {
            world.acknowledged.insert(SnapshotId { epoch, seq });
            Node::Running { epoch, seq: seq + 1 }
        }
        Node::Pruning { epoch, seq, doomed, confirmed: false } => {
            if later(world, epoch) {
                Node::Watching
            } else {
                Node::Pruning { epoch, seq, doomed, confirmed: true }
            }
        }
        Node::Pruning { epoch, seq, mut doomed, .. } => match doomed.pop() {
            Some(id) => {
                world.manifests.remove(&id);
                Node::Pruning { epoch, seq, doomed, confirmed: true }
            }
            None => Node::Running { epoch, seq },
        },
    })
}

/// The two promises, at the moment a container is restored under `epoch`.
fn restored(world: &mut World, epoch: Epoch, base: Option<SnapshotId>) -> Result<(), TestCaseError> {
    world.restores += 1;
    if let Some(base) = base {
        let appeared = world.manifests.get(&base).copied();
        for (taken, at) in world.started.range(base.epoch.next()..epoch) {
            let settled = world.bases[taken];
            prop_assert!(Some(base) <= settled, "{base} restored under {epoch}, but {taken} started from {settled:?}");
            if let Some(appeared) = appeared {
                prop_assert!(
                    appeared < *at || settled > Some(base),
                    "{base} appeared at {appeared}, after {taken} started at {at}"
                );
            }
        }
        prop_assert!(appeared.is_some(), "{base} was deleted between listing and restore of the newest owner");
    }
    let newest = world.acknowledged.iter().next_back().copied();
    prop_assert!(base >= newest, "{newest:?} was committed, {base:?} restored under {epoch}");
    world.refused_late += world.manifests.keys().filter(|id| id.epoch < epoch && Some(**id) > base).count();
    Ok(())
}

fn event() -> impl Strategy<Value = Event> {
    let node = 0..2_usize;
    prop_oneof![
        60 => node.clone().prop_map(Event::Step),
        3 => node.clone().prop_map(Event::Crash),
        4 => node.clone().prop_map(Event::Delay),
        2 => node.clone().prop_map(Event::Abandon),
        5 => (0..8_usize).prop_map(Event::Arrive),
        5 => node.prop_map(Event::Prune),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn restores_are_never_from_after_a_take_over_and_never_lose_a_commit(
        events in proptest::collection::vec(event(), 50..300),
    ) {
        let mut world = World::default();
        let mut nodes = vec![Node::Watching, Node::Watching];
        for event in events {
            apply(&mut world, &mut nodes, event)?;
        }
    }
}

/// The schedules reach what they are meant to test.
#[test]
fn schedules_reach_restores_and_late_arrivals() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let schedules = proptest::collection::vec(event(), 300);
    let (mut restores, mut late) = (0, 0);
    for _ in 0..300 {
        let mut world = World::default();
        let mut nodes = vec![Node::Watching, Node::Watching];
        for event in schedules.new_tree(&mut runner).unwrap().current() {
            apply(&mut world, &mut nodes, event).unwrap();
        }
        restores += world.restores;
        late += world.refused_late;
    }
    assert!(restores > 1000 && late > 50, "{restores} restores, {late} late snapshots refused");
}
