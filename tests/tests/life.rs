//! Nodes that live and are not heard: what is taken over from whom, and that it ends.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use common::{
    NEVER, PATIENCE, checkpoint, copies, count, epochs, events_since, files, scene, state, wait_until_serving,
    ways::{Cut, cover_store, uncover_store},
};
use ha_lab::{
    cluster::{Cluster, Event},
    demo::{ADDRESS, Workload},
};
use nix::sys::signal::Signal;
use serde_json::Value as Json;

/// The number of a node's newest sign of life.
fn beat(cluster: &Cluster, node: &str) -> u64 {
    let numbers = files(&cluster.lab.store().join("beats").join(node));
    numbers.iter().filter_map(|name| name.parse().ok()).max().unwrap_or(0)
}

/// Waits until each of the nodes has given `more` signs of life: about as many looks at the store were made.
fn signs(cluster: &Cluster, nodes: &[&str], more: usize) {
    let mut last: BTreeMap<&str, u64> = nodes.iter().map(|node| (*node, beat(cluster, node))).collect();
    for number in 0..more {
        let given = |cluster: &Cluster| last.iter().all(|(node, before)| beat(cluster, node) > *before);
        cluster.wait(&format!("sign of life {number} of {nodes:?}"), PATIENCE, given).unwrap();
        last.iter_mut().for_each(|(node, before)| *before = beat(cluster, node));
    }
}

fn both_dead(cluster: &Cluster, since: SystemTime) {
    cluster.wait_for_event("peer.dead", since, 2, PATIENCE).unwrap();
    let judges: BTreeSet<String> = cluster.of_kind("peer.dead").into_iter().map(|event| event.node).collect();
    assert_eq!(judges.len(), 2, "{judges:?}");
}

fn held(cluster: &Cluster, since: SystemTime, why: &str) -> Event {
    let found = |cluster: &Cluster| {
        events_since(cluster, "takeover.held", since).into_iter().find(|event| event.text("why") == Some(why))
    };
    cluster.wait(&format!("takeover.held: {why}"), PATIENCE, |cluster| found(cluster).is_some()).unwrap();
    found(cluster).unwrap()
}

fn claims(cluster: &Cluster, since: SystemTime) -> Vec<Event> {
    events_since(cluster, "ownership.claimed", since)
}

/// A stateless container on the second node, which writes nothing of its own.
fn with_another_on_the_second(cluster: &Cluster) {
    let text = Workload::Counter.compose_with(&["/bin/counter".to_owned()], None).unwrap();
    let mut compose: Json = serde_json::from_str(&text).unwrap();
    let mut service = compose["services"]["counter"].take();
    service["networks"]["default"]["ipv4_address"] = "10.77.1.99".into();
    assert_ne!(ADDRESS, "10.77.1.99");
    compose["services"] = serde_json::json!({ "other": service });
    cluster.members[1].apply(&compose.to_string()).unwrap();
}

#[test]
fn nodes_that_do_not_hear_each_others_heartbeats_leave_each_other_alone() {
    let name = "nodes_that_do_not_hear_each_others_heartbeats_leave_each_other_alone";
    let Some((cluster, _)) = scene(name, 2, "", NEVER) else { return };
    with_another_on_the_second(&cluster);
    let told = count(&cluster, 10);
    let id = state(&cluster).1;
    let since = SystemTime::now();
    [0, 1].iter().for_each(|member| Cut::Heartbeats.begin(&cluster, *member));
    both_dead(&cluster, since);
    signs(&cluster, &["n1", "n2"], 6);
    let claimed = claims(&cluster, since);
    assert!(claimed.is_empty(), "{claimed:?}");
    assert_eq!((copies(&cluster), state(&cluster)), (2, (told, id.clone())));
    let notes = cluster.members[0].container("other").unwrap()["notes"].to_string();
    assert!(notes.contains("not taken over"), "{notes}");
    [0, 1].iter().for_each(|member| Cut::Heartbeats.end(&cluster, *member));
    cluster.wait_for_all().unwrap();
    assert_eq!((copies(&cluster), state(&cluster)), (2, (told, id)));
    // Nodes that hear each other have nothing to say in the store.
    let silent = |cluster: &Cluster| ["n1", "n2"].iter().all(|node| beat(cluster, node) == 0);
    cluster.wait("the signs of life to be cleared away", PATIENCE, silent).unwrap();
}

