//! What an operator orders of a container: restore, move, rm, a claim from a node that does not answer.

mod common;

use std::{
    fs,
    time::{Duration, SystemTime},
};

use common::{
    PATIENCE, cannot_run, checkpoint, count, fill, ids_of, kill_counter, make_room,
    operator::{counter_with, notes, ok, phase, refused, walk},
    state,
    watch::Described,
    with_counter,
};
use ha_lab::{clients::counter::Poller, cluster::Cluster, demo::ADDRESS};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

#[test]
fn a_restore_puts_back_the_very_state_and_a_failover_after_it_goes_on_from_there() {
    let name = "a_restore_puts_back_the_very_state";
    let Some(mut cluster) = with_counter(name, 2) else { return };
    let mut states = vec![];
    for n in [3, 4] {
        states.push(count(&cluster, n));
        // On the node that does not own it: passed on.
        let out = ok(&cluster.members[1], &["checkpoint", "counter"]);
        assert!(out.contains("committed"), "{out}");
    }
    count(&cluster, 5);
    let listed: Value = serde_json::from_str(&ok(&cluster.members[1], &["snapshots", "counter", "--json"])).unwrap();
    let listed = listed.as_array().unwrap();
    let ids: Vec<&str> = listed.iter().filter_map(|snapshot| snapshot["id"].as_str()).collect();
    assert!(ids.len() >= 2, "{listed:?}");
    assert!(listed.iter().all(|s| s["stored_bytes"].as_u64() > Some(0) && s["frozen_ms"].as_f64() > Some(0.0)));
    let text = ok(&cluster.members[0], &["snapshots", "counter"]);
    assert!(text.contains(ids[0]) && text.contains("manual"), "{text}");
    let since = SystemTime::now();
    ok(&cluster.members[1], &["restore", "counter"]);
    assert_eq!(state(&cluster).0, states[1]);
    // One of what it was before, and then one of what it is.
    cluster.wait_for_event("checkpoint.committed", since, 2, PATIENCE).unwrap();
    let since = SystemTime::now();
    ok(&cluster.members[1], &["restore", "counter", "--snapshot", ids[1]]);
    assert_eq!(state(&cluster).0, states[0]);
    // The state that was chosen is the one that counts from here on.
    cluster.wait_for_event("checkpoint.committed", since, 2, PATIENCE).unwrap();
    let err = refused(&cluster.members[0], &["restore", "counter", "--snapshot", "e1-9999"], 4);
    assert!(err.contains("snapshots counter"), "{err}");
    let cut = cluster.members[0].power_cut().unwrap();
    common::wait_until_serving(&cluster, cut.at);
    assert_eq!(state(&cluster).0, states[0]);
}

#[test]
fn a_restore_of_a_container_that_works_keeps_what_it_was_before_or_is_refused() {
    let name = "a_restore_of_a_container_that_works_keeps_what_it_was_before_or_is_refused";
    let Some(cluster) = with_counter(name, 1) else { return };
    let member = &cluster.members[0];
    let before = count(&cluster, 3);
    checkpoint(&cluster);
    let (told, id) = (count(&cluster, 4), state(&cluster).1);
    let wanted = ids_of(&cluster, "manual").remove(0);
    let out = ok(member, &["restore", "counter"]);
    assert_eq!(state(&cluster).0, before);
    // The output says how to go back.
    let kept = ids_of(&cluster, "manual").remove(0);
    assert!(kept != wanted && out.contains(&format!("restore counter --snapshot {kept}")), "{out}");
    ok(member, &["restore", "counter", "--snapshot", &kept, "--discard"]);
    assert_eq!(state(&cluster), (told, id.clone()));
    assert_eq!(ids_of(&cluster, "manual"), [kept, wanted.clone()], "--discard took a checkpoint");
    // What it is now cannot be kept.
    let told = count(&cluster, 2);
    fill(&cluster, 0);
    let err = refused(member, &["restore", "counter", "--snapshot", &wanted], 5);
    assert!(err.contains("No space left") && err.contains("Nothing was changed") && err.contains("--discard"), "{err}");
    assert_eq!((state(&cluster), phase(&cluster, 0, "counter")), ((told, id), "running".to_owned()));
    make_room(&cluster, 0);
    ok(member, &["restore", "counter", "--snapshot", &wanted, "--discard"]);
    assert_eq!(state(&cluster).0, before);
}

