//! Who a container is on the network: its address is reserved once, when it is created, and stays its own until it is removed.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use super::Node;
use crate::{
    api::ApiError,
    snapshot::NetworkIdentity,
    spec::ContainerSpec,
    store::{StoreError, addresses, apps::AppContent},
};

impl Node {
    /// The identity of a container that is to run here. One without an address gets one.
    ///
    /// # Errors
    /// The address it asks for is another container's or a node's.
    pub(super) async fn identity(&self, content: &AppContent) -> Result<NetworkIdentity, StoreError> {
        if let Some(identity) = self.known_identity(content).await? {
            return Ok(identity);
        }
        let (wanted, pool) = (content.spec.network.ipv4, self.ctx.address_pool());
        let ip = addresses::give(&self.ctx.store, &content.spec.name, wanted, pool, &self.node_addresses()).await?;
        Ok(self.identity_at(ip, content))
    }

    /// The identity a container has; `None` when no address is reserved for it. Changes nothing, so it may be asked about any
    /// container.
    pub(super) async fn known_identity(&self, content: &AppContent) -> Result<Option<NetworkIdentity>, StoreError> {
        let (store, name) = (&self.ctx.store, &content.spec.name);
        let found = match content.spec.network.ipv4 {
            Some(ip) => addresses::owner(store, ip).await?.filter(|owner| owner == name).map(|_| ip),
            None => addresses::find(store, name, &self.ctx.address_pool()).await?,
        };
        Ok(found.map(|ip| self.identity_at(ip, content)))
    }

    fn identity_at(&self, ip: Ipv4Addr, content: &AppContent) -> NetworkIdentity {
        let id = self.ctx.network.identity(ip, content.spec.network.mac);
        NetworkIdentity { ip: id.ip, prefix_len: id.prefix_len, mac: id.mac, gateway: id.gateway }
    }

    /// Before anything is made or ended for it: whether a container may have the address it asks for.
    ///
    /// # Errors
    /// It is a node's or another container's, or not of the containers' network.
    pub(super) async fn check_address(&self, spec: &ContainerSpec) -> Result<(), ApiError> {
        let (name, network) = (&spec.name, &self.ctx.config.network);
        let Some(address) = spec.network.ipv4 else { return Ok(()) };
        let mut nodes = self.ctx.store.node_addresses().await.map_err(address_refused)?;
        nodes.extend(self.node_addresses());
        if let Some(node) = nodes.remove(&address) {
            return Err(address_refused(StoreError::AddressOfNode { address, node, container: name.to_string() }));
        }
        if !network.is_assignable(address) {
            return Err(ApiError::Invalid(format!(
                "{name}: address {address} cannot be used here: it has to be a free host address in {}, the network of bridge {}",
                network.subnet(),
                network.bridge
            )));
        }
        let owner = addresses::owner(&self.ctx.store, address).await.map_err(address_refused)?;
        match owner.filter(|owner| owner != name) {
            Some(owner) => {
                let (owner, container) = (owner.to_string(), name.to_string());
                Err(address_refused(StoreError::AddressTaken { address, owner, container }))
            }
            None => Ok(()),
        }
    }

    /// What this node knows by itself of the nodes' own addresses, which are on the containers' network, too.
    fn node_addresses(&self) -> BTreeMap<Ipv4Addr, String> {
        let peers = self.ctx.membership.peers().into_iter().filter_map(|peer| match peer.address.parse() {
            Ok(SocketAddr::V4(address)) => Some((*address.ip(), peer.name.to_string())),
            _ => None,
        });
        let own = self.ctx.config.network.address.map(|cidr| (cidr.addr, self.name().to_string()));
        peers.chain(own).collect()
    }
}

/// An address that somebody else has is nothing that failed: another one has to be asked for.
pub(super) fn address_refused(error: StoreError) -> ApiError {
    match error {
        StoreError::AddressOfNode { .. } | StoreError::AddressTaken { .. } => ApiError::Refused(error.to_string()),
        error if error.is_retryable() => ApiError::Unavailable(crate::chain(&error)),
        error => ApiError::failed(&error),
    }
}
