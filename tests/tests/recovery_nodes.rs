//! Whole nodes fail, come back and fail again; and snapshots that turn out to be no good when they are needed.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use common::{
    Damage, PATIENCE, checkpoint, client, count, damage, damage_newest, epochs,
    operator::run,
    state,
    watch::{AGENT, COUNTER, Described, Watched},
};
use ha_lab::{
    clients::counter::Poller,
    cluster::{Cluster, Member},
    demo::ADDRESS,
    event::Event,
};
use ha_manager::snapshot::{HexBytes, Manifest};
use nix::sys::signal::Signal;

const PLAIN: [&str; 3] = [COUNTER, "--ballast-mb", "4"];

#[test]
fn a_node_that_comes_back_clears_its_leftovers_and_can_take_over_again() {
    let name = "a_node_that_comes_back_clears_its_leftovers_and_can_take_over_again";
    let described = Described::stateful(&[COUNTER, "--file", "/values", "--file", "/data/values"]);
    let Some(mut watched) = Watched::start(name, 2, &described.volume("data", "/data")) else { return };
    let (_, id) = state(&watched.cluster);
    let mut owner = 0;
    for generation in 1..=4 {
        let told = count(&watched.cluster, 10);
        checkpoint(&watched.cluster);
        watched.cluster.members[owner].power_cut().unwrap();
        let peer = 1 - owner;
        watched.wait_until_on(peer);
        assert_eq!(state(&watched.cluster), (told, id.clone()), "generation {generation}");
        assert!(told.is_genuine());
        watched.switch_on(owner);
        watched.clean(owner);
        assert_eq!(watched.cluster.owner_of("counter"), Some(peer), "generation {generation}");
        owner = peer;
    }
    let epochs: Vec<_> = watched.events("ownership.claimed").iter().filter_map(|claim| claim.number("epoch")).collect();
    let distinct: BTreeSet<u64> = epochs.iter().map(|epoch| *epoch as u64).collect();
    assert_eq!(distinct.len(), epochs.len(), "an epoch was claimed twice: {epochs:?}");
    watched.finish();
}

#[test]
fn a_node_whose_cable_is_pulled_lets_go_and_can_take_over_again() {
    let name = "a_node_whose_cable_is_pulled_lets_go_and_can_take_over_again";
    let Some(mut watched) = Watched::start(name, 2, &Described::stateful(&PLAIN)) else { return };
    let (_, id) = state(&watched.cluster);
    let told = count(&watched.cluster, 10);
    checkpoint(&watched.cluster);
    watched.cluster.members[0].node.link_down().unwrap();
    let by_peer = |cluster: &Cluster| cluster.of_kind("recovery.serving").iter().any(|event| event.node == "n2");
    watched.cluster.wait("the peer to serve", PATIENCE, by_peer).unwrap();
    assert_eq!(state(&watched.cluster), (told, id.clone()));
    watched.clean(0);
    watched.cluster.members[0].node.link_up().unwrap();
    watched.cluster.wait_for_all().unwrap();
    // Each held the other for dead; that it was taken over once was enough.
    assert_eq!(watched.events("ownership.claimed").len(), 1, "{:#?}", watched.events("ownership.claimed"));
    assert_eq!(watched.cluster.owner_of("counter"), Some(1));
    let told = count(&watched.cluster, 10);
    checkpoint(&watched.cluster);
    let owner = watched.cluster.owner_of("counter").unwrap();
    watched.cluster.members[owner].power_cut().unwrap();
    watched.wait_until_on(1 - owner);
    assert_eq!(state(&watched.cluster), (told, id));
    watched.switch_on(owner);
    watched.finish();
}

/// Every value up to the memory's is in the file: none missing, none twice, none torn, none more.
fn agrees(watched: &Watched, on: usize, path: &str) {
    let (restored, _) = state(&watched.cluster);
    let pid = watched.cluster.members[on].node.processes(COUNTER)[0];
    let text = fs::read_to_string(format!("/proc/{pid}/root{path}")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len() as u64, restored.value, "{path}");
    for (line, n) in lines.iter().zip(1..) {
        assert!(line.starts_with(&format!("{n} ")), "{path}: line {n} is {line:?}");
    }
    assert_eq!(*lines.last().unwrap(), format!("{} {:016x}", restored.value, restored.hash), "{path}");
}

