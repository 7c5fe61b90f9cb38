//! Real nodes on the loopback: tonic servers on free ports.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ha_proto::peer::{
    self as pb,
    peer_client::PeerClient,
    peer_server::{Peer, PeerServer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{broadcast, watch},
    task::JoinHandle,
    time::Instant,
};
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::{
    spec::NodeName,
    tls::{Limits, Security, testing::Authority},
};

struct Service(MembershipService);

#[tonic::async_trait]
impl Peer for Service {
    async fn ping(&self, request: Request<pb::PingRequest>) -> Result<Response<pb::PingReply>, Status> {
        self.0.ping(request).await
    }

    async fn ping_indirect(
        &self,
        request: Request<pb::PingIndirectRequest>,
    ) -> Result<Response<pb::PingIndirectReply>, Status> {
        self.0.ping_indirect(request).await
    }

    async fn has_copy(&self, _: Request<pb::HasCopyRequest>) -> Result<Response<pb::HasCopyReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn take_over(&self, _: Request<pb::TakeOverRequest>) -> Result<Response<pb::TakeOverReply>, Status> {
        Err(Status::unimplemented("not part of this test"))
    }
}

/// A node in a runtime of its own: dropping it is a power cut, listener, connections and timers at once.
struct Node {
    membership: Option<Membership>,
    events: broadcast::Receiver<Event>,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
    state: tempfile::TempDir,
    _server: JoinHandle<()>,
}

impl Node {
    fn start(cluster: &str, name: &str, port: u16, seeds: &[SocketAddr]) -> Node {
        Self::secured(Security::insecure(), cluster, name, port, None, seeds)
    }

    /// A node that others reach at `front`.
    fn secured(
        security: Security,
        cluster: &str,
        name: &str,
        port: u16,
        front: Option<SocketAddr>,
        seeds: &[SocketAddr],
    ) -> Node {
        let state = tempfile::tempdir().unwrap();
        let acquaintances = Acquaintances::open(state.path().join("peers.json"), 8).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let seeds = seeds.iter().map(SocketAddr::to_string).collect();
        let (cluster, name) = (cluster.to_owned(), name.parse::<NodeName>().unwrap());
        let started = std::thread::scope(|scope| {
            let run = || {
                runtime.block_on(async {
                    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
                    let address = listener.local_addr().unwrap();
                    let advertise = front.unwrap_or(address).to_string();
                    let membership = Membership::start(
                        Config::new(cluster),
                        Me { name, address: advertise, boot: Boot::random() },
                        seeds,
                        security.clone(),
                        acquaintances,
                        Arc::new(|_, _| {}),
                    )
                    .unwrap();
                    let events = membership.subscribe();
                    let service =
                        PeerServer::new(Service(membership.service())).max_decoding_message_size(pb::MAX_MESSAGE);
                    let incoming = security.incoming(listener, Limits::default());
                    let server = tokio::spawn(async move {
                        tonic::transport::Server::builder()
                            .add_service(service)
                            .serve_with_incoming(incoming)
                            .await
                            .unwrap();
                    });
                    (membership, events, address, server)
                })
            };
            scope.spawn(run).join().unwrap()
        });
        let (membership, events, address, server) = started;
        Node { membership: Some(membership), events, address, runtime: Some(runtime), state, _server: server }
    }

    fn membership(&self) -> &Membership {
        self.membership.as_ref().unwrap()
    }

    fn liveness(&self, name: &str) -> Option<Liveness> {
        self.membership().peers().into_iter().find(|p| p.name.as_str() == name).map(|p| p.liveness)
    }

    async fn until(&self, name: &str, liveness: Liveness, within: Duration) -> Duration {
        let began = Instant::now();
        while self.liveness(name) != Some(liveness) {
            assert!(began.elapsed() < within, "{name} is {:?} after {within:?}", self.liveness(name));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        began.elapsed()
    }

    fn seen(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    fn cut(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            self.membership = None;
            runtime.shutdown_background();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cut();
    }
}

/// A link that can be cut: connections then go mute, and those that were open stay mute after it is mended, as TCP's
/// do while it waits for a late retransmission.
struct Link {
    front: SocketAddr,
    up: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Link {
    async fn new() -> (Link, watch::Sender<Option<SocketAddr>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = listener.local_addr().unwrap();
        let up = Arc::new(AtomicBool::new(true));
        let (back, target) = watch::channel(None::<SocketAddr>);
        let state = up.clone();
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let target = *target.borrow();
                open.spawn(Self::carry(client, target, state.clone()));
            }
        });
        (Link { front, up, task }, back)
    }