#[test]
fn a_container_that_has_failed_is_restored_without_a_checkpoint_of_that() {
    let name = "a_container_that_has_failed_is_restored_without_a_checkpoint_of_that";
    let Some(cluster) = common::cluster(name, 1) else { return };
    // There is no peer.
    let described = Described::stateful(&["/bin/counter"]).recovery("failover");
    cluster.members[0].apply(&described.text()).unwrap();
    let told = count(&cluster, 3);
    checkpoint(&cluster);
    kill_counter(&cluster, 0);
    cluster.wait("it to be failed", PATIENCE, |cluster| phase(cluster, 0, "counter") == "failed").unwrap();
    let manual = ids_of(&cluster, "manual");
    let out = ok(&cluster.members[0], &["restore", "counter"]);
    assert!(!out.contains("as it was before"), "{out}");
    assert_eq!((state(&cluster).0, ids_of(&cluster, "manual")), (told, manual));
}

#[test]
fn what_a_person_asked_for_outlives_periodic_checkpoints_up_to_a_number_of_its_own() {
    let name = "what_a_person_asked_for_outlives_periodic_checkpoints";
    let Some(cluster) = common::cluster(name, 1) else { return };
    let compose = counter_with(|service| {
        service["annotations"]["io.ha-manager.state-sensitivity"] = json!("1s");
        service["annotations"]["io.ha-manager.keep"] = json!("2");
        service["annotations"]["io.ha-manager.keep-manual"] = json!("2");
    });
    cluster.members[0].apply(&compose).unwrap();
    let told = count(&cluster, 3);
    checkpoint(&cluster);
    let asked = ids_of(&cluster, "manual");
    assert_eq!(asked.len(), 1);
    let (since, now) = (SystemTime::now(), count(&cluster, 3));
    // More than `keep`; they are pruned once the container has been up for a while.
    cluster.wait_for_event("checkpoint.committed", since, 5, PATIENCE).unwrap();
    cluster.wait("the periodic ones to be pruned", PATIENCE, |cluster| ids_of(cluster, "periodic").len() <= 3).unwrap();
    assert_eq!(ids_of(&cluster, "manual"), asked);
    let text = ok(&cluster.members[0], &["snapshots", "counter"]);
    assert!(text.contains("manual") && text.contains("periodic"), "{text}");
    // It is what it was.
    ok(&cluster.members[0], &["restore", "counter", "--snapshot", &asked[0]]);
    assert_eq!(state(&cluster).0, told);
    let kept = ids_of(&cluster, "manual").remove(0);
    ok(&cluster.members[0], &["restore", "counter", "--snapshot", &kept]);
    assert_eq!(state(&cluster).0, now);
    // Three were asked for since, and two of them are kept.
    let gone = |cluster: &Cluster| {
        let manual = ids_of(cluster, "manual");
        manual.len() == 2 && !manual.contains(&asked[0])
    };
    cluster.wait("the oldest to go", PATIENCE, gone).unwrap();
}