#[test]
fn files_of_the_container_and_of_its_volume_agree_with_its_memory_after_each_failover() {
    let name = "files_of_the_container_and_of_its_volume_agree_with_its_memory_after_each_failover";
    let described = Described::stateful(&[COUNTER, "--file", "/values", "--file", "/data/values"]);
    let Some(mut watched) = Watched::start(name, 2, &described.volume("data", "/data")) else { return };
    let address = format!("{ADDRESS}:7000").parse().unwrap();
    for (from, to) in [(0, 1), (1, 0)] {
        count(&watched.cluster, 1);
        let (poller, run) = Poller::new(address, Duration::ZERO, Duration::from_secs(1));
        let counting = watched.cluster.lab.on_client(run).unwrap();
        for _ in 0..3 {
            let so_far = poller.seen().answers.len();
            watched.cluster.wait("some counting", PATIENCE, |_| poller.seen().answers.len() > so_far + 50).unwrap();
            checkpoint(&watched.cluster);
        }
        watched.cluster.members[from].power_cut().unwrap();
        poller.stop();
        watched.wait_until_on(to);
        counting.join().unwrap().unwrap();
        assert_eq!(poller.seen().wrong, Vec::<String>::new());
        agrees(&watched, to, "/values");
        agrees(&watched, to, "/data/values");
        assert!(state(&watched.cluster).0.is_genuine());
        watched.switch_on(from);
    }
    watched.finish();
}

#[test]
fn a_snapshot_that_comes_up_sick_gives_way_to_the_one_before() {
    let name = "a_snapshot_that_comes_up_sick_gives_way_to_the_one_before";
    // Nobody checks while it runs; the restore does.
    let Some(mut watched) = Watched::start(name, 2, &Described::stateful(&PLAIN).check_every("1h", 3)) else { return };
    let (_, id) = state(&watched.cluster);
    let saved = count(&watched.cluster, 10);
    checkpoint(&watched.cluster);
    client(&watched.cluster, |counter| counter.tell("sicken"));
    count(&watched.cluster, 5);
    checkpoint(&watched.cluster);
    watched.cluster.members[0].power_cut().unwrap();
    watched.wait_until_on(1);
    assert_eq!(state(&watched.cluster), (saved, id));
    assert_eq!(watched.steps(), ["failover", "older-snapshot"]);
    let failed = watched.events("recovery.failed").pop().unwrap();
    assert!(failed.text("cause").unwrap().contains("healthcheck"), "{failed:?}");
    watched.switch_on(0);
    watched.finish();
}

#[test]
fn without_a_good_snapshot_a_container_begins_anew_only_where_its_policy_says_so() {
    let name = "without_a_good_snapshot_a_container_begins_anew_only_where_its_policy_says_so";
    for (recovery, steps) in [("failover, cold-start", vec!["failover", "cold-start"]), ("failover", vec!["failover"])]
    {
        let described = Described::stateful(&PLAIN).check_every("1h", 3).recovery(recovery);
        let Some(mut watched) = Watched::start(name, 2, &described) else { return };
        let (_, id) = state(&watched.cluster);
        client(&watched.cluster, |counter| counter.tell("sicken"));
        count(&watched.cluster, 5);
        checkpoint(&watched.cluster);
        watched.cluster.members[0].power_cut().unwrap();
        if steps.contains(&"cold-start") {
            watched.wait_until_on(1);
            let (value, now) = state(&watched.cluster);
            assert_eq!(value.value, 0);
            assert_ne!(now, id);
            assert_eq!(watched.events("recovery.state-lost").len(), 1);
        } else {
            watched
                .cluster
                .wait("the container to be given up", PATIENCE, |cluster| {
                    !cluster.of_kind("recovery.exhausted").is_empty()
                })
                .unwrap();
            assert!(watched.cluster.members[1].node.processes(COUNTER).is_empty());
        }
        assert_eq!(watched.steps(), steps);
        watched.switch_on(0);
        watched.finish();
    }
}

/// Makes the newest snapshot one of a CPU that can do everything there is. Its manifest, and what it was.
fn of_another_cpu(watched: &Watched) -> (PathBuf, Vec<u8>) {
    let snapshots = fs::read_dir(watched.cluster.lab.store().join("snapshots/counter")).unwrap();
    let path = snapshots.flatten().map(|entry| entry.path()).max().unwrap().join("manifest");
    let bytes = fs::read(&path).unwrap();
    let mut manifest = Manifest::decode("manifest", &bytes).unwrap();
    let mut cpuinfo = manifest.meta.cpuinfo.take().expect("the CPU is in the manifest").0;
    let middle = cpuinfo.len() / 2;
    // The capability words are the longest run of bytes in it.
    cpuinfo[16..middle].fill(0xff);
    manifest.meta.cpuinfo = Some(HexBytes(cpuinfo));
    fs::write(&path, manifest.encode().unwrap()).unwrap();
    (path, bytes)
}

