//! Joining: is this the right store, does it keep its promise, and is our name free?

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

use super::{
    Backend, PutNew, Store, StoreError, keys,
    record::{self, Created, Record},
};
use crate::spec::NodeName;

/// The version of the store's layout. A store with a greater one is refused.
const FORMAT: u32 = 1;
const MAGIC: &str = "ha-manager store";
const PROBE_ROUNDS: usize = 3;
const PROBE_WRITERS: usize = 6;

/// The `cluster` object.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Marker {
    magic: String,
    format: u32,
    pub(super) cluster: String,
    /// Tells this store from every other.
    pub(super) id: String,
    created: DateTime<Utc>,
}

impl Marker {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let corrupt = |what| StoreError::Corrupt { key: keys::CLUSTER.to_owned(), what };
        #[derive(Deserialize)]
        struct Head {
            magic: String,
            format: u32,
        }
        // First what every version has, so that a newer one is named as such.
        let head: Head = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
        if head.magic != MAGIC {
            return Err(corrupt(format!("it does not begin with {MAGIC:?}")));
        }
        if head.format > FORMAT {
            return Err(StoreError::TooNew { key: keys::CLUSTER.to_owned(), found: head.format, known: FORMAT });
        }
        serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))
    }
}

impl Record for Marker {
    fn nonce(&self) -> &str {
        &self.id
    }
}

/// The store this node joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterInfo {
    pub cluster: String,
    /// Tells this store from every other.
    pub id: String,
    /// True for the node that was there first.
    pub created: bool,
}

/// What a node knows of its store before it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// It was never in one.
    AnyStore,
    /// It was in one, but which is not known any more.
    UsedStore,
    /// The store with this id.
    Id(String),
}

/// `nodes/<node>`: who goes by this name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub node: NodeName,
    /// Kept in the node's state directory, so that a restarted manager knows its own record.
    pub nonce: String,
    /// Where peers reach it, `host:port`.
    pub address: String,
    /// The address of its bridge, in the containers' network: no container gets it. Not in records of the first releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Ipv4Addr>,
    /// The times of its leases in milliseconds, short and long, as its manager goes by them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_lease_ms: Option<(u64, u64)>,
    /// The longer of these and of those of the manager before, which may have proved something by them: whoever takes over from
    /// the node waits for these at the least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<(u64, u64)>,
    /// The node's clock; for people.
    pub at: DateTime<Utc>,
}

impl Record for NodeRecord {
    fn nonce(&self) -> &str {
        &self.nonce
    }
}

impl Store {
    /// Joins the cluster's store, making it one on first use.
    ///
    /// # Errors
    /// [`StoreError::WrongCluster`], [`StoreError::TooNew`], and all of [`Store::put_new`].
    pub async fn init_or_join(&self, cluster: &str) -> Result<ClusterInfo, StoreError> {
        self.join(cluster, &Expected::AnyStore).await
    }

    /// As [`Store::init_or_join`], but only the store that is expected: a node that was in one before neither makes an empty
    /// directory its store nor takes another for it. There its containers would look like nobody's.
    ///
    /// # Errors
    /// Besides those, [`StoreError::Emptied`] and [`StoreError::OtherStore`]; nothing is written then.
    pub async fn join(&self, cluster: &str, expected: &Expected) -> Result<ClusterInfo, StoreError> {
        if let Some(info) = self.examine(cluster, expected).await? {
            return Ok(info);
        }
        let marker = Marker {
            magic: MAGIC.to_owned(),
            format: FORMAT,
            cluster: cluster.to_owned(),
            id: record::nonce(),
            created: Utc::now().trunc_subsecs(0),
        };
        let created = matches!(record::create(self, keys::CLUSTER, &marker).await?, Created::Won);
        let bytes = self.get(keys::CLUSTER, record::MAX_RECORD).await?;
        Ok(ClusterInfo { created, ..self.recognise(&bytes, cluster, expected)? })
    }

    /// Whether [`Store::join`] would find what it expects. Changes nothing: `None` is an empty store that may be joined.
    ///
    /// # Errors
    /// As [`Store::join`].
    pub async fn examine(&self, cluster: &str, expected: &Expected) -> Result<Option<ClusterInfo>, StoreError> {
        match self.get_opt(keys::CLUSTER, record::MAX_RECORD).await? {
            Some(bytes) => self.recognise(&bytes, cluster, expected).map(Some),
            None if *expected == Expected::AnyStore => Ok(None),
            None => Err(StoreError::Emptied { url: self.url().to_owned() }),
        }
    }

    fn recognise(&self, marker: &[u8], cluster: &str, expected: &Expected) -> Result<ClusterInfo, StoreError> {
        let marker = Marker::decode(marker)?;
        let url = self.url().to_owned();
        if marker.cluster != cluster {
            return Err(StoreError::WrongCluster { url, found: marker.cluster, wanted: cluster.to_owned() });
        }
        if let Expected::Id(id) = expected
            && *id != marker.id
        {
            return Err(StoreError::OtherStore { url, found: marker.id, wanted: id.clone() });
        }
        if let Backend::Directory { guard, .. } = &self.inner.backend {
            guard.expect_store(&marker.id);
        }
        Ok(ClusterInfo { cluster: marker.cluster, id: marker.id, created: false })
    }

