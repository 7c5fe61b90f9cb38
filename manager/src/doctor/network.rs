//! What containers are connected with: links made in a network namespace of their own, an end of a connection, name servers.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    thread,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, unshare};

use super::{Check, Verdict, tool::chain};
use crate::network::{TcpSocket, kill_tcp, try_gate};

const LINKS: (&str, &str) = ("network.links", "bridge and veth");
const GATE: (&str, &str) = ("network.gate", "the gate of a checkpoint");

pub(super) fn checks() -> Vec<Check> {
    // A network namespace belongs to a thread: with the thread everything in it ends.
    let tried = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let links = links();
        let gate = match links.verdict {
            Verdict::Ok => gate(),
            _ => Check::not_applicable(GATE.0, GATE.1, "there are no links to try it with"),
        };
        Ok([links, gate])
    });
    let [links, gate] = tried.join().unwrap_or(Err(nix::Error::EFAULT)).unwrap_or_else(|error| {
        let found = format!("cannot make a network namespace: {error}");
        let links = Check::fail(LINKS.0, LINKS.1, found, "run ha-manager as root, on a kernel with CONFIG_NET_NS");
        [links, Check::not_applicable(GATE.0, GATE.1, "there is no network namespace to try it in")]
    });
    vec![links, gate, sock_destroy(), names()]
}

/// A port is closed, sent to and opened, as a container's is while it is frozen.
fn gate() -> Check {
    match try_gate() {
        Ok(()) => Check::ok(GATE.0, GATE.1, "holds what arrives, and hands it over"),
        Err(trouble) if trouble.only_drops() => Check::warn(
            GATE.0,
            GATE.1,
            format!(
                "{}: what arrives while a container is frozen is dropped, so a new connection then takes a second longer, and \
                 unanswered data 200 ms",
                chain(&trouble)
            ),
            "give ha-manager CAP_NET_RAW, and the kernel packet sockets with PACKET_VNET_HDR (CONFIG_PACKET, modprobe af_packet)",
        ),
        Err(trouble) => Check::fail(
            GATE.0,
            GATE.1,
            format!("{}: no checkpoint can be taken", chain(&trouble)),
            "give ha-manager CAP_NET_ADMIN, and the kernel bridges whose ports' state can be set (CONFIG_BRIDGE, modprobe bridge)",
        ),
    }
}

pub(super) fn uplink(name: Option<&str>) -> Check {
    const ID: (&str, &str) = ("network.uplink", "uplink");
    match name {
        None => Check::not_applicable(
            ID.0,
            ID.1,
            "none configured: the containers of this node have a network of their own",
        ),
        Some(name) if Path::new("/sys/class/net").join(name).exists() => Check::ok(ID.0, ID.1, name),
        Some(name) => Check::fail(ID.0, ID.1, format!("there is no link {name}"), "set `network.uplink` in node.toml"),
    }
}

fn links() -> Check {
    let bridge = named("ha-doctor", LinkInfo::Kind(InfoKind::Bridge), None);
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName("ha-doctor-b".into()));
    let data = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)));
    let veth = named("ha-doctor-a", LinkInfo::Kind(InfoKind::Veth), Some(data));
    for (kind, link) in [("bridge", bridge), ("veth", veth)] {
        if let Err(error) = create(link) {
            return Check::fail(LINKS.0, LINKS.1, format!("{kind}: {error}"), format!("modprobe {kind}"));
        }
    }
    Check::ok(LINKS.0, LINKS.1, "can be made")
}

fn named(name: &str, kind: LinkInfo, data: Option<LinkInfo>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.into()));
    link.attributes.push(LinkAttribute::LinkInfo([kind].into_iter().chain(data).collect()));
    link
}

fn create(link: LinkMessage) -> io::Result<()> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    request.header.sequence_number = 1;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (reply, _) = socket.recv_from_full()?;
    acknowledged::<RouteNetlinkMessage>(&reply)
}

fn acknowledged<T: NetlinkDeserializable>(reply: &[u8]) -> io::Result<()> {
    match NetlinkMessage::<T>::deserialize(reply).map_err(io::Error::other)?.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::other("an unexpected answer from the kernel")),
    }
}

/// A connection of our own is ended as a restored one that has moved on is.
fn sock_destroy() -> Check {
    const ID: (&str, &str) = ("network.sock-destroy", "ending connections");
    const REMEDY: &str = "use a kernel with CONFIG_INET_DIAG_DESTROY; until then a client whose connection has moved on hangs \
                          until its own timers run out";
    let tried = || -> Result<usize, Box<dyn std::error::Error>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let ours = TcpStream::connect(listener.local_addr()?)?;
        let (local, peer) = (ours.local_addr()?, ours.peer_addr()?);
        let is_ours = |socket: &TcpSocket| socket.local == local && socket.peer == peer;
        Ok(kill_tcp(Path::new("/proc/self/ns/net"), is_ours)?)
    };
    match tried() {
        Ok(1) => Check::ok(ID.0, ID.1, "the kernel ends a connection when told to"),
        Ok(_) => Check::warn(ID.0, ID.1, "the kernel does not show a connection of this process", REMEDY),
        Err(error) => Check::warn(ID.0, ID.1, chain(&*error), REMEDY),
    }
}

/// What a container is told to ask for names.
pub(super) fn names() -> Check {
    const ID: (&str, &str) = ("network.names", "name servers for containers");
    let resolv = crate::runtime::resolv_conf();
    let list = |ips: &[std::net::IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !resolv.servers.is_empty() {
        return Check::ok(ID.0, ID.1, format!("{} (from {})", list(&resolv.servers), resolv.from));
    }
    let found = match resolv.left_out.is_empty() {
        true => format!("{} names none", resolv.from),
        false => format!("{} names {} only, which is the node itself", resolv.from, list(&resolv.left_out)),
    };
    Check::warn(
        ID.0,
        ID.1,
        found,
        format!("name a server in {} that containers reach, if they look up names", resolv.from),
    )
}
