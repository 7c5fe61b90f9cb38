//! `beats/<node>/<n>`: a node that lives and does not hear another one says so, again and again.
//!
//! What the others learn from it is that an object is there which was not there before: no clock is in it that anybody
//! compares. Each beat is a new object. Writing one and removing the ones before are two steps: between them its writer may
//! want to learn what its being there was in time for, and until then the older one has to stay.

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

/// Removes all beats of a node that is gone for good.
///
/// # Errors
/// From the store; some may be left.
pub async fn remove(store: &Store, node: &NodeName) -> Result<(), StoreError> {
    store.delete_prefix(&format!("{}{node}/", keys::BEATS)).await.map(drop)
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

    /// Writes a new beat and returns its number. Nothing is removed.
    ///
    /// # Errors
    /// From the store. The beat may have been written; the next one has another name in any case.
    pub async fn beat(&mut self) -> Result<u64, StoreError> {
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
                return Ok(number);
            }
        }
    }

    /// Removes the beats before `upto`.
    ///
    /// # Errors
    /// From the store; what is left is removed the next time.
    pub async fn tidy(&mut self, upto: u64) -> Result<(), StoreError> {
        self.find().await?;
        self.remove_below(upto).await
    }

    /// Removes all of them: everybody is heard. Costs nothing when there are none.
    ///
    /// # Errors
    /// From the store; what is left is removed the next time.
    pub async fn rest(&mut self) -> Result<(), StoreError> {
        self.find().await?;
        self.remove_below(u64::MAX).await
    }

    /// Whether there may be any in the store.
    pub fn may_be_there(&self) -> bool {
        self.there.as_ref().is_none_or(|there| !there.is_empty())
    }

    async fn find(&mut self) -> Result<(), StoreError> {
        if self.there.is_none() {
            let mine = all(&self.store).await?.remove(&self.node).unwrap_or_default();
            // Numbers of an earlier manager must not come again, not even when none of its beats is left: who knew them would
            // take a new one for old. The clock gives the order, and what is random in it that no two are the same.
            let begin = u64::try_from(Utc::now().timestamp_millis()).unwrap_or_default() << 20;
            let begin = begin | u64::from(rand::random::<u32>() >> 12);
            self.next = mine.last().map_or(1, |newest| newest.saturating_add(1)).max(begin);
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
    async fn each_beat_is_a_new_object_the_ones_before_go_when_told_and_a_later_manager_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}", dir.path().display())).await.unwrap();
        let (n1, n2): (NodeName, NodeName) = ("n1".parse().unwrap(), "n2".parse().unwrap());
        let mut heart = Heart::new(store.clone(), n1.clone());
        let mut seen = BTreeSet::new();
        let mut newest = 0;
        for count in 1..=3 {
            newest = heart.beat().await.unwrap();
            assert!(seen.insert(newest), "{newest} was there before");
            let now = all(&store).await.unwrap();
            assert_eq!((now[&n1].len(), now[&n1].last()), (count, Some(&newest)), "{now:?}");
        }
        heart.tidy(newest).await.unwrap();
        assert_eq!(all(&store).await.unwrap()[&n1], BTreeSet::from([newest]));
        Heart::new(store.clone(), n2.clone()).beat().await.unwrap();
        let mut later = Heart::new(store.clone(), n1.clone());
        let number = later.beat().await.unwrap();
        assert!(all(&store).await.unwrap()[&n1].contains(&newest), "an earlier manager's is removed untold");
        later.tidy(number).await.unwrap();
        let now = all(&store).await.unwrap();
        assert!(now[&n1].len() == 1 && seen.is_disjoint(&now[&n1]), "{now:?} after {seen:?}");
        later.rest().await.unwrap();
        assert_eq!(all(&store).await.unwrap().keys().collect::<Vec<_>>(), [&n2], "only its own are removed");
    }
}
