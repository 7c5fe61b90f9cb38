//! What is still to be told: each rumour rides on a bounded number of messages, the least told and newest first.

// Pure: time comes in as an argument.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::BTreeMap;

use super::message::{Liveness, Rumour};
use crate::spec::NodeName;

#[derive(Debug, Clone)]
struct Entry {
    rumour: Rumour,
    told: u32,
    /// Counts up: a greater one is newer.
    order: u64,
}

/// One entry per node, or per node and accuser while it is suspected: at most `max_peers · (confirmations + 1)`.
#[derive(Debug, Clone, Default)]
pub struct Rumours {
    entries: BTreeMap<(NodeName, Option<NodeName>), Entry>,
    order: u64,
}

/// `⌈λ·log10(n + 1)⌉`, at least 1.
pub fn retransmissions(factor: u32, nodes: usize) -> u32 {
    (f64::from(factor) * ((nodes + 1) as f64).log10()).ceil().max(1.0) as u32
}

impl Rumours {
    /// Takes the place of whatever was told of this node before, except other accusers of the same suspicion.
    pub fn push(&mut self, rumour: Rumour) {
        let about = &rumour.node;
        let same_suspicion =
            |other: &Rumour| rumour.liveness == Liveness::Suspect && other.precedence() == rumour.precedence();
        let stale: Vec<_> =
            self.about(about).filter(|(_, entry)| !same_suspicion(&entry.rumour)).map(|(key, _)| key.clone()).collect();
        for key in stale {
            self.entries.remove(&key);
        }
        let accuser = if rumour.liveness == Liveness::Suspect { rumour.accuser.clone() } else { None };
        self.order += 1;
        self.entries.insert((rumour.node.clone(), accuser), Entry { rumour, told: 0, order: self.order });
    }

    pub fn forget(&mut self, node: &NodeName) {
        let keys: Vec<_> = self.about(node).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.entries.remove(&key);
        }
    }

    /// Up to `room` rumours for the next message, each counted as told once more and dropped after `limit` times.
    pub fn take(&mut self, room: usize, limit: u32) -> Vec<Rumour> {
        if self.entries.is_empty() || room == 0 {
            return Vec::new();
        }
        let mut chosen: Vec<_> =
            self.entries.iter().map(|(key, entry)| (entry.told, u64::MAX - entry.order, key.clone())).collect();
        chosen.sort_unstable();
        chosen.truncate(room);
        let mut out = Vec::with_capacity(chosen.len());
        for (_, _, key) in chosen {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.told += 1;
                out.push(entry.rumour.clone());
                if entry.told >= limit {
                    self.entries.remove(&key);
                }
            }
        }
        out
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn about<'a>(
        &'a self,
        node: &'a NodeName,
    ) -> impl Iterator<Item = (&'a (NodeName, Option<NodeName>), &'a Entry)> + 'a {
        self.entries.range((node.clone(), None)..).take_while(move |((n, _), _)| n == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::message::Boot;

    fn rumour(node: &str, incarnation: u64, liveness: Liveness, accuser: Option<&str>) -> Rumour {
        Rumour {
            node: node.parse().unwrap(),
            address: "10.77.0.1:1".into(),
            boot: Boot([1; 16]),
            incarnation,
            liveness,
            accuser: accuser.map(|a| a.parse().unwrap()),
        }
    }

    #[test]
    fn newest_first_and_each_told_a_bounded_number_of_times() {
        let mut rumours = Rumours::default();
        for i in 0..100 {
            rumours.push(rumour(&format!("n{i:03}"), 1, Liveness::Alive, None));
        }
        let first = rumours.take(64, 2);
        assert_eq!(first.len(), 64);
        assert_eq!(first[0].node.as_str(), "n099");
        // The 36 not told yet go before those told once.
        assert_eq!(rumours.take(64, 2)[..36].iter().filter(|r| r.node.as_str() < "n036").count(), 36);
        let mut rest = 0;
        while !rumours.take(64, 2).is_empty() {
            rest += 1;
        }
        assert_eq!((rest, rumours.len()), (2, 0), "200 tellings in messages of 64");
    }

    #[test]
    fn later_word_replaces_earlier_and_accusers_stand_side_by_side() {
        let mut rumours = Rumours::default();
        rumours.push(rumour("a", 1, Liveness::Alive, None));
        rumours.push(rumour("a", 1, Liveness::Suspect, Some("b")));
        rumours.push(rumour("a", 1, Liveness::Suspect, Some("c")));
        rumours.push(rumour("ab", 1, Liveness::Alive, None));
        assert_eq!(rumours.len(), 3);
        rumours.push(rumour("a", 1, Liveness::Dead, Some("b")));
        assert_eq!(rumours.len(), 2);
        rumours.push(rumour("a", 2, Liveness::Alive, None));
        assert_eq!(rumours.len(), 2);
    }

    #[test]
    fn retransmissions_grow_with_the_logarithm() {
        assert_eq!([2, 3, 10, 100, 1000].map(|n| retransmissions(4, n)), [2, 3, 5, 9, 13]);
    }
}
