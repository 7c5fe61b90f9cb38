//! `beats/<node>/<n>`: a node that lives and does not hear another one says so, again and again.
//!
//! What the others learn from it is that an object is there which was not there before: no clock is in it that anybody
//! compares. Each beat is a new object, and the one before is removed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use chrono::{DateTime, SubsecRound, Utc};
use serde::Serialize;

use super::{PutNew, Store, StoreError, keys};
use crate::spec::NodeName;

/// For people who look into the store.
#[derive(Serialize)]
struct Content<'a> {
    node: &'a NodeName,
    at: DateTime<Utc>,
}

/// The numbers of the beats that are there, of every node.
pub async fn all(store: &Store) -> Result<BTreeMap<NodeName, BTreeSet<u64>>, StoreError> {
    let mut found: BTreeMap<NodeName, BTreeSet<u64>> = BTreeMap::new();
    for object in store.list(keys::BEATS).await? {
        let Some((node, number)) = object.key.strip_prefix(keys::BEATS).and_then(|rest| rest.split_once('/')) else {
            continue;
        };
        if let (Ok(node), Some(number)) = (node.parse(), keys::number(number)) {
            found.entry(node).or_default().insert(number);
        }
    }
    Ok(found)
}

/// This node's own beats.
#[derive(Debug)]
pub struct Heart {
    store: Store,
    node: NodeName,
    /// What is in the store or may be; `None` until it was looked for: an earlier manager may have left some.
    there: Option<BTreeSet<u64>>,
    next: u64,
}

impl Heart {
    pub fn new(store: Store, node: NodeName) -> Self {
        Self { store, node, there: None, next: 0 }
    }

    /// Writes a new beat and removes the ones before it.
    ///
    /// # Errors
    /// From the store. The beat may have been written; the next one has another name in any case.
    pub async fn beat(&mut self) -> Result<(), StoreError> {
        self.find().await?;
        let content = Content { node: &self.node, at: Utc::now().trunc_subsecs(3) };
        let bytes = serde_json::to_vec(&content).map_err(|source| StoreError::Internal {
            op: "encode",
            key: keys::beat(&self.node, self.next),
            source: source.into(),
        })?;
        loop {
            let number = self.next;
            self.next += 1;
            self.there.get_or_insert_default().insert(number);
            // A name that is taken is an old beat, which nobody takes for a new one.
            if self.store.put_new(&keys::beat(&self.node, number), Bytes::from(bytes.clone())).await? == PutNew::Created
            {
                return self.remove_below(number).await;
            }
        }
    }

    /// Removes all of them: everybody is heard. Costs nothing when there are none.
    ///
    /// # Errors
    /// From the store; what is left is removed the next time.
    pub async fn rest(&mut self) -> Result<(), StoreError> {
        self.find().await?;
        self.remove_below(u64::MAX).await
    }

    async fn find(&mut self) -> Result<(), StoreError> {
        if self.there.is_none() {
            let mine = all(&self.store).await?.remove(&self.node).unwrap_or_default();
            self.next = mine.last().map_or(1, |newest| newest.saturating_add(1));
            self.there = Some(mine);
        }
        Ok(())
    }

    async fn remove_below(&mut self, bound: u64) -> Result<(), StoreError> {
        let Some(there) = &mut self.there else { return Ok(()) };
        while let Some(oldest) = there.first().copied().filter(|number| *number < bound) {
            self.store.delete(&keys::beat(&self.node, oldest)).await?;
            there.remove(&oldest);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_beat_is_a_new_object_the_one_before_goes_and_a_later_manager_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}", dir.path().display())).await.unwrap();
        let (n1, n2): (NodeName, NodeName) = ("n1".parse().unwrap(), "n2".parse().unwrap());
        let mut heart = Heart::new(store.clone(), n1.clone());
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            heart.beat().await.unwrap();
            let now = all(&store).await.unwrap();
            assert_eq!(now[&n1].len(), 1, "{now:?}");
            assert!(seen.is_disjoint(&now[&n1]), "{now:?} was there before");
            seen.extend(&now[&n1]);
        }
        Heart::new(store.clone(), n2.clone()).beat().await.unwrap();
        let mut later = Heart::new(store.clone(), n1.clone());
        later.beat().await.unwrap();
        let now = all(&store).await.unwrap();
        assert!(now[&n1].len() == 1 && seen.is_disjoint(&now[&n1]), "{now:?} after {seen:?}");
        later.rest().await.unwrap();
        assert_eq!(all(&store).await.unwrap().keys().collect::<Vec<_>>(), [&n2], "only its own are removed");
    }
}
