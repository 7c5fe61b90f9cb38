//! Who may run a container: nodes that race for it, a node that is cut off but lives, an address somebody else has.

mod common;

use std::time::SystemTime;

use common::{
    Before, PATIENCE, checkpoint, cluster, copies, count, epochs, events_since, scene, state, wait_until_serving,
};
use ha_lab::{
    cluster::Cluster,
    demo::{ADDRESS, Workload},
};

#[test]
fn of_two_survivors_that_try_exactly_one_wins() {
    let Some((mut cluster, before)) = scene("of_two_survivors_that_try_exactly_one_wins", 3, "", common::NEVER) else {
        return;
    };
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let cut = cluster.members[0].power_cut().unwrap();
    wait_until_serving(&cluster, cut.at);
    // The other one holds it for dead too, and looks at the store more than once.
    cluster.wait_for_event("peer.dead", cut.at, 2, PATIENCE).unwrap();
    cluster.wait_for_looks(2, PATIENCE).unwrap();
    let won = events_since(&cluster, "ownership.claimed", cut.at);
    assert_eq!(won.len(), 1, "{won:?}");
    assert_eq!(state(&cluster).0, told);
    assert_eq!(copies(&cluster), 1);
    assert_eq!(epochs(&cluster), [1, 2]);
    // The former owner comes back with its disk and finds that the container is somebody else's.
    cluster.members[0].node.power_on().unwrap();
    cluster.members[0].start_manager().unwrap();
    cluster.wait_for_all().unwrap();
    assert_eq!(copies(&cluster), 1);
    assert_eq!(epochs(&cluster), [1, 2]);
    before.check_after_removal(&cluster);
}

/// Between two nodes neither can ask a third who of them is cut off.
#[test]
fn a_node_that_is_cut_off_but_lives_gives_its_container_up_and_does_not_take_it_back() {
    let name = "a_node_that_is_cut_off_but_lives_gives_its_container_up_and_does_not_take_it_back";
    let Some((cluster, before)) = scene(name, 2, "", common::NEVER) else { return };
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let since = SystemTime::now();
    cluster.members[0].node.link_down().unwrap();
    wait_until_serving(&cluster, since);
    assert_eq!(state(&cluster).0, told);
    let deposed = cluster.wait_for_event("ownership.deposed", since, 1, PATIENCE).unwrap();
    assert_eq!(deposed.node, "n1");
    let gone = |cluster: &Cluster| cluster.members[0].node.processes("/bin/counter").is_empty();
    cluster.wait("the deposed copy to be removed", PATIENCE, gone).unwrap();
    // It sees the store, and by its own account its peer is dead, through more than one look at the store.
    cluster.wait_for_looks(3, PATIENCE).unwrap();
    assert_eq!(epochs(&cluster), [1, 2], "taken back by a node that nobody reaches");
    let moved_on = count(&cluster, 5);
    cluster.members[0].node.link_up().unwrap();
    cluster.wait_for_all().unwrap();
    assert_eq!(state(&cluster).0, moved_on);
    assert_eq!((copies(&cluster), epochs(&cluster)), (1, vec![1, 2]));
    before.check_after_removal(&cluster);
}

fn client_ip(cluster: &Cluster, verb: &str) {
    let address = format!("{ADDRESS}/16");
    ha_lab::run(cluster.lab.client_command("ip").args(["addr", verb, &address, "dev", "eth0"])).unwrap();
}

/// The conflict is told of, in an event and in the status, and nothing of the container is on the wire.
fn expect_conflict(cluster: &Cluster, member: usize, since: SystemTime) {
    let event = cluster.wait_for_event("network.conflict", since, 1, PATIENCE).unwrap();
    assert_eq!(event.text("address"), Some(ADDRESS), "{event:?}");
    assert!(event.text("mac").is_some(), "{event:?}");
    let status = |cluster: &Cluster| cluster.members[member].container("counter").unwrap_or_default().to_string();
    cluster.wait("the status to name it", PATIENCE, |cluster| status(cluster).contains("address conflict")).unwrap();
    let ports = cluster.members[member].node.exec("ip -o link show master ha0").unwrap();
    assert!(!ports.contains(" hv"), "the container is on the bridge: {ports}");
}

#[test]
fn an_address_that_somebody_has_keeps_a_new_container_off_the_network_until_it_is_free() {
    let name = "an_address_that_somebody_has_keeps_a_new_container_off_the_network_until_it_is_free";
    let Some(cluster) = cluster(name, 1) else { return };
    let before = Before::of(&cluster);
    client_ip(&cluster, "add");
    let since = SystemTime::now();
    let err = cluster.members[0].apply(&Workload::Counter.compose(common::NEVER).unwrap()).unwrap_err();
    assert!(format!("{err:#}").contains(ADDRESS), "{err:#}");
    expect_conflict(&cluster, 0, since);
    client_ip(&cluster, "del");
    wait_until_serving(&cluster, since);
    assert_eq!(count(&cluster, 3).value, 3);
    before.check_after_removal(&cluster);
}

#[test]
fn an_address_that_somebody_has_holds_a_failover_back_until_it_is_free() {
    let name = "an_address_that_somebody_has_holds_a_failover_back_until_it_is_free";
    let Some((mut cluster, before)) = scene(name, 2, "", common::NEVER) else { return };
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let cut = cluster.members[0].power_cut().unwrap();
    client_ip(&cluster, "add");
    expect_conflict(&cluster, 1, cut.at);
    client_ip(&cluster, "del");
    wait_until_serving(&cluster, cut.at);
    assert_eq!(state(&cluster).0, told);
    before.check_after_removal(&cluster);
}
