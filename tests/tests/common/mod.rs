//! What the cluster tests share: a counter in a container, and a client's view of it.
#![allow(dead_code)]

mod leftovers;
pub mod observer;
pub mod operator;
pub mod watch;
pub mod ways;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use ha_lab::{
    clients::counter::{Counter, Value, connect_patiently},
    cluster::{Cluster, Event, why_no_cluster},
    demo::{ADDRESS, Workload},
    skipped,
};
#[allow(unused_imports)]
pub use leftovers::{Before, files, run_of};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub const PATIENCE: Duration = Duration::from_secs(30);
/// So long that no periodic checkpoint comes in between.
pub const NEVER: &str = "1h";

/// True, after saying so, when the machine cannot run the test.
pub fn cannot_run(test: &str) -> bool {
    why_no_cluster().inspect(|why| skipped(test, why)).is_some()
}

/// Nodes and managers, or `None` after saying why the test is skipped.
pub fn cluster(test: &str, count: u8) -> Option<Cluster> {
    (!cannot_run(test)).then(|| Cluster::start(count, "").unwrap())
}

/// Nodes and managers with the counter on the first node, checkpointed only when told to.
pub fn with_counter(test: &str, count: u8) -> Option<Cluster> {
    let cluster = cluster(test, count)?;
    cluster.members[0].apply(&Workload::Counter.compose(NEVER).unwrap()).unwrap();
    Some(cluster)
}

/// Works with a new connection to the counter, as soon as it serves.
pub fn client<T: Send + 'static>(
    cluster: &Cluster,
    work: impl FnOnce(&mut Counter) -> std::io::Result<T> + Send + 'static,
) -> T {
    let address: SocketAddr = format!("{ADDRESS}:7000").parse().unwrap();
    let run = move || {
        let mut counter = connect_patiently(address, PATIENCE)?;
        // It serves; a machine with much else to do may take its time.
        counter.set_timeout(Duration::from_secs(5))?;
        Ok(work(&mut counter)?)
    };
    cluster.lab.on_client(run).unwrap().join().unwrap().unwrap()
}

/// Counts up `n` times and returns the state.
pub fn count(cluster: &Cluster, n: u64) -> Value {
    client(cluster, move |counter| {
        for _ in 0..n {
            counter.incr()?;
        }
        counter.get()
    })
}

/// The counter's state, its process's own number, with its memory checked.
pub fn state(cluster: &Cluster) -> (Value, String) {
    client(cluster, |counter| {
        counter.check()?;
        Ok((counter.get()?, counter.id()?))
    })
}

/// Takes a checkpoint on the member that runs the counter and waits until it is committed.
pub fn checkpoint(cluster: &Cluster) {
    let owner = cluster.owner_of("counter").expect("nobody runs the counter");
    cluster.members[owner].cli(&["checkpoint", "counter"]).unwrap();
}

/// Ends the counter with a code.
pub fn exit(cluster: &Cluster, code: u8) {
    let ended = client(cluster, move |counter| Ok(counter.tell(&format!("exit {code}"))));
    assert!(ended.is_err(), "it answered {ended:?}");
}

pub fn wait_until_serving(cluster: &Cluster, since: SystemTime) {
    cluster.wait_for_event("recovery.serving", since, 1, PATIENCE).unwrap();
}

/// As `with_counter`, with lines of configuration, a state sensitivity, and what the nodes had before.
pub fn scene(test: &str, count: u8, extra: &str, sensitivity: &str) -> Option<(Cluster, Before)> {
    if cannot_run(test) {
        return None;
    }
    let cluster = Cluster::start(count, extra).unwrap();
    let before = Before::of(&cluster);
    cluster.members[0].apply(&Workload::Counter.compose(sensitivity).unwrap()).unwrap();
    Some((cluster, before))
}

/// The epochs in the store under which somebody owned the counter.
pub fn epochs(cluster: &Cluster) -> Vec<u64> {
    let names = files(&cluster.lab.store().join("owners/counter"));
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// How many copies of the counter run on all nodes.
pub fn copies(cluster: &Cluster) -> usize {
    let on = cluster.members.iter().filter(|member| member.node.is_on());
    on.map(|member| member.node.processes("/bin/counter").len()).sum()
}

/// Kills the counter's process on a node.
pub fn kill_counter(cluster: &Cluster, member: usize) {
    let pids = cluster.members[member].node.processes("/bin/counter");
    assert_eq!(pids.len(), 1, "the counter runs {} times", pids.len());
    kill(Pid::from_raw(pids[0].cast_signed()), Signal::SIGKILL).unwrap();
}

/// The events of one kind at or after `since`.
pub fn events_since(cluster: &Cluster, kind: &str, since: SystemTime) -> Vec<Event> {
    let since = chrono::DateTime::<chrono::Utc>::from(since);
    cluster.of_kind(kind).into_iter().filter(|event| event.at >= since).collect()
}

const IMAGES: &str = "/run/ha-manager/images";

/// On a node there is no room for the images of a dump or a restore.
pub fn fill(cluster: &Cluster, member: usize) {
    let node = &cluster.members[member].node;
    node.exec(&format!("mkdir -p {IMAGES}")).unwrap();
    node.exec(&format!("mount -t tmpfs -o size=128k full {IMAGES}")).unwrap();
}

pub fn make_room(cluster: &Cluster, member: usize) {
    cluster.members[member].node.exec(&format!("umount -l {IMAGES}")).unwrap();
}

/// How an object of a snapshot is spoilt.
#[derive(Debug, Clone, Copy)]
pub enum Damage {
    /// One bit is another.
    Flipped,
    /// The last half is missing.
    Truncated,
}

/// The counter's committed snapshots as `snapshots --json` lists them, newest first.
pub fn snapshots(cluster: &Cluster) -> Vec<serde_json::Value> {
    let on = cluster.members.iter().find(|member| member.node.is_on()).expect("every node is off");
    on.json(&["snapshots", "counter"]).unwrap().as_array().unwrap().clone()
}

/// The ids of those of one kind, newest first.
pub fn ids_of(cluster: &Cluster, kind: &str) -> Vec<String> {
    let of_kind = snapshots(cluster).into_iter().filter(|snapshot| snapshot["kind"] == kind);
    of_kind.filter_map(|snapshot| snapshot["id"].as_str().map(str::to_owned)).collect()
}

/// Spoils the largest object of the counter's newest snapshot.
pub fn damage_newest(cluster: &Cluster, damage: Damage) {
    self::damage(cluster, 0, damage);
}

/// Spoils the largest object of the counter's snapshot that has so many newer ones.
pub fn damage(cluster: &Cluster, newer: usize, damage: Damage) {
    let paths = |dir: PathBuf| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut snapshots: Vec<PathBuf> = paths(cluster.lab.store().join("snapshots/counter")).collect();
    snapshots.sort();
    let objects = paths(snapshots.swap_remove(snapshots.len() - 1 - newer)).filter(|path| !path.ends_with("manifest"));
    let chunk = objects.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&chunk).unwrap();
    let middle = bytes.len() / 2;
    match damage {
        Damage::Flipped => bytes[middle] ^= 1,
        Damage::Truncated => bytes.truncate(middle),
    }
    fs::write(&chunk, bytes).unwrap();
}
