use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::*;
use crate::spec::{ContainerName, Epoch};

fn url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

pub(super) fn text(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(&format!(": {e}"));
        source = e.source();
    }
    text
}

async fn open(dir: &tempfile::TempDir) -> Store {
    let store = Store::open(&url(dir.path())).await.unwrap();
    store.init_or_join("test").await.unwrap();
    store
}

fn container(name: &str) -> ContainerName {
    name.parse().unwrap()
}

/// What every kind of store has to do.
pub(super) async fn contract(store: &Store) {
    store.probe_create_only().await.unwrap();
    assert_eq!(store.put_new("a/b/c", Bytes::from_static(b"1")).await.unwrap(), PutNew::Created);
    assert_eq!(store.put_new("a/b/c", Bytes::from_static(b"2")).await.unwrap(), PutNew::AlreadyExists);
    assert_eq!(store.get("a/b/c", 10).await.unwrap(), "1");
    assert!(matches!(store.get("a/b/c", 0).await, Err(StoreError::TooLarge { size: 1, max: 0, .. })));
    assert!(matches!(store.get("a/x", 10).await, Err(StoreError::NotFound { .. })));
    assert_eq!(store.get_opt("a/x", 10).await.unwrap(), None);
    assert_eq!((store.head("a/b/c").await.unwrap(), store.head("a/b").await.unwrap()), (Some(1), None));
    store.put_bulk("a/b/d", Bytes::from_static(b"33")).await.unwrap();
    store.put_bulk("a/b/d", Bytes::from_static(b"333")).await.unwrap();
    store.put_new("a/bb/e", Bytes::new()).await.unwrap();
    store.sync(&["a/b/d".to_owned()]).await.unwrap();
    let keys = |listed: Vec<Listed>| listed.into_iter().map(|o| (o.key, o.size)).collect::<Vec<_>>();
    // A prefix is a directory, not the beginning of a name.
    assert_eq!(keys(store.list("a/b/").await.unwrap()), [("a/b/c".into(), 1), ("a/b/d".into(), 3)]);
    assert_eq!(keys(store.list("nothing/").await.unwrap()), []);
    assert_eq!(store.list_dirs("a/").await.unwrap(), ["b", "bb"]);
    assert!(store.list_dirs("nothing/").await.unwrap().is_empty());
    store.delete("a/b/c").await.unwrap();
    store.delete("a/b/c").await.unwrap();
    assert_eq!(store.put_new("a/b/c", Bytes::from_static(b"4")).await.unwrap(), PutNew::Created);
    assert_eq!(store.delete_prefix("a/b/").await.unwrap(), 2);
    assert_eq!(keys(store.list("a/").await.unwrap()), [("a/bb/e".into(), 0)]);

    let dir = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..20_u32 << 20).map(|n| (n >> 3) as u8).collect();
    fs::write(dir.path().join("in"), &large).unwrap();
    assert_eq!(store.put_file("blobs/x", &dir.path().join("in")).await.unwrap(), large.len() as u64);
    let out = dir.path().join("out");
    let received = store.get_to_file("blobs/x", &out, large.len() as u64).await.unwrap();
    assert_eq!(received, Received { size: large.len() as u64, blake3: blake3::hash(&large) });
    assert!(fs::read(&out).unwrap() == large);
    assert!(matches!(store.get_to_file("blobs/x", &out, 1 << 30).await, Err(StoreError::LocalFile { .. })));
    fs::remove_file(&out).unwrap();
    let error = store.get_to_file("blobs/x", &out, 1000).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }) && !out.exists());
    // A source that fails half-way leaves no object.
    let pieces = vec![Ok(Bytes::from(large)), Err(std::io::Error::other("cut"))];
    store.put_stream("blobs/y", futures_util::stream::iter(pieces)).await.unwrap_err();
    assert_eq!(store.head("blobs/y").await.unwrap(), None);
    store.put_stream("blobs/z", futures_util::stream::empty()).await.unwrap();
    assert_eq!(store.get("blobs/z", 1).await.unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract(&open(&dir).await).await;
    // Nothing but the marker and two blobs; deleted directories are gone.
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "blobs", "cluster"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_url_or_directory_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for bad in ["", "/srv/store", "http://x/y", "file:relative", "s3://"] {
        let result = Store::open(bad).await;
        assert!(matches!(result, Err(StoreError::BadUrl { .. })) || bad == "file:relative", "{bad}: {result:?}");
    }
    let missing = dir.path().join("missing");
    let error = Store::open(&url(&missing)).await.unwrap_err();
    assert!(text(&error).contains("mount the shared directory there"), "{}", text(&error));
    assert!(!missing.exists());
    fs::write(dir.path().join("file"), b"").unwrap();
    let error = Store::open(&url(&dir.path().join("file"))).await.unwrap_err();
    assert!(matches!(error, StoreError::NoDirectory { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_or_a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&url(dir.path())).await.unwrap();
    let first = store.init_or_join("blue").await.unwrap();
    assert!(first.created);
    let again = Store::open(&url(dir.path())).await.unwrap().init_or_join("blue").await.unwrap();
    assert_eq!((again.id, again.created), (first.id, false));
    let error = store.init_or_join("green").await.unwrap_err();
    assert!(matches!(&error, StoreError::WrongCluster { found, .. } if found == "blue"), "{error}");
    let marker = dir.path().join("cluster");
    let good = fs::read_to_string(&marker).unwrap();
    fs::write(&marker, good.replace("\"format\":1", "\"format\":2,\"strange\":{}")).unwrap();
    let error = store.init_or_join("blue").await.unwrap_err();
    assert!(matches!(error, StoreError::TooNew { found: 2, known: 1, .. }), "{error}");
    for bad in ["", "{}", "{\"magic\":\"other\",\"format\":1}"] {
        fs::write(&marker, bad).unwrap();
        assert!(matches!(store.init_or_join("blue").await, Err(StoreError::Corrupt { .. })), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_in_a_store_takes_no_other_and_no_empty_one_for_it() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mine = open(&dir).await.init_or_join("test").await.unwrap();
    let expected = Expected::Id(mine.id.clone());
    let empty = Store::open(&url(other.path())).await.unwrap();
    for expected in [&expected, &Expected::UsedStore] {
        assert!(matches!(empty.join("test", expected).await, Err(StoreError::Emptied { .. })), "{expected:?}");
    }
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0, "nothing may be written there");
    let found = empty.init_or_join("test").await.unwrap().id;
    let error = empty.join("test", &expected).await.unwrap_err();
    assert!(matches!(&error, StoreError::OtherStore { found: f, wanted, .. } if *f == found && *wanted == mine.id));
    assert_eq!(open(&dir).await.join("test", &expected).await.unwrap().id, mine.id);
    assert_eq!(empty.join("test", &Expected::UsedStore).await.unwrap().id, found);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_nodes_joining_at_once_make_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let joins = (0..20).map(|_| {
        let url = url(dir.path());
        tokio::spawn(async move { Store::open(&url).await.unwrap().init_or_join("test").await.unwrap() })
    });
    let infos: Vec<_> = futures_util::future::join_all(joins).await.into_iter().map(|i| i.unwrap()).collect();
    assert_eq!(infos.iter().map(|i| &i.id).collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(infos.iter().filter(|i| i.created).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_went_away_is_not_replaced_by_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let (root, away) = (dir.path().join("store"), dir.path().join("away"));
    fs::create_dir(&root).unwrap();
    let store = Store::open(&url(&root)).await.unwrap();
    store.init_or_join("test").await.unwrap();
    store.put_new("owners/a/1", Bytes::from_static(b"x")).await.unwrap();
    fs::rename(&root, &away).unwrap();
    let gone = |e: StoreError| matches!(&e, StoreError::Replaced { .. }) && e.is_retryable();
    assert!(gone(store.list("owners/").await.unwrap_err()));
    assert!(gone(store.put_new("owners/a/2", Bytes::new()).await.unwrap_err()));
    assert!(!root.exists());
    // The empty mount point: every listing would be empty, every claim would succeed.
    fs::create_dir(&root).unwrap();
    assert!(gone(store.list("owners/").await.unwrap_err()));
    assert!(gone(store.put_new("owners/a/1", Bytes::new()).await.unwrap_err()));
    assert!(gone(store.get("owners/a/1", 9).await.unwrap_err()));
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    // Another store, even of the same cluster.
    let other = Store::open(&url(&root)).await.unwrap();
    other.init_or_join("test").await.unwrap();
    assert!(gone(store.list("owners/").await.unwrap_err()));
    // The same store in a directory of another identity: mounted again.
    fs::remove_dir_all(&root).unwrap();
    fs::create_dir(&root).unwrap();
    for name in ["cluster", "owners/a/1"] {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::copy(away.join(name), root.join(name)).unwrap();
    }
    assert_eq!(store.list("owners/").await.unwrap().len(), 1);
}

/// Lets whoever waits for a FIFO's other end go on.
struct Fifo(PathBuf);

impl Fifo {
    fn new(path: PathBuf) -> Self {
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        Self(path)
    }

    fn release(&self) {
        let writer = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&self.0);
        drop(writer);
    }
}

/// A failed test must not leave threads behind that its runtime waits for.
impl Drop for Fifo {
    fn drop(&mut self) {
        self.release();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_file_system_hangs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { deadline: Duration::from_millis(300), slowest_rate: 1 << 40, max_in_flight: 3 };
    let store = Store::open_with(&url(dir.path()), options).await.unwrap();
    // Opening a FIFO blocks in the kernel as a dead NFS server does.
    let fifo = Fifo::new(dir.path().join("hung"));
    for _ in 0..5 {
        let start = Instant::now();
        let error = store.get("hung", 10).await.unwrap_err();
        assert!(matches!(error, StoreError::Deadline { .. }) && error.is_retryable(), "{error}");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
    // Three calls hang; no more threads are given away, and callers are told in time.
    assert_eq!(store.inner.permits.available_permits(), 0);
    let error = store.put_new("x", Bytes::new()).await.unwrap_err();
    assert!(matches!(error, StoreError::Deadline { .. }), "{error}");
    // It comes back by itself.
    let end = Instant::now() + Duration::from_secs(20);
    while store.put_new("y", Bytes::new()).await.is_err() {
        fifo.release();
        assert!(Instant::now() < end);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_store_is_named_and_waited_for() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("mnt");
    fs::create_dir(&root).unwrap();
    if let Err(e) = mount(Some("ha-st"), &root, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>) {
        println!("SKIPPED a_read_only_store_is_named_and_waited_for: mounting a tmpfs: {e}");
        return;
    }
    let result = async {
        let store = Store::open(&url(&root)).await?;
        store.init_or_join("test").await
    };
    let result = result.await;
    umount2(&root, MntFlags::MNT_DETACH).unwrap();
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly { .. }) && error.is_retryable(), "{}", text(&error));
    assert!(text(&error).contains("is read-only"), "{}", text(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_name_is_given_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let record = |nonce: &str, address: &str| NodeRecord {
        node: "n1".parse().unwrap(),
        nonce: nonce.into(),
        address: address.into(),
        bridge: Some(Ipv4Addr::new(10, 77, 0, 1)),
        own_lease_ms: None,
        lease_ms: None,
        at: chrono::DateTime::UNIX_EPOCH,
    };
    let first = store.claim_node_name(&record("a", "10.77.0.1:1")).await.unwrap();
    assert_eq!(store.claim_node_name(&record("a", "10.77.0.1:1")).await.unwrap(), first);
    let error = store.claim_node_name(&record("b", "10.77.0.2:1")).await.unwrap_err();
    assert!(error.to_string().contains("10.77.0.1:1"), "{error}");
    // Its own, from when it had other addresses.
    let moved = NodeRecord { bridge: Some(Ipv4Addr::new(10, 77, 0, 9)), ..record("a", "10.77.0.8:1") };
    assert_eq!(store.claim_node_name(&moved).await.unwrap(), moved);
    assert_eq!(store.node_records().await.unwrap(), [moved]);
    assert_eq!(store.claim_node_name(&record("a", "10.77.0.1:1")).await.unwrap(), first);
    // Also those that an earlier release wrote.
    let old = r#"{"node":"n2","nonce":"c","address":"10.77.0.2:1","at":"1970-01-01T00:00:00Z"}"#;
    fs::write(dir.path().join("nodes/n2"), old).unwrap();
    let bridges: Vec<_> = store.node_records().await.unwrap().into_iter().map(|record| record.bridge).collect();
    assert_eq!(bridges, [Some(Ipv4Addr::new(10, 77, 0, 1)), None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_given_once_and_come_back_to_their_container() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let pool = addresses::Pool {
        network: Ipv4Addr::new(10, 77, 0, 130),
        prefix_len: 28,
        exclude: BTreeSet::from([Ipv4Addr::new(10, 77, 0, 129)]),
    };
    // 14 hosts without one; all of them at once, each asked for twice.
    let names: Vec<_> = (0..13).map(|n| container(&format!("c{n}"))).collect();
    let both = names.iter().chain(&names).map(|name| addresses::allocate(&store, name, &pool));
    let given: Vec<_> = futures_util::future::join_all(both).await.into_iter().map(Result::unwrap).collect();
    let all = addresses::all(&store).await.unwrap();
    assert_eq!(all.len(), given.iter().collect::<BTreeSet<_>>().len());
    for (address, owner) in &all {
        assert!(u32::from(*address) > u32::from(Ipv4Addr::new(10, 77, 0, 129)));
        assert!(u32::from(*address) < u32::from(Ipv4Addr::new(10, 77, 0, 143)));
        assert!(names.contains(owner));
    }
    let error = addresses::allocate(&store, &container("one-more"), &pool).await.unwrap_err();
    assert!(error.to_string().contains("no free address"), "{error}");
    let (address, owner) = all[0].clone();
    assert_eq!(addresses::allocate(&store, &owner, &pool).await.unwrap(), address);
    let error = addresses::reserve(&store, &container("other"), address).await.unwrap_err();
    assert!(matches!(error, StoreError::AddressTaken { .. }), "{error}");
    addresses::release(&store, &container("other"), address).await.unwrap();
    assert_eq!(addresses::owner(&store, address).await.unwrap(), Some(owner.clone()));
    addresses::release(&store, &owner, address).await.unwrap();
    addresses::reserve(&store, &container("other"), address).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_container_gets_the_address_of_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let ip = |last| Ipv4Addr::new(10, 77, 0, last);
    for (node, last) in [("n1", 129), ("n2", 130), ("n3", 131)] {
        let bridge = Some(ip(last));
        let (node, nonce, address) = (node.parse().unwrap(), node.to_owned(), format!("192.0.2.{last}:7420"));
        let record = NodeRecord {
            node,
            nonce,
            address,
            bridge,
            own_lease_ms: None,
            lease_ms: None,
            at: chrono::DateTime::UNIX_EPOCH,
        };
        store.claim_node_name(&record).await.unwrap();
    }
    // One that has not registered, but is heard.
    let heard = BTreeMap::from([(ip(132), "n4".to_owned())]);
    let pool = || addresses::Pool { network: ip(128), prefix_len: 28, exclude: BTreeSet::new() };
    let mut given = BTreeSet::new();
    for n in 0..10 {
        let address = addresses::give(&store, &container(&format!("c{n}")), None, pool(), &heard).await.unwrap();
        assert!((133..=142).contains(&address.octets()[3]), "{address}");
        assert!(given.insert(address));
    }
    let error = addresses::give(&store, &container("late"), None, pool(), &heard).await.unwrap_err();
    assert!(matches!(error, StoreError::PoolExhausted { .. }), "{error}");
    for (last, node) in [(130, "n2"), (132, "n4")] {
        let error = addresses::give(&store, &container("late"), Some(ip(last)), pool(), &heard).await.unwrap_err();
        assert!(error.to_string().contains(node) && error.to_string().contains("late"), "{error}");
        assert_eq!(addresses::owner(&store, ip(last)).await.unwrap(), None, "it stays reserved");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_keeps_its_address_when_one_it_would_have_liked_better_is_freed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let pool = addresses::Pool { network: Ipv4Addr::new(10, 77, 1, 0), prefix_len: 24, exclude: BTreeSet::new() };
    let (name, other) = (container("b"), container("a"));
    assert_eq!(addresses::find(&store, &name, &pool).await.unwrap(), None);
    assert_eq!(addresses::all(&store).await.unwrap(), [], "a question reserves nothing");
    // Once among those that are asked for directly, once beyond them.
    for before in [1, 20] {
        let walk: Vec<_> = pool.walk(&name).take(before).collect();
        for address in &walk {
            addresses::reserve(&store, &other, *address).await.unwrap();
        }
        let given = addresses::allocate(&store, &name, &pool).await.unwrap();
        assert_eq!(Some(given), pool.walk(&name).nth(before));
        for address in &walk {
            addresses::release(&store, &other, *address).await.unwrap();
        }
        assert_eq!(addresses::allocate(&store, &name, &pool).await.unwrap(), given);
        assert_eq!(addresses::find(&store, &name, &pool).await.unwrap(), Some(given));
        // A node whose pool is another one.
        let elsewhere = addresses::Pool { network: Ipv4Addr::new(10, 78, 1, 0), ..pool.clone() };
        assert_eq!(addresses::allocate(&store, &name, &elsewhere).await.unwrap(), given);
        addresses::release(&store, &name, given).await.unwrap();
    }
}

#[test]
fn a_walk_visits_every_host_once() {
    for prefix_len in [24, 28, 30] {
        let network = Ipv4Addr::new(10, 77, 3, 0);
        let pool = addresses::Pool { network, prefix_len, exclude: BTreeSet::new() };
        let walked: BTreeSet<_> = pool.walk(&container("redis")).collect();
        let hosts = (1_u32 << (32 - prefix_len)) - 2;
        assert_eq!(walked.len() as u32, hosts);
        assert_eq!(pool.walk(&container("redis")).count() as u32, hosts);
        assert_eq!(u32::from(*walked.first().unwrap()), u32::from(network) + 1);
        assert_eq!(u32::from(*walked.last().unwrap()), u32::from(network) + hosts);
    }
}

fn content(name: &str) -> apps::AppContent {
    use crate::spec::{ContainerSpec, ImageRecord, NetworkSpec, RecoveryPolicy, RestartPolicy, StateKind};
    apps::AppContent {
        spec: ContainerSpec {
            name: container(name),
            image: "x".into(),
            entrypoint: None,
            command: None,
            environment: Default::default(),
            working_dir: None,
            user: None,
            hostname: None,
            mounts: vec![],
            network: NetworkSpec::default(),
            healthcheck: None,
            depends_on: vec![],
            restart: RestartPolicy::Always,
            rlimits: vec![],
            state: StateKind::Stateful { sensitivity: Duration::from_secs(5) },
            keep: 2,
            keep_manual: 3,
            recovery: RecoveryPolicy::stateful_default(),
            annotations: Default::default(),
        },
        image: ImageRecord { reference: "x".into(), config: Default::default(), layers: vec![] },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_generation_wins_and_racing_applies_do_not_overwrite() {
    use apps::PutApp::{Conflict, Stored};
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let name = container("redis");
    let racing = (0..20).map(|_| apps::put(&store, &name, 0, Some(content("redis"))));
    let outcomes: Vec<_> = futures_util::future::join_all(racing).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|o| matches!(o, Stored(1))).count(), 1);
    assert!(outcomes.iter().all(|o| matches!(o, Stored(1)) || matches!(o, Conflict(app) if app.generation == 1)));
    for expected in 1..11 {
        assert_eq!(apps::put(&store, &name, expected, Some(content("redis"))).await.unwrap(), Stored(expected + 1));
    }
    let newest = apps::newest(&store, &name).await.unwrap().unwrap();
    assert_eq!((newest.generation, newest.content), (11, Some(content("redis"))));
    apps::put(&store, &name, 11, None).await.unwrap();
    apps::put(&store, &container("web"), 0, Some(content("web"))).await.unwrap();
    fs::create_dir_all(dir.path().join("apps/broken")).unwrap();
    fs::write(dir.path().join("apps/broken").join(format!("{:020}", 1)), b"{").unwrap();
    let all = apps::all(&store, &Newest::default()).await.unwrap();
    assert_eq!(all[&name].as_ref().unwrap().content, None);
    assert!(all[&container("web")].is_ok() && all[&container("broken")].is_err());
    assert_eq!(apps::newest(&store, &container("none")).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn log_segments_keep_their_order_and_are_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let name = container("redis");
    let segment = |epoch, number, bytes: &'static [u8]| {
        let (store, name) = (&store, &name);
        async move { logs::put(store, name, Epoch(epoch), number, Bytes::from_static(bytes)).await }
    };
    for (epoch, number) in [(1, 9), (1, 10), (2, 0)] {
        segment(epoch, number, b"line\n").await.unwrap();
    }
    segment(1, 9, b"line\n").await.unwrap();
    assert!(matches!(segment(1, 9, b"other\n").await, Err(StoreError::Corrupt { .. })));
    let listed = logs::list(&store, &name).await.unwrap();
    let order: Vec<_> = listed.iter().map(|s| (s.epoch.0, s.number, s.size)).collect();
    assert_eq!(order, [(1, 9, 5), (1, 10, 5), (2, 0, 5)]);
    assert_eq!(logs::get(&store, &name, listed[1]).await.unwrap(), "line\n");
    assert_eq!(logs::trim(&store, &name, 10).await.unwrap(), 1);
    assert_eq!(logs::list(&store, &name).await.unwrap(), listed[1..]);
}
