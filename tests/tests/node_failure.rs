//! A node loses its power: the container goes on at a peer.

mod common;

use std::{fs, time::Duration};

use common::{
    Damage, PATIENCE, cannot_run, checkpoint, count, damage_newest, state, wait_until_serving,
    watch::{COUNTER, Described, Watched},
    with_counter,
};
use ha_lab::{
    cluster::Cluster,
    demo::{Outcome, Play, Workload, play},
    have, images, skipped,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn play_once(test: &str, workload: Workload, needs: &[&str]) -> Option<Outcome> {
    if cannot_run(test) {
        return None;
    }
    if let Some(missing) = needs.iter().find(|program| !have(program)) {
        skipped(test, &format!("{missing} not installed: run scripts/setup --demo"));
        return None;
    }
    let how = Play { sensitivity: "2s".to_owned(), then: Duration::from_millis(500), ..Play::new(workload) };
    let outcome = play(&how, &images::target_dir().unwrap().join("test"), |_| ()).unwrap();
    println!("{}\n{:#?}\n{}", outcome.timeline.join("\n"), outcome.report, outcome.findings.join("\n"));
    assert!(outcome.report.session_kept);
    Some(outcome)
}

#[test]
fn a_counters_client_keeps_its_idle_connection_and_loses_no_more_than_the_last_interval() {
    let name = "a_counters_client_keeps_its_idle_connection";
    let Some(outcome) = play_once(name, Workload::Counter, &[]) else { return };
    // Two intervals and the time to the next one: generous, for a loaded machine.
    assert!(outcome.report.state_age_ms < 6000.0, "{:?}", outcome.report);
}

#[test]
fn every_key_of_redis_is_there_up_to_the_last_checkpoint() {
    play_once("every_key_of_redis_is_there", Workload::Redis, &["redis-server"]);
}

#[test]
fn a_player_keeps_its_session_and_source() {
    play_once("a_player_keeps_its_session_and_source", Workload::Vlc, &["vlc", "ffmpeg"]);
}

#[test]
fn the_third_generation_is_as_right_as_the_first() {
    let Some(mut cluster) = with_counter("the_third_generation_is_as_right_as_the_first", 2) else { return };
    let (_, id) = state(&cluster);
    for generation in 1..=3 {
        let told = count(&cluster, 10);
        checkpoint(&cluster);
        let owner = cluster.owner_of("counter").unwrap();
        let cut = cluster.members[owner].power_cut().unwrap();
        wait_until_serving(&cluster, cut.at);
        let (restored, same) = state(&cluster);
        assert_eq!(restored, told, "generation {generation}");
        assert!(restored.is_genuine(), "generation {generation}");
        assert_eq!(same, id, "generation {generation} is another process");
        cluster.members[owner].node.power_on().unwrap();
        cluster.members[owner].start_manager().unwrap();
        cluster.wait_for_all().unwrap();
        let now = cluster.owner_of("counter");
        assert!(now.is_some_and(|now| now != owner), "the node that came back took the container: {now:?}");
    }
}

#[test]
fn of_two_peers_that_could_take_over_one_does() {
    let Some(mut cluster) = with_counter("of_two_peers_that_could_take_over_one_does", 3) else { return };
    count(&cluster, 10);
    checkpoint(&cluster);
    let cut = cluster.members[0].power_cut().unwrap();
    wait_until_serving(&cluster, cut.at);
    state(&cluster);
    let running: Vec<usize> =
        [1, 2].map(|n| cluster.members[n].node.processes("/bin/counter").len()).into_iter().collect();
    assert_eq!(running.iter().sum::<usize>(), 1, "the counter runs {running:?} times");
    let claims = cluster.of_kind("ownership.claimed");
    let mut epochs: Vec<_> = claims.iter().filter_map(|claim| claim.number("epoch")).map(|e| e as u64).collect();
    epochs.sort_unstable();
    let distinct = {
        let mut e = epochs.clone();
        e.dedup();
        e.len()
    };
    assert_eq!(distinct, epochs.len(), "an epoch was claimed twice: {claims:#?}");
}

#[test]
fn files_belong_to_the_same_moment_as_the_memory() {
    let name = "files_belong_to_the_same_moment_as_the_memory";
    let Some(mut cluster) = common::cluster(name, 2) else { return };
    let command = ["/bin/counter", "--file", "/data/values"].map(str::to_owned);
    cluster.members[0].apply(&Workload::Counter.compose_with(&command, Some(common::NEVER)).unwrap()).unwrap();
    // Counts without a pause while three checkpoints are taken.
    let address = format!("{}:7000", ha_lab::demo::ADDRESS).parse().unwrap();
    count(&cluster, 1);
    let (poller, run) = ha_lab::clients::counter::Poller::new(address, Duration::ZERO, Duration::from_secs(3));
    let counting = cluster.lab.on_client(run).unwrap();
    for _ in 0..3 {
        checkpoint(&cluster);
    }
    let cut = cluster.members[0].power_cut().unwrap();
    poller.stop();
    counting.join().unwrap().unwrap();
    wait_until_serving(&cluster, cut.at);
    let (restored, _) = state(&cluster);
    let pid = cluster.members[1].node.processes("/bin/counter")[0];
    let text = fs::read_to_string(format!("/proc/{pid}/root/data/values")).unwrap();
    let expected = |line: u64| format!("{line} ");
    let lines: Vec<&str> = text.lines().collect();
    // A line for every value up to the restored one, no more, none twice, none torn.
    assert_eq!(lines.len() as u64, restored.value);
    assert!(lines.iter().zip(1..).all(|(line, n)| line.starts_with(&expected(n))));
    assert_eq!(*lines.last().unwrap(), format!("{} {:016x}", restored.value, restored.hash));
}

#[test]
fn a_damaged_snapshot_is_refused_and_the_one_before_restored() {
    let name = "a_damaged_snapshot_is_refused_and_the_one_before_restored";
    for damage in [Damage::Flipped, Damage::Truncated] {
        let Some(mut cluster) = with_counter(name, 2) else { return };
        let first = count(&cluster, 10);
        checkpoint(&cluster);
        count(&cluster, 10);
        checkpoint(&cluster);
        let newest = cluster.of_kind("checkpoint.committed").pop().unwrap();
        let cut = cluster.members[0].power_cut().unwrap();
        damage_newest(&cluster, damage);
        wait_until_serving(&cluster, cut.at);
        let restored = cluster.of_kind("recovery.restored").pop().unwrap();
        assert_ne!(restored.text("snapshot"), newest.text("snapshot"), "a snapshot was restored that is {damage:?}");
        assert_eq!(state(&cluster).0, first, "{damage:?}");
    }
}

/// Ends CRIU as soon as it is there, until the container has been given up.
fn kill_criu_until_given_up(watched: &Watched, on: usize) {
    let mut killed = 0;
    let given_up = |cluster: &Cluster| {
        for pid in cluster.members[on].node.processes("criu") {
            // It may have ended by itself in between.
            killed += usize::from(kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).is_ok());
        }
        !cluster.of_kind("recovery.exhausted").is_empty()
    };
    watched.cluster.wait("the container to be given up", PATIENCE, given_up).unwrap();
    assert!(killed > 0, "there was no CRIU to kill");
}

#[test]
fn what_a_failed_takeover_made_is_gone() {
    let name = "what_a_failed_takeover_made_is_gone";
    for damaged in [true, false] {
        // Nothing but the newest snapshot is tried, so that nothing comes up in the end.
        let described = Described::stateful(&[COUNTER]).recovery("failover");
        let Some(mut watched) = Watched::start(name, 2, &described) else { return };
        count(&watched.cluster, 10);
        checkpoint(&watched.cluster);
        let cut = watched.cluster.members[0].power_cut().unwrap();
        if damaged {
            damage_newest(&watched.cluster, Damage::Flipped);
            watched.cluster.wait_for_event("recovery.exhausted", cut.at, 1, PATIENCE).unwrap();
        } else {
            kill_criu_until_given_up(&watched, 1);
        }
        // It still has the container, which rests as failed: its files are there and nothing else.
        assert_eq!(watched.phase().as_deref(), Some("failed"));
        watched.clean_but_for_files(1);
        watched.finish();
    }
}
