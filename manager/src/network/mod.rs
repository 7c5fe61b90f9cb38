//! The container's network on this node: bridge, veth, addresses, neighbours, conflicts.
//!
//! A container keeps its address, its MAC address and its connections when it moves to another node. So its network is
//! built apart from the bridge, the processes are restored into it, and only then is it let onto the wire:
//!
//! ```text
//!             build                restore                 attach
//!   nothing ─────────► built, mute ───────► built, running ──────► attached ◄──────► closed
//!      ▲                   │                      │                   │       gate      │
//!      └───────────────────┴──────────────────────┴── teardown ───────┴─────────────────┘
//! ```
//!
//! [`probe()`] (does anyone have the address?) and [`Survivors`] (which connections are still the ones in the snapshot?) run
//! beside the restore. Everything here blocks for microseconds to milliseconds and belongs on a blocking thread.

mod announce;
mod arp;
mod bridge;
#[cfg(test)]
mod bridge_tests;
mod error;
mod filter;
mod gate;
mod hold;
mod host_links;
mod kept;
mod kill;
mod netlink;
mod netns;
mod packet;
mod probe;
mod survivors;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_gate;
#[cfg(test)]
mod tests_hold;
mod trial;
mod veth;

use std::{
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
};

pub use self::{
    bridge::BridgeAddress,
    error::{Failures, NetworkError},
    gate::Gate,
    host_links::HostLinks,
    kill::{TcpSocket, kill_tcp},
    probe::{Conflict, ConflictKind, PROBE_TIMEOUT, probe},
    survivors::{ConnectionFate, Fate, ImagesError, SurvivorLimits, SurvivorReport, Survivors},
    trial::{GateTrouble, try_gate},
};
use self::{
    hold::{Hold, Links, Shut},
    netlink::Rtnl,
    veth::Plan,
};
use crate::spec::{ContainerName, Mac};

const NETNS_PREFIX: &str = "ha-";
/// Every host end of a container's link is named so, and nothing else is.
pub const HOST_LINK_PREFIX: &str = "hv";
const HOST_LINK_DIGITS: usize = 10;

/// What a node's configuration says about the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Name of the bridge, at most 15 characters. Made when it does not exist.
    pub bridge: String,
    /// The node's own address on the bridge, with its prefix length. Containers then can reach the node.
    pub address: Option<(Ipv4Addr, u8)>,
    /// Where containers send what is not for their own subnet.
    pub gateway: Option<Ipv4Addr>,
    /// Prefix length of the containers' subnet.
    pub prefix_len: u8,
    /// The link that joins this node's bridge with its peers', on layer 2.
    pub uplink: Option<String>,
}

/// Who a container is on the network; the same on every node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetIdentity {
    pub ip: Ipv4Addr,
    pub prefix_len: u8,
    pub mac: Mac,
    /// Must be in the container's subnet.
    pub gateway: Option<Ipv4Addr>,
}

/// A container's network on this node, as built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub container: ContainerName,
    pub identity: NetIdentity,
    /// `/run/netns/ha-NAME`, for the runtime's configuration.
    pub netns: PathBuf,
    /// The host end of the veth pair.
    pub host_link: String,
    pub host_index: u32,
}

/// The node's part of the network. It stays with the network namespace it was made in, whichever thread calls.
pub struct Network {
    config: NetworkConfig,
    rtnl: Mutex<Rtnl>,
    shut: Shut,
    /// Whether the kernel has IPv6; without it, it refuses to be told about it.
    ipv6: bool,
}