#[test]
fn a_move_loses_nothing_keeps_idle_connections_and_goes_both_ways() {
    let Some(cluster) = with_counter("a_move_loses_nothing", 2) else { return };
    let address = format!("{ADDRESS}:7000").parse().unwrap();
    let (_, id) = state(&cluster);
    let idle = cluster.lab.on_client(move || ha_lab::clients::counter::connect_patiently(address, PATIENCE)).unwrap();
    let mut idle = idle.join().unwrap().unwrap();
    let (poller, work) = Poller::new(address, Duration::from_millis(2), Duration::from_secs(2));
    let polling = cluster.lab.on_client(work).unwrap();
    for (to, asked_at) in [("n2", 0), ("n1", 0), ("n2", 1)] {
        let before = poller.last().map_or(0, |answer| answer.state.value);
        cluster
            .wait("the client to count", PATIENCE, |_| poller.last().is_some_and(|a| a.state.value > before + 20))
            .unwrap();
        let out = ok(&cluster.members[asked_at], &["move", "counter", "--to", to]);
        assert!(out.contains(to), "{out}");
        cluster
            .wait("the owner", PATIENCE, |cluster| cluster.owner_of("counter") == Some(if to == "n1" { 0 } else { 1 }))
            .unwrap();
    }
    let before = poller.last().map_or(0, |answer| answer.state.value);
    cluster
        .wait("the client to count", PATIENCE, |_| poller.last().is_some_and(|a| a.state.value > before + 20))
        .unwrap();
    poller.stop();
    polling.join().unwrap().unwrap();
    let seen = poller.seen();
    // Every answer ever given is still true: numbers only go up, over reconnections too.
    assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
    let values: Vec<u64> = seen.answers.iter().map(|answer| answer.state.value).collect();
    assert!(values.is_sorted_by(|a, b| a < b), "an acknowledged increment was lost");
    let (last, same) = state(&cluster);
    assert!(last.is_genuine() && last.value >= *values.last().unwrap(), "{last:?}");
    assert_eq!(same, id);
    // Open since before the first move.
    assert_eq!(idle.get().unwrap(), last);
    let running: Vec<usize> = cluster.members.iter().map(|m| m.node.processes("/bin/counter").len()).collect();
    assert_eq!(running, [0, 1]);
}

#[test]
fn a_move_that_cannot_be_is_refused_or_leaves_the_container_where_it_was() {
    let Some(mut cluster) = with_counter("a_move_that_cannot_be", 3) else { return };
    let told = count(&cluster, 5);
    let (_, id) = state(&cluster);
    let err = refused(&cluster.members[0], &["move", "counter", "--to", "n9"], 4);
    assert!(err.contains("n9"), "{err}");
    refused(&cluster.members[0], &["move", "counter", "--to", "n1"], 5);
    let cut = cluster.members[2].power_cut().unwrap();
    let dead = |cluster: &Cluster| {
        cluster
            .events()
            .iter()
            .any(|e| e.node == "n1" && e.kind == "peer.dead" && e.at >= chrono::DateTime::<chrono::Utc>::from(cut.at))
    };
    cluster.wait("n1 to hold n3 for dead", PATIENCE, dead).unwrap();
    let err = refused(&cluster.members[0], &["move", "counter", "--to", "n3"], 5);
    assert!(err.contains("dead"), "{err}");
    assert_eq!(state(&cluster), (told, id.clone()));
    // A target that looks well and cannot.
    let (criu, broken) = (ha_lab::which("criu").unwrap(), ha_lab::which("false").unwrap());
    cluster.members[1].node.exec(&format!("mount --bind {} {}", broken.display(), criu.display())).unwrap();
    let err = refused(&cluster.members[0], &["move", "counter", "--to", "n2"], 1);
    assert!(err.contains("goes on here"), "{err}");
    assert_eq!(state(&cluster), (told, id));
    assert_eq!(cluster.owner_of("counter"), Some(0));
    checkpoint(&cluster);
}

#[test]
fn what_rm_removes_is_gone_and_the_name_and_address_are_free() {
    let name = "what_rm_removes_is_gone";
    if cannot_run(name) {
        return;
    }
    let cluster = Cluster::start(2, "").unwrap();
    let census = || cluster.members.iter().map(|m| m.node.census().unwrap()).collect::<Vec<_>>();
    let with_volume = counter_with(|service| service["volumes"] = json!(["data:/data"]));
    let mut with_volume: Value = serde_json::from_str(&with_volume).unwrap();
    with_volume["volumes"] = json!({"data": {}});
    let compose = with_volume.to_string();
    let before = census();
    for _ in 0..2 {
        cluster.members[0].apply(&compose).unwrap();
        count(&cluster, 3);
        checkpoint(&cluster);
        // Asked for at the other node.
        ok(&cluster.members[1], &["rm", "counter"]);
        let err = refused(&cluster.members[1], &["rm", "counter"], 4);
        assert!(err.contains("counter"), "{err}");
        for (member, before) in cluster.members.iter().zip(&before) {
            let left = || {
                let left = before.left_behind(&member.node.census().unwrap());
                // Shared by all containers, and there for the next one.
                let common = |line: &&String| {
                    !line.ends_with("/ha-manager")
                        && !line.starts_with("mount /run/netns ")
                        && !line.starts_with("process")
                };
                left.iter().filter(common).cloned().collect::<Vec<_>>()
            };
            assert_eq!(left(), Vec::<String>::new(), "{}", member.node.name());
            let state = member.node.disk().join("state/containers");
            let there =
                fs::read_dir(state).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
            assert!(there.is_empty(), "{there:?}");
        }
        let store = cluster.lab.store();
        for kind in ["snapshots/counter", "logs/counter"] {
            let left: Vec<_> = walk(&store.join(kind));
            assert!(left.is_empty(), "{left:?}");
        }
        assert!(walk(&store.join("addresses")).is_empty());
        assert_eq!(cluster.members[1].json(&["status"]).unwrap()["containers"], json!([]));
    }
}

