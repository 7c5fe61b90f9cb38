use std::{fs, path::Path};

use super::*;
use crate::{
    snapshot::{HexBytes, Keep, NetworkIdentity, PartName, SnapshotHealth, SnapshotKind, Versions},
    spec::{Epoch, ImageRecord},
    store::{StoreOptions, keys},
};

const ENOUGH: Duration = Duration::from_secs(60);
const KEEP: Keep = Keep { periodic: 2, manual: 1 };

fn id(seq: u64) -> SnapshotId {
    SnapshotId { epoch: Epoch(1), seq }
}

/// A dump of a few bytes.
fn job(dir: &Path, seq: u64) -> Job {
    let dump = dir.join(format!("dump-{seq}"));
    for sub in ["memory", "staging"] {
        fs::create_dir_all(dump.join(sub)).unwrap();
    }
    fs::write(dump.join("memory/pages-1.img"), seq.to_string()).unwrap();
    let network = NetworkIdentity {
        ip: "10.77.0.2".parse().unwrap(),
        prefix_len: 24,
        mac: "02:00:5e:10:00:0a".parse().unwrap(),
        gateway: None,
    };
    let meta = SnapshotMeta {
        id: id(seq),
        container: "redis".parse().unwrap(),
        node: "n1".parse().unwrap(),
        frozen_at: chrono::Utc::now(),
        kind: SnapshotKind::Periodic,
        health: SnapshotHealth::Healthy,
        frozen_ms: 1.0,
        network,
        app_generation: 1,
        image: ImageRecord { reference: "x".into(), config: Default::default(), layers: vec![] },
        agent_digest: None,
        agent_incarnation: HexBytes(vec![1]),
        versions: Versions::default(),
        cpuinfo: None,
        previous: None,
    };
    let parts = vec![PartSource { name: PartName::Memory, dir: dump.join("memory") }];
    Job { meta, parts, staging: dump.join("staging"), frozen_at: Instant::now(), wall: Duration::ZERO, keep: KEEP }
}

