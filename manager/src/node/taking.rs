//! One attempt to take a container at a time, and what has to hold before one is made.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use super::{
    Node,
    drive::{Word, unmet},
    life::sentence,
    retiring::RETIRED,
};
use crate::{
    config::Quorum,
    membership::Liveness,
    ownership::silence::Life,
    spec::{ContainerName, NodeName},
};

/// The containers that are just being taken.
#[derive(Debug, Default)]
pub(super) struct Taking(Arc<Mutex<BTreeSet<ContainerName>>>);

/// Until it goes nobody else on this node takes the container.
pub(super) struct One(Arc<Mutex<BTreeSet<ContainerName>>>, ContainerName);

impl Taking {
    pub fn begin(&self, name: &ContainerName) -> Option<One> {
        let began = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        began.then(|| One(Arc::clone(&self.0), name.clone()))
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Node {
    /// Whether this node may take over from `owner`, and on whose word; or why not, in a word and in a sentence.
    pub(super) async fn fit_to_take(self: &Arc<Self>, owner: &NodeName) -> Result<Word, (&'static str, String)> {
        if owner == self.name() {
            return Ok(Word::Own);
        }
        if self.lives.is_retired() {
            return Err(("retired", RETIRED.into()));
        }
        self.has_majority()?;
        if let Some(config) = self.ctx.config.fence.get(owner) {
            // One that writes to the store lives, and is not to be switched off for a cut between the two.
            if self.look_for_life().await.is_err() {
                return Err(("unknown", format!("{owner} is not heard, and the store is away")));
            }
            if let Some(life @ (Life::Writes { .. } | Life::Parked)) = self.life(owner, None) {
                return Err(sentence(owner, life));
            }
            if let Some(began) = self.switched_off(owner, config).await {
                return Ok(Word::Fenced(owner.clone(), began));
            }
            // Without that its leases are waited for.
        }
        // A node that this one was never in contact with does not count it among those that could take over.
        if self.ctx.membership.met().contains(owner) { Ok(Word::Own) } else { Err(("unmet", unmet(owner))) }
    }

    pub(super) fn has_majority(&self) -> Result<(), (&'static str, String)> {
        let (quorum, voters) = (self.ctx.config.quorum, &self.ctx.config.voters);
        if quorum == Quorum::Store {
            return Ok(());
        }
        let lately = Instant::now().checked_sub(self.ctx.config.lease.short);
        let peers = self.ctx.membership.peers();
        let alive = |voter: &NodeName| {
            voter == self.name()
                || peers
                    .iter()
                    .any(|peer| peer.name == *voter && peer.liveness == Liveness::Alive && peer.saw_us > lately)
        };
        let seen = voters.iter().filter(|voter| alive(voter)).count();
        if seen * 2 > voters.len() {
            return Ok(());
        }
        let text = format!("this node sees {seen} of {} voters, itself included: a majority is needed", voters.len());
        Err(("quorum", text))
    }
}
