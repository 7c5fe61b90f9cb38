use std::{
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use chrono::{TimeZone, Utc};

use super::*;
use crate::{
    ownership::{self, Claim, Claimant, Owner},
    spec::{ContainerName, Epoch, SnapshotId},
    store::{Store, keys},
};

mod unreadable;

pub(super) const QUIET: OnProgress<'static> = &|_| {};

pub(super) fn container() -> ContainerName {
    "redis".parse().unwrap()
}

pub(super) fn id(text: &str) -> SnapshotId {
    text.parse().unwrap()
}

/// So many periodic ones.
pub(super) fn keep(periodic: u32) -> Keep {
    Keep { periodic, manual: 1 }
}

pub(super) fn meta(id: SnapshotId) -> SnapshotMeta {
    SnapshotMeta {
        id,
        container: container(),
        node: "n1".parse().unwrap(),
        frozen_at: Utc.timestamp_opt(1_700_000_000, 123_000_000).unwrap(),
        kind: SnapshotKind::Periodic,
        health: SnapshotHealth::Healthy,
        frozen_ms: 9.5,
        network: NetworkIdentity {
            ip: "10.77.0.2".parse().unwrap(),
            prefix_len: 24,
            mac: "02:00:5e:10:00:0a".parse().unwrap(),
            gateway: None,
        },
        app_generation: 3,
        image: crate::spec::ImageRecord { reference: "x".into(), config: Default::default(), layers: vec![] },
        agent_digest: None,
        agent_incarnation: HexBytes(vec![1, 2, 255]),
        versions: Versions::default(),
        cpuinfo: Some(HexBytes(vec![0; 16])),
        previous: None,
    }
}

pub(super) struct Lab {
    pub(super) dir: tempfile::TempDir,
    pub(super) store: Store,
    pub(super) queue: Queue,
}

impl Lab {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        let store = Store::open(&format!("file://{}/store", dir.path().display())).await.unwrap();
        store.init_or_join("test").await.unwrap();
        let queue = Queue::open(&dir.path().join("queue")).unwrap();
        Self { dir, store, queue }
    }

    pub(super) async fn own(&self, expected: Option<u64>) -> Owner {
        let claimant = Claimant::new("n1".parse().unwrap());
        let claim = ownership::claim(&self.store, &container(), expected.map(Epoch), &claimant).await.unwrap();
        let Claim::Won(owner) = claim else { panic!("{claim:?}") };
        ownership::take_base(&self.store, &container(), &owner).await.unwrap();
        owner
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn object(&self, key: &str) -> PathBuf {
        self.dir.path().join("store").join(key)
    }

    /// A tree of `bytes` that compress about by half, in `name`.
    pub(super) fn tree(&self, name: &str, bytes: usize) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("pages-1.img"), half_random(bytes)).unwrap();
        fs::write(dir.join("core-1.img"), b"core").unwrap();
        dir
    }

    pub(super) fn draft(&self, id: SnapshotId, dir: &Path) -> Draft {
        let sources = [PartSource { name: PartName::Memory, dir: dir.to_owned() }];
        pack(&self.queue, meta(id), &sources, &PackOptions { chunk_bytes: 128 << 10, ..Default::default() }).unwrap()
    }
}

fn half_random(bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    let mut reader = blake3::Hasher::new().update(b"seed").finalize_xof();
    for block in data.chunks_mut(4096) {
        let half = block.len() / 2;
        reader.fill(&mut block[..half]);
    }
    data
}

/// Everything a restored tree has to have in common with the packed one.
fn describe(root: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, lines: &mut Vec<String>) {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        for path in names {
            lines.push(line(root, &path));
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                walk(root, &path, lines);
            }
        }
    }
    fn line(root: &Path, path: &Path) -> String {
        let m = fs::symlink_metadata(path).unwrap();
        let kind = m.file_type();
        let content = if m.is_file() {
            blake3::hash(&fs::read(path).unwrap()).to_string()
        } else if kind.is_symlink() {
            format!("{:?}", fs::read_link(path).unwrap())
        } else {
            String::new()
        };
        let mut xattrs: Vec<_> =
            xattr::list(path).unwrap().map(|n| (n.clone(), xattr::get(path, &n).unwrap())).collect();
        xattrs.sort();
        let links = if m.is_dir() { 0 } else { m.nlink() };
        let size = if m.is_dir() { 0 } else { m.len() };
        format!(
            "{:?} {:o} {}:{} {}.{:09} size {size} links {links} dev {} {content} {xattrs:?}",
            path.strip_prefix(root).unwrap(),
            m.mode(),
            m.uid(),
            m.gid(),
            m.mtime(),
            m.mtime_nsec(),
            m.rdev()
        )
    }
    let mut lines = vec![line(root, root)];
    walk(root, root, &mut lines);
    lines
}

