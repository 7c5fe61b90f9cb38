//! Two nodes and every order of their steps: what is restored never comes from after a take-over, what was reported
//! as committed is never lost, and what was reported to rest is begun by an order only.
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
/// Whether a rest is carried over before the base, and for stalled takers, too. Turning either off has to make the test fail.
const CARRY_FIRST: bool = true;
const CARRY_FOR_OTHERS: bool = true;
/// Whether an owner looks at the epoch again after it wrote down the rest. Turning it off has to make the test fail.
const LOOK_AFTER_REST: bool = true;
/// Whether an order begins a resting container under an epoch of its own. Turning it off has to make the test fail.
const AWAKEN_BY_CLAIM: bool = true;
/// Whether a node remembers over its crash that it came to rest. Turning it off has to make the test fail.
const REMEMBER_REST: bool = true;

/// A record of a rest: the epoch under which the container came to rest, and when its owner first wrote it down.
type Rest = (Epoch, u64);

#[derive(Default)]
struct World {
    now: u64,
    owners: BTreeMap<Epoch, usize>,
    bases: BTreeMap<Epoch, Option<SnapshotId>>,
    /// With the time of their appearance.
    manifests: BTreeMap<SnapshotId, u64>,
    /// When the container started under an epoch: from then on its predecessor's state is another history.
    started: BTreeMap<Epoch, u64>,
    /// When it was last begun under an epoch.
    begun: BTreeMap<Epoch, u64>,
    rests: BTreeMap<Epoch, Rest>,
    late_rests: Vec<Rest>,
    /// Epochs whose owner was told that the store knows of the rest.
    rested: BTreeSet<Epoch>,
    /// Epochs claimed to begin the container, whether it rested or not.
    ordered: BTreeSet<Epoch>,
    /// Those of them whose base was settled: it rests no more.
    awake: BTreeSet<Epoch>,
    /// What each node's disk says of a rest.
    disks: [Option<Rest>; 2],
    acknowledged: BTreeSet<SnapshotId>,
    /// Manifest writes that are still on their way; their writer does not know.
    late: Vec<SnapshotId>,
    /// For the rule that something was tested at all.
    restores: usize,
    refused_late: usize,
    found_at_rest: usize,
    awoken: usize,
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
        rests: BTreeMap<Epoch, Rest>,
    },
    /// An earlier epoch's base is missing; what it will be, from a listing, and the rest that is written before it.
    Settling {
        epoch: Epoch,
        gap: Epoch,
        base: Option<SnapshotId>,
        rest: Option<Rest>,
    },
    Listed {
        epoch: Epoch,
        base: Option<SnapshotId>,
        rest: Option<Rest>,
        carried: bool,
    },
    BaseWritten {
        epoch: Epoch,
        base: Option<SnapshotId>,
        rest: Option<Rest>,
        carried: bool,
    },
    /// Come to rest: not written down yet, written down, and known to count.
    Resting {
        epoch: Epoch,
        rest: Rest,
    },
    Told {
        epoch: Epoch,
    },
    AtRest {
        epoch: Epoch,
    },
    /// An order is to begin it.
    Ordered {
        epoch: Epoch,
    },
    /// Started again, and still the owner by the store.
    Resumed {
        epoch: Epoch,
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
    /// The program ends as it may.
    Rest(usize),
    ArriveRest(usize),
    Order(usize),
    /// The node comes back and finds that it is still the owner.
    Resume(usize),
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
        Event::Delay(n) => match nodes[n] {
            Node::Checked { epoch, seq } => {
                world.late.push(SnapshotId { epoch, seq });
                // No answer: the whole upload is repeated later, beginning with the epoch.
                nodes[n] = Node::Running { epoch, seq };
            }
            Node::Resting { rest, .. } => world.late_rests.push(rest),
            _ => {}
        },
        Event::Rest(n) => {
            if let Node::Running { epoch, .. } = nodes[n] {
                let rest = (epoch, world.now);
                world.disks[n] = REMEMBER_REST.then_some(rest);
                nodes[n] = Node::Resting { epoch, rest };
            }
        }
        Event::ArriveRest(n) => {
            if !world.late_rests.is_empty() {
                let rest = world.late_rests.remove(n % world.late_rests.len());
                world.rests.entry(rest.0).or_insert(rest);
            }
        }
        Event::Order(n) => {
            if let Node::Resting { epoch, .. } | Node::Told { epoch } | Node::AtRest { epoch } = nodes[n] {
                nodes[n] = if AWAKEN_BY_CLAIM || world.rests.contains_key(&epoch) {
                    Node::Ordered { epoch }
                } else {
                    begin(world, epoch)?
                };
            }
        }
        Event::Resume(n) => {
            let owned = world.newest().filter(|epoch| world.owners.get(epoch) == Some(&n));
            if let (Node::Watching, Some(epoch)) = (&nodes[n], owned) {
                nodes[n] = Node::Resumed { epoch };
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
        Node::Claimed { epoch } => Node::ReadHistory { epoch, history: world.history(), rests: world.rests.clone() },
        Node::ReadHistory { epoch, history, rests } if SETTLE_BEFORE && history.without_base(epoch).is_some() => {
            let gap = history.without_base(epoch).unwrap_or(epoch);
            let rest = before(gap).and_then(|before| rests.get(&before)).filter(|_| CARRY_FOR_OTHERS).copied();
            Node::Settling { epoch, gap, base: history.base_for(gap, world.manifests.keys().copied()), rest }
        }
        Node::Settling { epoch, gap, base, rest: Some(rest) } => {
            world.rests.entry(gap).or_insert(rest);
            Node::Settling { epoch, gap, base, rest: None }
        }
        Node::Settling { epoch, gap, base, rest: None } => {
            world.bases.entry(gap).or_insert(base);
            Node::Claimed { epoch }
        }
        Node::ReadHistory { epoch, history, rests } => {
            let rest = before(epoch).and_then(|before| rests.get(&before)).copied();
            let rest = rest.filter(|_| !world.ordered.contains(&epoch));
            let base = history.base_for(epoch, world.manifests.keys().copied());
            Node::Listed { epoch, base, rest, carried: false }
        }
        Node::Listed { epoch, base, rest: Some(rest), carried: false } if CARRY_FIRST => {
            world.rests.entry(epoch).or_insert(rest);
            Node::Listed { epoch, base, rest: Some(rest), carried: true }
        }
        Node::Listed { epoch, base, rest, carried } => {
            if world.ordered.contains(&epoch) && !world.bases.contains_key(&epoch) {
                world.awake.insert(epoch);
            }
            let base = *world.bases.entry(epoch).or_insert(base);
            Node::BaseWritten { epoch, base, rest, carried }
        }
        Node::BaseWritten { epoch, base, rest: Some(rest), carried: false } => {
            world.rests.entry(epoch).or_insert(rest);
            Node::BaseWritten { epoch, base, rest: Some(rest), carried: true }
        }
        Node::BaseWritten { epoch, .. } if later(world, epoch) => Node::Watching,
        Node::BaseWritten { epoch, rest: Some(rest), .. } => found_at_rest(world, epoch, rest)?,
        Node::BaseWritten { epoch, base, .. } => {
            restored(world, epoch, base)?;
            begin(world, epoch)?
        }
        Node::Resting { epoch, rest } => {
            world.rests.entry(epoch).or_insert(rest);
            Node::Told { epoch }
        }
        Node::Told { epoch } if LOOK_AFTER_REST && later(world, epoch) => Node::Watching,
        Node::Told { epoch } => {
            world.rested.insert(epoch);
            Node::AtRest { epoch }
        }
        Node::AtRest { epoch } if later(world, epoch) => Node::Watching,
        Node::AtRest { epoch } => Node::AtRest { epoch },
        Node::Ordered { epoch } => {
            let epoch = epoch.next();
            if *world.owners.entry(epoch).or_insert(me) == me {
                world.ordered.insert(epoch);
                Node::Claimed { epoch }
            } else {
                Node::Watching
            }
        }
        Node::Resumed { epoch } if later(world, epoch) => Node::Watching,
        Node::Resumed { epoch } if !world.bases.contains_key(&epoch) => {
            // Whoever ordered it was not answered.
            world.ordered.remove(&epoch);
            Node::Claimed { epoch }
        }
        Node::Resumed { epoch } => match (world.rests.get(&epoch).copied(), world.disks[me]) {
            (Some(rest), _) => found_at_rest(world, epoch, rest)?,
            (None, Some(rest)) if rest.0 == epoch => Node::Resting { epoch, rest },
            (None, _) => begin(world, epoch)?,
        },
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

fn before(epoch: Epoch) -> Option<Epoch> {
    epoch.0.checked_sub(1).map(Epoch)
}

/// The container is begun under `epoch`.
fn begin(world: &mut World, epoch: Epoch) -> Result<Node, TestCaseError> {
    prop_assert!(!world.rests.contains_key(&epoch), "begun under {epoch:?}, which says that it rests");
    // A rest holds until an order claims an epoch and settles its base.
    if let Some(rested) = world.rested.range(..=epoch).next_back().copied() {
        let awoken = world.awake.range(rested.next()..).next().is_some_and(|awake| *awake <= epoch);
        prop_assert!(awoken, "it came to rest under {rested:?} and is begun under {epoch:?}");
    }
    world.awoken += usize::from(world.ordered.contains(&epoch));
    world.started.entry(epoch).or_insert(world.now);
    world.begun.insert(epoch, world.now);
    let numbers = world.manifests.keys().copied().chain(world.late.iter().copied());
    let used = numbers.filter(|id| id.epoch == epoch).map(|id| id.seq).max();
    Ok(Node::Running { epoch, seq: used.unwrap_or(0) + 1 })
}

/// The owner of `epoch` leaves it at rest: it was not begun since, neither by a later owner nor by the one that says so.
fn found_at_rest(world: &mut World, epoch: Epoch, (origin, asked): Rest) -> Result<Node, TestCaseError> {
    let since = world.started.range(origin.next()..).next().filter(|(since, _)| **since < epoch);
    prop_assert!(since.is_none(), "it rested under {origin:?} and runs since {since:?}, but rests under {epoch:?}");
    let begun = world.begun[&origin];
    prop_assert!(begun <= asked, "begun under {origin:?} at {begun}, after it came to rest at {asked}");
    world.found_at_rest += 1;
    Ok(Node::AtRest { epoch })
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

/// Of a container that comes to rest again and again.
fn resting() -> impl Strategy<Value = Event> {
    let node = 0..2_usize;
    prop_oneof![
        60 => event(),
        10 => node.clone().prop_map(Event::Rest),
        4 => (0..8_usize).prop_map(Event::ArriveRest),
        20 => node.clone().prop_map(Event::Order),
        6 => node.prop_map(Event::Resume),
    ]
}

fn run(events: impl IntoIterator<Item = Event>) -> Result<World, TestCaseError> {
    let mut world = World::default();
    let mut nodes = vec![Node::Watching, Node::Watching];
    events.into_iter().try_for_each(|event| apply(&mut world, &mut nodes, event))?;
    Ok(world)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn restores_are_never_from_after_a_take_over_and_never_lose_a_commit(
        events in proptest::collection::vec(event(), 50..300),
    ) {
        run(events)?;
    }

    #[test]
    fn what_rests_is_begun_by_an_order_only_and_what_runs_does_not_rest(
        events in proptest::collection::vec(resting(), 50..300),
    ) {
        run(events)?;
    }
}

/// The schedules reach what they are meant to test.
#[test]
fn schedules_reach_restores_and_late_arrivals() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let schedules = proptest::collection::vec(event(), 300);
    let rests = proptest::collection::vec(resting(), 300);
    let (mut restores, mut late, mut at_rest, mut awoken) = (0, 0, 0, 0);
    for _ in 0..300 {
        let world = run(schedules.new_tree(&mut runner).unwrap().current()).unwrap();
        restores += world.restores;
        late += world.refused_late;
        let world = run(rests.new_tree(&mut runner).unwrap().current()).unwrap();
        at_rest += world.found_at_rest;
        awoken += world.awoken;
    }
    assert!(restores > 1000 && late > 50, "{restores} restores, {late} late snapshots refused");
    assert!(at_rest > 50 && awoken > 10, "{at_rest} times found at rest, {awoken} times begun by an order");
}

/// Too rare to wait for: the record of a rest is late, the node is started again meanwhile, and then another takes over.
#[test]
fn a_rest_whose_record_is_late_is_remembered_over_a_restart() {
    let steps = |node, count| std::iter::repeat_n(Event::Step(node), count);
    let late =
        [Event::Rest(0), Event::Delay(0), Event::Crash(0), Event::Resume(0), Event::Step(0), Event::ArriveRest(0)];
    let world = run(steps(0, 6).chain(late).chain(steps(1, 7))).unwrap();
    assert_eq!((world.begun.len(), world.found_at_rest), (1, 1));
}
