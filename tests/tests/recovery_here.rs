//! What a node does when it is itself the trouble: no room, a manager that stops, a removal that was broken off; and what of a
//! container stays on its node.

mod common;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use common::{
    PATIENCE, checkpoint, client, count, events_since, fill, make_room,
    operator::{file, ok, refused, run, texts},
    state,
    watch::{AGENT, COUNTER, Described, Watched},
};
use ha_lab::cluster::Cluster;
use nix::sys::signal::Signal;

const PLAIN: [&str; 3] = [COUNTER, "--ballast-mb", "4"];

/// A file of the container, as its process sees it.
fn inside(cluster: &Cluster, member: usize, path: &str) -> PathBuf {
    let pids = cluster.members[member].node.processes(COUNTER);
    assert_eq!(pids.len(), 1, "the counter runs {} times", pids.len());
    PathBuf::from(format!("/proc/{}/root{path}", pids[0]))
}

fn serving(cluster: &Cluster, node: &str, since: SystemTime) {
    let there = |cluster: &Cluster| events_since(cluster, "recovery.serving", since).iter().any(|e| e.node == node);
    cluster.wait(&format!("{node} to serve"), PATIENCE * 2, there).unwrap();
}

#[test]
fn the_volumes_of_a_stateless_container_survive_its_restarts_and_those_of_its_node() {
    let name = "the_volumes_of_a_stateless_container_survive_its_restarts_and_those_of_its_node";
    let described = Described::stateless(&PLAIN).volume("data", "/data");
    let Some(mut watched) = Watched::start(name, 1, &described) else { return };
    // Applied once more, for what it says.
    let path = file(&watched.cluster.members[0], "again.yaml", &described.text());
    let (_, said) = texts(&run(&watched.cluster.members[0], &["apply", "-f", &path]));
    assert!(said.contains("volumes[0]") && said.contains("begins empty"), "{said}");
    fs::write(inside(&watched.cluster, 0, "/data/kept"), "1").unwrap();
    fs::write(inside(&watched.cluster, 0, "/gone"), "1").unwrap();

    let since = SystemTime::now();
    watched.signal(0, AGENT, Signal::SIGKILL);
    serving(&watched.cluster, "n1", since);
    assert_eq!(fs::read_to_string(inside(&watched.cluster, 0, "/data/kept")).unwrap(), "1");
    assert!(!inside(&watched.cluster, 0, "/gone").exists(), "it did not begin from its image");

    let cut = watched.cluster.members[0].power_cut().unwrap();
    watched.cluster.members[0].node.power_on().unwrap();
    watched.cluster.members[0].start_manager().unwrap();
    serving(&watched.cluster, "n1", cut.at);
    assert_eq!(fs::read_to_string(inside(&watched.cluster, 0, "/data/kept")).unwrap(), "1");
    watched.finish();
}

/// The newest state is still in memory when the container ends: packing it takes longer than anybody waits for a commit.
#[test]
fn a_container_that_ends_while_its_dump_is_packed_goes_on_from_that_dump() {
    let name = "a_container_that_ends_while_its_dump_is_packed_goes_on_from_that_dump";
    let described = Described::stateful(&[COUNTER, "--ballast-mb", "64"]);
    let Some(watched) = Watched::start(name, 1, &described) else { return };
    let cluster = &watched.cluster;
    cluster.wait_for_event("checkpoint.committed", SystemTime::UNIX_EPOCH, 1, PATIENCE * 4).unwrap();
    let told = count(cluster, 7);
    let queue = cluster.members[0].node.disk().join("state/containers/counter/queue");
    let mut asking = cluster.members[0].cli_command().unwrap().args(["checkpoint", "counter"]).spawn().unwrap();
    let packing = |_: &Cluster| {
        fs::read_dir(&queue).unwrap().flatten().any(|entry| entry.file_name().to_string_lossy().ends_with("partial"))
    };
    cluster.wait("packing to begin", PATIENCE, packing).unwrap();
    let since = SystemTime::now();
    watched.signal(0, AGENT, Signal::SIGKILL);
    serving(cluster, "n1", since);
    asking.wait().unwrap();
    assert_eq!(client(cluster, |counter| counter.get()), told);
    assert_eq!(events_since(cluster, "checkpoint.failed", since), []);
    watched.finish();
}

#[test]
fn a_node_without_room_refuses_no_snapshot_and_restores_the_newest_when_there_is_room() {
    let name = "a_node_without_room_refuses_no_snapshot_and_restores_the_newest_when_there_is_room";
    let described = Described::stateful(&PLAIN).recovery("failover, older-snapshot:2, cold-start");
    let Some(mut watched) = Watched::start(name, 2, &described) else { return };
    let (_, id) = state(&watched.cluster);
    checkpoint(&watched.cluster);
    let told = count(&watched.cluster, 9);
    checkpoint(&watched.cluster);
    fill(&watched.cluster, 1);
    let cut = watched.cluster.members[0].power_cut().unwrap();
    // Twice: the same again, and not the next of the ladder.
    let waiting = watched.cluster.wait_for_event("recovery.waiting", cut.at, 2, PATIENCE * 2).unwrap();
    assert!(waiting.text("cause").unwrap().contains("No space left"), "{waiting:?}");
    make_room(&watched.cluster, 1);
    serving(&watched.cluster, "n2", cut.at);
    assert_eq!(state(&watched.cluster), (told, id));
    assert_eq!(watched.events("snapshot.refused"), []);
    assert!(watched.steps().iter().all(|step| step == "failover"), "{:?}", watched.steps());
    watched.switch_on(0);
    watched.finish();
}

