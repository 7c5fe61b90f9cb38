//! Who a container is on the network: its address is reserved once, when it is created, and stays its own until it is removed.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use super::Node;
use crate::{
    snapshot::NetworkIdentity,
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
        let (store, name) = (&self.ctx.store, &content.spec.name);
        let nodes = self.node_addresses().await?;
        let ip = match content.spec.network.ipv4 {
            Some(address) => {
                if let Some(node) = nodes.get(&address) {
                    let (node, container) = (node.clone(), name.to_string());
                    return Err(StoreError::AddressOfNode { address, node, container });
                }
                addresses::reserve(store, name, address).await?;
                address
            }
            None => {
                let mut pool = self.ctx.address_pool();
                pool.exclude.extend(nodes.into_keys());
                addresses::allocate(store, name, &pool).await?
            }
        };
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

    /// What is known of the nodes' own addresses: they are on the containers' network, too.
    async fn node_addresses(&self) -> Result<BTreeMap<Ipv4Addr, String>, StoreError> {
        let mut known = BTreeMap::new();
        let mut add = |address: &str, node: String| {
            if let Ok(SocketAddr::V4(address)) = address.parse() {
                known.insert(*address.ip(), node);
            }
        };
        for peer in self.ctx.membership.peers() {
            add(&peer.address, peer.name.to_string());
        }
        let records = self.ctx.store.node_records().await?;
        for record in &records {
            add(&record.address, record.node.to_string());
        }
        known.extend(records.into_iter().filter_map(|record| Some((record.bridge?, record.node.to_string()))));
        Ok(known)
    }
}
