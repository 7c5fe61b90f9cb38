//! For this room's tests: a node of one's own, in namespaces that end with the test's thread.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkMessage},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{
    Attachment, HOST_LINK_DIGITS, HOST_LINK_PREFIX, NETNS_PREFIX, Network, NetworkConfig, NetworkError, bridge,
    enslave, netlink::Rtnl, netns,
};
use crate::spec::ContainerName;

pub(super) const PREFIX: u8 = 24;

/// What the tests look at the kernel's side with.
const TOOLS: [&str; 7] = ["ip", "bridge", "ss", "nsenter", "findmnt", "mount", "sysctl"];

pub(super) fn installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(tool).exists())
}

/// Moves the test's thread into a network and a mount namespace of its own. `None`, said aloud, where that is not
/// possible.
pub(super) fn isolated(test: &str) -> Option<Node> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {test}: it needs root to make namespaces");
        return None;
    }
    if let Some(tool) = TOOLS.iter().find(|tool| !installed(tool)) {
        println!("SKIPPED {test}: {tool} is not installed");
        return None;
    }
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS) {
        println!("SKIPPED {test}: namespaces cannot be made here: {error}");
        return None;
    }
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>).unwrap();
    fs::create_dir_all(netns::DIRECTORY).unwrap();
    mount(Some("tmpfs"), netns::DIRECTORY, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    run("ip link set lo up");
    Some(Node)
}

/// Checks when it goes out of scope that nothing was left.
pub(super) struct Node;

impl Node {
    /// A network with the bridge `ha0`, made.
    pub(super) fn network(&self, address: Option<(Ipv4Addr, u8)>, uplink: Option<&str>) -> Network {
        let network = Network::new(config(address, uplink)).unwrap();
        network.ensure_bridge().unwrap();
        network
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let names: Vec<_> = fs::read_dir(netns::DIRECTORY).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(names.is_empty(), "namespaces were left: {names:?}");
        let links = our_links(&mut Rtnl::open().unwrap());
        assert!(links.is_empty(), "links were left: {links:?}");
    }
}

impl Network {
    /// Takes a container off the wire; the rest of its network stays.
    pub(super) fn detach(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        enslave(&mut self.rtnl(), attachment, 0)
    }

    /// Removes every container's network, and says what that was.
    pub(super) fn sweep_all(&self) -> Vec<String> {
        let mut removed = our_links(&mut self.rtnl());
        for link in &removed {
            run(&format!("ip link del {link}"));
        }
        for path in fs::read_dir(netns::DIRECTORY).unwrap().map(|entry| entry.unwrap().path()) {
            if path.file_name().unwrap().to_string_lossy().starts_with(NETNS_PREFIX) {
                netns::remove(&path).unwrap();
                removed.push(path.display().to_string());
            }
        }
        removed
    }
}

/// The host ends of all containers' links.
fn our_links(rtnl: &mut Rtnl) -> Vec<String> {
    let is_ours = |link: &LinkMessage| bridge::kind(link) == Some(&InfoKind::Veth);
    let name = |link: &LinkMessage| {
        link.attributes.iter().find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name.clone()) } else { None })
    };
    let links = rtnl.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
    let links = links.iter().filter_map(|m| if let RouteNetlinkMessage::NewLink(link) = m { Some(link) } else { None });
    let names = links.filter(|link| is_ours(link)).filter_map(name);
    names
        .filter(|name| {
            let digits = name.strip_prefix(HOST_LINK_PREFIX);
            digits
                .is_some_and(|digits| digits.len() == HOST_LINK_DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit()))
        })
        .collect()
}

pub(super) fn config(address: Option<(Ipv4Addr, u8)>, uplink: Option<&str>) -> NetworkConfig {
    NetworkConfig {
        bridge: "ha0".to_owned(),
        address,
        gateway: None,
        prefix_len: PREFIX,
        uplink: uplink.map(str::to_owned),
    }
}

pub(super) fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

pub(super) fn name(text: &str) -> ContainerName {
    text.parse().unwrap()
}

/// A container's network, in the bridge.
pub(super) fn attached(network: &Network, container: &str, last: u8) -> Attachment {
    let attachment = network.build(&name(container), &network.identity(ip(last), None)).unwrap();
    network.attach(&attachment).unwrap();
    attachment
}

/// Whether a link is in the bridge `ha0`.
pub(super) fn is_bridge_port(link: &str) -> bool {
    run(&format!("ip -o link show {link}")).contains(" master ha0 ")
}

/// Runs a command line of words without blanks in them, in the thread's namespaces.
pub(super) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The same inside a container's namespace.
pub(super) fn run_in(namespace: &Path, command: &str) -> String {
    run(&format!("nsenter --net={} {command}", namespace.display()))
}

/// Waits until `condition` holds, at most 5 s.
pub(super) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what} did not happen within 5 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A connection from one container to another, both ends held by the test.
pub(super) struct Connection {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
}

pub(super) fn connect(client: &Attachment, server: &Attachment, port: u16) -> Connection {
    let address = SocketAddr::from((server.identity.ip, port));
    let listener = netns::enter(&server.netns, || TcpListener::bind(address)).unwrap();
    let client = netns::enter(&client.netns, || TcpStream::connect_timeout(&address, Duration::from_secs(5))).unwrap();
    let (server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    Connection { client, server }
}

/// One message each way.
pub(super) fn exchange(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    one_way(from, to)?;
    one_way(to, from)
}

fn one_way(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    from.write_all(b"hello")?;
    let mut buffer = [0; 5];
    to.read_exact(&mut buffer)?;
    assert_eq!(&buffer, b"hello");
    Ok(())
}

/// Whether the stream has something to read within `time`.
pub(super) fn hears(stream: &mut TcpStream, time: Duration) -> bool {
    stream.set_read_timeout(Some(time)).unwrap();
    let heard = stream.peek(&mut [0; 1]).is_ok();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    heard
}

/// Whether a datagram from the container gets to `to` and an answer back.
pub(super) fn reachable(from: &Attachment, to: Ipv4Addr) -> bool {
    netns::enter(&from.netns, || {
        let socket = UdpSocket::bind((from.identity.ip, 0))?;
        socket.connect((to, 9))?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        socket.send(b"x")?;
        // Nothing listens there: whoever has the address says so at once.
        Ok(socket.recv(&mut [0; 1]).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
    })
    .unwrap()
}
