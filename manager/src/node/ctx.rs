//! What every part of a running manager is called with.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use super::{agent::AgentBinary, events::EventLog, keeper::Keeper};
use crate::{
    checkpoint::Dumper,
    config::NodeConfig,
    membership::Membership,
    network::Network,
    ownership::Owner,
    runtime::Runc,
    snapshot::Versions,
    spec::ContainerName,
    store::{Newest, Store, addresses::Pool, apps::App},
    tls::Security,
};

pub struct Ctx {
    pub config: NodeConfig,
    pub store: Store,
    /// What was read of `owners/` and of `apps/`.
    pub owners: Newest<Owner>,
    pub apps: Newest<App>,
    pub network: Network,
    pub runtime: Runc,
    pub dumper: Dumper,
    pub agent: AgentBinary,
    pub events: Arc<EventLog>,
    pub membership: Membership,
    /// Until when containers may run here.
    pub lease: Arc<Keeper>,
    /// Makes and takes the connections between nodes.
    pub security: Security,
    /// Of runtime, CRIU and kernel, for the manifests.
    pub versions: Versions,
    /// Held for reading while layers are being mounted: none is taken away meanwhile.
    pub mounting: tokio::sync::RwLock<()>,
}

impl Ctx {
    /// The runtime's name of a container.
    pub fn runtime_id(&self, container: &ContainerName) -> String {
        container.to_string()
    }

    /// Unpacked image layers, shared by all containers.
    pub fn layers_dir(&self) -> PathBuf {
        self.config.state_dir.join("layers")
    }

    /// Where containers without an address of their own get theirs.
    pub fn address_pool(&self) -> Pool {
        let network = &self.config.network;
        let mut exclude = BTreeSet::new();
        exclude.extend(network.address.map(|address| address.addr));
        exclude.extend(network.default_gateway());
        Pool { network: network.pool.network(), prefix_len: network.pool.prefix, exclude }
    }
}