#[test]
fn a_snapshot_no_nodes_cpu_can_run_is_offered_to_the_peer_and_waits_and_no_older_state_is_taken() {
    let name = "a_snapshot_no_nodes_cpu_can_run_is_offered_to_the_peer_and_waits_and_no_older_state_is_taken";
    let described = Described::stateful(&PLAIN).recovery("restart:2, failover, older-snapshot:2, cold-start");
    let Some(watched) = Watched::start(name, 2, &described) else { return };
    let (_, id) = state(&watched.cluster);
    count(&watched.cluster, 5);
    checkpoint(&watched.cluster);
    let saved = count(&watched.cluster, 10);
    checkpoint(&watched.cluster);
    let (manifest, whole) = of_another_cpu(&watched);
    watched.signal(0, AGENT, Signal::SIGKILL);
    watched.cluster.wait("it to wait", PATIENCE, |_| watched.events("recovery.waiting").len() >= 2).unwrap();
    assert_eq!(watched.events("node.unfit").len(), 1);
    let waiting = watched.events("recovery.waiting").pop().unwrap();
    assert!(waiting.text("cause").unwrap().contains("CPU lacks"), "{waiting:?}");
    let steps = watched.steps();
    assert_eq!(steps.iter().filter(|step| *step == "failover").count(), 1, "each peer is asked once: {steps:?}");
    assert!(!steps.iter().any(|step| step == "older-snapshot" || step == "cold-start"), "{steps:?}");
    assert!(watched.cluster.members.iter().all(|member| member.node.processes(COUNTER).is_empty()));
    // Such a node appears.
    fs::write(manifest, whole).unwrap();
    watched.wait_until_on(0);
    assert_eq!(state(&watched.cluster), (saved, id));
    watched.finish();
}

#[test]
fn a_damaged_snapshot_gives_way_to_the_one_before_on_the_peer_it_was_handed_to() {
    let name = "a_damaged_snapshot_gives_way_to_the_one_before_on_the_peer_it_was_handed_to";
    let described = Described::stateful(&PLAIN).recovery("restart:1, failover, older-snapshot:1");
    let Some(watched) = Watched::start(name, 2, &described) else { return };
    let (_, id) = state(&watched.cluster);
    let saved = count(&watched.cluster, 10);
    checkpoint(&watched.cluster);
    count(&watched.cluster, 5);
    checkpoint(&watched.cluster);
    damage_newest(&watched.cluster, Damage::Flipped);
    watched.signal(0, AGENT, Signal::SIGKILL);
    // Here, then on the peer, and there from the state before.
    watched.wait_until_on(1);
    assert_eq!(watched.steps(), ["restart", "failover", "older-snapshot"]);
    assert_eq!(watched.events("recovery.step")[2].node, "n2");
    assert_eq!(state(&watched.cluster), (saved, id.clone()));
    assert_eq!(epochs(&watched.cluster), [1, 2]);
    // Under its new epoch it is checkpointed, and recovered from there.
    let told = count(&watched.cluster, 3);
    checkpoint(&watched.cluster);
    watched.signal(1, COUNTER, Signal::SIGKILL);
    watched.cluster.wait("the next recovery", PATIENCE, |_| watched.events("recovery.serving").len() == 2).unwrap();
    assert_eq!(state(&watched.cluster), (told, id));
    watched.finish();
}

#[test]
fn what_a_peer_cannot_bring_up_from_any_state_comes_back_once_and_is_given_up() {
    let name = "what_a_peer_cannot_bring_up_from_any_state_comes_back_once_and_is_given_up";
    let described = Described::stateful(&PLAIN).recovery("restart:1, failover, older-snapshot:1");
    let Some(watched) = Watched::start(name, 2, &described) else { return };
    for _ in 0..2 {
        count(&watched.cluster, 5);
        checkpoint(&watched.cluster);
    }
    (0..2).for_each(|newer| damage(&watched.cluster, newer, Damage::Flipped));
    watched.signal(0, AGENT, Signal::SIGKILL);
    watched.wait_for_phase("failed");
    assert_eq!(watched.cluster.owner_of("counter"), Some(0));
    assert_eq!(watched.steps(), ["restart", "failover", "older-snapshot", "older-snapshot"]);
    let nodes: Vec<String> = watched.events("recovery.step").into_iter().map(|step| step.node).collect();
    assert_eq!(nodes, ["n1", "n1", "n2", "n1"]);
    assert_eq!(epochs(&watched.cluster), [1, 2, 3]);
    assert!(watched.cluster.members.iter().all(|member| member.node.processes(COUNTER).is_empty()));
    watched.finish();
}