impl Network {
    /// Touches nothing yet.
    ///
    /// # Errors
    /// A link name that no link can have, or no netlink.
    pub fn new(config: NetworkConfig) -> Result<Self, NetworkError> {
        check_link_name("bridge", &config.bridge)?;
        if let Some(uplink) = &config.uplink {
            check_link_name("uplink", uplink)?;
        }
        let rtnl = Mutex::new(Rtnl::open().map_err(NetworkError::kernel("opening rtnetlink"))?);
        let ipv6 = Path::new("/proc/sys/net/ipv6").exists();
        Ok(Self { config, rtnl, shut: Shut::default(), ipv6 })
    }

    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// A container's identity in this node's subnet. Without a MAC address of its own the container gets one derived
    /// from its IP address, so that it is the same on every node.
    pub fn identity(&self, ip: Ipv4Addr, mac: Option<Mac>) -> NetIdentity {
        let [a, b, c, d] = ip.octets();
        let mac = mac.unwrap_or(Mac([0x02, 0x68, a, b, c, d]));
        NetIdentity { ip, prefix_len: self.config.prefix_len, mac, gateway: self.config.gateway }
    }

    /// Makes the bridge as configured, or checks the one that is there; puts the uplink in. Can be repeated.
    ///
    /// # Errors
    /// The name belongs to something else, the bridge runs the spanning tree protocol, or the uplink is missing, taken,
    /// or in use by the node itself. Nothing has been changed then.
    pub fn ensure_bridge(&self) -> Result<BridgeAddress, NetworkError> {
        bridge::ensure(&mut self.rtnl(), &self.config)
    }

