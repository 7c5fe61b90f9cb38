//! `node.toml`: what one node is told.
//!
//! A configuration is either right or refused: every key is known, every value is checked, and what is wrong is said
//! with its line and what is allowed instead, all of it at once. A node that starts with half of what its operator
//! meant does its damage later, at a failover.
//!
//! ```text
//! text ──toml──► table with positions ──read──► NodeConfig ──check──► NodeConfig, or every Problem of the file
//! ```

mod cidr;
mod error;
mod fence;
mod load;
mod pace;
mod quorum;
mod read;
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Serialize, Serializer};
use url::Url;

pub use cidr::{Cidr, CidrError};
pub use error::{ConfigError, Problem};
pub use fence::{FenceAction, FenceConfig, FenceMethod, FenceOptions};
pub use pace::{LeaseConfig, Pace};
pub use quorum::Quorum;

use crate::spec::NodeName;

/// The configuration of one node. `docs/configuration.md` describes the same keys for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeConfig {
    /// This node's name, unique in the cluster. Required.
    pub node: NodeName,
    /// The cluster's name; nodes and stores of another cluster are refused. Default `default`.
    pub cluster: String,
    /// Where the peer service listens, `ip:port`. Default `0.0.0.0:7420`.
    pub listen: SocketAddr,
    /// What peers are told to connect to, `host:port`. Default: `listen`; where that has no address, the local address of the
    /// route to the first peer, with the port of `listen`.
    pub advertise: Option<String>,
    /// Peers to greet at the start, each `host:port`; further ones are learnt from them. Default none: a cluster of one.
    pub peers: Vec<String>,
    /// The shared object store: `file:///directory` or `s3://bucket/prefix`. Required.
    #[serde(serialize_with = "as_text")]
    pub store: Url,
    /// What has to survive a reboot of the node: layers, root file systems, volumes. Default `/var/lib/ha-manager`.
    pub state_dir: PathBuf,
    /// What does not: sockets, the runtime's state. Default `/run/ha-manager`.
    pub run_dir: PathBuf,
    /// CRIU's images while a dump or restore runs; a tmpfs is best. Holds at most two dumps of each container that is
    /// being checkpointed, so about 2 × its memory. Default `run_dir`.
    pub scratch: PathBuf,
    /// The OCI runtime, a name in `PATH` or a path. Default `runc`.
    pub runtime: String,
    /// The runtime's `--root`. Default `run_dir`/runc.
    pub runtime_root: PathBuf,
    /// CRIU, a name in `PATH` or a path. Default `criu`.
    pub criu: String,
    /// The static ha-agent that becomes every container's init. Default: beside the running ha-manager, else
    /// `/usr/local/lib/ha-manager/ha-agent`.
    pub agent: PathBuf,
    /// The times of `membership` and `lease` that are not given one by one. Default `lan`.
    pub pace: Pace,
    /// Who has to agree before a node takes over. Default `store`.
    pub quorum: Quorum,
    /// The nodes whose majority counts: three or more with [`Quorum::Majority`], else none.
    pub voters: BTreeSet<NodeName>,
    /// A hardware watchdog that resets the node when its manager's watchdog process ends or hangs. Default none.
    pub watchdog_device: Option<PathBuf>,
    pub tls: TlsConfig,
    pub network: NetworkConfig,
    pub membership: MembershipConfig,
    pub lease: LeaseConfig,
    /// How other nodes are fenced. Default: they are not.
    pub fence: BTreeMap<NodeName, FenceConfig>,
    pub checkpoint: CheckpointConfig,
    pub logs: LogsConfig,
}

/// `[tls]`, which has to be there: nobody is without certificates by accident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TlsConfig {
    /// Where this node's certificate and key and the cluster's CA are: `node.crt`, `node.key`, `ca.crt`. Default
    /// `/etc/ha-manager/tls`.
    pub dir: PathBuf,
    /// Neither authentication nor encryption between nodes. Default false.
    pub insecure: bool,
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkConfig {
    /// The bridge the containers are on; made when it is not there. At most 15 characters. Default `ha0`.
    pub bridge: String,
    /// The bridge's own address with the network's prefix length, `10.77.0.1/16`. Each node has its own. Default none:
    /// the bridge has no address and the network is `pool`.
    pub address: Option<Cidr>,
    /// Containers without `ipv4_address` get theirs from here. Inside the network of `address`. Default `10.77.1.0/24`.
    pub pool: Cidr,
    /// The containers' default route. Default: the address of the bridge where it has one, else no default route.
    pub gateway: Option<Ipv4Addr>,
    /// A link to put into the bridge, so that containers on different nodes share one network. Default none.
    pub uplink: Option<String>,
    /// How long an address is probed before it is claimed (RFC 5227, three probes in this time). Default `100ms`.
    #[serde(with = "humantime_serde")]
    pub probe_timeout: Duration,
}

