//! Whether a node that nobody hears still writes to the store.
//!
//! A node is dead when its heartbeats are lost *and* it no longer updates what it shares. From the moment it is suspected,
//! every look through the store asks whether there is something of its making that the look before did not find:
//!
//! ```text
//!                 first look: all that is there is old            nothing new
//!   accused ─────────────────────────────────────────► Silent ◄────────────────┐   dead + Silent: taken over at once
//!      │                                                 │ ▲ └─────────────────┘
//!      │ look failed                    something new, or │ │ looks without a failure and
//!      └──────────────────► Held ◄─── a look that failed ─┘ │ without anything new for HUSH
//!                            │ └────────────────────────────┘
//!                            └─ nothing is taken over from it
//! ```
//!
//! Only this node's monotonic clock counts, and only when it *saw* something: no writer's clock, no age of an object.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::spec::{ContainerName, Epoch, NodeName};

/// A node that has given signs of life is held for dead after this long without any. A living one gives several meanwhile,
/// also when a call to the store takes its whole deadline.
pub(super) const HUSH: Duration = Duration::from_secs(10);

/// Something that only that node can have written, and that has a name of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sign {
    Beat(u64),
    Claim(ContainerName, Epoch),
}

/// What a look found of each node.
pub(super) type Traces = BTreeMap<NodeName, BTreeSet<Sign>>;

/// Why a node that is not heard is not taken for dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It has written since it was suspected.
    Writes,
    /// The store was away, from this node at least: what it may have written could not be seen.
    Unknown,
}

/// What is known of the nodes that are not heard.
#[derive(Debug, Default)]
pub(super) struct Signs(BTreeMap<NodeName, Watch>);

#[derive(Debug, Default)]
struct Watch {
    /// What the last look found; `None` before the first.
    found: Option<BTreeSet<Sign>>,
    held: Option<Held>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    why: Life,
    /// Since when every look succeeded and found nothing new.
    quiet_since: Option<Instant>,
}

impl Signs {
    /// The node is suspected: what the next look finds of it is from before.
    pub fn accuse(&mut self, node: &NodeName) {
        self.0.insert(node.clone(), Watch::default());
    }

    /// As `accuse`, unless it is watched already.
    pub fn watch(&mut self, node: &NodeName) {
        self.0.entry(node.clone()).or_default();
    }

    /// Forgets the nodes that are heard again.
    pub fn retain(&mut self, mut unheard: impl FnMut(&NodeName) -> bool) {
        self.0.retain(|node, _| unheard(node));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A look through the store that began after the nodes were accused, and found this.
    pub fn looked(&mut self, now: Instant, traces: &Traces) {
        for (node, watch) in &mut self.0 {
            let found = traces.get(node).cloned().unwrap_or_default();
            let new = watch.found.as_ref().is_some_and(|before| !found.is_subset(before));
            watch.found = Some(found);
            watch.held = match watch.held {
                _ if new => Some(Held { why: Life::Writes, quiet_since: Some(now) }),
                Some(Held { quiet_since: None, why }) => Some(Held { why, quiet_since: Some(now) }),
                Some(Held { quiet_since: Some(since), .. }) if now.saturating_duration_since(since) >= HUSH => None,
                held => held,
            };
        }
    }

    /// A look that failed: whatever was written meanwhile was not seen.
    pub fn failed(&mut self) {
        for watch in self.0.values_mut() {
            let why = watch.held.map_or(Life::Unknown, |held| held.why);
            watch.held = Some(Held { why, quiet_since: None });
        }
    }

    /// Why the node is not to be taken for dead; `None` when nothing speaks against it.
    pub fn life(&self, node: &NodeName) -> Option<Life> {
        let watch = self.0.get(node)?;
        match watch.held {
            Some(held) => Some(held.why),
            None if watch.found.is_none() => Some(Life::Unknown),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests;
