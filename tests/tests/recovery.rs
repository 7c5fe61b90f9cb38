//! The ladder of recovery, step by step: what is tried after which failure, what is restored, and where it ends.

mod common;

use std::time::Duration;

use common::{
    PATIENCE, checkpoint, client, count, exit, state,
    watch::{AGENT, COUNTER, Described, Watched},
};
use ha_lab::{clients::counter::Poller, demo::ADDRESS};
use nix::sys::signal::Signal;

const PLAIN: [&str; 3] = [COUNTER, "--ballast-mb", "4"];

/// The number of times the container came up again.
fn served(watched: &Watched) -> usize {
    watched.events("recovery.serving").len()
}

fn wait_until_served(watched: &Watched, times: usize) {
    watched.cluster.wait("the container to serve again", PATIENCE, |_| served(watched) >= times).unwrap();
}

#[test]
fn a_stateless_process_that_never_stays_up_ends_failed_and_not_in_a_loop() {
    let name = "a_stateless_process_that_never_stays_up_ends_failed_and_not_in_a_loop";
    // No such address is here: it ends as soon as it begins.
    let broken = Described::stateless(&[COUNTER, "--listen", "10.77.1.99:7000"]);
    let broken = broken.without_healthcheck().restart("on-failure:2").recovery("restart:1, failover");
    let Some(watched) = Watched::start(name, 2, &broken) else { return };
    watched.wait_for_phase("failed");
    // Twice within the container with a growing delay, then a new container, then the peer, and once back.
    let restarts = watched.events("process.restarting");
    let of = |key: &str| restarts.iter().take(2).map(|event| event.number(key).unwrap()).collect::<Vec<_>>();
    assert_eq!(of("attempt"), [1.0, 2.0]);
    assert!(of("delay_ms")[0] < of("delay_ms")[1], "{:?}", of("delay_ms"));
    assert_eq!(watched.steps(), ["restart", "failover", "restart", "failover", "restart"]);
    assert_eq!(watched.events("recovery.exhausted").len(), 1);
    watched.finish();
}

#[test]
fn a_process_that_is_killed_comes_back_from_the_last_state_that_was_healthy() {
    let name = "a_process_that_is_killed_comes_back_from_the_last_state_that_was_healthy";
    // So many retries that failing checks alone recover nothing.
    let Some(watched) = Watched::start(name, 1, &Described::stateful(&PLAIN).check_every("100ms", 1000)) else {
        return;
    };
    let health = || {
        let container = watched.cluster.members[0].container("counter").unwrap();
        container["last_snapshot"]["health"].as_str().unwrap().to_owned()
    };
    let (_, id) = state(&watched.cluster);
    let saved = count(&watched.cluster, 10);
    let healthy = |cluster: &_| {
        checkpoint(cluster);
        health() == "healthy"
    };
    watched.cluster.wait("a snapshot that is healthy", PATIENCE, healthy).unwrap();
    // What it says the second time, it says after the first check has ended.
    let asked = |answer: String| answer.strip_prefix("sick ").and_then(|asked| asked.parse::<u64>().ok()).unwrap();
    let checked = |cluster: &_| asked(client(cluster, |counter| counter.tell("sicken"))) >= 2;
    watched.cluster.wait("a check to fail", PATIENCE, checked).unwrap();
    count(&watched.cluster, 5);
    checkpoint(&watched.cluster);
    assert_eq!(health(), "unhealthy");
    watched.signal(0, COUNTER, Signal::SIGKILL);
    wait_until_served(&watched, 1);
    assert_eq!(state(&watched.cluster), (saved, id));
    assert_eq!(client(&watched.cluster, |counter| counter.tell("health")), "ok");
    assert_eq!(watched.steps(), ["restart"]);
    watched.finish();
}

#[test]
fn a_healthcheck_that_fails_brings_the_last_healthy_state_back() {
    let name = "a_healthcheck_that_fails_brings_the_last_healthy_state_back";
    let Some(watched) = Watched::start(name, 1, &Described::stateful(&PLAIN).check_every("200ms", 2)) else { return };
    let (_, id) = state(&watched.cluster);
    let saved = count(&watched.cluster, 10);
    checkpoint(&watched.cluster);
    client(&watched.cluster, |counter| counter.tell("sicken"));
    wait_until_served(&watched, 1);
    assert_eq!(state(&watched.cluster), (saved, id));
    assert_eq!(client(&watched.cluster, |counter| counter.tell("health")), "ok");
    watched.finish();
}

