//! A process, a container or its agent fails: recovery on the same node.

mod common;

use std::time::SystemTime;

use common::{checkpoint, client, cluster, count, state, wait_until_serving, with_counter};
use ha_lab::{cluster::Cluster, demo::Workload};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn signal(cluster: &Cluster, program: &str, signal: Signal) {
    let pids = cluster.members[0].node.processes(program);
    assert_eq!(pids.len(), 1, "{program} runs {} times", pids.len());
    kill(Pid::from_raw(pids[0].cast_signed()), signal).unwrap();
}

const AGENT: &str = "/.ha-manager/bin/ha-agent";

/// Counts, checkpoints, counts on, lets it fail, and expects the checkpoint's state on the same node.
fn comes_back(test: &str, program: &str, how: Signal) {
    let Some(cluster) = with_counter(test, 2) else { return };
    let (_, id) = state(&cluster);
    let saved = count(&cluster, 10);
    checkpoint(&cluster);
    count(&cluster, 5);
    let since = SystemTime::now();
    signal(&cluster, program, how);
    wait_until_serving(&cluster, since);
    assert_eq!(state(&cluster), (saved, id));
    assert_eq!(cluster.owner_of("counter"), Some(0));
    assert_eq!(cluster.members[0].node.processes("/bin/counter").len(), 1);
}

#[test]
fn a_stateful_process_that_is_killed_comes_back_with_its_state() {
    comes_back("a_stateful_process_that_is_killed_comes_back_with_its_state", "/bin/counter", Signal::SIGKILL);
}

#[test]
fn a_container_that_is_killed_comes_back_with_its_state() {
    comes_back("a_container_that_is_killed_comes_back_with_its_state", AGENT, Signal::SIGKILL);
}

#[test]
fn an_agent_that_hangs_is_noticed() {
    comes_back("an_agent_that_hangs_is_noticed", AGENT, Signal::SIGSTOP);
}

#[test]
fn a_stateless_process_that_is_killed_is_started_again_inside_its_container() {
    let name = "a_stateless_process_that_is_killed_is_started_again_inside_its_container";
    let Some(cluster) = cluster(name, 1) else { return };
    let compose = Workload::Counter.compose_with(&Workload::Counter.command(), None).unwrap();
    cluster.members[0].apply(&compose).unwrap();
    let (_, id) = state(&cluster);
    let agent = cluster.members[0].node.processes(AGENT);
    signal(&cluster, "/bin/counter", Signal::SIGKILL);
    let other = move |now: String| now != id;
    cluster.wait("another process", common::PATIENCE, |cluster| other(client(cluster, |c| c.id()))).unwrap();
    assert_eq!(cluster.members[0].node.processes(AGENT), agent, "the container was replaced");
}
