//! `addresses/<ipv4>`: which container has which address. Created once, deleted by its owner.
//!
//! The walk through the pool begins at a hash of the container's name, so that usually the first try is free, and a
//! container that comes back gets its old address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError, keys,
    record::{self, Created, Record},
};
use crate::spec::ContainerName;

/// A container's address is looked for at the beginning of its walk before all are listed.
const DIRECT_TRIES: usize = 8;

/// The addresses containers get: the hosts of a network, without some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Any address of the network.
    pub network: Ipv4Addr,
    /// 8 to 30.
    pub prefix_len: u8,
    /// Gateway, nodes, ranges kept for others.
    pub exclude: BTreeSet<Ipv4Addr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct AddressRecord {
    container: ContainerName,
}

/// A container's name is unique in the cluster, so it is its own nonce.
impl Record for AddressRecord {
    fn nonce(&self) -> &str {
        self.container.as_str()
    }
}

impl Pool {
    fn hosts(&self) -> u32 {
        (1_u32 << (32 - u32::from(self.prefix_len.clamp(8, 30)))) - 2
    }

    /// All usable addresses, beginning where the name's hash points.
    pub fn walk(&self, container: &ContainerName) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let hosts = self.hosts();
        let network = u32::from(self.network) & !(hosts + 1);
        let hash = blake3::hash(container.as_str().as_bytes());
        let mut head = [0; 8];
        head.copy_from_slice(&hash.as_bytes()[..8]);
        // The remainder is below `hosts`, a u32.
        let start = (u64::from_le_bytes(head) % u64::from(hosts)) as u32;
        (0..hosts)
            .map(move |n| {
                Ipv4Addr::from(network + 1 + (u64::from(start) + u64::from(n)).rem_euclid(u64::from(hosts)) as u32)
            })
            .filter(|a| !self.exclude.contains(a))
    }
}

/// The address `container` has; nothing is reserved. Should there be several, the first of its walk.
pub async fn find(store: &Store, container: &ContainerName, pool: &Pool) -> Result<Option<Ipv4Addr>, StoreError> {
    Ok(look_up(store, container, pool).await?.ok())
}

/// The container's address, or all that are taken.
async fn look_up(
    store: &Store,
    container: &ContainerName,
    pool: &Pool,
) -> Result<Result<Ipv4Addr, BTreeSet<Ipv4Addr>>, StoreError> {
    let nearest = pool.walk(container).take(DIRECT_TRIES).map(|address| async move {
        let owner = owner(store, address).await?;
        Ok::<_, StoreError>((owner.as_ref() == Some(container)).then_some(address))
    });
    let nearest = futures_util::future::try_join_all(nearest).await?;
    if let Some(address) = nearest.into_iter().flatten().next() {
        return Ok(Ok(address));
    }
    let all = all(store).await?;
    let own: Vec<Ipv4Addr> = all.iter().filter(|(_, owner)| owner == container).map(|(address, _)| *address).collect();
    // Another node's pool may be another one: the address stays the container's.
    let first = pool.walk(container).find(|address| own.contains(address)).or_else(|| own.iter().min().copied());
    Ok(first.ok_or_else(|| all.into_iter().map(|(address, _)| address).collect()))
}

/// Gives `container` the address it wants, or else one of the pool, but none that is a node's: of those that have registered, or
/// by `nodes`, what else is known of them.
///
/// # Errors
/// [`StoreError::AddressOfNode`] and [`StoreError::AddressTaken`] name who has it; [`StoreError::PoolExhausted`].
pub async fn give(
    store: &Store,
    container: &ContainerName,
    wanted: Option<Ipv4Addr>,
    mut pool: Pool,
    nodes: &BTreeMap<Ipv4Addr, String>,
) -> Result<Ipv4Addr, StoreError> {
    pool.exclude.extend(nodes.keys());
    loop {
        let address = match wanted {
            Some(address) => reserve(store, container, address).await.map(|()| address)?,
            None => allocate(store, container, &pool).await?,
        };
        // After the reservation: a node registers before it looks whether a container has its address, so one of both sees
        // the other.
        let registered = store.node_addresses().await?;
        let Some(node) = nodes.get(&address).or_else(|| registered.get(&address)) else { return Ok(address) };
        release(store, container, address).await?;
        if wanted.is_some() {
            return Err(StoreError::AddressOfNode { address, node: node.clone(), container: container.to_string() });
        }
        pool.exclude.extend(registered.keys());
    }
}

/// Gives `container` an address of the pool; one that has an address already keeps it, whatever has been freed since.
///
/// # Errors
/// [`StoreError::PoolExhausted`].
pub async fn allocate(store: &Store, container: &ContainerName, pool: &Pool) -> Result<Ipv4Addr, StoreError> {
    let taken = match look_up(store, container, pool).await? {
        Ok(address) => return Ok(address),
        Err(taken) => taken,
    };
    for address in pool.walk(container).filter(|address| !taken.contains(address)) {
        if try_reserve(store, container, address).await?.is_none() {
            return Ok(address);
        }
    }
    let pool = format!("{}/{}", pool.network, pool.prefix_len);
    Err(StoreError::PoolExhausted { pool, container: container.to_string() })
}

/// Gives `container` this very address.
///
/// # Errors
/// [`StoreError::AddressTaken`] names who has it.
pub async fn reserve(store: &Store, container: &ContainerName, address: Ipv4Addr) -> Result<(), StoreError> {
    match try_reserve(store, container, address).await? {
        None => Ok(()),
        Some(owner) => {
            Err(StoreError::AddressTaken { address, owner: owner.to_string(), container: container.to_string() })
        }
    }
}

/// Gives an address back; one that is not this container's is left alone.
pub async fn release(store: &Store, container: &ContainerName, address: Ipv4Addr) -> Result<(), StoreError> {
    if owner(store, address).await?.as_ref() == Some(container) {
        store.delete(&keys::address(address)).await?;
    }
    Ok(())
}

pub async fn owner(store: &Store, address: Ipv4Addr) -> Result<Option<ContainerName>, StoreError> {
    let record: Option<AddressRecord> = record::read_opt(store, &keys::address(address)).await?;
    Ok(record.map(|r| r.container))
}

/// Every address given out, with its container.
pub async fn all(store: &Store) -> Result<Vec<(Ipv4Addr, ContainerName)>, StoreError> {
    let listed = store.list(keys::ADDRESSES).await?;
    let addresses = listed.iter().filter_map(|o| o.key.strip_prefix(keys::ADDRESSES)?.parse::<Ipv4Addr>().ok());
    let addresses: Vec<Ipv4Addr> = addresses.collect();
    let reads = addresses.into_iter().map(|a| async move { Ok(owner(store, a).await?.map(|o| (a, o))) });
    let found: Vec<Option<_>> = futures_util::stream::iter(reads).buffered(16).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// `Some(owner)` if it is another's.
async fn try_reserve(
    store: &Store,
    container: &ContainerName,
    address: Ipv4Addr,
) -> Result<Option<ContainerName>, StoreError> {
    let record = AddressRecord { container: container.clone() };
    match record::create(store, &keys::address(address), &record).await? {
        Created::Won => Ok(None),
        Created::Lost(other) => Ok(Some(other.container)),
    }
}
