//! Every key of the store is built and read here; `docs/formats.md` lists them.
//!
//! Numbers are written with twenty digits, so that the order of the names is the order of the numbers.

use std::net::Ipv4Addr;

use crate::spec::{ContainerName, Epoch, NodeName, SnapshotId};

pub const CLUSTER: &str = "cluster";
pub const NODES: &str = "nodes/";
pub const APPS: &str = "apps/";
pub const OWNERS: &str = "owners/";
pub const BLOBS: &str = "blobs/";
pub const ADDRESSES: &str = "addresses/";
pub const BEATS: &str = "beats/";
pub const PARKED: &str = "parked/";
pub const RETIRED: &str = "retired/";
pub const SNAPSHOTS: &str = "snapshots/";
/// The last segment of a snapshot's commit.
pub const MANIFEST: &str = "manifest";

pub fn node(name: &NodeName) -> String {
    format!("{NODES}{name}")
}

pub fn beat(node: &NodeName, number: u64) -> String {
    format!("{BEATS}{node}/{number:020}")
}

pub fn parked(node: &NodeName, mark: &str) -> String {
    format!("{PARKED}{node}/{mark}")
}

/// `machine`: the nonce of the record under [`node`].
pub fn retired(node: &NodeName, machine: &str) -> String {
    format!("{RETIRED}{node}/{machine}")
}

/// `digest`: 64 hex digits of blake3.
pub fn blob(digest: &blake3::Hash) -> String {
    format!("{BLOBS}{}", digest.to_hex())
}

pub fn apps(container: &ContainerName) -> String {
    format!("{APPS}{container}/")
}

pub fn app(container: &ContainerName, generation: u64) -> String {
    format!("{APPS}{container}/{generation:020}")
}

pub fn owners(container: &ContainerName) -> String {
    format!("{OWNERS}{container}/")
}

pub fn owner(container: &ContainerName, epoch: Epoch) -> String {
    format!("{OWNERS}{container}/{:020}", epoch.0)
}

pub fn base(container: &ContainerName, epoch: Epoch) -> String {
    format!("{OWNERS}{container}/{:020}.base", epoch.0)
}

pub fn rest(container: &ContainerName, epoch: Epoch) -> String {
    format!("{OWNERS}{container}/{:020}.rest", epoch.0)
}

pub fn address(address: Ipv4Addr) -> String {
    format!("{ADDRESSES}{address}")
}

pub fn snapshots(container: &ContainerName) -> String {
    format!("{SNAPSHOTS}{container}/")
}

/// The prefix that holds one snapshot.
pub fn snapshot(container: &ContainerName, id: SnapshotId) -> String {
    format!("{SNAPSHOTS}{container}/{:020}-{:020}/", id.epoch.0, id.seq)
}

pub fn manifest(container: &ContainerName, id: SnapshotId) -> String {
    format!("{}{MANIFEST}", snapshot(container, id))
}

/// `file`: `<part>.<number>`, as [`crate::snapshot`] names its chunks.
pub fn chunk(container: &ContainerName, id: SnapshotId, file: &str) -> String {
    format!("{}{file}", snapshot(container, id))
}

pub fn logs(container: &ContainerName) -> String {
    format!("logs/{container}/")
}

pub fn log(container: &ContainerName, epoch: Epoch, number: u64) -> String {
    format!("logs/{container}/{:020}-{number:020}", epoch.0)
}

/// Reads twenty digits; anything else is none of ours.
pub fn number(text: &str) -> Option<u64> {
    if text.len() == 20 && text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Reads `<twenty digits>-<twenty digits>`.
pub fn pair(text: &str) -> Option<(u64, u64)> {
    let (first, second) = text.split_once('-')?;
    Some((number(first)?, number(second)?))
}

/// What a key under `snapshots/<container>/` belongs to: the snapshot, and the object's name in it.
pub fn parse_snapshot_object<'a>(container: &ContainerName, key: &'a str) -> Option<(SnapshotId, &'a str)> {
    let rest = key.strip_prefix(SNAPSHOTS)?.strip_prefix(container.as_str())?.strip_prefix('/')?;
    let (id, file) = rest.split_once('/')?;
    let (epoch, seq) = pair(id)?;
    if file.is_empty() || file.contains('/') {
        return None;
    }
    Some((SnapshotId { epoch: Epoch(epoch), seq }, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_their_numbers_and_read_back() {
        let c: ContainerName = "redis".parse().unwrap();
        let id = |epoch, seq| SnapshotId { epoch: Epoch(epoch), seq };
        assert!(manifest(&c, id(2, 9)) < manifest(&c, id(2, 10)));
        assert!(manifest(&c, id(9, u64::MAX)) < manifest(&c, id(10, 0)));
        let key = chunk(&c, id(u64::MAX, 7), "memory.3");
        assert_eq!(parse_snapshot_object(&c, &key), Some((id(u64::MAX, 7), "memory.3")));
        let other: ContainerName = "redis-2".parse().unwrap();
        assert_eq!(parse_snapshot_object(&other, &key), None);
        for bad in ["snapshots/redis/1-2/manifest", "snapshots/redis/manifest", "snapshots/redis/", "apps/redis/x"] {
            assert_eq!(parse_snapshot_object(&c, bad), None, "{bad}");
        }
        assert_eq!(number("+0000000000000000001"), None);
        assert_eq!(number("99999999999999999999"), None);
    }
}