#[test]
fn a_container_that_is_killed_beyond_its_limit_of_restarts_goes_to_the_peer() {
    let name = "a_container_that_is_killed_beyond_its_limit_of_restarts_goes_to_the_peer";
    let Some(watched) = Watched::start(name, 2, &Described::stateful(&PLAIN).recovery("restart:1, failover")) else {
        return;
    };
    let (_, id) = state(&watched.cluster);
    for (round, expected) in [(1, 0), (2, 1)] {
        let saved = count(&watched.cluster, 10);
        checkpoint(&watched.cluster);
        watched.signal(0, AGENT, Signal::SIGKILL);
        wait_until_served(&watched, round);
        assert_eq!(state(&watched.cluster), (saved, id.clone()));
        // The node that handed it over hears of its success a moment after the success.
        let moved = |cluster: &ha_lab::cluster::Cluster| cluster.owner_of("counter") == Some(expected);
        watched.cluster.wait("its owner to be the one that serves", PATIENCE, moved).unwrap();
    }
    assert_eq!(watched.steps(), ["restart", "failover"]);
    watched.finish();
}

#[test]
fn a_main_process_that_ends_as_it_should_rests() {
    let name = "a_main_process_that_ends_as_it_should_rests";
    let stateful = Described::stateful(&PLAIN);
    let stateless = Described::stateless(&PLAIN);
    for (described, code) in [
        (stateful.restart("no"), 0),
        (Described::stateful(&PLAIN).restart("on-failure"), 0),
        (Described::stateful(&PLAIN).restart("no"), 3),
        (stateless.restart("no"), 0),
        (Described::stateless(&PLAIN).restart("on-failure"), 0),
    ] {
        let Some(watched) = Watched::start(name, 1, &described) else { return };
        count(&watched.cluster, 1);
        exit(&watched.cluster, code);
        watched.wait_for_phase("stopped");
        assert_eq!(watched.events("container.stopped").len(), 1);
        assert_eq!(watched.events("recovery.started"), [], "{}", described.text());
        assert!(watched.cluster.members[0].node.processes(COUNTER).is_empty());
        assert!(watched.cluster.members[0].node.processes(AGENT).is_empty());
        watched.finish();
    }
}

#[test]
fn a_main_process_that_fails_where_failures_are_restarted_does_not_rest() {
    let name = "a_main_process_that_fails_where_failures_are_restarted_does_not_rest";
    let Some(watched) = Watched::start(name, 1, &Described::stateful(&PLAIN).restart("on-failure")) else { return };
    let saved = count(&watched.cluster, 10);
    checkpoint(&watched.cluster);
    exit(&watched.cluster, 3);
    wait_until_served(&watched, 1);
    assert_eq!(state(&watched.cluster).0, saved);
    watched.finish();
}

/// Lets a client count on until nobody is there any more, or the container is well.
fn poll<T>(watched: &Watched, until: impl FnOnce(&Poller) -> T) -> T {
    let address = format!("{ADDRESS}:7000").parse().unwrap();
    let (poller, run) = Poller::new(address, Duration::from_millis(10), Duration::from_secs(1));
    let polling = watched.cluster.lab.on_client(run).unwrap();
    let got = until(&poller);
    poller.stop();
    polling.join().unwrap().unwrap();
    got
}

