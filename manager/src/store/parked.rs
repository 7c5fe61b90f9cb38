//! `parked/<node>/<mark>`: the node's manager has stopped in order. Its containers run on without it, and nobody is to take them over,
//! however silent it is.

use std::collections::BTreeSet;

use bytes::Bytes;
use chrono::{DateTime, SubsecRound, Utc};
use serde::Serialize;

use super::{Store, StoreError, keys, record};
use crate::spec::NodeName;

/// For people who look into the store.
#[derive(Serialize)]
struct Content<'a> {
    node: &'a NodeName,
    at: DateTime<Utc>,
}

/// A mark for one stop of the manager of `node`: the removal of an earlier one may still be on its way.
pub fn mark(node: &NodeName) -> String {
    keys::parked(node, &record::nonce())
}

/// Says by `mark` that `node` is parked; also when it has been said by it already.
///
/// # Errors
/// From the store. After a retryable one it may be parked, or may yet come to be: call again to be sure, or [`unpark`].
pub async fn park(store: &Store, node: &NodeName, mark: &str) -> Result<(), StoreError> {
    let content = Content { node, at: Utc::now().trunc_subsecs(3) };
    let encoded = serde_json::to_vec(&content);
    let bytes =
        encoded.map_err(|source| StoreError::Internal { op: "encode", key: mark.into(), source: source.into() })?;
    store.put_new(mark, Bytes::from(bytes)).await.map(drop)
}

/// The marks of a node. Those of now, so that none that is made later is taken away with them.
///
/// # Errors
/// From the store.
pub async fn marks(store: &Store, node: &NodeName) -> Result<Vec<String>, StoreError> {
    Ok(store.list(&keys::parked(node, "")).await?.into_iter().map(|object| object.key).collect())
}

/// Takes marks away.
///
/// # Errors
/// From the store; the node may still be parked.
pub async fn unpark(store: &Store, marks: &[String]) -> Result<(), StoreError> {
    for mark in marks {
        store.delete(mark).await?;
    }
    Ok(())
}

/// Every node that is parked.
///
/// # Errors
/// From the store.
pub async fn all(store: &Store) -> Result<BTreeSet<NodeName>, StoreError> {
    let listed = store.list(keys::PARKED).await?;
    let node = |key: &str| key.strip_prefix(keys::PARKED)?.split_once('/')?.0.parse().ok();
    Ok(listed.iter().filter_map(|object| node(&object.key)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_is_parked_until_it_is_unparked_however_often_either_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}", dir.path().display())).await.unwrap();
        let [n1, n2]: [NodeName; 2] = ["n1", "n2"].map(|name| name.parse().unwrap());
        assert!(all(&store).await.unwrap().is_empty());
        assert_eq!(marks(&store, &n1).await.unwrap(), [""; 0]);
        let twice = mark(&n1);
        for (node, mark) in [(&n1, &twice), (&n2, &mark(&n2)), (&n1, &twice), (&n1, &mark(&n1))] {
            park(&store, node, mark).await.unwrap();
        }
        store.put_new("parked/NOT-A-NODE/x", Bytes::new()).await.unwrap();
        assert_eq!(all(&store).await.unwrap(), [n1.clone(), n2.clone()].into());
        let before = marks(&store, &n1).await.unwrap();
        assert_eq!(before.len(), 2);
        let later = mark(&n1);
        park(&store, &n1, &later).await.unwrap();
        for _ in 0..2 {
            unpark(&store, &before).await.unwrap();
        }
        assert_eq!(marks(&store, &n1).await.unwrap(), std::slice::from_ref(&later));
        unpark(&store, &[later]).await.unwrap();
        assert_eq!(all(&store).await.unwrap(), [n2].into());
    }
}
