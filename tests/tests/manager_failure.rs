//! The manager itself stops, dies, or finds its surroundings in disorder: containers do not suffer.

mod common;

use std::{
    process::Stdio,
    thread,
    time::{Duration, SystemTime},
};

use common::{PATIENCE, cannot_run, checkpoint, count, state, wait_until_serving, with_counter};
use ha_lab::{
    cluster::Cluster,
    demo::{ADDRESS, Workload},
};
use nix::sys::signal::Signal;

#[test]
fn containers_outlive_their_manager_and_the_next_one_adopts_them() {
    let name = "containers_outlive_their_manager_and_the_next_one_adopts_them";
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // Alone, so that no peer takes over meanwhile.
        let Some(mut cluster) = with_counter(name, 1) else { return };
        let (_, id) = state(&cluster);
        let told = count(&cluster, 10);
        cluster.members[0].stop_manager(signal).unwrap();
        assert_eq!(state(&cluster), (told, id.clone()), "after {signal}");
        cluster.members[0].start_manager().unwrap();
        cluster
            .wait("the container to be adopted", PATIENCE, |cluster| {
                let container = cluster.members[0].container("counter");
                container.is_some_and(|c| c.get("phase").is_some_and(|phase| phase == "running"))
            })
            .unwrap();
        assert_eq!(state(&cluster), (told, id), "after {signal} and a new manager");
        checkpoint(&cluster);
    }
}

#[test]
fn a_second_manager_on_the_same_state_directory_is_refused() {
    let Some(cluster) = common::cluster("a_second_manager_on_the_same_state_directory_is_refused", 1) else { return };
    let member = &cluster.members[0];
    let config = member.node.disk().join("node.toml");
    let output = member.cli_command().unwrap().arg("run").arg("--config").arg(config).output().unwrap();
    assert!(!output.status.success());
    assert!(!output.stderr.is_empty(), "it does not say why");
    assert!(member.cli(&["status"]).is_ok(), "the first manager suffered");
}

#[test]
fn a_manager_killed_in_the_middle_of_a_checkpoint_leaves_the_container_running() {
    let name = "a_manager_killed_in_the_middle_of_a_checkpoint_leaves_the_container_running";
    if cannot_run(name) {
        return;
    }
    // At several moments of it: starting, dumping, compressing, committing.
    for after in [20, 80, 200, 500] {
        let mut cluster = Cluster::start(1, "").unwrap();
        let command = ["/bin/counter", "--ballast-mb", "128"].map(str::to_owned);
        cluster.members[0].apply(&Workload::Counter.compose_with(&command, Some(common::NEVER)).unwrap()).unwrap();
        let told = count(&cluster, 10);
        let id = state(&cluster).1;
        let mut asked = cluster.members[0].cli_command().unwrap();
        let mut asked =
            asked.args(["checkpoint", "counter"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(after));
        cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
        asked.wait().unwrap();
        cluster.members[0].start_manager().unwrap();
        assert_eq!(state(&cluster), (told, id), "killed after {after} ms");
        checkpoint(&cluster);
    }
}

#[test]
fn a_manager_killed_in_the_middle_of_a_restore_finishes_it_the_next_time() {
    let name = "a_manager_killed_in_the_middle_of_a_restore_finishes_it_the_next_time";
    let Some(mut cluster) = with_counter(name, 2) else { return };
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let cut = cluster.members[0].power_cut().unwrap();
    cluster.wait_for_event("recovery.started", cut.at, 1, PATIENCE).unwrap();
    cluster.members[1].stop_manager(Signal::SIGKILL).unwrap();
    cluster.members[1].start_manager().unwrap();
    assert_eq!(state(&cluster).0, told);
    assert_eq!(cluster.members[1].node.processes("/bin/counter").len(), 1);
}

#[test]
fn an_address_that_somebody_has_is_found_and_not_taken() {
    let name = "an_address_that_somebody_has_is_found_and_not_taken";
    let Some(cluster) = common::cluster(name, 1) else { return };
    ha_lab::run(cluster.lab.client_command("ip").args(["addr", "add", &format!("{ADDRESS}/16"), "dev", "eth0"]))
        .unwrap();
    let before = cluster.members[0].node.census().unwrap();
    let err = cluster.members[0].apply(&Workload::Counter.compose(common::NEVER).unwrap()).unwrap_err();
    assert!(format!("{err:#}").contains(ADDRESS), "{err:#}");
    let left = before.left_behind(&cluster.members[0].node.census().unwrap());
    let ours = |line: &&String| ["link ", "netns ", "nft "].iter().any(|kind| line.starts_with(kind));
    assert_eq!(left.iter().filter(ours).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn a_full_disk_fails_the_checkpoint_and_nothing_else() {
    let name = "a_full_disk_fails_the_checkpoint_and_nothing_else";
    if cannot_run(name) {
        return;
    }
    let mut cluster = Cluster::without_managers(1, "scratch = \"/run/small\"").unwrap();
    cluster.members[0].node.exec("mkdir /run/small").unwrap();
    cluster.members[0].node.exec("mount -t tmpfs -o size=2m small /run/small").unwrap();
    cluster.start_managers().unwrap();
    cluster.members[0].apply(&Workload::Counter.compose(common::NEVER).unwrap()).unwrap();
    let told = count(&cluster, 10);
    let id = state(&cluster).1;
    let since = SystemTime::now();
    assert!(cluster.members[0].cli(&["checkpoint", "counter"]).is_err(), "4 MB of memory fit into 2 MB of disk");
    let failed = cluster.wait_for_event("checkpoint.failed", since, 1, PATIENCE).unwrap();
    assert!(failed.text("cause").is_some_and(|cause| !cause.is_empty()), "{failed:?}");
    assert_eq!(state(&cluster), (told, id));
    // With room again the next one succeeds.
    cluster.members[0].node.exec("mount -o remount,size=64m /run/small").unwrap();
    checkpoint(&cluster);
}

#[test]
fn a_store_that_is_away_for_a_while_is_caught_up_with() {
    let name = "a_store_that_is_away_for_a_while_is_caught_up_with";
    if cannot_run(name) {
        return;
    }
    let mut cluster = Cluster::start(2, "").unwrap();
    cluster.members[0].apply(&Workload::Counter.compose("1s").unwrap()).unwrap();
    count(&cluster, 10);
    let start = SystemTime::now();
    cluster.wait_for_event("checkpoint.committed", start, 1, PATIENCE).unwrap();
    let store = cluster.lab.store();
    // Nothing can be created any more, on one node.
    let node = &cluster.members[0].node;
    node.exec(&format!("mount --bind {0} {0}", store.display())).unwrap();
    node.exec(&format!("mount -o remount,bind,ro {}", store.display())).unwrap();
    thread::sleep(Duration::from_secs(3));
    node.exec(&format!("umount {}", store.display())).unwrap();
    let told = count(&cluster, 10);
    let back = SystemTime::now();
    cluster.wait_for_event("checkpoint.committed", back, 2, PATIENCE).unwrap();
    let running: usize = cluster.members.iter().map(|m| m.node.processes("/bin/counter").len()).sum();
    assert_eq!(running, 1);
    let owner = cluster.owner_of("counter").unwrap();
    let cut = cluster.members[owner].power_cut().unwrap();
    wait_until_serving(&cluster, cut.at);
    assert_eq!(state(&cluster).0, told);
}