#[test]
fn a_container_of_a_stopped_manager_is_claimed_only_when_it_is_silent() {
    let Some(mut cluster) = with_counter("a_container_of_a_stopped_manager", 2) else { return };
    let told = count(&cluster, 5);
    checkpoint(&cluster);
    let (_, id) = state(&cluster);
    let err = refused(&cluster.members[1], &["restore", "counter", "--snapshot", "nonsense"], 5);
    assert!(err.contains("nonsense"), "{err}");
    cluster.members[0].stop_manager(Signal::SIGTERM).unwrap();
    cluster
        .wait("n1 to have left", PATIENCE, |cluster| notes(&cluster.members[1], "counter").contains("stopped"))
        .unwrap();
    let err = refused(&cluster.members[1], &["restore", "counter"], 5);
    assert!(err.contains("n1") && err.contains("--force"), "{err}");
    // It runs on there, so force is refused as well, and nothing changes.
    let err = refused(&cluster.members[1], &["restore", "counter", "--force"], 5);
    assert!(err.contains("answers at") && err.contains("Nothing was changed"), "{err}");
    assert_eq!(state(&cluster), (told, id.clone()));
    // With its cable out it is silent; when it is back, what it runs is out of date and goes.
    cluster.members[0].node.link_down().unwrap();
    ok(&cluster.members[1], &["restore", "counter", "--force"]);
    assert_eq!(state(&cluster), (told, id.clone()));
    let told = count(&cluster, 5);
    cluster.members[0].start_manager().unwrap();
    cluster.wait("the old copy to go", PATIENCE, |c| c.members[0].node.processes("/bin/counter").is_empty()).unwrap();
    cluster.members[0].node.link_up().unwrap();
    cluster.wait_for_all().unwrap();
    assert_eq!(state(&cluster), (told, id));
    assert_eq!(cluster.owner_of("counter"), Some(1));
}

#[test]
fn a_dead_owners_container_without_failover_waits_for_its_operator() {
    let name = "a_dead_owners_container_without_failover_waits_for_its_operator";
    let Some(mut cluster) = common::cluster(name, 2) else { return };
    let compose = counter_with(|service| service["annotations"]["io.ha-manager.recovery"] = json!("restart"));
    cluster.members[0].apply(&compose).unwrap();
    let told = count(&cluster, 5);
    checkpoint(&cluster);
    let cut = cluster.members[0].power_cut().unwrap();
    cluster.wait_for_event("peer.dead", cut.at, 1, PATIENCE).unwrap();
    for command in [
        &["restore", "counter"][..],
        &["checkpoint", "counter"],
        &["rm", "counter"],
        &["move", "counter", "--to", "n2"],
    ] {
        let err = refused(&cluster.members[1], command, 5);
        assert!(err.contains("dead") && err.contains("--force"), "{err}");
    }
    ok(&cluster.members[1], &["logs", "counter"]);
    assert!(ok(&cluster.members[1], &["status"]).contains("--force"));
    refused(&cluster.members[1], &["restore", "counter", "--force", "--snapshot", "e1-9999"], 4);
    ok(&cluster.members[1], &["restore", "counter", "--force"]);
    assert_eq!(state(&cluster).0, told);
    checkpoint(&cluster);
}
