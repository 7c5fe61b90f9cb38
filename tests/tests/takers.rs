//! Who takes over and when: with a majority only, after a fencing command, from a node that was retired.

mod common;

use std::{
    fs,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use common::{
    Before, PATIENCE, checkpoint, copies, count, epochs, events_since, files,
    observer::{Observer, TICKS},
    operator, scene, state, wait_until_serving,
    watch::{COUNTER, Described},
    ways::{Cut, cover_store, uncover_store},
};
use ha_lab::cluster::{Cluster, Event};
use nix::sys::signal::Signal;

/// What nodes here wait for signs in the store.
const LONG: Duration = Duration::from_secs(5);

/// Since then, by the node's account.
fn after(event: &Event, since: SystemTime) -> Duration {
    (event.at - DateTime::<Utc>::from(since)).to_std().unwrap()
}

/// Waits until each of the nodes says that it holds the container back for this reason.
fn wait_until_held(cluster: &Cluster, nodes: &[&str], why: &str, since: SystemTime) {
    let says = |cluster: &Cluster, node: &str| {
        let held = events_since(cluster, "takeover.held", since);
        held.iter().any(|event| event.node == node && event.text("why") == Some(why))
    };
    let all = |cluster: &Cluster| nodes.iter().all(|node| says(cluster, node));
    cluster.wait(&format!("{nodes:?} to hold it back: {why}"), PATIENCE, all).unwrap();
}

#[test]
fn a_minority_takes_nothing_and_two_of_three_do() {
    let name = "a_minority_takes_nothing_and_two_of_three_do";
    let extra = "lease.long = \"5s\"\nquorum = \"majority\"\nvoters = [\"n1\", \"n2\", \"n3\"]";
    let Some((mut cluster, before)) = scene(name, 3, extra, common::NEVER) else { return };
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let since = SystemTime::now();
    // All three reach the store.
    Cut::Heartbeats.begin(&cluster, 2);
    let cut_off = |cluster: &Cluster| {
        events_since(cluster, "peer.dead", since).iter().filter(|event| event.node == "n3").count() == 2
    };
    cluster.wait("the third node to hold both others for dead", PATIENCE, cut_off).unwrap();
    wait_until_held(&cluster, &["n3"], "quorum", since);
    cluster.members[0].power_cut().unwrap();
    wait_until_held(&cluster, &["n2", "n3"], "quorum", since);
    // Looks every 2 s, for longer than any lease, while neither has a majority.
    cluster.wait_for_looks(4, PATIENCE).unwrap();
    assert_eq!((epochs(&cluster), copies(&cluster)), (vec![1], 0));
    let together = SystemTime::now();
    Cut::Heartbeats.end(&cluster, 2);
    wait_until_serving(&cluster, together);
    assert_eq!(state(&cluster).0, told);
    assert_eq!((epochs(&cluster), copies(&cluster)), (vec![1, 2], 1));
    before.check_after_removal(&cluster);
}

/// Waits for the program's request and does what it is for.
fn cut_power_when_asked(cluster: &mut Cluster, request: &std::path::Path) {
    cluster.wait("the fencing command", PATIENCE, |_| request.exists()).unwrap();
    cluster.members[0].power_cut().unwrap();
    fs::write(request.with_extension("done"), "").unwrap();
}

/// A lease that ends so late that nobody who waits for it is taken for one who does not.
const SLOW: Duration = Duration::from_secs(6);

fn slow_leases() -> String {
    format!("lease.short = \"{}s\"\nlease.long = \"30s\"", SLOW.as_secs())
}

#[test]
fn after_a_fencing_command_nobody_waits_for_the_lease() {
    let name = "after_a_fencing_command_nobody_waits_for_the_lease";
    if common::cannot_run(name) {
        return;
    }
    let mut cluster = Cluster::without_managers(2, &slow_leases()).unwrap();
    // On the peer's disk, where it alone sees it.
    let request = cluster.members[1].node.disk().join("fence");
    let script = format!("touch {0}; while [ ! -e {0}.done ]; do sleep 0.02; done", request.display());
    let method = format!("[fence.n1]\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\n");
    cluster.members[1].add_configuration(&method).unwrap();
    cluster.start_managers().unwrap();
    let before = Before::of(&cluster);
    cluster.members[0].apply(&ha_lab::demo::Workload::Counter.compose(common::NEVER).unwrap()).unwrap();
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let observer = Observer::begin(&cluster);
    let killed = SystemTime::now();
    cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
    cut_power_when_asked(&mut cluster, &request);
    wait_until_serving(&cluster, killed);
    assert_eq!(state(&cluster).0, told);
    let at = |kind: &str| after(&cluster.wait_for_event(kind, killed, 1, PATIENCE).unwrap(), killed);
    let (fenced, claimed) = (at("fence.done"), at("ownership.claimed"));
    println!("off after {fenced:?}, claimed after {claimed:?}");
    assert!(fenced < claimed && claimed < SLOW * 9 / 10, "off after {fenced:?}, claimed after {claimed:?}");
    assert_eq!(epochs(&cluster), [1, 2]);
    observer.end().never_two();
    before.check_after_removal(&cluster);
}

#[test]
fn after_a_fencing_command_that_failed_the_lease_is_waited_for() {
    let name = "after_a_fencing_command_that_failed_the_lease_is_waited_for";
    let command = "fence.n1.command = [\"/bin/sh\", \"-c\", \"echo no such outlet >&2; exit 1\"]";
    let extra = format!("{}\n{command}", slow_leases());
    let Some((mut cluster, before)) = scene(name, 2, &extra, common::NEVER) else { return };
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let observer = Observer::begin(&cluster);
    let killed = SystemTime::now();
    cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
    wait_until_serving(&cluster, killed);
    assert_eq!(state(&cluster).0, told);
    let failed = cluster.wait_for_event("fence.failed", killed, 1, PATIENCE).unwrap();
    assert!(failed.message.contains("no such outlet"), "{failed:?}");
    let claimed = after(&cluster.wait_for_event("ownership.claimed", killed, 1, PATIENCE).unwrap(), killed);
    // Counted from its last answer, which is not older than a round of probes.
    assert!(claimed > SLOW - Duration::from_millis(500), "claimed after {claimed:?}");
    observer.end().never_two();
    cluster.members[0].start_manager().unwrap();
    cluster.wait("the deposed copy to go", PATIENCE, |cluster| copies(cluster) == 1).unwrap();
    before.check_after_removal(&cluster);
}

/// The node is told to be gone for good, as soon as it has been silent for long enough.
fn retire(cluster: &Cluster, node: &str) {
    let mut said = String::new();
    let retired = cluster.wait("it to be retired", PATIENCE, |cluster| {
        let output = operator::run(&cluster.members[0], &["retire", node]);
        said = format!("{output:?}");
        output.status.success()
    });
    assert!(retired.is_ok(), "{said}\n{:#}", retired.unwrap_err());
}

#[test]
fn without_a_node_that_was_retired_the_other_goes_on_while_the_store_is_away() {
    let name = "without_a_node_that_was_retired_the_other_goes_on_while_the_store_is_away";
    if common::cannot_run(name) {
        return;
    }
    let mut cluster = Cluster::start(2, "lease.long = \"5s\"").unwrap();
    let before = Before::of(&cluster);
    let there_only = Described::stateful(&[COUNTER, "--tick", TICKS]).recovery("restart:2, older-snapshot:1");
    cluster.members[1].apply(&there_only.text()).unwrap();
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let refused = |cluster: &Cluster, node: &str, code| operator::refused(&cluster.members[0], &["retire", node], code);
    assert!(refused(&cluster, "n2", 5).contains("n2 lives"));
    assert!(refused(&cluster, "n1", 5).contains("this node"));
    assert!(refused(&cluster, "n7", 4).contains("no node n7"));
    let cut = cluster.members[1].power_cut().unwrap();
    cluster.wait_for_event("peer.dead", cut.at, 1, PATIENCE).unwrap();
    // A beat of its own may be the first reason.
    let named = |cluster: &Cluster| {
        let output = operator::run(&cluster.members[0], &["retire", "n2"]);
        let said = operator::texts(&output).1;
        output.status.code() == Some(5) && said.contains("counter") && said.contains("--force")
    };
    cluster.wait("its container to be named", PATIENCE, named).unwrap();
    operator::ok(&cluster.members[0], &["restore", "counter", "--force"]);
    assert_eq!(state(&cluster).0, told);

    retire(&cluster, "n2");
    let store = |path: &str| cluster.lab.store().join(path);
    assert_eq!((files(&store("retired/n2")).len(), store("nodes/n2").exists()), (1, false));
    let observer = Observer::begin(&cluster);
    let since = SystemTime::now();
    cover_store(&cluster, 0);
    cluster.wait_for_event("store.away", since, 1, PATIENCE).unwrap();
    let away = |_: &Cluster| since.elapsed().unwrap() > 2 * LONG;
    cluster.wait("more time than any lease has", PATIENCE, away).unwrap();
    assert_eq!(state(&cluster).0, told);
    uncover_store(&cluster, 0);
    cluster.wait_for_event("store.back", since, 1, PATIENCE).unwrap();
    observer.end().never_fenced();

    // It comes back as a new one, and is counted again.
    cluster.members[1].node.power_on().unwrap();
    cluster.members[1].start_manager().unwrap();
    cluster.wait_for_all().unwrap();
    assert!(files(&cluster.lab.store().join("retired/n2")).is_empty());
    let known = fs::read_to_string(cluster.members[0].node.disk().join("state/peers.json")).unwrap();
    assert!(known.contains("n2"), "{known}");
    assert_eq!(copies(&cluster), 1);
    before.check_after_removal(&cluster);
}

#[test]
fn a_retired_node_that_lives_takes_nothing_until_it_has_started_as_a_new_one() {
    let name = "a_retired_node_that_lives_takes_nothing_until_it_has_started_as_a_new_one";
    let Some((mut cluster, before)) = scene(name, 2, "lease.long = \"5s\"", common::NEVER) else { return };
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let since = SystemTime::now();
    Cut::Everything.begin(&cluster, 1);
    cluster.wait_for_event("peer.dead", since, 2, PATIENCE).unwrap();
    // Neither has anything of the other's, yet each writes to the store.
    let said = operator::refused(&cluster.members[0], &["retire", "n2"], 5);
    assert!(said.contains("has written to the store"), "{said}");
    cover_store(&cluster, 1);
    retire(&cluster, "n2");
    let cut = cluster.members[0].power_cut().unwrap();
    uncover_store(&cluster, 1);
    wait_until_held(&cluster, &["n2"], "retired", cut.at);
    let status = cluster.members[1].json(&["status"]).unwrap().to_string();
    assert!(status.contains("this node was retired"), "{status}");
    cluster.wait_for_looks(2, PATIENCE).unwrap();
    assert_eq!(epochs(&cluster), [1]);
    let again = SystemTime::now();
    cluster.members[1].stop_manager(Signal::SIGTERM).unwrap();
    Cut::Everything.end(&cluster, 1);
    cluster.members[1].start_manager().unwrap();
    wait_until_held(&cluster, &["n2"], "unmet", again);
    assert!(files(&cluster.lab.store().join("retired/n2")).is_empty());
    cluster.members[0].node.power_on().unwrap();
    cluster.members[0].start_manager().unwrap();
    cluster.wait_for_all().unwrap();
    assert_eq!((state(&cluster).0, epochs(&cluster)), (told, vec![1]));
    before.check_after_removal(&cluster);
}