    /// Tests that of several writers racing for one key exactly one creates it, and that its content stays.
    ///
    /// # Errors
    /// [`StoreError::NotCreateOnly`] says what was seen instead.
    pub async fn probe_create_only(&self) -> Result<(), StoreError> {
        for _ in 0..PROBE_ROUNDS {
            let key = format!("probe/{}", record::nonce());
            let outcome = self.probe_once(&key).await;
            let deleted = self.delete(&key).await;
            outcome?;
            deleted?;
        }
        Ok(())
    }

    /// What time it is by the clock that dates the store's objects.
    pub async fn clock(&self) -> Result<DateTime<Utc>, StoreError> {
        let key = format!("probe/{}", record::nonce());
        self.put_new(&key, Bytes::from_static(b"clock")).await?;
        let there = self.stat(&key).await;
        self.delete(&key).await?;
        there?.map(|object| object.modified).ok_or(StoreError::NotFound { key })
    }

    async fn probe_once(&self, key: &str) -> Result<(), StoreError> {
        let bad = |what: String| StoreError::NotCreateOnly { url: self.url().to_owned(), what };
        let contents: Vec<String> = (0..PROBE_WRITERS).map(|_| record::nonce()).collect();
        let writers = contents.iter().map(|content| self.put_new(key, Bytes::from(content.clone())));
        let mut created = Vec::new();
        for (content, outcome) in contents.iter().zip(futures_util::future::join_all(writers).await) {
            if outcome? == PutNew::Created {
                created.push(content);
            }
        }
        if created.len() > 1 {
            return Err(bad(format!("{} of {PROBE_WRITERS} writers were told that they created {key}", created.len())));
        }
        if self.put_new(key, Bytes::from_static(b"late")).await? == PutNew::Created {
            return Err(bad(format!("{key} was created a second time")));
        }
        let there = self.get(key, 1024).await?;
        // Nobody told "created" is a lost answer: the content then has to be one of ours all the same.
        let good = match created.first() {
            Some(winner) => there == winner.as_bytes(),
            None => contents.iter().any(|c| there == c.as_bytes()),
        };
        if good { Ok(()) } else { Err(bad(format!("{key} does not hold what its creator wrote"))) }
    }

    /// Every node that ever registered. One whose record cannot be read is left out.
    pub async fn node_records(&self) -> Result<Vec<NodeRecord>, StoreError> {
        let mut records = Vec::new();
        for object in self.list(keys::NODES).await? {
            match record::read_opt(self, &object.key).await {
                Ok(record) => records.extend(record),
                Err(error) if error.is_away() => return Err(error),
                Err(error) => tracing::warn!(error = crate::chain(&error), "a node's record cannot be read"),
            }
        }
        Ok(records)
    }

    /// Who goes by a name.
    ///
    /// # Errors
    /// From the store, or the record cannot be read.
    pub async fn node_record(&self, node: &NodeName) -> Result<Option<NodeRecord>, StoreError> {
        record::read_opt(self, &keys::node(node)).await
    }

    /// Frees the name of a machine that is gone for good, if it still is that machine's.
    ///
    /// # Errors
    /// As [`Store::node_record`].
    pub async fn free_node_name(&self, node: &NodeName, machine: &str) -> Result<(), StoreError> {
        match self.node_record(node).await? {
            Some(record) if record.nonce == machine => self.delete(&keys::node(node)).await,
            _ => Ok(()),
        }
    }

    /// The nodes' own addresses, as they have registered them, each with its node.
    pub async fn node_addresses(&self) -> Result<BTreeMap<Ipv4Addr, String>, StoreError> {
        let mut known = BTreeMap::new();
        for record in self.node_records().await? {
            let reached = match record.address.parse() {
                Ok(SocketAddr::V4(address)) => Some(*address.ip()),
                _ => None,
            };
            known.extend(reached.into_iter().chain(record.bridge).map(|ip| (ip, record.node.to_string())));
        }
        Ok(known)
    }

    /// Registers this node's name, or finds its own record of an earlier run (the same nonce). One with other addresses than
    /// it has now is replaced.
    ///
    /// # Errors
    /// [`StoreError::NodeNameTaken`] if another node has it.
    pub async fn claim_node_name(&self, wanted: &NodeRecord) -> Result<NodeRecord, StoreError> {
        let key = keys::node(&wanted.node);
        self.create_node_record(&key, wanted).await?;
        let there: NodeRecord = record::read(self, &key).await?;
        let compared =
            |record: &NodeRecord| (record.address.clone(), record.bridge, record.own_lease_ms, record.lease_ms);
        if compared(&there) == compared(wanted) {
            return Ok(there);
        }
        self.delete(&key).await?;
        self.create_node_record(&key, wanted).await?;
        record::read(self, &key).await
    }

    async fn create_node_record(&self, key: &str, wanted: &NodeRecord) -> Result<(), StoreError> {
        match record::create(self, key, wanted).await? {
            Created::Won => Ok(()),
            Created::Lost(other) => Err(StoreError::NodeNameTaken {
                name: other.node.to_string(),
                address: other.address,
                at: other.at.to_rfc3339_opts(SecondsFormat::Secs, true),
            }),
        }
    }

    /// The longest a small operation may take.
    pub fn deadline(&self) -> Duration {
        self.inner.options.deadline
    }
}
