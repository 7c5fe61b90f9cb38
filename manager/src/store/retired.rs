//! `retired/<node>/<machine>`: the machine that went by this name is gone for good. Nobody waits for it, and it takes nothing over
//! until it has started like a new node.
//!
//! The mark is of one machine, by the nonce in its record: another one may take the name, and is not meant.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use chrono::{DateTime, SubsecRound, Utc};
use serde::Serialize;

use super::{Store, StoreError, keys};
use crate::spec::NodeName;

/// For people who look into the store.
#[derive(Serialize)]
struct Content<'a> {
    node: &'a NodeName,
    at: DateTime<Utc>,
}

/// The machines that are retired.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retired(BTreeMap<NodeName, BTreeSet<String>>);

impl Retired {
    /// Whether this machine, when it goes by this name, is retired.
    pub fn has(&self, node: &NodeName, machine: &str) -> bool {
        self.0.get(node).is_some_and(|machines| machines.contains(machine))
    }

    /// Nodes of which some machine is retired.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.0.keys()
    }
}

/// Says that `machine`, which goes by the name `node`, is gone for good. Again is fine.
///
/// # Errors
/// From the store; it may be said all the same.
pub async fn retire(store: &Store, node: &NodeName, machine: &str) -> Result<(), StoreError> {
    let key = keys::retired(node, machine);
    let content = Content { node, at: Utc::now().trunc_subsecs(3) };
    let encoded = serde_json::to_vec(&content);
    let bytes =
        encoded.map_err(|source| StoreError::Internal { op: "encode", key: key.clone(), source: source.into() })?;
    store.put_new(&key, Bytes::from(bytes)).await.map(drop)
}

/// Takes it back: the machine remembers nobody that it could take something from. It need not have been said.
///
/// # Errors
/// From the store; it may still be said.
pub async fn readmit(store: &Store, node: &NodeName, machine: &str) -> Result<(), StoreError> {
    store.delete(&keys::retired(node, machine)).await
}

/// All that are retired.
///
/// # Errors
/// From the store.
pub async fn all(store: &Store) -> Result<Retired, StoreError> {
    let mut found = Retired::default();
    for object in store.list(keys::RETIRED).await? {
        let Some((node, machine)) = object.key.strip_prefix(keys::RETIRED).and_then(|rest| rest.split_once('/')) else {
            continue;
        };
        if let Ok(node) = node.parse() {
            found.0.entry(node).or_default().insert(machine.to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_is_retired_and_another_of_the_same_name_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}", dir.path().display())).await.unwrap();
        let n1: NodeName = "n1".parse().unwrap();
        assert_eq!(all(&store).await.unwrap(), Retired::default());
        readmit(&store, &n1, "a").await.unwrap();
        for _ in 0..2 {
            retire(&store, &n1, "a").await.unwrap();
        }
        store.put_new("retired/NOT-A-NODE/x", Bytes::new()).await.unwrap();
        let found = all(&store).await.unwrap();
        assert!(found.has(&n1, "a") && !found.has(&n1, "b"));
        assert_eq!(found.nodes().collect::<Vec<_>>(), [&n1]);
        readmit(&store, &n1, "a").await.unwrap();
        assert_eq!(all(&store).await.unwrap(), Retired::default());
    }
}
