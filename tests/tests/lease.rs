//! Leases: a container stands still on its node before its next copy begins on another, and for nothing else.

mod common;

use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use common::{
    Before, PATIENCE, cannot_run, checkpoint, copies, count, epochs, events_since, files,
    observer::{Observer, Seen, TICKS},
    state, wait_until_serving,
    watch::{COUNTER, Described},
    ways::{self, Cut},
};
use ha_lab::{
    clients::counter::Value,
    cluster::{Cluster, Event},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// So that no test waits a quarter of a minute for what it wants to see.
const QUICK: &str = "lease.long = \"5s\"";
/// Where nobody may be fenced, also on a machine that has much else to do.
const STEADY: &str = "lease.short = \"3s\"\nlease.long = \"15s\"";
const LONG: Duration = Duration::from_secs(15);
/// Looks through the store, every 2 s, in which [`LONG`] passes.
const LOOKS: u64 = 9;

/// A container that ticks on the first node, and somebody who looks.
struct Scene {
    cluster: Cluster,
    before: Before,
    observer: Observer,
    told: Value,
    id: String,
    pid: u32,
    since: SystemTime,
}

impl Scene {
    fn new(test: &str, nodes: u8, extra: &str, change: impl FnOnce(Described) -> Described) -> Option<Self> {
        if cannot_run(test) {
            return None;
        }
        let cluster = Cluster::start(nodes, extra).unwrap();
        let before = Before::of(&cluster);
        let described = change(Described::stateful(&[COUNTER, "--ballast-mb", "4", "--tick", TICKS]));
        cluster.members[0].apply(&described.text()).unwrap();
        let told = count(&cluster, 10);
        checkpoint(&cluster);
        let (_, id) = state(&cluster);
        let pid = cluster.members[0].node.processes(COUNTER)[0];
        let observer = Observer::begin(&cluster);
        Some(Self { cluster, before, observer, told, id, pid, since: SystemTime::now() })
    }

    fn signal_manager(&self, signal: Signal) {
        kill(Pid::from_raw(self.cluster.members[0].manager_pid().unwrap().cast_signed()), signal).unwrap();
    }

    fn isolate(&self) {
        Cut::Everything.begin(&self.cluster, 0);
        ways::cover_store(&self.cluster, 0);
    }

    fn heal(&self) {
        ways::uncover_store(&self.cluster, 0);
        Cut::Everything.end(&self.cluster, 0);
    }

    fn wait_for_event(&self, kind: &str) -> Event {
        self.cluster.wait_for_event(kind, self.since, 1, PATIENCE).unwrap()
    }

    /// The second node has taken over with what was checkpointed, while the first one can do nothing.
    fn expect_takeover(&self) {
        wait_until_serving(&self.cluster, self.since);
        assert_eq!(state(&self.cluster), (self.told, self.id.clone()));
        // By its own account: the first one may not answer anybody.
        assert_eq!(self.cluster.members[1].container("counter").unwrap()["node"], "n2");
        // The container on the first node is a former one, and still there.
        assert_eq!(copies(&self.cluster), 2);
    }

    /// Once the first node can do something again.
    fn expect_removal_unseen(self) {
        let gone = |cluster: &Cluster| cluster.members[0].node.processes(COUNTER).is_empty();
        self.cluster.wait("the deposed copy to be removed", PATIENCE, gone).unwrap();
        self.cluster.wait_for_all().unwrap();
        self.wait_for_event("lease.renewed");
        assert_eq!(state(&self.cluster), (self.told, self.id));
        assert_eq!((copies(&self.cluster), epochs(&self.cluster)), (1, vec![1, 2]));
        let seen = self.observer.end();
        seen.never_two();
        seen.stood_before_another_began(0, 1);
        self.before.check_after_removal(&self.cluster);
    }

    /// It is the process that it was, nobody has claimed it, and nothing was done about it.
    fn expect_undisturbed(self) -> Seen {
        assert_eq!(state(&self.cluster), (self.told, self.id));
        assert_eq!(self.cluster.members[0].node.processes(COUNTER), [self.pid]);
        assert_eq!((copies(&self.cluster), epochs(&self.cluster)), (1, vec![1]));
        let since = DateTime::<Utc>::from(self.since);
        let events = self.cluster.events().into_iter().filter(|event| event.at >= since);
        let done: Vec<Event> =
            events.filter(|e| e.kind.starts_with("recovery.") || e.kind.starts_with("ownership.")).collect();
        assert!(done.is_empty(), "{done:#?}");
        let seen = self.observer.end();
        seen.never_two();
        // Shown when what follows fails.
        self.cluster.members.iter().for_each(|member| println!("{}", member.log_end()));
        self.before.check_after_removal(&self.cluster);
        seen
    }
}

fn as_it_is(described: Described) -> Described {
    described
}

#[test]
fn an_isolated_node_stops_its_container_before_its_peer_begins_it() {
    let name = "an_isolated_node_stops_its_container_before_its_peer_begins_it";
    let Some(scene) = Scene::new(name, 2, QUICK, as_it_is) else { return };
    scene.isolate();
    scene.expect_takeover();
    assert_eq!(events_since(&scene.cluster, "lease.lapsed", scene.since).len(), 1);
    scene.heal();
    scene.expect_removal_unseen();
}

#[test]
fn a_node_without_cable_and_store_stops_its_container_before_its_peer_begins_it() {
    let name = "a_node_without_cable_and_store_stops_its_container_before_its_peer_begins_it";
    let Some(scene) = Scene::new(name, 2, QUICK, as_it_is) else { return };
    scene.cluster.members[0].node.link_down().unwrap();
    ways::cover_store(&scene.cluster, 0);
    scene.expect_takeover();
    ways::uncover_store(&scene.cluster, 0);
    scene.cluster.members[0].node.link_up().unwrap();
    scene.expect_removal_unseen();
}

#[test]
fn what_a_killed_manager_left_stops_before_its_peer_begins_it() {
    let name = "what_a_killed_manager_left_stops_before_its_peer_begins_it";
    let Some(mut scene) = Scene::new(name, 2, QUICK, as_it_is) else { return };
    scene.cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
    scene.expect_takeover();
    scene.cluster.members[0].start_manager().unwrap();
    scene.expect_removal_unseen();
}

#[test]
fn what_a_stopped_manager_runs_stops_before_its_peer_begins_it() {
    let name = "what_a_stopped_manager_runs_stops_before_its_peer_begins_it";
    let Some(scene) = Scene::new(name, 2, QUICK, as_it_is) else { return };
    scene.signal_manager(Signal::SIGSTOP);
    scene.expect_takeover();
    scene.signal_manager(Signal::SIGCONT);
    scene.expect_removal_unseen();
}

#[test]
fn nodes_that_both_reach_the_store_and_not_each_other_leave_each_other_alone() {
    let name = "nodes_that_both_reach_the_store_and_not_each_other_leave_each_other_alone";
    let Some(scene) = Scene::new(name, 2, STEADY, as_it_is) else { return };
    Cut::Heartbeats.begin(&scene.cluster, 0);
    scene.cluster.wait_for_event("peer.dead", scene.since, 2, PATIENCE).unwrap();
    let held = scene.wait_for_event("takeover.held");
    // With a container that answers it is not asked further.
    assert!(matches!(held.text("why"), Some("writes" | "answers")), "{held:?}");
    // For longer than any lease.
    scene.cluster.wait_for_looks(LOOKS, PATIENCE).unwrap();
    Cut::Heartbeats.end(&scene.cluster, 0);
    scene.cluster.wait_for_all().unwrap();
    scene.expect_undisturbed().never_fenced();
}

/// As before, when nobody outside reaches the container either.
#[test]
fn a_node_that_reaches_the_store_alone_keeps_its_container() {
    let name = "a_node_that_reaches_the_store_alone_keeps_its_container";
    let Some(scene) = Scene::new(name, 2, STEADY, as_it_is) else { return };
    Cut::Everything.begin(&scene.cluster, 0);
    let held = scene.wait_for_event("takeover.held");
    assert_eq!(held.text("why"), Some("writes"), "{held:?}");
    scene.cluster.wait_for_looks(LOOKS, PATIENCE).unwrap();
    Cut::Everything.end(&scene.cluster, 0);
    scene.cluster.wait_for_all().unwrap();
    scene.expect_undisturbed().never_fenced();
}

#[test]
fn without_the_store_nodes_that_hear_each_other_go_on() {
    let name = "without_the_store_nodes_that_hear_each_other_go_on";
    let often = |described: Described| described.annotation("state-sensitivity", "1s");
    let Some(scene) = Scene::new(name, 2, STEADY, often) else { return };
    let cluster = &scene.cluster;
    (0..2).for_each(|member| ways::cover_store(cluster, member));
    let (away, since) = (Instant::now(), SystemTime::now());
    cluster.wait_for_event("store.away", since, 2, PATIENCE).unwrap();
    cluster.wait_for_event("checkpoint.waiting", since, 1, PATIENCE).unwrap();
    let queue = cluster.members[0].node.disk().join("state/containers/counter/queue");
    let waiting = |_: &Cluster| away.elapsed() > 2 * LONG && files(&queue).len() > 3;
    cluster.wait("more time than any lease has, and checkpoints to queue", 3 * PATIENCE, waiting).unwrap();
    let back = SystemTime::now();
    (0..2).for_each(|member| ways::uncover_store(cluster, member));
    cluster.wait_for_event("checkpoint.committed", back, 3, PATIENCE).unwrap();
    scene.expect_undisturbed().never_fenced();
}

#[test]
fn an_isolated_node_whose_container_nobody_took_goes_on_where_it_was() {
    let name = "an_isolated_node_whose_container_nobody_took_goes_on_where_it_was";
    let here_only = |described: Described| described.recovery("restart:2, older-snapshot:2");
    let Some(scene) = Scene::new(name, 2, QUICK, here_only) else { return };
    scene.isolate();
    scene.wait_for_event("lease.lapsed");
    // Its peer holds it for dead, and looks more than once; it does not look itself.
    let dead = |cluster: &Cluster| cluster.of_kind("peer.dead").iter().any(|event| event.node == "n2");
    scene.cluster.wait("its peer to hold it for dead", PATIENCE, dead).unwrap();
    scene.cluster.wait_for_looks_of(1, 2, PATIENCE).unwrap();
    scene.heal();
    scene.wait_for_event("lease.renewed");
    scene.cluster.wait_for_all().unwrap();
    scene.expect_undisturbed().fenced_for_a_while(0);
}

#[test]
fn a_node_that_is_left_alone_needs_the_store_and_goes_on_when_it_is_back() {
    let name = "a_node_that_is_left_alone_needs_the_store_and_goes_on_when_it_is_back";
    let Some(mut scene) = Scene::new(name, 2, QUICK, as_it_is) else { return };
    scene.cluster.members[1].power_cut().unwrap();
    scene.wait_for_event("peer.dead");
    scene.cluster.wait_for_looks(4, PATIENCE).unwrap();
    assert!(events_since(&scene.cluster, "lease.lapsed", scene.since).is_empty(), "it reaches the store");
    ways::cover_store(&scene.cluster, 0);
    scene.wait_for_event("lease.lapsed");
    ways::uncover_store(&scene.cluster, 0);
    scene.wait_for_event("lease.renewed");
    scene.expect_undisturbed().fenced_for_a_while(0);
}

/// Its peer has to go on by the store from one moment to the next.
#[test]
fn what_an_orderly_stopped_manager_leaves_runs_on_and_nobody_takes_it() {
    let name = "what_an_orderly_stopped_manager_leaves_runs_on_and_nobody_takes_it";
    let Some(mut scene) = Scene::new(name, 2, "lease.short = \"1500ms\"\nlease.long = \"7500ms\"", as_it_is) else {
        return;
    };
    let parked = scene.cluster.lab.store().join("parked/n1");
    scene.cluster.members[0].stop_manager(Signal::SIGTERM).unwrap();
    assert_eq!(files(&parked).len(), 1, "it is not parked");
    // A look every 2 s: for longer than any lease.
    scene.cluster.wait_for_looks(5, PATIENCE).unwrap();
    assert_eq!(epochs(&scene.cluster), [1]);
    scene.cluster.members[0].start_manager().unwrap();
    scene.cluster.wait_for_all().unwrap();
    scene.cluster.wait("the mark to go", PATIENCE, |_| files(&parked).is_empty()).unwrap();
    scene.expect_undisturbed().never_fenced();
}

/// With times in which a manager is started.
#[test]
fn what_a_manager_that_is_killed_and_started_again_ran_runs_on() {
    let name = "what_a_manager_that_is_killed_and_started_again_ran_runs_on";
    let Some(mut scene) = Scene::new(name, 2, "pace = \"wan\"", as_it_is) else { return };
    scene.cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
    scene.cluster.members[0].start_manager().unwrap();
    scene.cluster.wait("it to be adopted", PATIENCE, |cluster| cluster.owner_of("counter") == Some(0)).unwrap();
    scene.cluster.wait_for_all().unwrap();
    scene.expect_undisturbed().never_fenced();
}