#[test]
fn nodes_that_reach_the_store_and_not_each_other_exchange_nothing_for_ever() {
    let name = "nodes_that_reach_the_store_and_not_each_other_exchange_nothing_for_ever";
    let Some((cluster, before)) = scene(name, 2, "", NEVER) else { return };
    with_another_on_the_second(&cluster);
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let since = SystemTime::now();
    Cut::Everything.begin(&cluster, 0);
    both_dead(&cluster, since);
    signs(&cluster, &["n1", "n2"], 4);
    let claimed = claims(&cluster, since);
    let containers: BTreeSet<&str> = claimed.iter().map(|claim| claim.container.as_str()).collect();
    assert_eq!(containers.len(), claimed.len(), "claimed back: {claimed:#?}");
    signs(&cluster, &["n1", "n2"], 4);
    assert_eq!(claims(&cluster, since).len(), claimed.len(), "{:#?}", claims(&cluster, since));
    assert_eq!(copies(&cluster), 2);
    held(&cluster, since, "writes");
    Cut::Everything.end(&cluster, 0);
    cluster.wait_for_all().unwrap();
    assert_eq!(state(&cluster).0, told);
    assert_eq!(claims(&cluster, since).len(), claimed.len());
    cluster.members[0].cli(&["rm", "other"]).unwrap();
    before.check_after_removal(&cluster);
}

#[test]
fn what_was_taken_from_a_node_that_could_not_write_is_not_taken_back() {
    let name = "what_was_taken_from_a_node_that_could_not_write_is_not_taken_back";
    let Some((mut cluster, before)) = scene(name, 2, "", NEVER) else { return };
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let since = SystemTime::now();
    cover_store(&cluster, 0);
    Cut::Everything.begin(&cluster, 0);
    wait_until_serving(&cluster, since);
    uncover_store(&cluster, 0);
    let deposed = cluster.wait_for_event("ownership.deposed", since, 1, PATIENCE).unwrap();
    assert_eq!(deposed.node, "n1");
    assert_eq!(held(&cluster, since, "writes").node, "n1");
    signs(&cluster, &["n1", "n2"], 5);
    assert_eq!((claims(&cluster, since).len(), epochs(&cluster)), (1, vec![1, 2]), "{:#?}", claims(&cluster, since));
    assert_eq!((copies(&cluster), state(&cluster).0), (1, told));
    Cut::Everything.end(&cluster, 0);
    cluster.wait_for_all().unwrap();
    // Heard again, it is as mortal as before.
    let cut = cluster.members[1].power_cut().unwrap();
    wait_until_serving(&cluster, cut.at);
    assert_eq!((state(&cluster).0, epochs(&cluster)), (told, vec![1, 2, 3]));
    before.check_after_removal(&cluster);
}

#[test]
fn a_node_that_dies_after_it_gave_signs_of_life_is_taken_over_when_they_have_ended() {
    let name = "a_node_that_dies_after_it_gave_signs_of_life_is_taken_over_when_they_have_ended";
    let Some((mut cluster, before)) = scene(name, 2, "", NEVER) else { return };
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let since = SystemTime::now();
    Cut::Everything.begin(&cluster, 0);
    held(&cluster, since, "writes");
    assert_eq!(claims(&cluster, since), []);
    let cut = cluster.members[0].power_cut().unwrap();
    wait_until_serving(&cluster, cut.at);
    assert_eq!((state(&cluster).0, epochs(&cluster)), (told, vec![1, 2]));
    before.check_after_removal(&cluster);
}

#[test]
fn a_manager_that_was_killed_and_is_started_again_at_once_goes_on_with_the_same_process() {
    let name = "a_manager_that_was_killed_and_is_started_again_at_once_goes_on_with_the_same_process";
    let Some((mut cluster, before)) = scene(name, 2, "pace = \"wan\"\n", NEVER) else { return };
    let told = count(&cluster, 10);
    let running = cluster.members[0].node.processes("/bin/counter");
    // However busy the machine is: it is back long before its lease is over.
    // Killed in the middle of a checkpoint it leaves a container that does not answer.
    checkpoint(&cluster);
    for _ in 0..2 {
        let since = SystemTime::now();
        cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
        cluster.members[0].start_manager().unwrap();
        cluster.wait_for_event("container.adopted", since, 1, PATIENCE).unwrap();
        cluster.wait_for_all().unwrap();
        checkpoint(&cluster);
        assert_eq!((claims(&cluster, since), epochs(&cluster)), (vec![], vec![1]));
    }
    assert_eq!((state(&cluster).0, cluster.members[0].node.processes("/bin/counter")), (told, running));
    before.check_after_removal(&cluster);
}