/// CRIU on the peer: once the file `asked` is there it waits for `fail`, and then fails.
const FAILING_CRIU: &str = "#!/bin/sh\ntouch DIR/asked\nwhile [ ! -e DIR/fail ]; do sleep 0.05; done\nexit 1\n";

/// Another directory covers the store on one node, until it goes: whoever waits for the store must not wait for ever.
struct Covered<'a>(&'a Member, &'a str);

impl<'a> Covered<'a> {
    fn over(member: &'a Member, store: &'a str) -> Self {
        member.node.exec(&format!("mount -t tmpfs cover {store}")).unwrap();
        Self(member, store)
    }
}

impl Drop for Covered<'_> {
    fn drop(&mut self) {
        let _ = self.0.node.exec(&format!("umount -l {}", self.1));
    }
}

const BEFORE: Duration = Duration::from_millis(200);

/// A peer refuses a container while its owner loses the store. By the time that is back, the peer has begun it all the same.
#[test]
fn what_a_peer_refused_and_then_began_is_not_taken_back_from_it() {
    let name = "what_a_peer_refused_and_then_began_is_not_taken_back_from_it";
    let Some(watched) = Watched::start(name, 2, &Described::stateful(&PLAIN)) else { return };
    let (cluster, dir) = (&watched.cluster, tempfile::tempdir().unwrap());
    let (_, id) = state(cluster);
    let told = count(cluster, 10);
    let (first, second) = (&cluster.members[0], &cluster.members[1]);
    let (criu, script) = (ha_lab::which("criu").unwrap(), dir.path().join("criu"));
    fs::write(&script, FAILING_CRIU.replace("DIR", &dir.path().display().to_string())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    second.node.exec(&format!("mount --bind {} {}", script.display(), criu.display())).unwrap();
    let store = cluster.lab.store().display().to_string();
    let moved = std::thread::scope(|scope| {
        let moving = scope.spawn(|| run(first, &["move", "counter", "--to", "n2"]));
        cluster.wait("the peer to restore", PATIENCE, |_| dir.path().join("asked").exists()).unwrap();
        let covered = Covered::over(first, &store);
        fs::write(dir.path().join("fail"), "").unwrap();
        cluster.wait_for_event("recovery.waiting", SystemTime::UNIX_EPOCH, 1, PATIENCE).unwrap();
        second.node.exec(&format!("umount -l {}", criu.display())).unwrap();
        cluster.wait_for_event("recovery.serving", SystemTime::UNIX_EPOCH, 1, PATIENCE).unwrap();
        assert_eq!(state(cluster), (told, id.clone()));
        let later = count(cluster, 10);
        let process = second.node.processes(COUNTER);
        // The store is back just before the next attempt: a look would find the later epoch, too, and spare it the attempt.
        let waiting = cluster.wait_for_event("recovery.waiting", SystemTime::now(), 1, PATIENCE).unwrap();
        let next = SystemTime::from(waiting.at) + Duration::from_millis(waiting.number("again_in_ms").unwrap() as u64);
        std::thread::sleep(next.duration_since(SystemTime::now()).unwrap_or_default().saturating_sub(BEFORE));
        drop(covered);
        let moved = moving.join().unwrap();
        cluster
            .wait("the first node to let go", PATIENCE, |_| !watched.events("ownership.deposed").is_empty())
            .unwrap();
        assert_eq!(state(cluster), (later, id.clone()), "what it did at the peer is lost");
        assert_eq!(second.node.processes(COUNTER), process, "it was begun anew");
        moved
    });
    assert!(!moved.status.success(), "{moved:?}");
    assert!(first.node.processes(COUNTER).is_empty());
    let owns =
        |claim: &Event| claim.node == "n2" && claim.number("epoch") == epochs(cluster).last().map(|last| *last as f64);
    cluster.wait("the peer to own it", PATIENCE, |_| watched.events("ownership.claimed").iter().any(owns)).unwrap();
    watched.finish();
}
