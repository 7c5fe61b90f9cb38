//! One container's link: a fresh network namespace with `eth0` in it, and the host end beside the bridge.

use std::{fs::File, io, os::fd::AsRawFd, path::Path};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
        LinkMessage,
    },
    neighbour_table::{NeighbourTableAttribute, NeighbourTableMessage, NeighbourTableParameter},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::{
    NetIdentity, NetworkError,
    bridge::{address_message, link_message},
    netlink::Rtnl,
    netns,
    packet::PacketSocket,
};

/// The container's end.
pub(super) const INSIDE: &str = "eth0";

/// Within the container's namespace: a socket on its end, for sending alone, and that end's index.
pub(super) fn inner_end(rtnl: &mut Rtnl) -> io::Result<(PacketSocket, u32)> {
    let link = rtnl.link(INSIDE)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    let index = link.header.index;
    Ok((PacketSocket::open(index, 0)?, index))
}

/// How often and how many times an unanswered ARP question is asked again.
pub(super) struct ArpRetry {
    pause_ms: u64,
    times: u32,
}

/// Before the link is in the bridge. A program that sends then leaves a question behind that nobody hears; with the
/// kernel's second between questions it would stay mute for up to that long after it was attached. 10 ms is the
/// shortest the kernel knows.
const MUTE: ArpRetry = ArpRetry { pause_ms: 10, times: 1000 };
/// Just after it. Not fewer times yet: the kernel would give up at once on a question asked more often than that.
pub(super) const ATTACHED: ArpRetry = ArpRetry { pause_ms: 50, times: 1000 };
/// From then on: as long as the kernel's default of 3 times in 3 s, a little keener.
pub(super) const SETTLED: ArpRetry = ArpRetry { pause_ms: 200, times: 15 };

pub(super) struct Plan<'a> {
    pub(super) namespace: &'a Path,
    pub(super) host_link: &'a str,
    pub(super) identity: &'a NetIdentity,
    pub(super) mtu: Option<u32>,
    pub(super) ipv6: bool,
}

/// Makes all of it. After an error some of it may be there; the caller tears it down.
pub(super) fn build(rtnl: &mut Rtnl, plan: &Plan<'_>) -> Result<(), NetworkError> {
    let (namespace, mut inside) = netns::create(plan.namespace, |namespace| Ok((namespace, Rtnl::open()?)))
        .map_err(NetworkError::kernel(format!("making the network namespace {}", plan.namespace.display())))?;
    let mut requests = vec![(RouteNetlinkMessage::NewLink(pair(plan, &namespace)), NLM_F_CREATE | NLM_F_EXCL)];
    requests.extend(plan.ipv6.then(|| (silence(0, Some(plan.host_link)), 0)));
    requests.push((raise_host_end(plan.host_link), 0));
    rtnl.execute(requests)
        .map_err(|(_, error)| NetworkError::kernel(format!("creating the link {}", plan.host_link))(error))?;
    let index = inside
        .link(INSIDE)
        .and_then(|link| link.map(|link| link.header.index).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV)))
        .map_err(NetworkError::kernel(format!("finding {INSIDE} in {}", plan.namespace.display())))?;
    let (requests, names) = configuration(plan, index);
    inside.execute(requests).map_err(|(failed, source)| NetworkError::Kernel {
        doing: format!("{} in {}", names.get(failed).unwrap_or(&"configuring"), plan.namespace.display()),
        source,
    })
}

/// Both ends in one message, the container's in its namespace from the beginning.
fn pair(plan: &Plan<'_>, namespace: &File) -> LinkMessage {
    let mut inside = LinkMessage::default();
    inside.attributes = vec![
        LinkAttribute::IfName(INSIDE.to_owned()),
        LinkAttribute::Address(plan.identity.mac.0.to_vec()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let mut host = LinkMessage::default();
    host.attributes.push(LinkAttribute::IfName(plan.host_link.to_owned()));
    if let Some(mtu) = plan.mtu {
        host.attributes.push(LinkAttribute::Mtu(mtu));
        inside.attributes.push(LinkAttribute::Mtu(mtu));
    }
    host.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inside))),
    ]));
    host
}

/// Outside the bridge the host end would hand the container's frames to the node itself, which answers ARP for its own
/// addresses on any link. Without ARP the container reaches nobody, as it should. The bridge does not care.
fn raise_host_end(name: &str) -> RouteNetlinkMessage {
    let mut message = link_message(0, LinkFlags::Up | LinkFlags::Noarp);
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    RouteNetlinkMessage::SetLink(message)
}

/// No IPv6 link-local address: its discovery would talk on a link that has to be silent. Takes effect before the link
/// comes up only.
fn silence(index: u32, name: Option<&str>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.extend(name.map(|name| LinkAttribute::IfName(name.to_owned())));
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    RouteNetlinkMessage::SetLink(message)
}

type Requests = Vec<(RouteNetlinkMessage, u16)>;

/// What is done inside, and in words.
fn configuration(plan: &Plan<'_>, index: u32) -> (Requests, Vec<&'static str>) {
    const LOOPBACK: u32 = 1;
    let identity = plan.identity;
    let address = address_message(index, identity.ip, identity.prefix_len);
    let mut requests: Requests = Vec::new();
    let mut names = Vec::new();
    if plan.ipv6 {
        requests.push((silence(index, None), 0));
        names.push("turning off link-local addresses");
    }
    requests.extend([
        (RouteNetlinkMessage::SetLink(link_message(LOOPBACK, LinkFlags::Up)), 0),
        (RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE | NLM_F_EXCL),
        (arp_retry(index, &MUTE), 0),
        (RouteNetlinkMessage::SetLink(link_message(index, LinkFlags::Up)), 0),
    ]);
    names.extend(["bringing up lo", "adding the address", "setting the ARP retry time", "bringing up eth0"]);
    if let Some(gateway) = identity.gateway {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(index)];
        requests.push((RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL));
        names.push("adding the default route");
    }
    (requests, names)
}

/// Sets the retry times of one link.
pub(super) fn arp_retry(index: u32, retry: &ArpRetry) -> RouteNetlinkMessage {
    let mut message = NeighbourTableMessage::default();
    message.header.family = AddressFamily::Inet;
    message.attributes = vec![
        NeighbourTableAttribute::Name("arp_cache".to_owned()),
        NeighbourTableAttribute::Parms(vec![
            NeighbourTableParameter::Ifindex(index),
            NeighbourTableParameter::McastProbes(retry.times),
            NeighbourTableParameter::RetransTime(retry.pause_ms),
        ]),
    ];
    RouteNetlinkMessage::SetNeighbourTable(message)
}
