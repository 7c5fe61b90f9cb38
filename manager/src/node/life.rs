//! Looking through the store: who owns what, and whether those that are not heard write there.
//!
//! Nodes that hear each other write nothing for it. One that is not answered renews its lease in the store (`keeper`), and the
//! others see its beats.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use serde_json::json;

use super::{Node, alone::Gone};
use crate::{
    config::NodeConfig,
    membership::Liveness,
    ownership::{
        self, Owner,
        lease::Terms,
        silence::{Life, Silence, Traces},
    },
    spec::{ContainerName, NodeName},
    store::{
        NodeRecord, StoreError, beats, parked,
        retired::{self, Retired},
    },
};

/// The times by which this node holds its lease, and waits for those of others.
pub(super) fn terms(config: &NodeConfig) -> Terms {
    Terms { short: config.lease.short, long: config.lease.long }
}

/// The newest owner of each container whose record can be read.
pub(super) type Owners = BTreeMap<ContainerName, Owner>;

/// What this node knows of the life of the others.
#[derive(Debug)]
pub(super) struct Lives {
    silence: Mutex<Silence>,
    /// What this machine is called by in its record in the store.
    machine: String,
    /// It was retired, by the last look.
    retired: AtomicBool,
    gone: Gone,
    /// Looks follow one another: what a later one finds must not be taken for older.
    looking: tokio::sync::Mutex<()>,
}

impl Lives {
    /// `machine`: the nonce of this machine's record.
    pub fn new(machine: String) -> Self {
        let silence = Mutex::new(Silence::new(Instant::now()));
        Self {
            silence,
            machine,
            retired: AtomicBool::new(false),
            gone: Gone::default(),
            looking: tokio::sync::Mutex::default(),
        }
    }

    /// This node was retired while its manager ran. Until that is started again it takes nothing over: the others do not count it.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    pub(super) fn gone(&self) -> &Gone {
        &self.gone
    }

    fn silence(&self) -> MutexGuard<'_, Silence> {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Looks through the store: who owns what, and, when somebody is not heard, what those write.
    pub(super) async fn look(&self) -> Result<Owners, StoreError> {
        let unheard = self.ctx.membership.peers().iter().any(|peer| peer.liveness != Liveness::Alive);
        let lives = async { if unheard { self.look_for_life().await } else { Ok(()) } };
        let (owners, ()) = tokio::try_join!(ownership::all(&self.ctx.store, &self.ctx.owners), lives)?;
        Ok(owners.into_iter().filter_map(|(name, owner)| Some((name, owner.ok()?))).collect())
    }

    /// Looks for nodes that are gone for good, of which this one may be taken for one.
    pub(super) async fn look_for_retired(&self) -> Result<Retired, StoreError> {
        let _one = self.lives.looking.lock().await;
        self.see_retired().await
    }

    /// While nobody else looks.
    async fn see_retired(&self) -> Result<Retired, StoreError> {
        let retired = retired::all(&self.ctx.store).await?;
        self.lives.retired.store(retired.has(self.name(), &self.lives.machine), Ordering::SeqCst);
        self.lives.gone.saw(retired.nodes(), self.name());
        Ok(retired)
    }

    /// Looks for beats and marks of parked nodes.
    pub(super) async fn look_for_life(&self) -> Result<(), StoreError> {
        let _one = self.lives.looking.lock().await;
        let store = &self.ctx.store;
        match tokio::try_join!(beats::all(store), parked::all(store), self.see_retired()) {
            Ok((beats, parked, _)) => {
                self.lives.silence().looked(Instant::now(), Traces { beats, parked });
                Ok(())
            }
            Err(error) => {
                self.lives.silence().failed();
                Err(error)
            }
        }
    }

    /// Why `node` may still run what it owned, by the last look and by this node's own answers; `None`: it does not.
    /// `record`: its own in the store, with the times it goes by.
    pub(super) fn life(&self, node: &NodeName, record: Option<&NodeRecord>) -> Option<Life> {
        let own = terms(&self.ctx.config);
        let terms = record.and_then(|record| record.lease_ms).map_or(own, |theirs| own.at_least(theirs));
        let contact = self.ctx.membership.last_contact(node);
        self.lives.silence().life(terms, node, contact, Instant::now())
    }

    /// Whether `node`, which was switched off by a command that began `then`, has been heard since or has written to the store.
    pub(super) fn is_back(&self, node: &NodeName, then: Instant) -> bool {
        self.ctx.membership.last_contact(node).is_some_and(|heard| heard > then)
            || self.lives.silence().wrote_since(node, then)
    }

    /// Says, once for each reason, why a container is not taken over.
    pub(super) fn hold(&self, name: &ContainerName, owner: &NodeName, why: &'static str, text: &str) {
        let hold = Hold { owner: owner.clone(), why, text: text.to_owned() };
        let before = self.holds().insert(name.clone(), hold);
        if before.is_none_or(|before| (before.owner, before.why) != (owner.clone(), why)) {
            let text = format!("not taken over: {text}");
            self.events().emit(Some(name), "takeover.held", &text, json!({"owner": owner, "why": why}));
        }
    }

    /// Why a container is not taken over, for `status`.
    pub fn why_held(&self, name: &ContainerName) -> Option<String> {
        self.holds().get(name).map(|hold| format!("not taken over: {}", hold.text))
    }

    /// Why a container is not taken over from its silent owner, in a word and in a sentence.
    pub(super) fn held_from(&self, name: &ContainerName, owner: &NodeName) -> Option<(&'static str, String)> {
        self.holds().get(name).filter(|hold| hold.owner == *owner).map(|hold| (hold.why, hold.text.clone()))
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
}

/// A container that is not taken over.
#[derive(Debug)]
pub(super) struct Hold {
    owner: NodeName,
    why: &'static str,
    text: String,
}

/// Why a node is not taken for gone, for people.
pub(super) fn sentence(node: &NodeName, life: Life) -> (&'static str, String) {
    match life {
        Life::Writes { .. } => (
            "writes",
            format!("{node} is not heard here, but it writes to the store: it lives, and the way between is cut"),
        ),
        Life::Answered { .. } => ("answered", format!("{node} was heard here a moment ago")),
        Life::Parked => (
            "parked",
            format!(
                "the manager of {node} was stopped and its containers go on there; start it again, or power {node} off and \
                 use `ha-manager restore NAME --force` here"
            ),
        ),
        Life::Unknown => {
            ("unknown", format!("{node} is not heard, and the store does not say whether it still writes there"))
        }
    }
}
