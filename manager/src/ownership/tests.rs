use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use super::*;
use crate::{
    spec::{ContainerName, Epoch, SnapshotId},
    store::{Newest, Store, StoreOptions, keys},
};

fn container() -> ContainerName {
    "redis".parse().unwrap()
}

fn claimant(name: &str) -> Claimant {
    Claimant::new(name.parse().unwrap())
}

async fn store(dir: &tempfile::TempDir) -> Store {
    let store = Store::open(&format!("file://{}", dir.path().display())).await.unwrap();
    store.init_or_join("test").await.unwrap();
    store
}

/// As if the snapshot's owner had committed it.
async fn commit(store: &Store, id: &str) {
    let id: SnapshotId = id.parse().unwrap();
    store.put_new(&keys::manifest(&container(), id), bytes::Bytes::from_static(b"x")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_claimants_one_wins_in_every_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(store(&dir).await);
    for expected in [None, Some(Epoch(1)), Some(Epoch(2)), Some(Epoch(3))] {
        let barrier = Arc::new(tokio::sync::Barrier::new(50));
        let tasks: Vec<_> = (0..50)
            .map(|n| {
                let (store, barrier) = (Arc::clone(&store), Arc::clone(&barrier));
                tokio::spawn(async move {
                    barrier.wait().await;
                    claim(&store, &container(), expected, &claimant(&format!("n{n}"))).await.unwrap()
                })
            })
            .collect();
        let mut winners = Vec::new();
        let mut losers_saw = BTreeSet::new();
        for task in tasks {
            match task.await.unwrap() {
                Claim::Won(owner) => winners.push(owner),
                Claim::Lost(owner) => drop(losers_saw.insert(owner.nonce)),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(losers_saw.into_iter().collect::<Vec<_>>(), [winners[0].nonce.clone()]);
        assert_eq!(current(&store, &container()).await.unwrap().unwrap(), winners[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_was_lost_is_recognised_and_another_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    // A deadline of nothing: the caller sees an error while the write goes on.
    let hasty = StoreOptions { deadline: Duration::from_nanos(1), slowest_rate: u64::MAX, ..Default::default() };
    let hasty = Store::open_with(&format!("file://{}", dir.path().display()), hasty).await;
    let mine = claimant("n1");
    // Mostly: a write that is done when the deadline is looked at has its answer.
    if let Ok(hasty) = hasty
        && let Err(error) = claim(&hasty, &container(), None, &mine).await
    {
        assert!(error.is_retryable(), "{error:?}");
    }
    // Whether or not it got that far, the repetition wins, and only for the same claimant.
    let claimed = claim(&store, &container(), None, &mine).await.unwrap();
    assert!(matches!(&claimed, Claim::Won(o) if o.nonce == mine.nonce && o.epoch == Epoch(1)), "{claimed:?}");
    let again = claim(&store, &container(), None, &mine).await.unwrap();
    assert_eq!(claimed, again);
    let other = claim(&store, &container(), None, &claimant("n1")).await.unwrap();
    assert!(matches!(other, Claim::Lost(o) if o.nonce == mine.nonce));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_snapshot_of_the_deposed_owner_never_counts() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let Claim::Won(first) = claim(&store, &container(), None, &claimant("n1")).await.unwrap() else { panic!() };
    assert_eq!(take_base(&store, &container(), &first).await.unwrap(), None);
    commit(&store, "e1-1").await;
    commit(&store, "e1-2").await;
    let Claim::Won(second) = claim(&store, &container(), Some(Epoch(1)), &claimant("n2")).await.unwrap() else {
        panic!()
    };
    let base = take_base(&store, &container(), &second).await.unwrap();
    assert_eq!(base, Some("e1-2".parse().unwrap()));
    commit(&store, "e1-3").await;
    // Repeated after the late arrival: the first answer stands.
    assert_eq!(take_base(&store, &container(), &second).await.unwrap(), base);
    let Claim::Won(third) = claim(&store, &container(), Some(Epoch(2)), &claimant("n3")).await.unwrap() else {
        panic!()
    };
    assert_eq!(take_base(&store, &container(), &third).await.unwrap(), base);
    let deposed = take_base(&store, &container(), &second).await.unwrap_err();
    assert!(
        matches!(&deposed, OwnershipError::Deposed { held: Epoch(2), by, .. } if by.epoch == Epoch(3)),
        "{deposed}"
    );
    assert!(deposed.to_string().contains("n3"));
    assert!(check_epoch(&store, &container(), Epoch(1)).await.is_err());
    check_epoch(&store, &container(), Epoch(3)).await.unwrap();
    let all = all(&store, &Newest::default()).await.unwrap();
    assert_eq!(all[&container()].as_ref().unwrap(), &third);
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_knowledge_is_no_ownership() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    for expected in [None, Some(Epoch(1))] {
        claim(&store, &container(), expected, &claimant("n1")).await.unwrap();
    }
    // Somebody removed an old record by hand: its number is free, but it is not the newest.
    fs::remove_file(dir.path().join(keys::owner(&container(), Epoch(1)))).unwrap();
    let claim = claim(&store, &container(), None, &claimant("n2")).await.unwrap();
    assert!(matches!(&claim, Claim::Lost(o) if o.epoch == Epoch(2)), "{claim:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_container_can_be_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    claim(&store, &container(), None, &claimant("n1")).await.unwrap();
    commit(&store, "e1-1").await;
    let mine = claimant("n1");
    for _ in 0..2 {
        let released = release(&store, &container(), Epoch(1), &mine).await.unwrap();
        assert!(matches!(released, Claim::Won(Owner { released: true, epoch: Epoch(2), .. })));
    }
    commit(&store, "e1-2").await;
    assert!(current(&store, &container()).await.unwrap().unwrap().released);
    let Claim::Won(next) = claim(&store, &container(), Some(Epoch(2)), &claimant("n2")).await.unwrap() else {
        panic!()
    };
    assert_eq!(take_base(&store, &container(), &next).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_is_named_and_stops_only_its_container() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    claim(&store, &container(), None, &claimant("n1")).await.unwrap();
    let other: ContainerName = "web".parse().unwrap();
    claim(&store, &other, None, &claimant("n1")).await.unwrap();
    let key = keys::owner(&container(), Epoch(1));
    fs::write(dir.path().join(&key), b"{\"epoch\":1").unwrap();
    let error = current(&store, &container()).await.unwrap_err();
    assert!(!error.is_retryable());
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains(&key) && source.contains("damaged"), "{source}");
    let all = all(&store, &Newest::default()).await.unwrap();
    assert!(all[&container()].is_err() && all[&other].is_ok());
    // A record under another's name.
    fs::copy(dir.path().join(keys::owner(&other, Epoch(1))), dir.path().join(keys::owner(&other, Epoch(2)))).unwrap();
    assert!(current(&store, &other).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_was_never_written_is_settled_by_the_next_owner_and_its_own_comes_too_late() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let first = won(&store, 0, "n1").await;
    assert_eq!(take_base(&store, &container(), &first).await.unwrap(), None);
    commit(&store, "e1-1").await;
    let stalled = won(&store, 1, "n2").await;
    commit(&store, "e1-2").await;
    let third = won(&store, 2, "n3").await;
    assert_eq!(take_base(&store, &container(), &third).await.unwrap(), Some("e1-2".parse().unwrap()));
    // What came after is nobody's, whoever lists it.
    commit(&store, "e1-3").await;
    let late = take_base(&store, &container(), &stalled).await.unwrap_err();
    assert!(matches!(late, OwnershipError::Deposed { .. }), "{late}");
    let history = history(&store, &container()).await.unwrap();
    assert!(history.has_base(Epoch(2)) && history.is_valid("e1-2".parse().unwrap()));
    assert!(!history.is_valid("e1-3".parse().unwrap()));
}

async fn won(store: &Store, expected: u64, name: &str) -> Owner {
    let expected = (expected > 0).then_some(Epoch(expected));
    match claim(store, &container(), expected, &claimant(name)).await.unwrap() {
        Claim::Won(owner) => owner,
        Claim::Lost(other) => panic!("lost to {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_claims_after_itself_is_no_move_nor_is_a_new_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let long_ago = chrono::Utc::now() - chrono::Duration::hours(1);
    for (before, node, moves) in [(0, "n1", 0), (1, "n1", 0), (2, "n2", 1), (3, "n2", 1), (4, "n1", 2)] {
        won(&store, before, node).await;
        assert_eq!(moves_since(&store, &container(), long_ago).await.unwrap(), moves, "epoch {}", before + 1);
    }
    release(&store, &container(), Epoch(5), &claimant("n3")).await.unwrap();
    won(&store, 6, "n2").await;
    assert_eq!(moves_since(&store, &container(), long_ago).await.unwrap(), 2);
    let soon = chrono::Utc::now() + chrono::Duration::hours(1);
    assert_eq!(moves_since(&store, &container(), soon).await.unwrap(), 0);
}

fn ended(since: &Owner) -> Rest {
    Rest {
        outcome: Outcome::Finished,
        why: "the main process ended with exit code 0".into(),
        code: Some(0),
        signal: None,
        since: since.epoch,
        at: chrono::Utc::now(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rests_is_found_so_through_a_chain_of_owners_until_an_order_begins_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let first = won(&store, 0, "n1").await;
    assert_eq!(take_over(&store, &container(), &first).await.unwrap(), Taken { base: None, rest: None });
    commit(&store, "e1-1").await;
    let end = ended(&first);
    for _ in 0..2 {
        rest(&store, &container(), &first, &end).await.unwrap();
    }
    // After a restart of its node, on the next one, and where that one was lost between its claim and its base.
    let found = Taken { base: Some("e1-1".parse().unwrap()), rest: Some(end.clone()) };
    assert_eq!(take_over(&store, &container(), &first).await.unwrap().rest, Some(end.clone()));
    let second = won(&store, 1, "n2").await;
    assert_eq!(take_over(&store, &container(), &second).await.unwrap(), found);
    assert_eq!(take_over(&store, &container(), &second).await.unwrap(), found);
    let stalled = won(&store, 2, "n1").await;
    let fourth = won(&store, 3, "n2").await;
    assert_eq!(take_over(&store, &container(), &fourth).await.unwrap(), found);
    assert_eq!(at_rest(&store, &container(), stalled.epoch).await.unwrap(), Some(end));
    // An order: from here on nobody finds it at rest.
    let ordered = won(&store, 4, "n2").await;
    assert_eq!(take_base(&store, &container(), &ordered).await.unwrap(), found.base);
    assert_eq!(take_over(&store, &container(), &ordered).await.unwrap().rest, None);
    let next = won(&store, 5, "n1").await;
    assert_eq!(take_over(&store, &container(), &next).await.unwrap(), Taken { rest: None, ..found });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rest_that_a_deposed_owner_writes_down_does_not_count_once_the_container_was_begun() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let first = won(&store, 0, "n1").await;
    take_over(&store, &container(), &first).await.unwrap();
    let second = won(&store, 1, "n2").await;
    assert_eq!(take_over(&store, &container(), &second).await.unwrap().rest, None);
    let late = rest(&store, &container(), &first, &ended(&first)).await.unwrap_err();
    assert!(matches!(&late, OwnershipError::Deposed { by, .. } if by.epoch == Epoch(2)), "{late}");
    assert_eq!(take_over(&store, &container(), &second).await.unwrap().rest, None);
    let third = won(&store, 2, "n1").await;
    assert_eq!(take_over(&store, &container(), &third).await.unwrap().rest, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_container_of_which_the_predecessor_rested_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let known = Newest::default();
    let newest = async || all(&store, &known).await.unwrap().remove(&container()).unwrap().unwrap();
    let first = won(&store, 0, "n1").await;
    assert_eq!(newest().await, first);
    take_over(&store, &container(), &first).await.unwrap();
    rest(&store, &container(), &first, &ended(&first)).await.unwrap();
    assert_eq!(newest().await, first);
    release(&store, &container(), first.epoch, &claimant("n1")).await.unwrap();
    assert!(newest().await.released);
    let next = won(&store, 2, "n2").await;
    assert_eq!(take_over(&store, &container(), &next).await.unwrap(), Taken { base: None, rest: None });
    assert_eq!(newest().await, next);
}

#[tokio::test]
async fn a_number_that_was_begun_with_is_not_used_again_and_the_newest_owner_is_found_among_many() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir).await;
    let mut expected = None;
    for n in 1..=12 {
        let Claim::Won(owner) = claim(&store, &container(), expected, &claimant(&format!("n{n}"))).await.unwrap()
        else {
            panic!("lost")
        };
        expected = Some(owner.epoch);
    }
    let newest = all(&store, &Newest::default()).await.unwrap().remove(&container()).unwrap().unwrap();
    assert_eq!((newest.epoch, newest.node.as_str()), (Epoch(12), "n12"));
    assert_eq!(next_seq(&store, &container(), Epoch(12)).await.unwrap(), 1);
    // Half an upload: no manifest.
    let half = SnapshotId { epoch: Epoch(12), seq: 7 };
    store.put_bulk(&keys::chunk(&container(), half, "memory.0"), "x".into()).await.unwrap();
    assert_eq!(next_seq(&store, &container(), Epoch(12)).await.unwrap(), 8);
    assert_eq!(next_seq(&store, &container(), Epoch(11)).await.unwrap(), 1);
}
