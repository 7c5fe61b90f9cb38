//! Signs of life in the store: looking for those of nodes that are not heard, and giving this node's own.
//!
//! Nodes that hear each other write nothing for it. A node that does not hear another one writes a beat at once and goes on
//! until it does: the other one, if it lives, is about to ask the store the same question (`signs`).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::sync::Notify;

use super::{
    Node,
    signs::{Life, Sign, Signs, Traces},
};
use crate::{
    membership::Liveness,
    ownership::{self, Owner},
    spec::{ContainerName, NodeName},
    store::{
        StoreError,
        beats::{self, Heart},
    },
};

/// Between beats while a peer is suspected: several have to be seen before the suspicion runs out.
const SUSPECT_BEAT: Duration = Duration::from_millis(250);
/// Between beats while a peer is held for dead; several in [`super::signs::HUSH`].
const DEAD_BEAT: Duration = Duration::from_secs(2);

/// The newest owner of each container whose record can be read.
pub(super) type Owners = BTreeMap<ContainerName, Owner>;

/// What this node knows of the life of those it does not hear.
#[derive(Debug, Default)]
pub(super) struct Lives {
    signs: Mutex<Signs>,
    /// Looks follow one another: what a later one finds must not be taken for older.
    looking: tokio::sync::Mutex<()>,
    /// Containers have owners that this node never heard of.
    strangers: AtomicBool,
    suspicion: Notify,
}

impl Lives {
    fn signs(&self) -> MutexGuard<'_, Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For whom a look is made.
pub(super) enum Look<'a> {
    Suspect(&'a NodeName),
    Dead(&'a NodeName),
    Regular,
}

impl Node {
    /// Looks through the store: who owns what, and what those write that are not heard.
    pub(super) async fn look(&self, why: Look<'_>) -> Result<Owners, StoreError> {
        let lives = &self.lives;
        if matches!(why, Look::Suspect(_)) {
            lives.suspicion.notify_one();
        }
        let _one = lives.looking.lock().await;
        match why {
            Look::Suspect(node) => lives.signs().accuse(node),
            Look::Dead(node) => lives.signs().watch(node),
            Look::Regular => self.watch_unheard(),
        }
        let watched = !lives.signs().is_empty();
        let store = &self.ctx.store;
        let found = tokio::try_join!(ownership::all(store), async {
            if watched { beats::all(store).await } else { Ok(BTreeMap::new()) }
        });
        let (owners, beats) = match found {
            Ok(found) => found,
            Err(error) => {
                lives.signs().failed();
                return Err(error);
            }
        };
        let owners: Owners = owners.into_iter().filter_map(|(name, owner)| Some((name, owner.ok()?))).collect();
        let mut traces = Traces::new();
        for (node, numbers) in beats {
            traces.entry(node).or_default().extend(numbers.into_iter().map(Sign::Beat));
        }
        for (name, owner) in &owners {
            traces.entry(owner.node.clone()).or_default().insert(Sign::Claim(name.clone(), owner.epoch));
        }
        lives.signs().looked(Instant::now(), &traces);
        self.watch_strangers(&owners);
        Ok(owners)
    }

    /// Those that are heard again need not write; those whose death was missed are watched from now on.
    fn watch_unheard(&self) {
        let peers = self.ctx.membership.peers();
        let mut signs = self.lives.signs();
        signs.retain(|node| {
            let known = peers.iter().find(|peer| peer.name == *node);
            known.is_none_or(|peer| matches!(peer.liveness, Liveness::Suspect | Liveness::Dead))
        });
        peers.iter().filter(|peer| peer.liveness == Liveness::Dead).for_each(|peer| signs.watch(&peer.name));
    }

    fn watch_strangers(&self, owners: &Owners) {
        let peers = self.ctx.membership.peers();
        let known = |node: &NodeName| node == self.name() || peers.iter().any(|peer| peer.name == *node);
        let mut signs = self.lives.signs();
        let strangers = owners.values().filter(|owner| !owner.released && !known(&owner.node));
        let found = strangers.map(|owner| signs.watch(&owner.node)).count() > 0;
        self.lives.strangers.store(found, Ordering::Relaxed);
    }

    /// Why nothing is taken over from a node that is not heard, if so; reported once.
    pub(super) fn held_by_life(&self, name: &ContainerName, owner: &NodeName) -> bool {
        let (why, text) = match self.lives.signs().life(owner) {
            None => return false,
            Some(Life::Writes) => (
                "writes",
                format!(
                    "{owner} is not heard here, but still writes to the store: it lives, and the way between is cut"
                ),
            ),
            Some(Life::Unknown) => (
                "unknown",
                format!("{owner} is not heard, and the store was away: whether it still writes there is not known yet"),
            ),
        };
        self.hold(name, owner, why, &text);
        true
    }

    /// Says, once for each reason, why a container is not taken over.
    pub(super) fn hold(&self, name: &ContainerName, owner: &NodeName, why: &'static str, text: &str) {
        let text = format!("not taken over: {text}");
        let hold = Hold { owner: owner.clone(), why, text: text.clone() };
        let before = self.holds().insert(name.clone(), hold);
        if before.is_none_or(|before| (before.owner, before.why) != (owner.clone(), why)) {
            self.events().emit(Some(name), "takeover.held", &text, json!({"owner": owner, "why": why}));
        }
    }

    /// Why a container is not taken over from its silent owner, for `status`.
    pub fn why_held(&self, name: &ContainerName) -> Option<String> {
        self.holds().get(name).map(|hold| hold.text.clone())
    }

    /// Forgets the holds whose owner is heard again, or owns the container no more.
    pub(super) fn release_holds(&self, owners: &Owners, silent: impl Fn(&NodeName) -> bool) {
        self.holds().retain(|name, hold| {
            silent(&hold.owner) && owners.get(name).is_some_and(|owner| owner.node == hold.owner && !owner.released)
        });
    }

    fn holds(&self) -> MutexGuard<'_, BTreeMap<ContainerName, Hold>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long until the next beat; `None`: everybody is heard, or this node is no use to anybody.
    fn beat_in(&self) -> Option<Duration> {
        let peers = self.ctx.membership.peers();
        let is = |liveness| peers.iter().any(|peer| peer.liveness == liveness);
        let pause = if is(Liveness::Suspect) {
            SUSPECT_BEAT
        } else if self.alone() || is(Liveness::Dead) || self.lives.strangers.load(Ordering::Relaxed) {
            DEAD_BEAT
        } else {
            return None;
        };
        // It lives, but nobody reaches its containers: others shall take them over.
        self.uplink.cut_off(Instant::now()).is_none().then_some(pause)
    }
}

/// A container that is not taken over.
#[derive(Debug)]
pub(super) struct Hold {
    owner: NodeName,
    why: &'static str,
    text: String,
}

/// Gives this node's signs of life, as long as they are needed.
pub(super) async fn keep_beating(node: Arc<Node>) {
    let mut heart = Heart::new(node.ctx.store.clone(), node.name().clone());
    loop {
        let pause = node.beat_in();
        let done = if pause.is_some() { heart.beat().await } else { heart.rest().await };
        if let Err(error) = done {
            // `store.away` says it for the whole node.
            tracing::debug!(error = crate::chain(&error), "no sign of life could be written");
        }
        tokio::select! {
            () = tokio::time::sleep(pause.unwrap_or(DEAD_BEAT)) => {}
            () = node.lives.suspicion.notified() => {}
        }
    }
}
