//! What is said once and not with every packet: a set of keys with an end, so that whoever sends nonsense fills neither the log
//! nor the memory.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

const MAX_KEYS: usize = 256;
/// Longer keys count as the same as their beginning.
const MAX_KEY: usize = 200;

#[derive(Debug)]
pub struct Once {
    what: &'static str,
    said: Mutex<HashSet<String>>,
}

impl Once {
    /// `what` is in the last line: that there are too many of them.
    pub fn new(what: &'static str) -> Self {
        Self { what, said: Mutex::default() }
    }

    /// True the first time for this key; never again after too many different ones.
    pub fn first(&self, key: &str) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let first = said.len() < MAX_KEYS && said.insert(crate::cut(key, MAX_KEY).to_owned());
        if first && said.len() == MAX_KEYS {
            tracing::warn!("{MAX_KEYS} {} have been logged; further ones are not", self.what);
        }
        first
    }

    /// All of it may be said again.
    pub fn forget(&self) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_said_once_and_there_is_an_end_to_keys() {
        let once = Once::new("things");
        assert!(once.first("a") && !once.first("a") && once.first("b"));
        let long = "x".repeat(10_000);
        assert!(once.first(&long) && !once.first(&format!("{long}y")));
        assert_eq!((0..10_000).filter(|n| once.first(&n.to_string())).count(), MAX_KEYS - 3);
        assert!(!once.first("c"));
        once.forget();
        assert!(once.first("c") && once.first("a"));
    }
}
