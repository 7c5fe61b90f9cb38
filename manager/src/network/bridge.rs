//! The node's bridge: made when it is missing, checked when it is there, joined with the uplink.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
};

use super::{NetworkConfig, NetworkError, netlink::Rtnl};

/// How long the bridge remembers behind which port an unheard MAC address is, in clock ticks of 1/100 s: the kernel's
/// own default of 300 s, set so that what the documentation says about it holds. A failover does not wait for it; the
/// announcements move the entry.
const AGEING: u32 = 30_000;

/// What became of the configured address of the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BridgeAddress {
    /// There is none, or this node had it already, on the bridge or on the uplink.
    Kept,
    /// This node has it since just now.
    New,
}

pub(super) fn ensure(rtnl: &mut Rtnl, config: &NetworkConfig) -> Result<BridgeAddress, NetworkError> {
    // Everything that can be refused is refused before anything is changed.
    let uplink = match &config.uplink {
        Some(name) => Some(link_of(rtnl, name)?.ok_or_else(|| NetworkError::UplinkMissing { name: name.clone() })?),
        None => None,
    };
    let bridge = link_of(rtnl, &config.bridge)?;
    if let Some(bridge) = &bridge {
        check_existing(bridge, &config.bridge)?;
    }
    if let (Some(uplink), Some(name)) = (&uplink, &config.uplink) {
        check_uplink(rtnl, config, uplink, name, bridge.as_ref())?;
    }
    let bridge = match bridge {
        Some(bridge) => bridge.header.index,
        None => create(rtnl, &config.bridge, uplink.as_ref())?,
    };
    let mut moved = false;
    if let (Some(uplink), Some(name)) = (uplink, &config.uplink) {
        moved = join(rtnl, config, uplink.header.index, name, bridge)?;
    }
    let mut given = BridgeAddress::Kept;
    if let Some((address, prefix_len)) = config.address {
        let message = address_message(bridge, address, prefix_len);
        match rtnl.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) if !moved => given = BridgeAddress::New,
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => {
                return Err(NetworkError::kernel(format!("giving {} the address {address}", config.bridge))(error));
            }
        }
    }
    let up = link_message(bridge, LinkFlags::Up);
    rtnl.request(RouteNetlinkMessage::SetLink(up), 0)
        .map_err(NetworkError::kernel(format!("bringing up the bridge {}", config.bridge)))?;
    Ok(given)
}

/// Takes the configured address away again.
pub(super) fn take_address(rtnl: &mut Rtnl, config: &NetworkConfig) -> Result<(), NetworkError> {
    let Some((address, prefix_len)) = config.address else { return Ok(()) };
    let (bridge, _) = find(rtnl, &config.bridge)?;
    let message = RouteNetlinkMessage::DelAddress(address_message(bridge, address, prefix_len));
    rtnl.request(message, 0).map_err(NetworkError::kernel(format!("taking {address} from {}", config.bridge)))
}

/// Index and MTU of the bridge.
pub(super) fn find(rtnl: &mut Rtnl, name: &str) -> Result<(u32, Option<u32>), NetworkError> {
    let link = link_of(rtnl, name)?.ok_or_else(|| NetworkError::NoBridge { name: name.to_owned() })?;
    let mtu = link.attributes.iter().find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None });
    Ok((link.header.index, mtu))
}

pub(super) fn link_of(rtnl: &mut Rtnl, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
    rtnl.link(name).map_err(NetworkError::kernel(format!("looking up the link {name}")))
}

/// The kind of a link, where it has one; hardware has none.
pub(super) fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => {
            infos.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None })
        }
        _ => None,
    })
}

/// The bridge or bond a link belongs to.
pub(super) fn master(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|a| if let LinkAttribute::Controller(index) = a { Some(*index) } else { None })
}

/// Sets `flags` on a link and changes no other flag.
pub(super) fn link_message(index: u32, flags: LinkFlags) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.change_mask = flags;
    message
}

pub(super) fn address_message(index: u32, address: Ipv4Addr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix_len;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    if prefix_len < 31 {
        let host = u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
        message.attributes.push(AddressAttribute::Broadcast(Ipv4Addr::from(u32::from(address) | host)));
    }
    message
}

fn check_existing(bridge: &LinkMessage, name: &str) -> Result<(), NetworkError> {
    match kind(bridge) {
        Some(InfoKind::Bridge) => {}
        Some(other) => return Err(NetworkError::NotABridge { name: name.to_owned(), kind: format!("{other} link") }),
        None => return Err(NetworkError::NotABridge { name: name.to_owned(), kind: "physical link".to_owned() }),
    }
    let spanning_tree = bridge.attributes.iter().any(|attribute| {
        let LinkAttribute::LinkInfo(infos) = attribute else { return false };
        infos.iter().any(|info| {
            let LinkInfo::Data(InfoData::Bridge(data)) = info else { return false };
            data.iter().any(|d| matches!(d, InfoBridge::StpState(state) if *state != BridgeStpState::Disabled))
        })
    });
    if spanning_tree { Err(NetworkError::SpanningTree { name: name.to_owned() }) } else { Ok(()) }
}

