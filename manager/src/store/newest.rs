//! The newest record of each container, read once. A record never changes and stays, so what a listing names by the number that
//! was read before needs no reading again: a node looks at all of them every two seconds, those of removed containers too. Who wipes
//! a store, or edits it, starts the managers anew.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures_util::{StreamExt, TryStreamExt};

use super::StoreError;
use crate::spec::ContainerName;

/// How many are read at once.
const AT_ONCE: usize = 16;

/// What was read. One that begins empty reads everything.
#[derive(Debug)]
pub struct Newest<T> {
    read: Mutex<HashMap<ContainerName, (u64, T)>>,
}

impl<T> Default for Newest<T> {
    fn default() -> Self {
        Self { read: Mutex::default() }
    }
}

impl<T: Clone> Newest<T> {
    /// The records that `newest`, the whole of a listing, names; `read` reads one. Those that cannot be read are beside the others.
    ///
    /// # Errors
    /// What `read` says of the store as a whole.
    pub(crate) async fn of<E, F>(
        &self,
        newest: BTreeMap<ContainerName, u64>,
        read: impl Fn(ContainerName, u64) -> F,
    ) -> Result<BTreeMap<ContainerName, Result<T, E>>, StoreError>
    where
        F: Future<Output = Result<Result<T, E>, StoreError>>,
    {
        let mut records: BTreeMap<_, _> = {
            let mut known = self.lock();
            known.retain(|name, (number, _)| newest.get(name) == Some(number));
            known.iter().map(|(name, (_, record))| (name.clone(), Ok(record.clone()))).collect()
        };
        let unread = newest.into_iter().filter(|(name, _)| !records.contains_key(name)).collect::<Vec<_>>();
        let reads = unread.into_iter().map(|(name, number)| {
            let record = read(name.clone(), number);
            async move { Ok((name, number, record.await?)) }
        });
        let mut reads = futures_util::stream::iter(reads).buffer_unordered(AT_ONCE);
        while let Some((name, number, record)) = reads.try_next().await? {
            if let Ok(record) = &record {
                self.lock().insert(name.clone(), (number, record.clone()));
            }
            records.insert(name, record);
        }
        Ok(records)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerName, (u64, T)>> {
        // Each entry is whole by itself whatever panicked in between.
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    type Records = BTreeMap<ContainerName, Result<u64, &'static str>>;

    fn listing(entries: &[(&str, u64)]) -> BTreeMap<ContainerName, u64> {
        entries.iter().map(|(name, number)| (name.parse().unwrap(), *number)).collect()
    }

    /// What a look finds, and how many records it reads.
    async fn look(newest: &Newest<u64>, entries: &[(&str, u64)], damaged: &str) -> (Records, u32) {
        let reads = AtomicU32::new(0);
        let read = |name: ContainerName, number| {
            reads.fetch_add(1, Ordering::Relaxed);
            let outcome = if name.as_str() == damaged { Err("damaged") } else { Ok(number * 10) };
            async move { Ok(outcome) }
        };
        let found = newest.of(listing(entries), read).await.unwrap();
        (found, reads.into_inner())
    }

    #[tokio::test]
    async fn a_record_is_read_once_and_a_damaged_one_again() {
        let newest = Newest::default();
        let (found, reads) = look(&newest, &[("a", 1), ("b", 7)], "b").await;
        assert_eq!(found.into_values().collect::<Vec<_>>(), [Ok(10), Err("damaged")]);
        assert_eq!(reads, 2);
        assert_eq!(look(&newest, &[("a", 1), ("b", 7)], "b").await.1, 1);
        let (found, reads) = look(&newest, &[("a", 1), ("b", 7)], "").await;
        assert_eq!(found.into_values().collect::<Vec<_>>(), [Ok(10), Ok(70)]);
        assert_eq!(reads, 1);
        assert_eq!(look(&newest, &[("a", 1), ("b", 7)], "").await.1, 0);
    }

    #[tokio::test]
    async fn a_later_number_is_read_and_one_that_went_is_forgotten() {
        let newest = Newest::default();
        look(&newest, &[("a", 1), ("b", 1)], "").await;
        let (found, reads) = look(&newest, &[("a", 2)], "").await;
        assert_eq!((found.into_values().collect::<Vec<_>>(), reads), (vec![Ok(20)], 1));
        assert_eq!(look(&newest, &[("a", 2), ("b", 1)], "").await.1, 1);
        assert_eq!(look(&newest, &[("a", 1)], "").await.0.into_values().collect::<Vec<_>>(), [Ok(10)]);
    }

    #[tokio::test]
    async fn a_store_that_went_away_keeps_what_was_read() {
        let newest: Newest<u64> = Newest::default();
        look(&newest, &[("a", 1)], "").await;
        let away = |_, _| async { Err::<Result<u64, &str>, _>(StoreError::NotFound { key: "k".into() }) };
        assert!(newest.of(listing(&[("a", 1), ("b", 1)]), away).await.is_err());
        assert_eq!(look(&newest, &[("a", 1), ("b", 1)], "").await.1, 1);
    }
}
