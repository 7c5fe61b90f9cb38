//! Nodes that are gone for good: nobody counts them any more.
//!
//! ```text
//!   operator ──► retire ──► mark in the store ──► renewal ──► forgotten here
//!                             │
//!                             ├──► every other node's look ──► renewal ──► forgotten there
//!                             └──► the node itself, should it live: it takes nothing over; at its next start it forgets whom it
//!                                  has met, and the mark goes
//! ```
//!
//! The order is what makes it safe. A taker claims an epoch and then looks, also for its own mark; whoever forgets it has seen the
//! mark and then reads the epochs. Whichever comes second sees the other.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{Node, life::Owners};
use crate::{
    api::ApiError,
    membership::{Acquaintances, ForgetError},
    ownership,
    ownership::silence::Life,
    recovery::ProgressSender,
    spec::{ContainerName, NodeName},
    store::{
        Newest, Store, StoreError, beats, parked,
        retired::{self, Retired},
    },
};

pub(super) const RETIRED: &str =
    "this node was retired: it takes nothing over until its manager has been started again";

/// Renewals that may find something before it is left to another time.
const TRIES: u32 = 5;
const AGAIN: Duration = Duration::from_millis(300);

impl Node {
    /// Has all nodes do without one that is gone for good.
    ///
    /// # Errors
    /// It lives, or has containers; nothing was changed then. Or something was away: to be called again.
    pub async fn retire(self: &Arc<Self>, node: &NodeName, progress: ProgressSender) -> Result<Value, ApiError> {
        let store = &self.ctx.store;
        if node == self.name() {
            return Err(ApiError::Refused(format!("{node} is this node, which lives; ask another one")));
        }
        let record = store.node_record(node).await.map_err(unavailable)?;
        let marks = retired::all(store).await.map_err(unavailable)?;
        if record.is_none() && !marks.nodes().any(|marked| marked == node) {
            return Err(ApiError::NotFound(format!("there is no node {node}; `ha-manager status` lists them")));
        }
        self.is_gone(node).await?;
        self.has_nothing(node).await?;
        let machine = record.map(|record| record.nonce);
        if let Some(machine) = &machine {
            progress.step(format!("marking {node} as gone for good"));
            retired::retire(store, node, machine).await.map_err(unavailable)?;
        }
        progress.step("looking whether it has claimed anything of this node's");
        self.forget_marked(node).await?;
        // It may have been just about to take something.
        self.has_nothing(node).await?;
        let rest = async {
            beats::remove(store, node).await?;
            parked::unpark(store, &parked::marks(store, node).await?).await?;
            if let Some(machine) = &machine { store.free_node_name(node, machine).await } else { Ok(()) }
        };
        rest.await.map_err(unavailable)?;
        let message = format!(
            "{node} is retired: no node counts it any more, and its name and addresses are free; take it out of `peers` in \
             node.toml on each node"
        );
        Ok(json!({"message": message}))
    }

    /// Nothing is heard of it, here or in the store.
    async fn is_gone(&self, node: &NodeName) -> Result<(), ApiError> {
        if self.living_peers().iter().any(|peer| peer.name == *node) {
            return Err(ApiError::Refused(format!("{node} lives: switch it off first. Nothing was changed")));
        }
        // When its last beat has gone between two looks, the second one says so.
        for _ in 0..2 {
            self.look_for_life().await.map_err(unavailable)?;
        }
        let record = self.ctx.store.node_record(node).await.map_err(unavailable)?;
        match self.life(node, record.as_ref()) {
            // What it may have left running is nobody's: it owns nothing.
            None | Some(Life::Parked) => Ok(()),
            Some(Life::Writes { .. }) => Err(ApiError::Refused(format!(
                "{node} is not heard, but it has written to the store just now: it lives, or has died a moment ago; switch it off, \
                 and try again in {}. Nothing was changed",
                humantime::format_duration(self.ctx.config.lease.long)
            ))),
            Some(Life::Answered { .. } | Life::Unknown) => {
                Err(ApiError::Unavailable(format!("{node} was heard a moment ago; try again. Nothing was changed")))
            }
        }
    }