    async fn carry(mut client: TcpStream, target: Option<SocketAddr>, up: Arc<AtomicBool>) {
        let Some(target) = target else { return };
        let Ok(mut server) = TcpStream::connect(target).await else { return };
        let (mut there, mut back) = ([0; 4096], [0; 4096]);
        loop {
            let (from_client, n) = tokio::select! {
                n = client.read(&mut there) => (true, n),
                n = server.read(&mut back) => (false, n),
            };
            if !up.load(Ordering::SeqCst) {
                return std::future::pending().await;
            }
            let Ok(n @ 1..) = n else { return };
            let written =
                if from_client { server.write_all(&there[..n]).await } else { client.write_all(&back[..n]).await };
            if written.is_err() {
                return;
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Longer than any bound: only a broken protocol takes it, not a busy machine.
const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn two_nodes_join_by_a_seed_see_a_cut_and_a_restart() {
    let a = Node::start("c", "a", 0, &[]);
    let mut b = Node::start("c", "b", 0, &[a.address]);
    let joined = a.until("b", Liveness::Alive, LONG).await.max(b.until("a", Liveness::Alive, LONG).await);
    let first = a.membership().peers()[0].clone();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let port = b.address.port();
    b.cut();
    let detected = a.until("b", Liveness::Dead, LONG).await;
    println!("two nodes: joined in {joined:?}, a cut detected in {detected:?}");
    assert!(detected >= Duration::from_millis(600), "death without the suspicion time: {detected:?}");
    assert!(detected < Duration::from_secs(3), "{detected:?}");

    // The seed is not needed again: a dead peer is looked for.
    let b = Node::start("c", "b", port, &[]);
    a.until("b", Liveness::Alive, LONG).await;
    b.until("a", Liveness::Alive, LONG).await;
    let second = a.membership().peers()[0].clone();
    assert_ne!(first.boot, second.boot);
    assert!(second.incarnation > first.incarnation, "{} then {}", first.incarnation, second.incarnation);
}

fn names(set: &std::collections::BTreeSet<NodeName>) -> Vec<&str> {
    set.iter().map(NodeName::as_str).collect()
}

#[tokio::test]
async fn contacts_are_on_the_disk_before_they_count_and_a_node_that_is_gone_can_be_forgotten() {
    let a = Node::start("c", "a", 0, &[]);
    let mut b = Node::start("c", "b", 0, &[a.address]);
    a.until("b", Liveness::Alive, LONG).await;
    b.until("a", Liveness::Alive, LONG).await;
    let began = Instant::now();
    while !(a.membership().met().len() == 1 && b.membership().met().len() == 1) {
        assert!(began.elapsed() < LONG, "{:?} {:?}", a.membership().met(), b.membership().met());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for (node, other) in [(&a, "b"), (&b, "a")] {
        assert_eq!(names(&node.membership().known()), [other]);
        let on_disk = Acquaintances::open(node.state.path().join("peers.json"), 8).unwrap();
        assert_eq!((names(&on_disk.contacts().known), names(&on_disk.contacts().met)), (vec![other], vec![other]));
    }
    let view = a.membership().peers()[0].clone();
    let answered = a.membership().shared.with(|core| core.answered_at(&view.name));
    assert!(answered.is_some() && a.membership().last_contact(&view.name).is_some());
    let refused = a.membership().forget(&view.name).unwrap_err();
    assert!(matches!(refused, ForgetError::Lives(_)), "{refused}");
    b.cut();
    a.until("b", Liveness::Dead, LONG).await;
    a.membership().forget(&view.name).unwrap();
    assert!(a.membership().peers().is_empty() && a.membership().known().is_empty() && a.membership().met().is_empty());
    // It was forgotten too early.
    a.membership().remember(&view.name).unwrap();
    let on_disk = Acquaintances::open(a.state.path().join("peers.json"), 8).unwrap();
    assert_eq!((names(&a.membership().known()), names(&on_disk.contacts().known)), (vec!["b"], vec!["b"]));
    assert!(a.membership().met().is_empty());
}

#[tokio::test]
async fn nobody_is_spoken_to_who_cannot_be_remembered() {
    let a = Node::start("c", "a", 0, &[]);
    let b = Node::start("c", "b", 0, &[a.address]);
    a.until("b", Liveness::Alive, LONG).await;
    // A directory in the way of the file that is written first: nobody can write it, not even root.
    let blocked = a.state.path().join("peers.json.new");
    let began = Instant::now();
    while std::fs::create_dir(&blocked).is_err() {
        assert!(began.elapsed() < LONG);
    }
    let c = Node::start("c", "c", 0, &[a.address]);
    let client = PeerClient::connect(format!("http://{}", a.address)).await.unwrap();
    let request = pb::PingRequest { envelope: Some(c.membership().service().envelope()), seq: 1 };
    let status = client.clone().ping(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("cannot remember"), "{status:?}");
    assert_eq!(names(&a.membership().known()), ["b"]);
    assert!(!names(&c.membership().met()).contains(&"a"));
    // The others are not concerned.
    let saw_us = || b.membership().peers().into_iter().find(|peer| peer.name.as_str() == "a").unwrap().saw_us;
    let (before, began) = (saw_us(), Instant::now());
    while saw_us() == before {
        assert!(began.elapsed() < LONG, "the known are not answered");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    std::fs::remove_dir(&blocked).unwrap();
    let began = Instant::now();
    while names(&a.membership().known()) != ["b", "c"] || !names(&c.membership().met()).contains(&"a") {
        assert!(began.elapsed() < LONG, "{:?}", a.membership().known());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn three_nodes_meet_through_one_seed_and_agree_on_a_death_and_a_leave() {
    let mut a = Node::start("c", "a", 0, &[]);
    let mut b = Node::start("c", "b", 0, &[a.address]);
    let mut c = Node::start("c", "c", 0, &[a.address]);
    b.until("c", Liveness::Alive, LONG).await;
    c.until("b", Liveness::Alive, LONG).await;
    a.seen();
    b.cut();
    let by_a = a.until("b", Liveness::Dead, LONG).await;
    let by_c = c.until("b", Liveness::Dead, LONG).await;
    println!("three nodes: detected in {by_a:?} and {:?}", by_a + by_c);
    let events = a.seen();
    assert!(events.iter().any(|e| matches!(e, Event::Dead { node } if node.as_str() == "b")), "{events:?}");
    assert_eq!(a.liveness("c"), Some(Liveness::Alive));

    c.membership().leave().await;
    a.until("c", Liveness::Left, LONG).await;
    c.cut();
    let events = a.seen();
    assert!(!events.iter().any(|e| matches!(e, Event::Suspect { node, .. } if node.as_str() == "c")), "{events:?}");
}

#[tokio::test]
async fn a_stranger_of_another_cluster_is_refused_and_not_remembered() {
    let a = Node::start("blue", "a", 0, &[]);
    let b = Node::start("green", "b", 0, &[a.address]);
    let client = PeerClient::connect(format!("http://{}", a.address)).await.unwrap();
    let request = pb::PingRequest { envelope: Some(b.membership().service().envelope()), seq: 1 };
    let status = client.clone().ping(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("\"blue\"") && status.message().contains("\"green\""), "{}", status.message());
    let status = client.clone().ping(pb::PingRequest { envelope: None, seq: 2 }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(a.membership().peers().is_empty() && b.membership().peers().is_empty());
}

#[tokio::test]
async fn a_node_is_believed_in_its_own_name_only() {
    let lab = Authority::of("c");
    let a = Node::secured(lab.node("a"), "c", "a", 0, None, &[]);
    // One that calls itself b, with c's certificate.
    let b = Node::secured(lab.node("c"), "c", "b", 0, None, &[a.address]);
    let d = Node::secured(lab.node("d"), "c", "d", 0, None, &[b.address, a.address]);
    let ask = async |security: Security, of: &Node| {
        let (channel, _) = security.lazy(&a.address.to_string(), LONG, |endpoint| endpoint).unwrap();
        let envelope = of.membership().service().envelope();
        PeerClient::new(channel).ping(pb::PingRequest { envelope: Some(envelope), seq: 1 }).await
    };
    let status = ask(lab.node("c"), &b).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("in the name of b") && status.message().contains("is c's"), "{status:?}");
    ask(lab.node("d"), &d).await.unwrap();
    // Meanwhile b asks a, and d asks b.
    a.until("d", Liveness::Alive, LONG).await;
    d.until("a", Liveness::Alive, LONG).await;
    for _ in 0..5 {
        let before = d.membership().peers().into_iter().find(|peer| peer.name.as_str() == "a").unwrap().saw_us;
        let began = Instant::now();
        while d.membership().peers().into_iter().find(|peer| peer.name.as_str() == "a").unwrap().saw_us == before {
            assert!(began.elapsed() < LONG, "probing has stopped");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_ne!(d.liveness("b"), Some(Liveness::Alive), "b is believed by its word");
}

#[tokio::test]
async fn garbage_and_oversized_messages_do_no_harm() {
    let a = Node::start("c", "a", 0, &[]);
    let b = Node::start("c", "b", 0, &[a.address]);
    a.until("b", Liveness::Alive, LONG).await;
    for garbage in
        [&[0u8; 4096][..], &[0xff; 4096], b"GET / HTTP/1.0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff"]
    {
        let mut stream = TcpStream::connect(a.address).await.unwrap();
        // The other side may close as soon as it sees what this is.
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    }
    let mut envelope = b.membership().service().envelope();
    envelope.cluster = "c".repeat(pb::MAX_MESSAGE + 1);
    let mut client = PeerClient::connect(format!("http://{}", a.address)).await.unwrap();
    let status = client.ping(pb::PingRequest { envelope: Some(envelope), seq: 1 }).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");

    let before = a.membership().peers()[0].saw_us;
    let began = Instant::now();
    while a.membership().peers()[0].saw_us == before {
        assert!(began.elapsed() < LONG, "probing has stopped");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((a.liveness("b"), b.liveness("a")), (Some(Liveness::Alive), Some(Liveness::Alive)));
}

#[tokio::test]
async fn a_mute_link_is_detected_and_the_first_probe_after_it_is_mended_gets_through() {
    let (to_a, a_back) = Link::new().await;
    let (to_b, b_back) = Link::new().await;
    let lab = Authority::of("c");
    let a = Node::secured(lab.node("a"), "c", "a", 0, Some(to_a.front), &[]);
    a_back.send(Some(a.address)).unwrap();
    let b = Node::secured(lab.node("b"), "c", "b", 0, Some(to_b.front), &[to_a.front]);
    b_back.send(Some(b.address)).unwrap();
    a.until("b", Liveness::Alive, LONG).await;
    tokio::time::sleep(Duration::from_millis(500)).await;

    to_a.up.store(false, Ordering::SeqCst);
    to_b.up.store(false, Ordering::SeqCst);
    let by_a = a.until("b", Liveness::Dead, LONG).await;
    let by_b = by_a + b.until("a", Liveness::Dead, LONG).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    to_a.up.store(true, Ordering::SeqCst);
    to_b.up.store(true, Ordering::SeqCst);
    let back = a.until("b", Liveness::Alive, LONG).await;
    let back = back + b.until("a", Liveness::Alive, LONG).await;
    println!("a mute link: detected in {by_a:?} and {by_b:?}, one view {back:?} after it was mended");
    assert!(by_a >= Duration::from_millis(600), "{by_a:?}");
    assert!(by_b < Duration::from_secs(3) && back < Duration::from_secs(4), "{by_b:?} {back:?}");
}

/// Not a test of right and wrong: prints what two idle nodes cost.
#[tokio::test]
#[ignore = "measures for 20 s; run it alone, with --nocapture"]
async fn idle_cpu_of_two_nodes() {
    let lab = Authority::of("c");
    let a = Node::secured(lab.node("a"), "c", "a", 0, None, &[]);
    let b = Node::secured(lab.node("b"), "c", "b", 0, None, &[a.address]);
    a.until("b", Liveness::Alive, LONG).await;
    b.until("a", Liveness::Alive, LONG).await;
    let used = || {
        let mut ns = 0u64;
        for task in std::fs::read_dir("/proc/self/task").unwrap() {
            let path = task.unwrap().path().join("schedstat");
            ns += std::fs::read_to_string(path).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
        }
        Duration::from_nanos(ns)
    };
    let (before, began) = (used(), Instant::now());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let percent = (used() - before).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    println!("two idle nodes in one process: {percent:.3} % of a core, {:.3} % each", percent / 2.0);
}