async fn uploads(dir: &Path, options: StoreOptions, queue_max_bytes: u64) -> Uploads {
    fs::create_dir_all(dir.join("store")).unwrap();
    let store = Store::open_with(&format!("file://{}", dir.join("store").display()), options).await.unwrap();
    let name: ContainerName = "redis".parse().unwrap();
    let claimant = crate::ownership::Claimant::new("n1".parse().unwrap());
    let crate::ownership::Claim::Won(owner) = crate::ownership::claim(&store, &name, None, &claimant).await.unwrap()
    else {
        panic!("lost")
    };
    let setting = Setting { store, name, queue: dir.join("queue"), compression_level: 1, queue_max_bytes };
    Uploads::start(setting, &owner, KEEP)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + ENOUGH;
    while !condition() {
        assert!(Instant::now() < end, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn settling_waits_for_dumps_and_for_drafts_on_their_way() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = uploads(dir.path(), StoreOptions::default(), 1 << 20).await;
    let settled =
        async || tokio::time::timeout(Duration::from_millis(20), uploads.settle(ENOUGH, ENOUGH)).await.is_ok();
    let pending = &uploads.shared.pending;
    assert!(settled().await);
    pending.send_modify(|pending| pending.dumps = 1);
    assert!(!settled().await && uploads.pending() == 1);
    pending.send_modify(|pending| (pending.dumps, pending.packed) = (0, 1));
    assert!(!settled().await && uploads.pending() == 0, "a draft is no dump in memory");
    pending.send_modify(|pending| pending.drained = 1);
    assert!(settled().await);
}

/// A record that nobody finishes reading, as on a network file system whose server is gone.
struct Hung(PathBuf);

impl Hung {
    fn at(path: PathBuf) -> Self {
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        Self(path)
    }
}

/// Whoever waits in the open gets its end of file; a failed test must not leave a thread behind that its runtime waits for.
impl Drop for Hung {
    fn drop(&mut self) {
        let release = fs::OpenOptions::new().read(true).write(true).open(&self.0);
        let _ = fs::remove_file(&self.0);
        drop(release);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_upload_hangs_dumps_are_packed_and_only_what_waits_is_dropped_for_room() {
    let dir = tempfile::tempdir().unwrap();
    // No deadline comes to the packer's help.
    let options = StoreOptions { deadline: Duration::from_secs(3600), ..StoreOptions::default() };
    let mut uploads = uploads(dir.path(), options, 1).await;
    let next = keys::owner(&"redis".parse().unwrap(), Epoch(2));
    let hung = Hung::at(dir.path().join("store").join(next));
    uploads.push(job(dir.path(), 1));
    until("the upload to begin", || uploads.shared.drafts().uploading == Some(id(1))).await;
    for seq in 2..=5 {
        uploads.push(job(dir.path(), seq));
    }
    until("the dumps to be packed", || uploads.pending() == 0).await;
    for seq in 2..=4 {
        let report = tokio::time::timeout(ENOUGH, uploads.report()).await.unwrap();
        assert!(matches!(&report, Report::Failed { id: dropped, .. } if *dropped == id(seq)), "{seq}");
    }
    // Neither the one under way nor the newest.
    assert_eq!(Queue::open(&dir.path().join("queue")).unwrap().list().unwrap(), [id(1), id(5)]);
    assert!(!dir.path().join("dump-5/memory").exists(), "a dump stayed in memory");
    drop(hung);
    loop {
        // What the interrupted call makes of the first one does not matter here.
        match tokio::time::timeout(ENOUGH, uploads.report()).await.unwrap() {
            Report::Committed { manifest, .. } if manifest.meta.id == id(5) => break,
            _ => {}
        }
    }
    tokio::time::timeout(ENOUGH, uploads.settle(ENOUGH, ENOUGH)).await.unwrap();
    assert!(Queue::open(&dir.path().join("queue")).unwrap().list().unwrap().is_empty());
}

/// Until the deadline nothing is known; from then on the store counts as away, and everybody who waits is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_return_counts_as_a_store_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { deadline: Duration::from_millis(300), ..StoreOptions::default() };
    let mut uploads = uploads(dir.path(), options, 1 << 20).await;
    let next = keys::owner(&"redis".parse().unwrap(), Epoch(2));
    let hung = Hung::at(dir.path().join("store").join(next));
    for seq in 1..=2 {
        uploads.push(job(dir.path(), seq));
        let report = tokio::time::timeout(ENOUGH, uploads.report()).await.unwrap();
        assert!(matches!(&report, Report::Waiting { id: waits, .. } if *waits == id(seq)), "{seq}");
    }
    drop(hung);
    for seq in 1..=2 {
        let report = tokio::time::timeout(ENOUGH, uploads.report()).await.unwrap();
        assert!(matches!(&report, Report::Committed { manifest, .. } if manifest.meta.id == id(seq)), "{seq}");
    }
}

/// A directory that refuses even root, as a store does whose credentials have expired.
struct Refusing(PathBuf);

impl Refusing {
    fn at(path: PathBuf) -> Option<Self> {
        fs::create_dir_all(&path).unwrap();
        let done = std::process::Command::new("chattr").arg("+i").arg(&path).output();
        done.is_ok_and(|done| done.status.success()).then_some(Self(path))
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        let _ = std::process::Command::new("chattr").arg("-i").arg(&self.0).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drafts_outlive_a_store_that_refuses_this_node() {
    let dir = tempfile::tempdir().unwrap();
    let mut uploads = uploads(dir.path(), StoreOptions::default(), 1 << 20).await;
    let Some(refusing) = Refusing::at(dir.path().join("store/snapshots/redis")) else {
        println!("SKIPPED drafts_outlive_a_store_that_refuses_this_node: chattr +i does not work here");
        return;
    };
    for seq in 1..=2 {
        uploads.push(job(dir.path(), seq));
        let report = tokio::time::timeout(ENOUGH, uploads.report()).await.unwrap();
        assert!(
            matches!(&report, Report::Waiting { id: waits, cause } if *waits == id(seq) && cause.contains("refuses it")),
            "{seq}"
        );
    }
    assert!(!uploads.are_in());
    drop(refusing);
    for seq in 1..=2 {
        let report = tokio::time::timeout(ENOUGH, uploads.report()).await.unwrap();
        assert!(matches!(&report, Report::Committed { manifest, .. } if manifest.meta.id == id(seq)), "{seq}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drafts_that_cannot_be_looked_at_are_not_taken_for_none() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("queue"), "not a directory").unwrap();
    let mut uploads = uploads(dir.path(), StoreOptions::default(), 1 << 20).await;
    uploads.push(job(dir.path(), 1));
    let report = tokio::time::timeout(ENOUGH, uploads.report()).await.unwrap();
    assert!(matches!(&report, Report::Failed { id: failed, .. } if *failed == id(1)));
    assert!(!uploads.are_in(), "there may be drafts");
    fs::remove_file(dir.path().join("queue")).unwrap();
    until("the queue to be opened", || uploads.are_in()).await;
}

#[tokio::test]
async fn stopped_uploads_begin_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut uploads = uploads(dir.path(), StoreOptions::default(), u64::MAX).await;
    uploads.push(job(dir.path(), 1));
    uploads.stop().await;
    assert!(uploads.worker.is_finished());
    assert!(uploads.jobs.is_closed());
}

#[tokio::test]
async fn holding_waits_for_the_removal_that_is_under_way_and_nothing_is_pruned_until_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = uploads(dir.path(), StoreOptions::default(), u64::MAX).await;
    uploads.may_prune(true);
    let removing = uploads.shared.pruning.busy.lock().await;
    assert!(tokio::time::timeout(Duration::from_millis(20), uploads.hold()).await.is_err());
    drop(removing);
    uploads.hold().await;
    assert!(!uploads.shared.pruning.allowed.load(Ordering::SeqCst));
}