fn check_uplink(
    rtnl: &mut Rtnl,
    config: &NetworkConfig,
    uplink: &LinkMessage,
    name: &str,
    bridge: Option<&LinkMessage>,
) -> Result<(), NetworkError> {
    if let Some(master) = master(uplink) {
        return if bridge.is_some_and(|bridge| bridge.header.index == master) {
            Ok(())
        } else {
            Err(NetworkError::UplinkTaken { name: name.to_owned() })
        };
    }
    for (address, _) in addresses(rtnl, uplink.header.index, name)? {
        match address {
            IpAddr::V4(address) if config.address.is_none_or(|(own, _)| own != address) => {
                return Err(NetworkError::UplinkAddressed { name: name.to_owned(), address });
            }
            IpAddr::V6(address) if !address.is_unicast_link_local() => {
                return Err(NetworkError::UplinkAddressed6 { name: name.to_owned(), address });
            }
            // Moved to the bridge; and every link that is up has one of IPv6 that is only its own.
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
    }
    match route_by(rtnl, uplink.header.index, name)? {
        Some(to) => Err(NetworkError::UplinkRouted { name: name.to_owned(), to }),
        None => Ok(()),
    }
}

/// The addresses of a link, with their prefix lengths.
fn addresses(rtnl: &mut Rtnl, index: u32, name: &str) -> Result<Vec<(IpAddr, u8)>, NetworkError> {
    let found = rtnl
        .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .map_err(NetworkError::kernel(format!("reading the addresses of {name}")))?;
    Ok(found
        .into_iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewAddress(address) = message else { return None };
            if address.header.index != index {
                return None;
            }
            // A peer's address comes beside the link's own; IPv6 mostly has only the one.
            let attributes = &address.attributes;
            let own =
                attributes.iter().find_map(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
            let ip = own.or_else(|| {
                attributes.iter().find_map(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None })
            })?;
            Some((ip, address.header.prefix_len))
        })
        .collect())
}

/// Where a route leads that leaves by a link and was not made by the kernel for the link's own addresses.
fn route_by(rtnl: &mut Rtnl, index: u32, name: &str) -> Result<Option<String>, NetworkError> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut query = RouteMessage::default();
        query.header.address_family = family;
        let routes = match rtnl.dump(RouteNetlinkMessage::GetRoute(query)) {
            // A kernel without IPv6 has no such routes.
            Err(error) if family == AddressFamily::Inet6 && error.raw_os_error() == Some(libc::EOPNOTSUPP) => continue,
            other => other.map_err(NetworkError::kernel(format!("reading the routes by {name}")))?,
        };
        let found = routes.iter().find_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) if route.header.address_family == family => {
                leaves_by(route, index).then(|| destination(route))
            }
            _ => None,
        });
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn leaves_by(route: &RouteMessage, index: u32) -> bool {
    if matches!(route.header.protocol, RouteProtocol::Kernel) || !matches!(route.header.kind, RouteType::Unicast) {
        return false;
    }
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Oif(oif) => *oif == index,
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == index),
        _ => false,
    })
}

fn destination(route: &RouteMessage) -> String {
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    to.map_or("everywhere (the default route)".to_owned(), |to| {
        format!("{to}/{}", route.header.destination_prefix_length)
    })
}

fn create(rtnl: &mut Rtnl, name: &str, uplink: Option<&LinkMessage>) -> Result<u32, NetworkError> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        // A bridge without an address of its own takes its ports' lowest and changes it as they come and go.
        LinkAttribute::Address(uplink.and_then(mac).unwrap_or_else(random_mac)),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::ForwardDelay(0),
                InfoBridge::AgeingTime(AGEING),
                InfoBridge::StpState(BridgeStpState::Disabled),
                InfoBridge::MulticastSnooping(false),
            ])),
        ]),
    ];
    let doing = format!("creating the bridge {name}");
    rtnl.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
        .map_err(NetworkError::kernel(doing))?;
    Ok(find(rtnl, name)?.0)
}

/// True when the uplink had the address that the bridge is to have.
fn join(rtnl: &mut Rtnl, config: &NetworkConfig, uplink: u32, name: &str, bridge: u32) -> Result<bool, NetworkError> {
    let mut moved = false;
    // What `check_uplink` let pass is the address that the bridge gets.
    for (address, prefix_len) in addresses(rtnl, uplink, name)? {
        let IpAddr::V4(address) = address else { continue };
        let message = address_message(uplink, address, prefix_len);
        rtnl.request(RouteNetlinkMessage::DelAddress(message), 0)
            .map_err(NetworkError::kernel(format!("moving {address} from {name} to {}", config.bridge)))?;
        moved = true;
    }
    let mut message = link_message(uplink, LinkFlags::Up);
    message.attributes.push(LinkAttribute::Controller(bridge));
    rtnl.request(RouteNetlinkMessage::SetLink(message), 0)
        .map_err(NetworkError::kernel(format!("putting the uplink {name} into {}", config.bridge)))?;
    Ok(moved)
}

pub(super) fn mac(link: &LinkMessage) -> Option<Vec<u8>> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) if mac.len() == 6 => Some(mac.clone()),
        _ => None,
    })
}

/// Unicast and locally administered.
fn random_mac() -> Vec<u8> {
    let mut mac: [u8; 6] = rand::random();
    mac[0] = mac[0] & 0xfe | 0x02;
    mac.to_vec()
}

/// Whether `error` says that the thing is not there.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
}