impl NetworkConfig {
    /// The network the containers are in: that of the bridge's address, else the pool.
    pub fn subnet(&self) -> Cidr {
        self.address.unwrap_or(self.pool)
    }

    /// The containers' default route.
    pub fn default_gateway(&self) -> Option<Ipv4Addr> {
        self.gateway.or(self.address.map(|cidr| cidr.addr))
    }

    /// Whether a container may have `addr`: a host address of the network that is neither the bridge's nor the gateway's.
    pub fn is_assignable(&self, addr: Ipv4Addr) -> bool {
        self.subnet().is_host(addr) && Some(addr) != self.gateway && Some(addr) != self.address.map(|cidr| cidr.addr)
    }

    /// The addresses to choose from for a container that asks for none, lowest first.
    pub fn candidates(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let bits = self.pool.network().to_bits()..=self.pool.broadcast().to_bits();
        bits.map(Ipv4Addr::from_bits).filter(|addr| self.pool.is_host(*addr) && self.is_assignable(*addr))
    }
}

/// `[membership]`. The defaults are those of `pace`; here they are `lan`'s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MembershipConfig {
    /// A peer is probed every so often, in turn. Default `200ms`.
    #[serde(with = "humantime_serde")]
    pub probe_interval: Duration,
    /// A direct probe unanswered for so long is tried through others. Below `probe_interval`. Default `150ms`.
    #[serde(with = "humantime_serde")]
    pub probe_timeout: Duration,
    /// A suspected peer has so long to refute. Longer than `probe_interval`. A node that falls silent is noticed after
    /// about `probe_interval` + `suspicion`; raising it trades that for patience with slow networks. Default `600ms`.
    #[serde(with = "humantime_serde")]
    pub suspicion: Duration,
    /// How many others are asked to probe a peer that does not answer, 0 to 16. Default 3.
    pub indirect_probes: u32,
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckpointConfig {
    /// No container is checkpointed more often, whatever its state sensitivity. Default `1s`.
    #[serde(with = "humantime_serde")]
    pub min_interval: Duration,
    /// A dump that takes longer is ended and its container thawed. Longer than `min_interval`. Default `60s`.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// zstd's level for snapshots, 1 (fast) to 19 (small). Default 1.
    pub compression_level: i32,
    /// How many bytes of snapshots wait in `state_dir` while the store is away; beyond it the oldest that is not a
    /// container's newest is dropped. Default `1GiB`.
    #[serde(serialize_with = "as_size")]
    pub queue_max_bytes: u64,
}

/// `[logs]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogsConfig {
    /// How much of each container's output is kept; the oldest goes first. Default `64MiB`.
    #[serde(serialize_with = "as_size")]
    pub max_bytes: u64,
}

impl LogsConfig {
    /// At this size the agent begins a new file.
    pub fn file_max_bytes(&self) -> u64 {
        self.max_bytes.max(64 << 10)
    }
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self { dir: "/etc/ha-manager/tls".into(), insecure: false }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            bridge: "ha0".into(),
            address: None,
            pool: Cidr { addr: Ipv4Addr::new(10, 77, 1, 0), prefix: 24 },
            gateway: None,
            uplink: None,
            probe_timeout: Duration::from_millis(100),
        }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            min_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(60),
            compression_level: 1,
            queue_max_bytes: 1 << 30,
        }
    }
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self { max_bytes: 64 << 20 }
    }
}

impl NodeConfig {
    /// The socket the command line talks to.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }
}

fn as_text<S: Serializer>(url: &Url, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(url)
}

/// In the largest unit that keeps it exact, so that it can be read back.
fn as_size<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    let (unit, name) = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
        .into_iter()
        .find(|(unit, _)| *bytes >= *unit && bytes.is_multiple_of(*unit))
        .unwrap_or((1, "B"));
    serializer.collect_str(&format_args!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_fencing;