    /// Undoes what [`Self::ensure_bridge`] has said it did about the bridge's address.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn take_back(&self, given: BridgeAddress) -> Result<(), NetworkError> {
        if given == BridgeAddress::New { bridge::take_address(&mut self.rtnl(), &self.config) } else { Ok(()) }
    }

    /// A fresh network for the container, running but not in the bridge: nothing of it reaches the wire. One that was
    /// left from before is torn down first. On an error nothing is left.
    ///
    /// # Errors
    /// An identity that cannot work, no bridge, or what the kernel refused.
    pub fn build(&self, container: &ContainerName, identity: &NetIdentity) -> Result<Attachment, NetworkError> {
        check_identity(identity)?;
        let (netns, host_link) = (netns_path(container), host_link_name(container));
        let mut rtnl = self.rtnl();
        let (_, mtu) = bridge::find(&mut rtnl, &self.config.bridge)?;
        self.remove(&mut rtnl, container)?;
        let plan = Plan { namespace: &netns, host_link: &host_link, identity, mtu, ipv6: self.ipv6 };
        let built = veth::build(&mut rtnl, &plan).and_then(|()| index_of(&mut rtnl, container, &host_link));
        match built {
            Ok(host_index) => Ok(Attachment {
                container: container.clone(),
                identity: identity.clone(),
                netns,
                host_link,
                host_index,
            }),
            Err(error) => {
                if let Err(left) = self.remove(&mut rtnl, container) {
                    tracing::warn!(%container, error = %left, "a network that could not be built was not all removed");
                }
                Err(error)
            }
        }
    }

    /// The network of a container that this or an earlier manager built, if it is still there. Its gate may be closed: a
    /// manager that died in a checkpoint left it so, and [`Gate::open`] opens it.
    ///
    /// # Errors
    /// Only when the kernel cannot be asked.
    pub fn find(&self, container: &ContainerName, identity: &NetIdentity) -> Result<Option<Attachment>, NetworkError> {
        let (netns, host_link) = (netns_path(container), host_link_name(container));
        let link = bridge::link_of(&mut self.rtnl(), &host_link)?;
        Ok(link.filter(|_| netns.exists()).map(|link| Attachment {
            container: container.clone(),
            identity: identity.clone(),
            netns,
            host_link,
            host_index: link.header.index,
        }))
    }

    /// Lets the container onto the wire and announces it: once before this returns, then repeatedly for a second.
    ///
    /// # Errors
    /// The bridge or the container's link is gone.
    pub fn attach(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        {
            let mut rtnl = self.rtnl();
            let (bridge, _) = bridge::find(&mut rtnl, &self.config.bridge)?;
            enslave(&mut rtnl, attachment, bridge)?;
        }
        // A new port is open.
        self.shut.set(attachment.host_index, false);
        announce::start(&attachment.netns, attachment.identity.ip, attachment.identity.mac)
            .map_err(NetworkError::kernel(format!("announcing {}", attachment.identity.ip)))
    }

    /// The container's gate, which drops what arrives while it is closed.
    ///
    /// # Errors
    /// [`NetworkError::NotBuilt`] when the container has no network here.
    pub fn gate(&self, container: &ContainerName) -> Result<Gate, NetworkError> {
        let index = index_of(&mut self.rtnl(), container, &host_link_name(container))?;
        Gate::new(container.to_string(), index, self.shut.clone())
    }

    /// The gate of the container with that MAC address, which holds what arrives while it is closed and hands it over when
    /// it opens. Where that is not possible it drops, and a warning says so. Making it and dropping it takes milliseconds.
    ///
    /// # Errors
    /// [`NetworkError::NotBuilt`] when the container has no network here.
    pub fn holding_gate(&self, container: &ContainerName, mac: Mac) -> Result<Gate, NetworkError> {
        let gate = self.gate(container)?;
        let links = self.links_around(gate.host_index());
        let inside = netns::enter(&netns_path(container), || {
            let (socket, _) = veth::inner_end(&mut Rtnl::open()?)?;
            socket.with_offload_header()?;
            Ok(socket)
        });
        if let Err(error) = &inside {
            tracing::debug!(%container, %error, "a connection that begins while its gate closes will wait for TCP");
        }
        Ok(gate.holding(links.and_then(|links| Hold::prepare(links, mac, self.shut.clone(), inside.ok()))))
    }

    fn links_around(&self, host: u32) -> io::Result<Links> {
        let mut rtnl = self.rtnl();
        let bridge = rtnl.link(&self.config.bridge)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        let bridge = bridge.header.index;
        let all = rtnl.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let ports = all.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) if bridge::master(link) == Some(bridge) => Some(link.header.index),
            _ => None,
        });
        Ok(Links { host, bridge, ports: ports.collect() })
    }

    /// Removes all of the container's network. What is not there is no error.
    ///
    /// # Errors
    /// [`NetworkError::Incomplete`] with everything that could not be removed; the rest was.
    pub fn teardown(&self, container: &ContainerName) -> Result<(), NetworkError> {
        self.remove(&mut self.rtnl(), container)
    }

    fn remove(&self, rtnl: &mut Rtnl, container: &ContainerName) -> Result<(), NetworkError> {
        let host_link = host_link_name(container);
        let mut errors = Vec::new();
        match bridge::link_of(rtnl, &host_link) {
            Ok(None) => {}
            Ok(Some(link)) => errors.extend(self.delete_link(rtnl, &host_link, link.header.index).err()),
            Err(error) => errors.push(error),
        }
        errors.extend(delete_namespace(&netns_path(container)).err());
        Failures::check(format!("removing the network of {container}"), errors)
    }

    fn delete_link(&self, rtnl: &mut Rtnl, name: &str, index: u32) -> Result<(), NetworkError> {
        delete_link(rtnl, name)?;
        // Its gate may be closed, and nobody opens it any more.
        self.shut.set(index, false);
        Ok(())
    }

    /// Removes what is left of these containers' networks, and says what that was. By name only: a namespace or a link that
    /// merely looks like ours may be somebody else's.
    ///
    /// # Errors
    /// [`NetworkError::Incomplete`] with everything that could not be removed; the rest was.
    pub fn sweep(&self, gone: &[ContainerName]) -> Result<Vec<String>, NetworkError> {
        let mut rtnl = self.rtnl();
        let (mut removed, mut errors) = (Vec::new(), Vec::new());
        for container in gone {
            let (netns, link) = (netns_path(container), host_link_name(container));
            match bridge::link_of(&mut rtnl, &link) {
                Ok(None) => {}
                Ok(Some(found)) => match self.delete_link(&mut rtnl, &link, found.header.index) {
                    Ok(()) => removed.push(link),
                    Err(error) => errors.push(error),
                },
                Err(error) => errors.push(error),
            }
            if netns.exists() {
                match delete_namespace(&netns) {
                    Ok(()) => removed.push(netns.display().to_string()),
                    Err(error) => errors.push(error),
                }
            }
        }
        Failures::check("removing leftover networks", errors).map(|()| removed)
    }

    fn rtnl(&self) -> MutexGuard<'_, Rtnl> {
        // A panic in mid-exchange leaves answers unread at worst; they are told apart by their sequence numbers.
        self.rtnl.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `/run/netns/ha-NAME`.
