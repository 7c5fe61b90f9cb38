//! A process, a container or its agent fails: recovery on the same node.

mod common;

use std::time::SystemTime;

use common::{
    checkpoint, client, count, state, wait_until_serving,
    watch::{AGENT, COUNTER, Described, Watched},
};
use nix::sys::signal::Signal;

const PLAIN: [&str; 3] = [COUNTER, "--ballast-mb", "4"];

/// Counts, checkpoints, counts on, lets it fail, and expects the checkpoint's state on the same node.
fn comes_back(test: &str, program: &str, how: Signal, scope: &str) {
    let Some(watched) = Watched::start(test, 2, &Described::stateful(&PLAIN)) else { return };
    let cluster = &watched.cluster;
    let (_, id) = state(cluster);
    let saved = count(cluster, 10);
    checkpoint(cluster);
    count(cluster, 5);
    let since = SystemTime::now();
    watched.signal(0, program, how);
    wait_until_serving(cluster, since);
    assert_eq!(state(cluster), (saved, id));
    assert_eq!(count(cluster, 5).value, 15);
    assert_eq!(cluster.owner_of("counter"), Some(0));
    assert_eq!(cluster.members[0].node.processes(COUNTER).len(), 1);
    let lost = watched.events("container.lost");
    assert_eq!(lost.iter().map(|event| event.text("scope").unwrap()).collect::<Vec<_>>(), [scope], "{lost:#?}");
    assert_eq!(watched.steps(), ["restart"]);
    watched.finish();
}

#[test]
fn a_stateful_process_that_is_killed_comes_back_with_its_state() {
    comes_back("a_stateful_process_that_is_killed_comes_back_with_its_state", COUNTER, Signal::SIGKILL, "process");
}

#[test]
fn a_container_that_is_killed_comes_back_with_its_state() {
    comes_back("a_container_that_is_killed_comes_back_with_its_state", AGENT, Signal::SIGKILL, "container");
}

#[test]
fn an_agent_that_hangs_is_noticed() {
    comes_back("an_agent_that_hangs_is_noticed", AGENT, Signal::SIGSTOP, "container");
}

#[test]
fn a_stateless_process_that_is_killed_is_started_again_inside_its_container() {
    let name = "a_stateless_process_that_is_killed_is_started_again_inside_its_container";
    let Some(watched) = Watched::start(name, 1, &Described::stateless(&PLAIN)) else { return };
    let cluster = &watched.cluster;
    let (_, id) = state(cluster);
    let agent = cluster.members[0].node.processes(AGENT);
    watched.signal(0, COUNTER, Signal::SIGKILL);
    cluster.wait("another process", common::PATIENCE, |cluster| client(cluster, |c| c.id()) != id).unwrap();
    assert_eq!(cluster.members[0].node.processes(AGENT), agent, "the container was replaced");
    assert_eq!(watched.events("process.restarting").len(), 1);
    assert_eq!(watched.events("recovery.started"), []);
    watched.finish();
}
