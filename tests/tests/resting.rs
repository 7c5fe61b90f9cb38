//! What has come to rest, a finished job or a container that was given up, is begun by an order and by nobody else.

mod common;

use common::{
    PATIENCE, checkpoint, copies, count, epochs, exit, files,
    operator::{notes, ok},
    state,
    watch::{COUNTER, Described, Watched},
};
use nix::sys::signal::Signal;

/// The store knows of so many epochs that it rests under them.
fn wait_until_told(watched: &Watched, times: usize) {
    let store = watched.cluster.lab.store().join("owners/counter");
    let told = || files(&store).iter().filter(|name| name.ends_with(".rest")).count();
    watched.cluster.wait("the store to know that it rests", PATIENCE, |_| told() == times).unwrap();
}

/// How often the program has begun, by its own account.
fn begun(watched: &Watched, on: usize) -> usize {
    ok(&watched.cluster.members[on], &["logs", "counter"]).matches("listening on").count()
}

fn stays_at_rest(watched: &Watched, phase: &str) {
    watched.cluster.wait_for_looks(2, PATIENCE).unwrap();
    assert_eq!((watched.phase().as_deref(), copies(&watched.cluster)), (Some(phase), 0));
}

#[test]
fn a_job_that_has_finished_is_never_run_again_by_the_nodes_that_take_it_over() {
    let name = "a_job_that_has_finished_is_never_run_again_by_the_nodes_that_take_it_over";
    let job = Described::stateless(&[COUNTER, "--file", "/dev/stdout"]).without_healthcheck().restart("no");
    let Some(mut watched) = Watched::start(name, 2, &job) else { return };
    count(&watched.cluster, 3);
    exit(&watched.cluster, 0);
    wait_until_told(&watched, 1);
    let logs = watched.cluster.lab.store().join("logs/counter");
    watched.cluster.wait("its output to be in the store", PATIENCE, |_| !files(&logs).is_empty()).unwrap();
    // From node to node and back.
    for (from, to) in [(0, 1), (1, 0)] {
        let cut = watched.cluster.members[from].power_cut().unwrap();
        let found = watched.cluster.wait_for_event("container.at-rest", cut.at, 1, PATIENCE).unwrap();
        assert_eq!((found.text("outcome"), found.number("code")), (Some("finished"), Some(0.0)), "{found:?}");
        assert_eq!(found.number("since"), Some(1.0), "{found:?}");
        stays_at_rest(&watched, "stopped");
        let member = &watched.cluster.members[to];
        assert!(notes(member, "counter").contains("exit code 0"), "{}", notes(member, "counter"));
        assert_eq!(begun(&watched, to), 1);
        watched.switch_on(from);
        watched.clean(from);
    }
    assert_eq!(epochs(&watched.cluster), [1, 2, 3]);
    assert_eq!(watched.events("recovery.started"), []);
    // An order begins it, under an epoch of its own.
    ok(&watched.cluster.members[0], &["restore", "counter"]);
    assert_eq!(count(&watched.cluster, 1).value, 1);
    assert_eq!(epochs(&watched.cluster), [1, 2, 3, 4]);
    // Which is taken over as any other.
    watched.cluster.members[0].power_cut().unwrap();
    watched.wait_until_on(1);
    count(&watched.cluster, 1);
    watched.switch_on(0);
    watched.finish();
}

