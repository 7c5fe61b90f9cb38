//! Whom this node has ever been in contact with, and whom it answered when.
//!
//! A node counts its lease against each node that could take its containers over, and a node takes over only from one that it
//! has *met*. So the former have to be *known* before they can have met anybody: known is remembered before the first message
//! goes out, met when a message comes in that was meant for the receiver by name. A message to a seed's address is meant for
//! whoever lives there and makes no acquaintance; nor does one that reaches another node than the one it was meant for.
//!
//! ```text
//!   A                                       B
//!   ping to a seed, for nobody by name ───► has not met A
//!   has met B ◄──────────────────────────── knows A, answers
//!   knows B, pings B by name ─────────────► has met A
//! ```

// Pure: time comes in as an argument.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::{BTreeMap, BTreeSet};

use super::{
    core::Core,
    message::{Gossip, Liveness, Output, Time, Touch},
};
use crate::spec::NodeName;

/// What outlives a restart. Every node that has met us is among our known ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contacts {
    /// Nodes that we ever sent a message to, or answered.
    pub known: BTreeSet<NodeName>,
    /// Nodes that ever sent us a message, or answered us.
    pub met: BTreeSet<NodeName>,
}

impl Contacts {
    pub(super) fn of(&self, kind: Touch) -> &BTreeSet<NodeName> {
        match kind {
            Touch::Known => &self.known,
            Touch::Met => &self.met,
        }
    }

    pub(super) fn of_mut(&mut self, kind: Touch) -> &mut BTreeSet<NodeName> {
        match kind {
            Touch::Known => &mut self.known,
            Touch::Met => &mut self.met,
        }
    }
}

/// The contacts, and what holds for this start only.
#[derive(Debug)]
pub(super) struct Book {
    contacts: Contacts,
    /// When each known node was last answered.
    answered: BTreeMap<NodeName, Time>,
    /// Names kept in either set.
    limit: usize,
}

impl Book {
    pub fn new(contacts: Contacts, limit: usize) -> Self {
        Self { contacts, answered: BTreeMap::new(), limit }
    }

    pub fn answered(&self, node: &NodeName) -> Option<Time> {
        self.answered.get(node).copied()
    }
}

impl Core {
    /// Announces a contact, once for each node and kind. When there are too many names, each time: the shell refuses them.
    pub(super) fn touch(&mut self, node: &NodeName, kind: Touch, out: &mut Vec<Output>) {
        let (set, limit) = (self.book.contacts.of_mut(kind), self.book.limit);
        if set.contains(node) {
            return;
        }
        if set.len() < limit {
            set.insert(node.clone());
        }
        out.push(Output::Touch { node: node.clone(), kind });
    }

    /// An [`Output::Touch`] could not be remembered: it is announced again before the next message concerned.
    pub fn touch_failed(&mut self, node: &NodeName, kind: Touch) {
        self.book.contacts.of_mut(kind).remove(node);
        if kind == Touch::Known {
            self.book.answered.remove(node);
        }
    }

    /// Whether a peer is alive, or only suspected not to be.
    pub fn lives(&self, node: &NodeName) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.liveness <= Liveness::Suspect)
    }

    /// Forgets a node that is gone for good: its contacts and what is held of it.
    pub fn forget(&mut self, node: &NodeName) {
        for kind in [Touch::Known, Touch::Met] {
            self.touch_failed(node, kind);
        }
        self.peers.remove(node);
        self.suspicions.remove(node);
        self.rumours.forget(node);
    }

    /// When we last sent this node itself a reply, whether or not it is still among the peers; `None`: not since the start.
    pub fn answered_at(&self, node: &NodeName) -> Option<Time> {
        self.book.answered(node)
    }

    /// When we last answered this node, or heard from it itself.
    pub fn last_contact(&self, node: &NodeName) -> Option<Time> {
        self.book.answered(node).max(self.peers.get(node).and_then(|peer| peer.heard))
    }

    /// Answers what `to` asked.
    pub(super) fn answer(
        &mut self,
        token: u64,
        to: &NodeName,
        gossip: Gossip,
        answered: bool,
        now: Time,
        out: &mut Vec<Output>,
    ) {
        // Nobody is kept here that is not kept there, so that this is bounded, too.
        if self.book.contacts.known.contains(to) {
            self.book.answered.insert(to.clone(), now);
        }
        out.push(Output::Reply { token, gossip, answered });
    }
}
