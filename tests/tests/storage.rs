//! The store is away, disks are full, snapshots are damaged: the container goes on, or comes back from what is whole.

mod common;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use common::{
    Before, PATIENCE, cannot_run, checkpoint, count, epochs, events_since, files, kill_counter,
    operator::phase,
    run_of, scene, state, wait_until_serving,
    ways::{cover_store, uncover_store},
};
use ha_lab::{
    cluster::{Cluster, Event},
    demo::Workload,
};

fn queue(cluster: &Cluster) -> PathBuf {
    cluster.members[0].node.disk().join("state/containers/counter/queue")
}

/// Complete drafts that wait on the first node, oldest first.
fn drafts(cluster: &Cluster) -> Vec<u64> {
    let mut numbers: Vec<u64> =
        files(&queue(cluster)).iter().filter_map(|name| name.strip_prefix("e1-")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

fn number_of(event: &Event) -> u64 {
    event.text("snapshot").unwrap().strip_prefix("e1-").unwrap().parse().unwrap()
}

fn committed_since(cluster: &Cluster, since: SystemTime) -> Vec<u64> {
    events_since(cluster, "checkpoint.committed", since).iter().map(number_of).collect()
}

fn first_commit(cluster: &Cluster) {
    cluster.wait_for_event("checkpoint.committed", SystemTime::UNIX_EPOCH, 1, PATIENCE).unwrap();
}

#[test]
fn while_the_store_is_away_the_container_goes_on_and_afterwards_its_checkpoints_are_committed_in_order() {
    let name = "while_the_store_is_away_the_container_goes_on";
    let Some((mut cluster, before)) = scene(name, 2, "", "1s") else { return };
    let id = state(&cluster).1;
    first_commit(&cluster);
    let away = SystemTime::now();
    cover_store(&cluster, 0);
    cluster.wait_for_event("store.away", away, 1, PATIENCE).unwrap();
    cluster.wait_for_event("checkpoint.waiting", away, 1, PATIENCE).unwrap();
    let told = count(&cluster, 10);
    let waiting = drafts(&cluster);
    let more = |cluster: &Cluster| drafts(cluster).len() >= waiting.len() + 2;
    cluster.wait("further checkpoints to queue", PATIENCE, more).unwrap();
    let waiting = drafts(&cluster);
    let back = SystemTime::now();
    uncover_store(&cluster, 0);
    cluster.wait_for_event("store.back", back, 1, PATIENCE).unwrap();
    let caught_up = |cluster: &Cluster| committed_since(cluster, back).last() >= waiting.last();
    cluster.wait("the queue to be committed", PATIENCE, caught_up).unwrap();
    let committed = committed_since(&cluster, back);
    assert!(committed.is_sorted(), "{committed:?}");
    assert!(waiting.iter().all(|number| committed.contains(number)), "{waiting:?} waited, committed are {committed:?}");
    assert_eq!(state(&cluster), (told, id.clone()));
    let cut = cluster.members[0].power_cut().unwrap();
    wait_until_serving(&cluster, cut.at);
    assert_eq!(state(&cluster), (told, id));
    before.check_after_removal(&cluster);
}

#[test]
fn a_store_that_became_read_only_loses_no_checkpoint() {
    let name = "a_store_that_became_read_only_loses_no_checkpoint";
    let Some((cluster, before)) = scene(name, 1, "", "1s") else { return };
    first_commit(&cluster);
    let (node, store) = (&cluster.members[0].node, cluster.lab.store());
    node.exec(&format!("mount --bind {0} {0}", store.display())).unwrap();
    let away = SystemTime::now();
    node.exec(&format!("mount -o remount,bind,ro {}", store.display())).unwrap();
    let waiting = cluster.wait_for_event("checkpoint.waiting", away, 1, PATIENCE).unwrap();
    assert!(waiting.message.contains("read-only"), "{waiting:?}");
    cluster.wait("a draft", PATIENCE, |cluster| drafts(cluster).len() >= 2).unwrap();
    let waiting = drafts(&cluster);
    let back = SystemTime::now();
    node.exec(&format!("umount -l {}", store.display())).unwrap();
    let caught_up = |cluster: &Cluster| committed_since(cluster, back).last() >= waiting.last();
    cluster.wait("the queue to be committed", PATIENCE, caught_up).unwrap();
    assert!(waiting.iter().all(|number| committed_since(&cluster, back).contains(number)));
    assert_eq!(count(&cluster, 1).value, 1);
    before.check_after_removal(&cluster);
}

/// A record that nobody finishes reading: what a hung network file system does.
#[test]
fn a_store_that_hangs_is_noticed_and_does_not_hang_the_container() {
    let name = "a_store_that_hangs_is_noticed_and_does_not_hang_the_container";
    let Some((cluster, before)) = scene(name, 1, "", "1s") else { return };
    first_commit(&cluster);
    let id = state(&cluster).1;
    // Looked for before and after every commit.
    let record = cluster.lab.store().join(format!("owners/counter/{:020}", 2));
    let since = SystemTime::now();
    nix::unistd::mkfifo(&record, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let waiting = cluster.wait_for_event("checkpoint.waiting", since, 1, PATIENCE).unwrap();
    assert!(waiting.message.contains("gave no answer"), "{waiting:?}");
    let told = count(&cluster, 10);
    assert_eq!(state(&cluster), (told, id.clone()));
    cluster.wait("a draft", PATIENCE, |cluster| drafts(cluster).len() >= 2).unwrap();
    let waiting = drafts(&cluster);
    let back = SystemTime::now();
    // Whoever waits in an open gets its end of file.
    let release = OpenOptions::new().read(true).write(true).open(&record).unwrap();
    fs::remove_file(&record).unwrap();
    drop(release);
    let caught_up = |cluster: &Cluster| committed_since(cluster, back).last() >= waiting.last();
    cluster.wait("the queue to be committed", PATIENCE, caught_up).unwrap();
    assert_eq!((state(&cluster), epochs(&cluster)), ((told, id), vec![1]));
    before.check_after_removal(&cluster);
}

#[test]
fn a_manager_is_stopped_while_its_store_hangs_and_the_next_one_commits_what_waits() {
    let name = "a_manager_is_stopped_while_its_store_hangs_and_the_next_one_commits_what_waits";
    let Some((mut cluster, before)) = scene(name, 1, "", "1s") else { return };
    first_commit(&cluster);
    let record = cluster.lab.store().join(format!("owners/counter/{:020}", 2));
    let since = SystemTime::now();
    nix::unistd::mkfifo(&record, nix::sys::stat::Mode::S_IRUSR).unwrap();
    cluster.wait_for_event("checkpoint.waiting", since, 1, PATIENCE).unwrap();
    // Ends although a call of its hangs in the kernel.
    cluster.members[0].stop_manager(nix::sys::signal::Signal::SIGTERM).unwrap();
    let waiting = drafts(&cluster);
    assert!(!waiting.is_empty());
    fs::remove_file(&record).unwrap();
    let back = SystemTime::now();
    cluster.members[0].start_manager().unwrap();
    let caught_up = |cluster: &Cluster| committed_since(cluster, back).last() >= waiting.last();
    cluster.wait("the queue to be committed", PATIENCE, caught_up).unwrap();
    assert!(waiting.iter().all(|number| committed_since(&cluster, back).contains(number)));
    assert_eq!(count(&cluster, 1).value, 1);
    before.check_after_removal(&cluster);
}

#[test]
fn the_queue_keeps_within_its_bound_and_the_newest_state_stays() {
    let name = "the_queue_keeps_within_its_bound_and_the_newest_state_stays";
    let Some((cluster, before)) = scene(name, 1, "checkpoint.queue_max_bytes = \"100KiB\"", "1s") else { return };
    first_commit(&cluster);
    let away = SystemTime::now();
    cover_store(&cluster, 0);
    let dropped = cluster.wait_for_event("checkpoint.failed", away, 1, PATIENCE).unwrap();
    assert!(dropped.text("cause").is_some_and(|cause| cause.contains("queue")), "{dropped:?}");
    let waiting = drafts(&cluster);
    assert!(waiting.len() <= 2, "{waiting:?}");
    assert!(!waiting.contains(&number_of(&dropped)), "{dropped:?}");
    let told = count(&cluster, 10);
    let back = SystemTime::now();
    uncover_store(&cluster, 0);
    cluster.wait_for_event("checkpoint.committed", back, 2, PATIENCE).unwrap();
    kill_counter(&cluster, 0);
    wait_until_serving(&cluster, back);
    assert_eq!(state(&cluster).0, told);
    before.check_after_removal(&cluster);
}

#[test]
fn a_container_that_dies_while_the_store_is_away_comes_back_from_its_newest_state_when_it_returns() {
    let name = "a_container_that_dies_while_the_store_is_away_comes_back";
    let Some((cluster, before)) = scene(name, 1, "", "1s") else { return };
    first_commit(&cluster);
    let id = state(&cluster).1;
    let away = SystemTime::now();
    cover_store(&cluster, 0);
    cluster.wait_for_event("checkpoint.waiting", away, 1, PATIENCE).unwrap();
    let told = count(&cluster, 10);
    let there = drafts(&cluster).len();
    cluster.wait("two more drafts", PATIENCE, |cluster| drafts(cluster).len() >= there + 2).unwrap();
    kill_counter(&cluster, 0);
    cluster.wait_for_event("recovery.waiting", away, 1, PATIENCE).unwrap();
    uncover_store(&cluster, 0);
    wait_until_serving(&cluster, away);
    assert_eq!(state(&cluster), (told, id));
    before.check_after_removal(&cluster);
}

/// Asks for a checkpoint that has to fail for want of room, and returns its cause.
fn fails_for_want_of_room(cluster: &Cluster) -> String {
    let since = SystemTime::now();
    let err = cluster.members[0].cli(&["checkpoint", "counter"]).unwrap_err();
    let failed = cluster.wait_for_event("checkpoint.failed", since, 1, PATIENCE).unwrap();
    let cause = failed.text("cause").unwrap_or_default().to_owned();
    assert!(cause.contains("No space left"), "{cause}\n{err:#}");
    cause
}

fn snapshots(cluster: &Cluster) -> Vec<String> {
    let listed = cluster.members[0].json(&["snapshots", "counter"]).unwrap();
    listed.as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_full_scratch_fails_the_checkpoint_and_nothing_else() {
    let name = "a_full_scratch_fails_the_checkpoint_and_nothing_else";
    if cannot_run(name) {
        return;
    }
    let mut cluster = Cluster::without_managers(1, "scratch = \"/run/small\"").unwrap();
    cluster.members[0].node.exec("mkdir /run/small").unwrap();
    cluster.members[0].node.exec("mount -t tmpfs -o size=64m small /run/small").unwrap();
    cluster.start_managers().unwrap();
    let before = Before::of(&cluster);
    cluster.members[0].apply(&Workload::Counter.compose(common::NEVER).unwrap()).unwrap();
    let id = state(&cluster).1;
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let good = snapshots(&cluster);
    cluster.members[0].node.exec("mount -o remount,size=2m /run/small").unwrap();
    fails_for_want_of_room(&cluster);
    assert_eq!(state(&cluster), (told, id.clone()));
    assert_eq!(snapshots(&cluster), good);
    let pid = cluster.members[0].node.pid().unwrap();
    let images = PathBuf::from(format!("/proc/{pid}/root/run/small/images/counter"));
    assert_eq!(files(&images), Vec::<String>::new());
    // With room again the next one succeeds.
    cluster.members[0].node.exec("mount -o remount,size=64m /run/small").unwrap();
    checkpoint(&cluster);
    assert_eq!(state(&cluster), (told, id));
    before.check_after_removal(&cluster);
}

#[test]
fn a_full_state_directory_fails_the_checkpoint_and_nothing_else() {
    let name = "a_full_state_directory_fails_the_checkpoint_and_nothing_else";
    if cannot_run(name) {
        return;
    }
    let mut cluster = Cluster::without_managers(1, "").unwrap();
    let dir = cluster.members[0].node.disk().join("state").display().to_string();
    cluster.members[0].node.exec(&format!("mkdir {dir}")).unwrap();
    cluster.members[0].node.exec(&format!("mount -t tmpfs -o size=200m state {dir}")).unwrap();
    cluster.start_managers().unwrap();
    let before = Before::of(&cluster);
    cluster.members[0].apply(&Workload::Counter.compose(common::NEVER).unwrap()).unwrap();
    let id = state(&cluster).1;
    let told = count(&cluster, 10);
    checkpoint(&cluster);
    let good = snapshots(&cluster);
    let node = &cluster.members[0].node;
    // It ends when nothing more fits.
    node.output(&format!("dd if=/dev/zero of={dir}/filler bs=4k")).unwrap();
    fails_for_want_of_room(&cluster);
    assert_eq!(state(&cluster), (told, id.clone()));
    assert_eq!(snapshots(&cluster), good);
    assert_eq!(files(&run_of(&cluster, "n1").join("images/counter")), Vec::<String>::new());
    let inside = PathBuf::from(format!("/proc/{}/root{dir}/containers/counter", node.pid().unwrap()));
    for left in ["queue", "staging"] {
        assert_eq!(files(&inside.join(left)), Vec::<String>::new(), "{left}");
    }
    node.exec(&format!("rm {dir}/filler")).unwrap();
    checkpoint(&cluster);
    assert_eq!(state(&cluster), (told, id));
    before.check_after_removal(&cluster);
}

/// What is done to the newest snapshot, given its directory in the store.
fn damage(how: &str, snapshot: &std::path::Path) {
    let largest = |prefix: &str| {
        let chunks = files(snapshot).into_iter().filter(|name| name.starts_with(prefix));
        chunks.map(|name| snapshot.join(name)).max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
    };
    let flip = |path: PathBuf| {
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let at = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    };
    match how {
        "truncated memory" => {
            let file = OpenOptions::new().write(true).open(largest("memory")).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }
        "a flipped bit in memory" => flip(largest("memory")),
        "a flipped bit in files" => flip(largest("upper")),
        "a flipped bit in the manifest" => flip(snapshot.join("manifest")),
        "a missing chunk" => fs::remove_file(largest("memory")).unwrap(),
        other => unreachable!("{other}"),
    }
}

#[test]
fn a_damaged_snapshot_is_refused_and_the_one_before_is_used() {
    let name = "a_damaged_snapshot_is_refused_and_the_one_before_is_used";
    for how in [
        "truncated memory",
        "a flipped bit in memory",
        "a flipped bit in files",
        "a flipped bit in the manifest",
        "a missing chunk",
    ] {
        // A cluster for each: going back to older states is bounded over ten minutes.
        let Some((cluster, before)) = scene(name, 1, "", common::NEVER) else { return };
        let id = state(&cluster).1;
        let told = count(&cluster, 3);
        checkpoint(&cluster);
        count(&cluster, 3);
        checkpoint(&cluster);
        let store = cluster.lab.store().join("snapshots/counter");
        let newest = files(&store).pop().unwrap();
        damage(how, &store.join(&newest));
        let since = SystemTime::now();
        kill_counter(&cluster, 0);
        wait_until_serving(&cluster, since);
        assert_eq!(state(&cluster), (told, id.clone()), "{how}");
        let said = cluster.wait_for_event("snapshot.refused", since, 1, Duration::from_secs(5)).unwrap();
        let cause = said.text("cause").unwrap_or_default();
        assert!(cause.contains("damaged") || cause.contains("missing"), "{how}: {said:?}");
        let refused = events_since(&cluster, "snapshot.refused", since);
        assert_eq!(refused.len(), 1, "{how}: tried again although it cannot get better: {refused:?}");
        before.check_after_removal(&cluster);
    }
}

/// What cannot be read is state all the same: the container does not begin anew over it, and nothing of it is deleted.
#[test]
fn a_container_whose_snapshots_cannot_be_read_is_not_begun_anew() {
    let name = "a_container_whose_snapshots_cannot_be_read_is_not_begun_anew";
    let Some((cluster, before)) = scene(name, 1, "", common::NEVER) else { return };
    count(&cluster, 3);
    checkpoint(&cluster);
    let store = cluster.lab.store().join("snapshots/counter");
    let there = files(&store);
    for snapshot in &there {
        damage("a flipped bit in the manifest", &store.join(snapshot));
    }
    let since = SystemTime::now();
    kill_counter(&cluster, 0);
    cluster.wait_for_event("recovery.exhausted", since, 1, PATIENCE).unwrap();
    cluster.wait("it to be failed", PATIENCE, |cluster| phase(cluster, 0, "counter") == "failed").unwrap();
    let compose = Workload::Counter.compose(common::NEVER).unwrap();
    let refused = cluster.members[0].apply(&compose).unwrap_err().to_string();
    assert!(refused.contains("--recreate"), "{refused}");
    assert_eq!(files(&store), there);
    assert_eq!(common::copies(&cluster), 0);
    before.check_after_removal(&cluster);
}