#[test]
fn a_finished_container_stays_so_over_its_nodes_restart_and_goes_on_from_its_state_by_an_order() {
    let name = "a_finished_container_stays_so_over_its_nodes_restart_and_goes_on_from_its_state_by_an_order";
    let Some(mut watched) = Watched::start(name, 1, &Described::stateful(&[COUNTER]).restart("on-failure")) else {
        return;
    };
    let saved = count(&watched.cluster, 10);
    checkpoint(&watched.cluster);
    exit(&watched.cluster, 0);
    wait_until_told(&watched, 1);
    watched.cluster.members[0].power_cut().unwrap();
    watched.switch_on(0);
    stays_at_rest(&watched, "stopped");
    // Also where the node remembers nothing of it.
    watched.cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
    std::fs::remove_file(watched.cluster.members[0].node.disk().join("state/containers/counter/local.json")).unwrap();
    watched.cluster.members[0].start_manager().unwrap();
    watched.cluster.wait_for_all().unwrap();
    stays_at_rest(&watched, "stopped");
    // And where the store was never told.
    watched.cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
    let owners = watched.cluster.lab.store().join("owners/counter");
    let record = files(&owners).into_iter().find(|name| name.ends_with(".rest")).unwrap();
    std::fs::remove_file(owners.join(record)).unwrap();
    watched.cluster.members[0].start_manager().unwrap();
    wait_until_told(&watched, 1);
    stays_at_rest(&watched, "stopped");
    assert_eq!(watched.events("recovery.started"), []);
    ok(&watched.cluster.members[0], &["restore", "counter"]);
    assert_eq!(state(&watched.cluster).0, saved);
    assert_eq!(epochs(&watched.cluster), [1, 2]);
    watched.finish();
}

#[test]
fn an_order_that_the_store_breaks_off_leaves_the_container_at_rest_and_whole() {
    let name = "an_order_that_the_store_breaks_off_leaves_the_container_at_rest_and_whole";
    let Some(watched) = Watched::start(name, 1, &Described::stateful(&[COUNTER]).restart("on-failure")) else {
        return;
    };
    let saved = count(&watched.cluster, 10);
    checkpoint(&watched.cluster);
    exit(&watched.cluster, 0);
    wait_until_told(&watched, 1);
    let owners = watched.cluster.lab.store().join("owners/counter");
    let first = files(&owners).into_iter().find(|name| name.ends_with(".base")).unwrap();
    // Where the base of the next epoch is to be written: its claim succeeds, what follows fails.
    let in_the_way = owners.join(first.replace("1.base", "2.base"));
    std::fs::create_dir(&in_the_way).unwrap();
    watched.cluster.members[0].cli(&["restore", "counter"]).unwrap_err();
    assert_eq!(epochs(&watched.cluster), [1, 2]);
    // It rests under the new epoch, too, and the looks at the store find no other owner.
    wait_until_told(&watched, 2);
    stays_at_rest(&watched, "stopped");
    assert_eq!(watched.events("ownership.deposed"), []);
    let record = watched.cluster.members[0].node.disk().join("state/containers/counter/local.json");
    assert!(record.exists(), "what the node remembers of it is gone");
    std::fs::remove_dir(&in_the_way).unwrap();
    ok(&watched.cluster.members[0], &["restore", "counter"]);
    assert_eq!(state(&watched.cluster).0, saved);
    assert_eq!(epochs(&watched.cluster), [1, 2, 3]);
    watched.finish();
}

#[test]
fn a_container_that_was_given_up_stays_so_on_the_node_that_takes_it_over() {
    let name = "a_container_that_was_given_up_stays_so_on_the_node_that_takes_it_over";
    // No such address is here: it says so and ends.
    let broken = Described::stateful(&[COUNTER, "--listen", "10.77.1.99:7000"]).without_healthcheck();
    let Some(mut watched) = Watched::start(name, 2, &broken.recovery("restart:1, failover")) else { return };
    watched.wait_for_phase("failed");
    wait_until_told(&watched, 1);
    let begun = watched.events("process.ended").len();
    let owner = watched.cluster.owner_of("counter").unwrap();
    let cut = watched.cluster.members[owner].power_cut().unwrap();
    let found = watched.cluster.wait_for_event("container.at-rest", cut.at, 1, PATIENCE).unwrap();
    assert_eq!(found.text("outcome"), Some("failed"), "{found:?}");
    stays_at_rest(&watched, "failed");
    let peer = &watched.cluster.members[1 - owner];
    assert!(notes(peer, "counter").contains("nothing more to try"), "{}", notes(peer, "counter"));
    assert_eq!(watched.events("process.ended").len(), begun);
    watched.switch_on(owner);
    watched.finish();
}