pub fn netns_path(container: &ContainerName) -> PathBuf {
    Path::new(netns::DIRECTORY).join(format!("{NETNS_PREFIX}{container}"))
}

/// `hv` and ten hexadecimal digits of the name's hash: container names are longer than link names may be.
pub fn host_link_name(container: &ContainerName) -> String {
    let hash = blake3::hash(container.as_str().as_bytes()).to_hex();
    format!("{HOST_LINK_PREFIX}{}", &hash[..HOST_LINK_DIGITS])
}

fn check_link_name(what: &'static str, name: &str) -> Result<(), NetworkError> {
    let usable = !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && !name.bytes().any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace());
    if usable { Ok(()) } else { Err(NetworkError::LinkName { what, name: name.chars().take(80).collect() }) }
}

fn check_identity(identity: &NetIdentity) -> Result<(), NetworkError> {
    let refuse = |why| Err(NetworkError::Identity { ip: identity.ip, prefix_len: identity.prefix_len, why });
    let ip = identity.ip;
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast() {
        return refuse("that is not a host's address");
    }
    if !(1..=32).contains(&identity.prefix_len) {
        return refuse("a prefix length is 1 to 32");
    }
    if identity.mac.0[0] & 1 == 1 || identity.mac.0 == [0; 6] {
        return refuse("its MAC address is not a unicast one");
    }
    match identity.gateway {
        Some(gateway) if gateway == ip => refuse("it is its own gateway"),
        Some(gateway) if !same_subnet(gateway, ip, identity.prefix_len) => {
            refuse("the gateway is not in the container's subnet")
        }
        _ => Ok(()),
    }
}

/// Prefix lengths above 32 count as 32.
fn same_subnet(a: Ipv4Addr, b: Ipv4Addr, prefix_len: u8) -> bool {
    let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix_len.into())).unwrap_or(0);
    (u32::from(a) ^ u32::from(b)) & mask == 0
}

fn index_of(rtnl: &mut Rtnl, container: &ContainerName, host_link: &str) -> Result<u32, NetworkError> {
    let link = bridge::link_of(rtnl, host_link)?;
    link.map(|link| link.header.index)
        .ok_or_else(|| NetworkError::NotBuilt { container: container.to_string(), link: host_link.to_owned() })
}

/// Into the bridge with that index, or out of any with 0.
fn enslave(rtnl: &mut Rtnl, attachment: &Attachment, bridge: u32) -> Result<(), NetworkError> {
    // Up or down it stays as it is: whoever took it down, the watchdog, knows why.
    let mut message = bridge::link_message(attachment.host_index, LinkFlags::empty());
    message.attributes.push(LinkAttribute::Controller(bridge));
    rtnl.request(RouteNetlinkMessage::SetLink(message), 0).map_err(|source| {
        if bridge::is_absent(&source) {
            let (container, link) = (attachment.container.to_string(), attachment.host_link.clone());
            return NetworkError::NotBuilt { container, link };
        }
        let doing = if bridge == 0 { "taking out of the bridge" } else { "putting into the bridge" };
        NetworkError::Kernel { doing: format!("{doing} {}", attachment.host_link), source }
    })
}

fn delete_link(rtnl: &mut Rtnl, name: &str) -> Result<(), NetworkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match rtnl.request(RouteNetlinkMessage::DelLink(message), 0) {
        Err(error) if !bridge::is_absent(&error) => {
            Err(NetworkError::kernel(format!("deleting the link {name}"))(error))
        }
        _ => Ok(()),
    }
}

fn delete_namespace(path: &Path) -> Result<(), NetworkError> {
    netns::remove(path).map_err(NetworkError::kernel(format!("removing {}", path.display())))
}