    /// No container is its own, or may still run there by the records.
    async fn has_nothing(&self, node: &NodeName) -> Result<(), ApiError> {
        let unavailable = |error: &(dyn std::error::Error + 'static)| ApiError::Unavailable(crate::chain(error));
        let owners = ownership::all(&self.ctx.store, &Newest::default()).await.map_err(|error| unavailable(&error))?;
        let mut its: Vec<ContainerName> = Vec::new();
        for (name, owner) in owners {
            // One that cannot be read may say that it is this node's.
            let owner = owner.map_err(|error| unavailable(&error))?;
            if owner.released {
                continue;
            }
            let there = ownership::standing(&self.ctx.store, &name).await.map_err(|error| unavailable(&error))?;
            if owner.node == *node || there.and_then(|there| there.holder).as_ref() == Some(node) {
                its.push(name);
            }
        }
        if its.is_empty() {
            return Ok(());
        }
        let names = its.iter().map(ContainerName::as_str).collect::<Vec<_>>().join(", ");
        Err(ApiError::Refused(format!(
            "{node} still has {names}: claim each with `ha-manager restore NAME --force` first, and remove what is not wanted with \
             `ha-manager rm NAME` then"
        )))
    }

    /// Forgets every node that is marked, not alive, and has nothing.
    pub(super) async fn forget_retired(self: &Arc<Self>, retired: &Retired, owners: &Owners) -> Result<(), StoreError> {
        let (known, met) = (self.ctx.membership.known(), self.ctx.membership.met());
        let lives = |node: &NodeName| self.living_peers().iter().any(|peer| peer.name == *node);
        let owns = |node: &NodeName| owners.values().any(|owner| owner.node == *node && !owner.released);
        for node in retired.nodes().filter(|node| known.contains(*node) || met.contains(*node)) {
            if node == self.name() || lives(node) || owns(node) || !self.is_marked(node, retired).await? {
                continue;
            }
            match self.forget_marked(node).await {
                Ok(()) | Err(ApiError::Refused(_)) => {}
                Err(error) => {
                    tracing::warn!(%node, error = crate::chain(&error), "is retired, and cannot be forgotten yet")
                }
            }
        }
        Ok(())
    }

    /// Whether the machine that goes by this name, if any does, is marked.
    async fn is_marked(&self, node: &NodeName, retired: &Retired) -> Result<bool, StoreError> {
        let record = self.ctx.store.node_record(node).await?;
        Ok(match record {
            Some(record) => retired.has(node, &record.nonce),
            None => retired.nodes().any(|marked| marked == node),
        })
    }

    /// Forgets a node whose mark was seen.
    async fn forget_marked(self: &Arc<Self>, node: &NodeName) -> Result<(), ApiError> {
        let mut tries = 0;
        while !self.renew_lease().await {
            tries += 1;
            if tries == TRIES {
                return Err(ApiError::Unavailable(format!(
                    "{node} cannot be forgotten before this node has renewed its lease in the store; try again"
                )));
            }
            tokio::time::sleep(AGAIN).await;
        }
        if let Some(peer) = self.ctx.membership.peers().into_iter().find(|peer| peer.name == *node) {
            self.lives.gone().about(node, peer.address);
        }
        let (this, forgotten) = (Arc::clone(self), node.clone());
        let done = tokio::task::spawn_blocking(move || this.ctx.lease.forget(&this.ctx.membership, &forgotten)).await;
        match done.map_err(|error| ApiError::failed(&error))? {
            Ok(()) => {}
            Err(error @ ForgetError::Lives(_)) => return Err(ApiError::Refused(error.to_string())),
            Err(error) => return Err(ApiError::failed(&error)),
        }
        // It may have come back in between, and met this node before it was forgotten.
        match self.look_for_retired().await {
            Ok(retired) if self.is_marked(node, &retired).await.unwrap_or(false) => {}
            _ => {
                let (this, back) = (Arc::clone(self), node.clone());
                let done = tokio::task::spawn_blocking(move || this.ctx.lease.remember(&this.ctx.membership, &back));
                let done = done.await.map_err(|error| ApiError::failed(&error))?;
                done.map_err(|error| ApiError::failed(&error))?;
                return Err(ApiError::Unavailable(format!("{node} has come back")));
            }
        }
        let text = format!("{node} is gone for good: this node does not count it any more");
        self.events().emit(None, "node.retired", &text, json!({"node": node}));
        Ok(())
    }
}

fn unavailable(error: StoreError) -> ApiError {
    ApiError::Unavailable(crate::chain(&error))
}

/// A machine that was retired begins anew: it has met nobody, so it takes nothing over before the others count it again. Before
/// anything is said to anybody.
pub(super) async fn come_back(
    store: &Store,
    node: &NodeName,
    machine: &str,
    acquaintances: &mut Acquaintances,
) -> anyhow::Result<()> {
    if retired::all(store).await?.has(node, machine) {
        acquaintances.forget_met()?;
        retired::readmit(store, node, machine).await?;
        tracing::info!("this node was retired and is back, as a new one");
    }
    Ok(())
}