#[test]
fn a_taker_without_room_passes_the_container_on() {
    let name = "a_taker_without_room_passes_the_container_on";
    let Some(mut watched) = Watched::start(name, 3, &Described::stateful(&PLAIN)) else { return };
    let (_, id) = state(&watched.cluster);
    let told = count(&watched.cluster, 9);
    checkpoint(&watched.cluster);
    // Only the one whose turn it is has to pass it on; which one that is shows itself.
    fill(&watched.cluster, 1);
    let cut = watched.cluster.members[0].power_cut().unwrap();
    serving(&watched.cluster, "n3", cut.at);
    assert_eq!(state(&watched.cluster), (told, id));
    assert_eq!(watched.events("snapshot.refused"), []);
    make_room(&watched.cluster, 1);
    watched.switch_on(0);
    watched.finish();
}

/// A part of the store that cannot be written to.
fn freeze(cluster: &Cluster, part: &str) {
    let part = cluster.lab.store().join(part);
    let (node, part) = (&cluster.members[0].node, part.display());
    node.exec(&format!("mount --bind {part} {part}")).unwrap();
    node.exec(&format!("mount -o remount,bind,ro {part}")).unwrap();
}

fn thaw(cluster: &Cluster, part: &str) {
    let part = cluster.lab.store().join(part);
    cluster.members[0].node.exec(&format!("umount -l {}", part.display())).unwrap();
}

#[test]
fn a_removal_that_was_broken_off_can_be_finished() {
    let name = "a_removal_that_was_broken_off_can_be_finished";
    let Some(mut watched) = Watched::start(name, 1, &Described::stateful(&PLAIN)) else { return };
    let described = Described::stateful(&PLAIN).text();
    let snapshots = watched.cluster.lab.store().join("snapshots/counter");
    let left = || fs::read_dir(&snapshots).map_or(0, Iterator::count);

    // After it was released: by another `rm`.
    checkpoint(&watched.cluster);
    freeze(&watched.cluster, "snapshots/counter");
    refused(&watched.cluster.members[0], &["rm", "counter"], 1);
    thaw(&watched.cluster, "snapshots/counter");
    let removed = |cluster: &Cluster| run(&cluster.members[0], &["rm", "counter"]).status.success();
    watched.cluster.wait("the removal to be taken up again", PATIENCE, removed).unwrap();
    assert_eq!(left(), 0, "its snapshots are still there");

    // Before it was released: by the next manager.
    watched.cluster.members[0].apply(&described).unwrap();
    checkpoint(&watched.cluster);
    freeze(&watched.cluster, "owners/counter");
    refused(&watched.cluster.members[0], &["rm", "counter"], 1);
    watched.cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
    thaw(&watched.cluster, "owners/counter");
    let since = SystemTime::now();
    watched.cluster.members[0].start_manager().unwrap();
    watched.cluster.wait_for_event("container.removed", since, 1, PATIENCE).unwrap();
    assert_eq!(left(), 0, "its snapshots are still there");
    watched.cluster.members[0].apply(&described).unwrap();
    assert_eq!(count(&watched.cluster, 1).value, 1);
    watched.finish();
}

#[test]
fn what_is_down_when_its_manager_stops_is_not_left_to_nobody() {
    let name = "what_is_down_when_its_manager_stops_is_not_left_to_nobody";
    let Some(mut watched) = Watched::start(name, 2, &Described::stateful(&PLAIN)) else { return };
    let (_, id) = state(&watched.cluster);
    let told = count(&watched.cluster, 9);
    checkpoint(&watched.cluster);
    let store = watched.cluster.lab.store().display().to_string();
    watched.cluster.members[0].node.exec(&format!("mount -t tmpfs cover {store}")).unwrap();
    let since = SystemTime::now();
    watched.signal(0, AGENT, Signal::SIGKILL);
    watched.cluster.wait_for_event("recovery.waiting", since, 1, PATIENCE).unwrap();
    watched.cluster.members[0].stop_manager(Signal::SIGTERM).unwrap();
    serving(&watched.cluster, "n2", since);
    assert_eq!(state(&watched.cluster), (told, id));
    assert_eq!(watched.events("peer.left"), []);
    watched.cluster.members[0].node.exec(&format!("umount -l {store}")).unwrap();
    watched.cluster.members[0].start_manager().unwrap();
    watched.cluster.wait_for_all().unwrap();
    watched.finish();
}

/// With the store away a move fails, and at no time is the container off the network.
#[test]
fn a_move_without_a_store_leaves_the_container_on_the_network() {
    let name = "a_move_without_a_store_leaves_the_container_on_the_network";
    let Some(watched) = Watched::start(name, 2, &Described::stateful(&PLAIN)) else { return };
    let cluster = &watched.cluster;
    let told = count(cluster, 3);
    checkpoint(cluster);
    let store = cluster.lab.store().display().to_string();
    cluster.members[0].node.exec(&format!("mount -t tmpfs cover {store}")).unwrap();
    let said = refused(&cluster.members[0], &["move", "counter", "--to", "n2"], 1);
    assert!(said.contains("goes on here"), "{said}");
    assert_eq!(state(cluster).0, told);
    cluster.members[0].node.exec(&format!("umount -l {store}")).unwrap();
    // It can be moved as soon as the store takes what waited for it.
    let moved = |cluster: &Cluster| run(&cluster.members[0], &["move", "counter", "--to", "n2"]).status.success();
    cluster.wait("the move", PATIENCE + Duration::from_secs(30), moved).unwrap();
    assert_eq!(state(cluster).0, told);
    ok(&cluster.members[0], &["status"]);
    watched.finish();
}
