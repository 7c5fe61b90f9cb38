//! What may go, whatever there is.

use proptest::prelude::*;

use super::*;

const KINDS: [SnapshotKind; 3] = [SnapshotKind::Periodic, SnapshotKind::Manual, SnapshotKind::Final];
const HEALTHS: [SnapshotHealth; 3] = [SnapshotHealth::Healthy, SnapshotHealth::Unhealthy, SnapshotHealth::Unknown];

fn id(epoch: u64, seq: u64) -> SnapshotId {
    SnapshotId { epoch: Epoch(epoch), seq }
}

/// Of one epoch, everything committed.
fn history() -> History {
    let mut history = History::default();
    history.add_epoch(Epoch(1));
    history.add_base(Epoch(1), None);
    history
}

/// The numbers of those that go; the first of `all` is number 1.
fn gone(all: &[(SnapshotKind, SnapshotHealth)], periodic: u32, manual: u32) -> Vec<u64> {
    let found = (1..).zip(all).map(|(seq, (kind, health))| (id(1, seq), Found::Committed(*kind, *health))).collect();
    let pruned = choose(&found, &history(), Keep { periodic, manual }, Epoch(1));
    pruned.snapshots.iter().map(|id| id.seq).collect()
}

#[test]
fn what_a_person_asked_for_is_counted_apart() {
    use SnapshotHealth::{Healthy, Unhealthy, Unknown};
    use SnapshotKind::{Final, Manual, Periodic};
    let healthy = |kinds: &[SnapshotKind]| kinds.iter().map(|kind| (*kind, Healthy)).collect::<Vec<_>>();
    let mixed = healthy(&[Manual, Periodic, Manual, Periodic, Final, Periodic, Manual]);
    assert_eq!(gone(&mixed, 2, 2), [1, 2, 4]);
    assert_eq!(gone(&mixed, 4, 1), [1, 3]);
    // However many periodic ones follow.
    let mut long = vec![(Manual, Healthy)];
    long.extend([(Periodic, Healthy); 9]);
    assert_eq!(gone(&long, 1, 1), (2..10).collect::<Vec<_>>());
    // What a recovery goes back to stays, of whatever kind and however old it is.
    assert_eq!(gone(&[(Manual, Healthy), (Manual, Unhealthy), (Periodic, Unhealthy)], 1, 1), Vec::<u64>::new());
    assert_eq!(gone(&[(Periodic, Unknown), (Periodic, Unhealthy), (Periodic, Unhealthy)], 1, 1), [2]);
}

fn found() -> impl Strategy<Value = Found> {
    prop_oneof![
        1 => Just(Found::Uncommitted),
        1 => Just(Found::Unreadable),
        8 => (0..3_usize, 0..3_usize).prop_map(|(kind, health)| Found::Committed(KINDS[kind], HEALTHS[health])),
    ]
}

/// Epochs 1 to 3, of which 3 is the present one; the bases of the later ones leave out some of what the earlier ones wrote.
fn store() -> impl Strategy<Value = (BTreeMap<SnapshotId, Found>, History)> {
    let snapshots = proptest::collection::btree_map((1..4_u64, 1..12_u64).prop_map(|(e, s)| id(e, s)), found(), 0..25);
    (snapshots, 0..12_u64, 0..12_u64).prop_map(|(snapshots, first, second)| {
        let mut history = History::default();
        (1..=3).for_each(|epoch| history.add_epoch(Epoch(epoch)));
        history.add_base(Epoch(1), None);
        history.add_base(Epoch(2), (first > 0).then(|| id(1, first)));
        history.add_base(Epoch(3), (second > 0).then(|| id(2, second)));
        (snapshots, history)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_that_is_needed_goes_and_no_more_than_that_stays(
        (found, history) in store(), periodic in 1..5_u32, manual in 1..5_u32,
    ) {
        let keep = Keep { periodic, manual };
        let pruned = choose(&found, &history, keep, Epoch(3));
        let goes = |id: &SnapshotId| pruned.snapshots.contains(id) || pruned.orphans.contains(id);
        // Newest first.
        let valid: Vec<_> = found.iter().rev().filter(|(id, _)| history.is_valid(**id)).collect();
        let committed: Vec<_> = valid.iter().filter(|(_, found)| **found != Found::Uncommitted).collect();
        let readable: Vec<_> = valid
            .iter()
            .filter_map(|(id, f)| if let Found::Committed(kind, health) = f { Some((**id, *kind, *health)) } else { None })
            .collect();
        // What a taker goes on from, and what a recovery does.
        prop_assert!(committed.first().is_none_or(|(id, _)| !goes(id)));
        let usable = readable.iter().find(|(.., health)| *health != SnapshotHealth::Unhealthy);
        prop_assert!(usable.is_none_or(|(id, ..)| !goes(id)));
        let healthy = readable.iter().find(|(.., health)| *health == SnapshotHealth::Healthy);
        prop_assert!(healthy.is_none_or(|(id, ..)| !goes(id)));
        for (is_manual, count) in [(false, periodic), (true, manual)] {
            let of_kind = readable.iter().filter(|(_, kind, _)| (*kind == SnapshotKind::Manual) == is_manual);
            let stays: Vec<bool> = of_kind.map(|(id, ..)| !goes(id)).collect();
            prop_assert!(stays.iter().take(count as usize).all(|stays| *stays), "too few of {is_manual}: {stays:?}");
            // At most the two that a recovery needs are there besides.
            let more = stays.iter().skip(count as usize).filter(|stays| **stays).count();
            prop_assert!(more <= 2, "too many of {is_manual}: {stays:?}");
        }
        // Nobody's chunks that may still become a snapshot.
        prop_assert!(pruned.orphans.iter().all(|id| found[id] == Found::Uncommitted));
        prop_assert!(pruned.snapshots.iter().all(|id| found[id] != Found::Uncommitted));
        // Once it has been done there is nothing more to do.
        let left = found.iter().filter(|(id, _)| !goes(id)).map(|(id, found)| (*id, *found)).collect();
        prop_assert_eq!(choose(&left, &history, keep, Epoch(3)), Pruned::default());
    }

    #[test]
    fn periodic_snapshots_push_no_manual_one_out(
        (found, history) in store(), keep in (1..5_u32, 1..5_u32), further in 0..10_u64,
    ) {
        let keep = Keep { periodic: keep.0, manual: keep.1 };
        let manual = |found: &BTreeMap<SnapshotId, Found>| {
            let gone = choose(found, &history, keep, Epoch(3)).snapshots;
            gone.into_iter().filter(|id| matches!(found[id], Found::Committed(SnapshotKind::Manual, _))).collect::<BTreeSet<_>>()
        };
        let mut later = found.clone();
        later.extend((0..further).map(|n| {
            (id(3, 100 + n), Found::Committed(SnapshotKind::Periodic, SnapshotHealth::Unhealthy))
        }));
        prop_assert_eq!(manual(&found), manual(&later));
    }
}