fn root_or_skip(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIPPED {test}: it makes devices and changes owners, which takes root");
    }
    root
}

/// An upper layer with all that overlayfs, programs and people put there.
fn upper(root: &Path) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/file"), b"hello").unwrap();
    fs::write(root.join("a/empty"), b"").unwrap();
    fs::write(root.join("a/b/aligned"), vec![7; 1024]).unwrap();
    fs::hard_link(root.join("a/file"), root.join("a/b/other name")).unwrap();
    symlink("../../../etc/passwd", root.join("a/b/link")).unwrap();
    symlink("x/".repeat(120), root.join("a/long-link")).unwrap();
    symlink("./x//y/../z/", root.join("a/untidy-link")).unwrap();
    let long = root.join("a").join("d".repeat(200));
    fs::create_dir(&long).unwrap();
    fs::write(long.join("n".repeat(250)), b"long").unwrap();
    fs::write(root.join("a").join(std::ffi::OsStr::from_bytes(b"not-utf8-\xff\xfe")), b"x").unwrap();
    let path = root.join("a/fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o620)).unwrap();
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    mknod(&root.join("a/whiteout"), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
    mknod(&root.join("a/null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    let sparse = File::create(root.join("a/sparse")).unwrap();
    sparse.set_len(200 << 20).unwrap();
    sparse.write_all_at(b"middle", 100 << 20).unwrap();
    sparse.write_all_at(b"end", (200 << 20) - 3).unwrap();
    drop(sparse);
    xattr::set(root.join("a/b"), "trusted.overlay.opaque", b"y").unwrap();
    xattr::set(root.join("a/file"), "user.binary", b"line\nfeed\0=zero").unwrap();
    xattr::set(root.join("a/b/link"), "trusted.overlay.origin", b"\x00\xfb").unwrap();
    nix::unistd::chown(&root.join("a/file"), Some(1000.into()), Some(70000.into())).unwrap();
    fs::set_permissions(root.join("a/file"), fs::Permissions::from_mode(0o4755)).unwrap();
    let cap = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(root.join("a/empty"), "security.capability", &cap).unwrap();
    fs::set_permissions(root.join("a/b/c"), fs::Permissions::from_mode(0o1777)).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH - std::time::Duration::from_millis(1500);
    File::open(root.join("a/empty")).unwrap().set_modified(old).unwrap();
    let stamp = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_600_000_000, 987_654_321);
    File::open(root.join("a/b/c")).unwrap().set_modified(stamp).unwrap();
    File::open(root.join("a/b")).unwrap().set_modified(stamp).unwrap();
    File::open(root).unwrap().set_modified(stamp).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upper_layer_comes_back_as_it_was() {
    if !root_or_skip("an_upper_layer_comes_back_as_it_was") {
        return;
    }
    let lab = Lab::new().await;
    lab.own(None).await;
    let source = lab.path("upper");
    fs::create_dir(&source).unwrap();
    upper(&source);
    let sources = [
        PartSource { name: PartName::Upper, dir: source.clone() },
        PartSource { name: PartName::volume("Data.1").unwrap(), dir: lab.tree("volume", 300_000) },
    ];
    let draft = pack(&lab.queue, meta(id("e1-1")), &sources, &PackOptions::default()).unwrap();
    assert!(draft.manifest.stored_bytes() < 1 << 20, "holes were stored: {}", draft.manifest.stored_bytes());
    let manifest = upload(&lab.store, &draft, QUIET).await.unwrap();
    assert_eq!(load_manifest(&lab.store, &container(), id("e1-1")).await.unwrap(), manifest);
    for (source, target) in sources.iter().zip(["back-1", "back-2"]) {
        let target = lab.path(target);
        fetch(&lab.store, &manifest, &source.name, &target, QUIET).await.unwrap();
        assert_eq!(describe(&source.dir), describe(&target));
    }
    let blocks = fs::metadata(lab.path("back-1/a/sparse")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "the holes were filled: {blocks} blocks");
    assert!(fs::symlink_metadata(lab.path("back-1/a/whiteout")).unwrap().file_type().is_char_device());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_can_be_repeated_and_resumed() {
    let lab = Lab::new().await;
    lab.own(None).await;
    let draft = lab.draft(id("e1-1"), &lab.tree("memory", 1 << 20));
    // An upload that died half-way left one chunk and one that is not whole.
    let part = &draft.manifest.parts[0];
    let key = |n| keys::chunk(&container(), id("e1-1"), &part.chunk_file(n));
    fs::create_dir_all(lab.object(&key(0)).parent().unwrap()).unwrap();
    fs::copy(draft.chunk_path(part, 0), lab.object(&key(0))).unwrap();
    fs::write(lab.object(&key(1)), vec![0; part.chunks[1].len as usize]).unwrap();
    let first = upload(&lab.store, &draft, QUIET).await.unwrap();
    let second = upload(&lab.store, &lab.queue.load(id("e1-1")).unwrap(), QUIET).await.unwrap();
    assert_eq!(first, second);
    verify(&lab.store, &first, QUIET).await.unwrap();
    // The same number with other content is a programming error that must not overwrite anything.
    lab.queue.remove(id("e1-1")).unwrap();
    let other = lab.draft(id("e1-1"), &lab.tree("other", 1000));
    let error = upload(&lab.store, &other, QUIET).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Conflict { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_owner_commits_nothing() {
    let lab = Lab::new().await;
    lab.own(None).await;
    let draft = lab.draft(id("e1-1"), &lab.tree("memory", 1000));
    lab.own(Some(1)).await;
    let error = upload(&lab.store, &draft, QUIET).await.unwrap_err();
    assert!(error.is_deposed() && !error.is_retryable(), "{error}");
    assert!(list(&lab.store, &container()).await.unwrap().is_empty());
    assert_eq!(lab.queue.drop_deposed(Epoch(2)).unwrap(), vec![id("e1-1")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_named_and_never_restored() {
    let lab = Lab::new().await;
    lab.own(None).await;
    let draft = lab.draft(id("e1-1"), &lab.tree("memory", 1 << 20));
    let manifest = upload(&lab.store, &draft, QUIET).await.unwrap();
    let part = &manifest.parts[0];
    assert!(part.chunks.len() > 3);
    let key = keys::chunk(&container(), id("e1-1"), &part.chunk_file(2));
    let object = lab.object(&key);
    let good = fs::read(&object).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let longer = [good.as_slice(), b"x"].concat();
    for (bytes, says) in [
        (Some(flipped), "checksum"),
        (Some(good[..good.len() - 1].to_vec()), "bytes where"),
        (Some(longer), "bytes where"),
        (Some(Vec::new()), "bytes where"),
        (None, "missing"),
    ] {
        match bytes {
            Some(bytes) => fs::write(&object, bytes).unwrap(),
            None => fs::remove_file(&object).unwrap(),
        }
        let target = lab.path("back");
        let error = fetch(&lab.store, &manifest, &part.name, &target, QUIET).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(says) && text.contains(&key) && text.contains("before it can be tried"), "{text}");
        assert!(!target.exists(), "a damaged part left something behind");
        assert!(verify(&lab.store, &manifest, QUIET).await.is_err());
    }
    // A manifest, bit by bit.
    let object = lab.object(&keys::manifest(&container(), id("e1-1")));
    let good = fs::read(&object).unwrap();
    for byte in (0..good.len()).step_by(97).chain(good.len() - 32..good.len()) {
        let mut bad = good.clone();
        bad[byte] ^= 0x10;
        fs::write(&object, bad).unwrap();
        assert!(load_manifest(&lab.store, &container(), id("e1-1")).await.is_err(), "byte {byte}");
    }
    fs::write(&object, &good[..good.len() - 5]).unwrap();
    assert!(load_manifest(&lab.store, &container(), id("e1-1")).await.is_err());
    let mut newer = good.clone();
    newer[8] = 2;
    fs::write(&object, newer).unwrap();
    let error = load_manifest(&lab.store, &container(), id("e1-1")).await.unwrap_err();
    assert!(matches!(error, SnapshotError::TooNew { found: 2, known: 1, .. }), "{error}");
    // Another snapshot's manifest under this name.
    fs::create_dir_all(lab.object(&keys::snapshot(&container(), id("e1-2")))).unwrap();
    fs::write(lab.object(&keys::manifest(&container(), id("e1-2"))), good).unwrap();
    assert!(load_manifest(&lab.store, &container(), id("e1-2")).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_draft_is_not_committed() {
    let lab = Lab::new().await;
    lab.own(None).await;
    let draft = lab.draft(id("e1-1"), &lab.tree("memory", 500_000));
    let path = draft.chunk_path(&draft.manifest.parts[0], 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[10] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = upload(&lab.store, &draft, QUIET).await.unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    fs::remove_file(&path).unwrap();
    let error = upload(&lab.store, &draft, QUIET).await.unwrap_err();
    assert!(matches!(error, SnapshotError::DraftGone { .. }), "{error}");
    assert!(list(&lab.store, &container()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_outlives_an_outage_and_drops_the_oldest() {
    let lab = Lab::new().await;
    lab.own(None).await;
    let tree = lab.tree("memory", 400_000);
    for n in [9, 10, 11] {
        lab.draft(id(&format!("e1-{n}")), &tree);
    }
    // The store goes away: drafts stay, the error says to try again, and no store appears in its place.
    fs::rename(lab.path("store"), lab.path("away")).unwrap();
    let error = upload(&lab.store, &lab.queue.load(id("e1-9")).unwrap(), QUIET).await.unwrap_err();
    assert!(error.is_retryable() && !error.is_deposed(), "{error:?}");
    assert!(!lab.path("store").exists(), "a store was created where the old one was");
    fs::rename(lab.path("away"), lab.path("store")).unwrap();
    // A manager that was killed while packing left this.
    fs::create_dir(lab.path("queue/e1-12.partial")).unwrap();
    let queue = Queue::open(&lab.path("queue")).unwrap();
    assert_eq!(queue.list().unwrap(), [id("e1-9"), id("e1-10"), id("e1-11")]);
    let one = queue.size().unwrap() / 3;
    assert_eq!(queue.enforce(2 * one + 10, None).unwrap(), [id("e1-9")]);
    for id in queue.list().unwrap() {
        upload(&lab.store, &queue.load(id).unwrap(), QUIET).await.unwrap();
        queue.remove(id).unwrap();
    }
    assert_eq!(list(&lab.store, &container()).await.unwrap(), [id("e1-11"), id("e1-10")]);
    lab.draft(id("e1-12"), &tree);
    assert!(queue.enforce(0, None).unwrap().is_empty(), "the newest was dropped");
}

/// A file system of its own that is too small; gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, kib: u32) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        let options = format!("size={kib}k");
        let flags = nix::mount::MsFlags::empty();
        match nix::mount::mount(Some("ha-st"), &path, Some("tmpfs"), flags, Some(options.as_str())) {
            Ok(()) => Some(Self(path)),
            Err(e) => {
                println!("SKIPPED disk full: mounting a tmpfs: {e}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_and_leaves_no_draft() {
    let lab = Lab::new().await;
    let tree = lab.tree("memory", 2 << 20);
    let Some(disk) = SmallDisk::mount(lab.path("small"), 512) else { return };
    let queue = Queue::open(&disk.0.join("queue")).unwrap();
    let sources = [PartSource { name: PartName::Memory, dir: tree.clone() }];
    let options = PackOptions { chunk_bytes: 128 << 10, ..Default::default() };
    let error = pack(&queue, meta(id("e1-1")), &sources, &options).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("No space left"), "{error}: {source}");
    assert_eq!(fs::read_dir(disk.0.join("queue")).unwrap().count(), 0);
    // A full store: retryable, and its objects are whole or absent.
    let store = Store::open(&format!("file://{}", disk.0.display())).await.unwrap();
    store.init_or_join("test").await.unwrap();
    let claimant = Claimant::new("n1".parse().unwrap());
    ownership::claim(&store, &container(), None, &claimant).await.unwrap();
    let error = upload(&store, &lab.draft(id("e1-1"), &tree), QUIET).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(ownership::committed(&store, &container()).await.unwrap().is_empty());
    // A target that is too small is emptied again.
    let manifest = {
        lab.own(None).await;
        upload(&lab.store, &lab.queue.load(id("e1-1")).unwrap(), QUIET).await.unwrap()
    };
    let target = disk.0.join("target");
    fetch(&lab.store, &manifest, &PartName::Memory, &target, QUIET).await.unwrap_err();
    assert!(!target.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_keeps_what_it_has_to() {
    let lab = Lab::new().await;
    lab.own(None).await;
    let tree = lab.tree("memory", 1000);
    use SnapshotHealth::{Healthy, Unhealthy};
    for (n, health) in [(1, Healthy), (2, Healthy), (3, Unhealthy), (4, Unhealthy), (5, Unhealthy)] {
        let meta = SnapshotMeta { health, ..meta(SnapshotId { epoch: Epoch(1), seq: n }) };
        let sources = [PartSource { name: PartName::Memory, dir: tree.clone() }];
        let draft = pack(&lab.queue, meta, &sources, &PackOptions::default()).unwrap();
        upload(&lab.store, &draft, QUIET).await.unwrap();
    }
    // An upload that was given up.
    let orphan = lab.object(&keys::snapshot(&container(), id("e1-0")));
    fs::create_dir_all(&orphan).unwrap();
    fs::write(orphan.join("memory.0"), b"x").unwrap();
    let pruned = prune(&lab.store, &container(), keep(2), Epoch(1)).await.unwrap();
    assert_eq!(pruned, Pruned { snapshots: vec![id("e1-1"), id("e1-3")], orphans: vec![id("e1-0")] });
    assert!(!orphan.exists());
    assert_eq!(list(&lab.store, &container()).await.unwrap(), [id("e1-5"), id("e1-4"), id("e1-2")]);
    assert_eq!(prune(&lab.store, &container(), keep(2), Epoch(1)).await.unwrap(), Pruned::default());
    lab.own(Some(1)).await;
    let error = prune(&lab.store, &container(), keep(1), Epoch(1)).await.unwrap_err();
    assert!(error.is_deposed(), "{error}");
    assert_eq!(list(&lab.store, &container()).await.unwrap().len(), 3);
    // Removed: nothing counts any more, also not for whoever uses the name next.
    let claimant = Claimant::new("n1".parse().unwrap());
    let claim = ownership::release(&lab.store, &container(), Epoch(2), &claimant).await.unwrap();
    assert!(matches!(claim, Claim::Won(Owner { released: true, .. })));
    assert!(list(&lab.store, &container()).await.unwrap().is_empty());
    remove_all(&lab.store, &container()).await.unwrap();
    assert!(ownership::committed(&lab.store, &container()).await.unwrap().is_empty());
}

#[test]
fn what_does_not_compress_is_stored_as_it_is() {
    let mut noise = vec![0; 1 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let mut scratch = Vec::new();
    let (stored, chunk) = chunk::seal("x", &noise, Some(1), &mut scratch).unwrap();
    assert_eq!((chunk.compression, stored.len()), (Compression::None, noise.len()));
    let text = half_random(1 << 20);
    let (stored, chunk) = chunk::seal("x", &text, Some(1), &mut scratch).unwrap();
    assert_eq!(chunk.compression, Compression::Zstd);
    assert!(stored.len() < text.len() * 6 / 10);
    let stored = bytes::Bytes::copy_from_slice(stored);
    assert_eq!(chunk::open("x", stored.clone(), &chunk).unwrap(), text);
    // A chunk that expands to more than it declares is refused, without the memory for it.
    let short = Chunk { raw_len: 1000, ..chunk };
    assert!(chunk::open("x", stored, &short).is_err());
}
