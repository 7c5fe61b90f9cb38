//! The links and filters containers are connected with, made in a network namespace of their own.

use std::{io, thread, time::Duration};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, unshare};

use super::{
    Check,
    tool::{self, chain},
};

const TIMEOUT: Duration = Duration::from_secs(10);
const LINKS: (&str, &str) = ("network.links", "bridge and veth");
const FILTER: (&str, &str) = ("network.nftables", "nftables on the bridge");

pub(super) fn checks() -> Vec<Check> {
    // A network namespace belongs to a thread: with the thread everything in it ends.
    let tried = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok((links(), filter()))
    });
    match tried.join().unwrap_or(Err(nix::Error::EFAULT)) {
        Ok((links, filter)) => vec![links, filter],
        Err(error) => {
            let found = format!("cannot make a network namespace: {error}");
            let links = Check::fail(LINKS.0, LINKS.1, found, "run ha-manager as root, on a kernel with CONFIG_NET_NS");
            vec![links, Check::not_applicable(FILTER.0, FILTER.1, "needs a network namespace")]
        }
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

fn filter() -> Check {
    const REMEDY: &str = "install nftables, on a kernel with CONFIG_NF_TABLES_BRIDGE";
    let script = "add table bridge ha_doctor; \
                  add chain bridge ha_doctor held { type filter hook forward priority 0; }; \
                  add rule bridge ha_doctor held tcp flags & (fin|rst) != 0 drop";
    match tool::run("nft", &[script], TIMEOUT) {
        Ok(output) if output.ok() => Check::ok(FILTER.0, FILTER.1, "a rule on forwarded TCP can be set"),
        Ok(output) => Check::warn(FILTER.0, FILTER.1, output.last_line(), REMEDY),
        Err(error) => Check::warn(FILTER.0, FILTER.1, chain(&error), REMEDY),
    }
}