#[test]
fn a_state_that_ends_every_copy_made_of_it_does_not_loop_for_ever_between_the_nodes() {
    let name = "a_state_that_ends_every_copy_made_of_it_does_not_loop_for_ever_between_the_nodes";
    let described = Described::stateful(&PLAIN).without_healthcheck().recovery("restart:1, failover, older-snapshot:2");
    let Some(watched) = Watched::start(name, 2, &described) else { return };
    client(&watched.cluster, |counter| counter.tell("arm"));
    // As many as are gone back to.
    (0..3).for_each(|_| checkpoint(&watched.cluster));
    poll(&watched, |_| watched.wait_for_phase("failed"));
    // Whether the first older state was checkpointed again before it ended makes no difference: nothing is pruned for it.
    let expected = ["restart", "failover", "restart", "failover", "restart", "older-snapshot", "older-snapshot"];
    assert_eq!(watched.steps(), expected);
    // And there it stays.
    let before = watched.cluster.events().len();
    watched.cluster.wait_for_looks(2, PATIENCE).unwrap();
    let since: Vec<_> = watched.cluster.events().split_off(before);
    assert!(since.iter().all(|event| !event.kind.starts_with("recovery.")), "{since:#?}");
    assert_eq!(watched.phase().as_deref(), Some("failed"));
    for member in &watched.cluster.members {
        assert!(member.node.processes(COUNTER).is_empty());
    }
    watched.finish();
}

#[test]
fn a_state_that_ends_every_copy_made_of_it_gives_way_to_the_one_before() {
    let name = "a_state_that_ends_every_copy_made_of_it_gives_way_to_the_one_before";
    let described = Described::stateful(&PLAIN).without_healthcheck().recovery("restart:1, older-snapshot:2");
    let Some(watched) = Watched::start(name, 1, &described) else { return };
    let saved = count(&watched.cluster, 10);
    checkpoint(&watched.cluster);
    client(&watched.cluster, |counter| counter.tell("arm"));
    checkpoint(&watched.cluster);
    let answer = poll(&watched, |poller| {
        watched.cluster.wait("the counter to count again", PATIENCE * 2, |_| poller.last().is_some()).unwrap();
        poller.seen().answers[0]
    });
    assert_eq!(answer.state, saved.next());
    assert_eq!(watched.steps(), ["restart", "older-snapshot"]);
    watched.finish();
}

#[test]
fn snapshots_of_a_state_that_ends_do_not_push_out_the_ones_before_it() {
    let name = "snapshots_of_a_state_that_ends_do_not_push_out_the_ones_before_it";
    let described = Described::stateful(&PLAIN).without_healthcheck().recovery("restart:1, older-snapshot:2");
    let Some(watched) = Watched::start(name, 1, &described) else { return };
    let saved = count(&watched.cluster, 10);
    checkpoint(&watched.cluster);
    client(&watched.cluster, |counter| counter.tell("arm"));
    (0..2).for_each(|_| checkpoint(&watched.cluster));
    // As many as are kept: one more, and the good one would go.
    for times in 1..=3 {
        let committed = watched.events("checkpoint.committed").len();
        let ended = client(&watched.cluster, |counter| Ok(counter.incr()));
        assert!(ended.is_err(), "it answered {ended:?}");
        wait_until_served(&watched, times);
        if times == 2 {
            let again = |_: &_| watched.events("checkpoint.committed").len() > committed;
            watched.cluster.wait("the older state to be committed anew", PATIENCE, again).unwrap();
        }
    }
    assert_eq!(state(&watched.cluster).0, saved);
    assert_eq!(watched.steps(), ["restart", "older-snapshot", "older-snapshot"]);
    watched.finish();
}

#[test]
fn a_stateful_container_that_ends_at_once_is_given_time_and_its_last_words_are_told() {
    let name = "a_stateful_container_that_ends_at_once_is_given_time_and_its_last_words_are_told";
    // No such address is here: it says so and ends.
    let broken = Described::stateful(&[COUNTER, "--listen", "10.77.1.99:7000"]);
    let broken = broken.without_healthcheck().recovery("restart:3");
    let Some(watched) = Watched::start(name, 1, &broken) else { return };
    watched.wait_for_phase("failed");
    let waits: Vec<f64> =
        watched.events("recovery.waiting").iter().filter_map(|event| event.number("again_in_ms")).collect();
    assert_eq!(waits, [1000.0, 2000.0, 4000.0]);
    let ended = watched.events("process.ended").pop().unwrap();
    assert!(ended.message.contains("it said last"), "{ended:?}");
    let given_up = watched.events("recovery.exhausted").pop().unwrap();
    assert!(given_up.text("cause").unwrap().contains("it said last"), "{given_up:?}");
    watched.finish();
}
