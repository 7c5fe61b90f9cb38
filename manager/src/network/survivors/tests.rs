//! Real connections over a real CRIU dump and restore.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{setsockopt, sockopt},
    },
    unistd::Pid,
};

use super::*;
use crate::network::{
    Attachment, Network, NetworkConfig,
    arp::Arp,
    netlink::Rtnl,
    netns,
    packet::PacketSocket,
    testing::{Node, attached, config, eventually, installed, ip, isolated, name, run, run_in},
};

const IPV4: &str = "10.77.0.2";

/// Echoes each message, except those that begin with `q`.
const SERVER: &str = r"
import os, selectors, socket, sys
os.closerange(3, 1024) # whatever the test runner was started with
address = sys.argv[1]
listener = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((address, 7000))
listener.listen()
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            selector.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        try:
            data = key.fileobj.recv(4096)
            if data and data[:1] != b'q':
                key.fileobj.sendall(data)
        except OSError:
            data = b''
        if not data:
            selector.unregister(key.fileobj)
            key.fileobj.close()
";

/// A server in a container's network, checkpointed and brought back.
struct Lab {
    images: tempfile::TempDir,
    original: Child,
    restored: Option<i32>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.original.kill();
        let _ = self.original.wait();
        if let Some(pid) = self.restored {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn lab(server: &Attachment, address: &str) -> Lab {
    let original = Command::new("nsenter")
        .arg(format!("--net={}", server.netns.display()))
        .args(["setsid", "python3", "-c", SERVER, address])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the server's listening", || run_in(&server.netns, "ss -Hltn").contains(":7000 "));
    Lab { images: tempfile::tempdir().unwrap(), original, restored: None }
}

impl Lab {
    fn criu(&self, server: &Attachment, arguments: &str) {
        let images = self.images.path().display();
        let command = format!("criu {arguments} -D {images} --tcp-established --network-lock skip -v4 -o criu.log");
        let output = Command::new("nsenter")
            .arg(format!("--net={}", server.netns.display()))
            .args(command.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let log = fs::read_to_string(self.images.path().join("criu.log")).unwrap_or_default();
        let errors: Vec<_> = log.lines().filter(|line| line.contains("Error")).collect();
        assert!(output.success(), "{command}: {errors:#?}");
    }

    fn dump(&self, server: &Attachment) {
        self.criu(server, &format!("dump -t {} --leave-running", self.original.id()));
    }

    /// The owner dies: mute first, so that the kernel's last words do not reach the peers.
    fn cut(&mut self, network: &Network, server: &Attachment) {
        network.detach(server).unwrap();
        self.original.kill().unwrap();
        self.original.wait().unwrap();
        network.teardown(&server.container).unwrap();
    }

    fn restore(&mut self, server: &Attachment) {
        self.criu(server, "restore -d --pidfile pid");
        self.restored = Some(fs::read_to_string(self.images.path().join("pid")).unwrap().trim().parse().unwrap());
    }
}

fn connect(client: &Attachment) -> TcpStream {
    let address = (ip(2), 7000).into();
    let stream = netns::enter(&client.netns, || TcpStream::connect_timeout(&address, Duration::from_secs(5))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])
}

fn fate(report: &SurvivorReport, stream: &TcpStream) -> Fate {
    fate_of(report, stream.local_addr().unwrap())
}

fn fate_of(report: &SurvivorReport, peer: SocketAddr) -> Fate {
    report.connections.iter().find(|connection| connection.peer == peer).unwrap().fate
}

fn criu_missing(test: &str) -> bool {
    if let Some(tool) = ["python3", "setsid"].into_iter().find(|tool| !installed(tool)) {
        println!("SKIPPED {test}: {tool} is not installed");
        return true;
    }
    let works = Command::new("criu").arg("check").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let missing = !works.is_ok_and(|status| status.success());
    if missing {
        println!("SKIPPED {test}: `criu check` fails or there is no criu");
    }
    missing
}

/// A client behind the uplink, as one of the peer node's containers is.
fn beyond(node: &Node, last: u8) -> (Network, Attachment) {
    run("ip link add up0 type veth peer name wire0");
    let network = node.network(None, Some("up0"));
    let client = network.build(&name("client"), &network.identity(ip(last), None)).unwrap();
    run(&format!("ip link del {}", client.host_link));
    run(&format!("ip link set wire0 netns {} name eth0 address {}", client.netns.display(), client.identity.mac));
    run_in(&client.netns, &format!("ip addr add {}/24 dev eth0", client.identity.ip));
    run_in(&client.netns, "ip link set eth0 up");
    eventually("the uplink's carrier", || run("ip -o link show ha0").contains("LOWER_UP"));
    (network, client)
}

#[test]
fn connections_within_a_bridge_survive_or_are_reset() {
    let test = "connections_within_a_bridge_survive_or_are_reset";
    if criu_missing(test) {
        return;
    }
    let Some(node) = isolated(test) else { return };
    let network = node.network(None, None);
    let client = attached(&network, "client", 3);
    failover(&network, &client, IPV4);
    // As servers listen by default that speak both: IPv4 in an IPv6 socket.
    let client = attached(&network, "client", 3);
    failover(&network, &client, "::");
}

#[test]
fn connections_through_a_gateway_survive_or_are_reset() {
    let test = "connections_through_a_gateway_survive_or_are_reset";
    if criu_missing(test) {
        return;
    }
    let Some(_node) = isolated(test) else { return };
    let network = Network::new(NetworkConfig { gateway: Some(ip(254)), ..config(None, None) }).unwrap();
    network.ensure_bridge().unwrap();
    let plain = |last| NetIdentity { gateway: None, ..network.identity(ip(last), None) };
    let router = network.build(&name("router"), &plain(254)).unwrap();
    network.attach(&router).unwrap();
    let client = network.build(&name("client"), &plain(3)).unwrap();
    run(&format!("ip link del {}", client.host_link));
    let namespaces = (router.netns.display(), client.netns.display());
    run(&format!("ip link add far0 netns {} type veth peer name eth0 netns {}", namespaces.0, namespaces.1));
    run_in(&router.netns, "ip addr add 10.78.0.1/24 dev far0");
    run_in(&router.netns, "ip link set far0 up");
    run_in(&router.netns, "sysctl -qw net.ipv4.ip_forward=1");
    run_in(&client.netns, "ip addr add 10.78.0.3/24 dev eth0");
    run_in(&client.netns, "ip link set eth0 up");
    run_in(&client.netns, "ip route add default via 10.78.0.1");
    failover(&network, &client, IPV4);
}

#[test]
fn connections_over_an_uplink_survive_or_are_reset() {
    let test = "connections_over_an_uplink_survive_or_are_reset";
    if criu_missing(test) {
        return;
    }
    let Some(node) = isolated(test) else { return };
    let (network, client) = beyond(&node, 3);
    failover(&network, &client, IPV4);
}

/// One connection of each sort over a failover.
fn failover(network: &Network, client: &Attachment, address: &str) {
    let server = attached(network, "server", 2);
    let mut lab = lab(&server, address);
    let mut streams: Vec<_> = (0..6).map(|_| connect(client)).collect();
    for stream in &mut streams {
        echo(stream).unwrap();
    }
    let gone = streams.pop().unwrap();
    let gone_address = gone.local_addr().unwrap();
    let [idle, moved, swallowed, waiting, closed] = &mut streams[..] else { unreachable!() };
    lab.dump(&server);

    echo(moved).unwrap();
    swallowed.write_all(b"quiet").unwrap();
    closed.shutdown(Shutdown::Write).unwrap();
    assert_eq!(closed.read(&mut [0; 1]).unwrap(), 0, "the old owner closes its side, too");
    eventually("the acknowledgement of what the old owner swallowed", || {
        let sockets = run_in(&client.netns, "ss -Htn state established");
        sockets.lines().all(|line| line.split_whitespace().nth(1) == Some("0"))
    });
    lab.cut(network, &server);
    waiting.write_all(b"hello").unwrap(); // to nobody: it is sent again and again
    // The client gives up, and says so to nobody.
    setsockopt(&gone, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    drop(gone);
    // Until now the container was elsewhere: the bridge knows its MAC address behind the port of the client.
    netns::enter(&client.netns, || {
        let index = Rtnl::open()?.link("eth0")?.unwrap().header.index;
        PacketSocket::open(index, 0)?.send(&Arp::announcement(ip(9), server.identity.mac).frame())
    })
    .unwrap();

    let identity = server.identity.clone();
    let server = network.build(&name("server"), &identity).unwrap();
    let limits = SurvivorLimits { patience: Duration::from_millis(1500), ..SurvivorLimits::default() };
    let survivors = Survivors::start("ha0", &identity, lab.images.path(), limits).unwrap();
    lab.restore(&server);
    let before = Instant::now();
    let report = survivors.settle(&server.netns);
    println!("MEASURED settle after the restore: {:?}", before.elapsed());
    for (stream, expected) in [(&*idle, Fate::Kept), (moved, Fate::Reset), (closed, Fate::Reset)] {
        assert_eq!(fate(&report, stream), expected, "{report:?}");
    }
    assert_eq!(fate(&report, swallowed), Fate::Unknown(AHEAD));
    assert_eq!(fate_of(&report, gone_address), Fate::Reset);
    let left = || run_in(&server.netns, "ss -Htn state connected").lines().count();
    assert_eq!(left(), 3, "the sockets of moved-on peers end before the container is attached");
    network.attach(&server).unwrap();
    let attached = Instant::now();

    assert_eq!(moved.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    println!("MEASURED the moved-on peer knows {:?} after attaching", attached.elapsed());
    assert!(attached.elapsed() < Duration::from_secs(1));
    echo(idle).unwrap();
    println!("MEASURED the idle connection answers {:?} after attaching", attached.elapsed());
    waiting.read_exact(&mut [0; 5]).unwrap();
    println!("MEASURED the unacknowledged request is answered {:?} after attaching", attached.elapsed());
    assert_eq!(swallowed.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    println!("MEASURED the swallowed request is reset {:?} after attaching", attached.elapsed());

    let report = survivors.finish();
    assert_eq!(report.errors, Vec::<String>::new());
    assert_eq!((report.kept(), report.reset(), report.unknown()), (2, 4, 0), "{report:?}");
    assert_eq!(left(), 2, "only the kept ones are left");
    echo(&mut connect(client)).unwrap();
    drop(lab);
    network.sweep_all();
}

/// What the others are spared; also the proof that they could fail.
#[test]
fn without_the_job_a_connection_that_moved_on_hangs() {
    let test = "without_the_job_a_connection_that_moved_on_hangs";
    if criu_missing(test) {
        return;
    }
    let Some(node) = isolated(test) else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let mut lab = lab(&server, IPV4);
    let mut moved = connect(&client);
    echo(&mut moved).unwrap();
    lab.dump(&server);
    echo(&mut moved).unwrap();
    lab.cut(&network, &server);
    let server = network.build(&server.container, &server.identity).unwrap();
    lab.restore(&server);
    network.attach(&server).unwrap();
    moved.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert_eq!(echo(&mut moved).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(lab);
    network.sweep_all();
}

#[test]
fn many_connections_are_decided_while_the_restore_runs() {
    const MANY: usize = 500;
    let test = "many_connections_are_decided_while_the_restore_runs";
    if criu_missing(test) {
        return;
    }
    let Some(node) = isolated(test) else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let mut lab = lab(&server, IPV4);
    let mut streams: Vec<_> = (0..MANY).map(|_| connect(&client)).collect();
    for stream in &mut streams {
        echo(stream).unwrap();
    }
    lab.dump(&server);
    for stream in streams.iter_mut().step_by(2) {
        echo(stream).unwrap();
    }
    lab.cut(&network, &server);
    let server = network.build(&server.container, &server.identity).unwrap();
    let start = Instant::now();
    let limits = SurvivorLimits { answer: Duration::from_secs(3), ..SurvivorLimits::default() };
    let survivors = Survivors::start("ha0", &server.identity, lab.images.path(), limits).unwrap();
    eventually("the last answer", || survivors.report().unknown() == 0);
    println!("MEASURED {MANY} peers asked and judged in {:?}", start.elapsed());
    lab.restore(&server);
    let before = Instant::now();
    let report = survivors.settle(&server.netns);
    println!("MEASURED {} restored sockets ended in {:?}", MANY / 2, before.elapsed());
    network.attach(&server).unwrap();
    assert_eq!((report.kept(), report.reset(), report.errors.len()), (MANY / 2, MANY / 2, 0), "{report:?}");
    for (at, stream) in streams.iter_mut().enumerate() {
        match at % 2 {
            0 => assert!(echo(stream).is_err()),
            _ => echo(stream).unwrap(),
        }
    }
    drop(lab);
    network.sweep_all();
}

#[test]
fn a_silent_peer_holds_nothing_up_for_long_and_a_cancelled_job_ends() {
    let test = "a_silent_peer_holds_nothing_up_for_long_and_a_cancelled_job_ends";
    if criu_missing(test) {
        return;
    }
    let Some(node) = isolated(test) else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let mut lab = lab(&server, IPV4);
    echo(&mut connect(&client)).unwrap();
    let mut stream = connect(&client);
    echo(&mut stream).unwrap();
    lab.dump(&server);
    lab.cut(&network, &server);
    network.detach(&client).unwrap();
    let images = lab.images.path().to_owned();
    let start = |limits| Survivors::start("ha0", &server.identity, &images, limits).unwrap();
    let limits = SurvivorLimits { watch: Duration::from_millis(400), ..SurvivorLimits::default() };
    let began = Instant::now();
    let survivors = start(limits);
    assert_eq!(fate(&survivors.settle(&server.netns), &stream), Fate::Unknown(SILENT));
    assert!((limits.answer..limits.watch).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(survivors.finish().reset(), 0);
    assert!((limits.watch..limits.watch * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    drop(start(SurvivorLimits::default()));
    eventually("the end of the cancelled job", || !run("ip -d link show ha0").contains("promiscuity 1"));
    drop(lab);
    network.sweep_all();
}

#[test]
fn without_images_peers_or_sockets_there_is_nothing_to_do() {
    let Some(node) = isolated("without_images_peers_or_sockets_there_is_nothing_to_do") else { return };
    let network = node.network(None, None);
    let identity = network.identity(ip(2), None);
    let nowhere = Path::new("/nonexistent");
    let survivors = Survivors::start("ha0", &identity, nowhere, SurvivorLimits::default()).unwrap();
    assert_eq!(survivors.settle(nowhere), SurvivorReport::default());
    assert_eq!(survivors.finish(), SurvivorReport::default());
    assert_eq!(kill_tcp(nowhere, |_| true).unwrap(), 0);
    let server = attached(&network, "server", 2);
    assert_eq!(kill_tcp(&server.netns, |_| true).unwrap(), 0);
    network.sweep_all();
}

#[test]
fn killing_ends_the_chosen_connections_only() {
    let Some(node) = isolated("killing_ends_the_chosen_connections_only") else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let mut first = crate::network::testing::connect(&client, &server, 7001);
    let mut second = crate::network::testing::connect(&client, &server, 7002);
    assert_eq!(kill_tcp(&server.netns, |socket| socket.local.port() == 7001).unwrap(), 1);
    assert!(first.server.read(&mut [0; 1]).is_err());
    assert_eq!(first.client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    crate::network::testing::exchange(&mut second.client, &mut second.server).unwrap();
    network.sweep_all();
}
