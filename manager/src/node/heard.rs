//! Whether a container whose node is held for dead still answers on the network.
//!
//! A manager that hangs or was killed says nothing, and its node is held for dead; its containers run on. Taking them over
//! would make two of each, or throw good state away. So a container is asked for by its address, from the moment its node
//! is suspected; while its own MAC address answers, nobody here claims it:
//!
//! ```text
//!   node suspected ─► ask each of its containers ─► node dead ─┬─ silent ──► claim, restore
//!                                                              └─ answers ─► held: asked again at every look at the store
//! ```
//!
//! A node that lost its power, or its link, does not answer. One that hears nobody because its own link is gone takes nothing
//! over (`uplink`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::Node;
use crate::{
    network::{self, ConflictKind},
    spec::{ContainerName, NodeName},
    store::apps::{self, AppContent},
};

/// An answer, or none, counts for so long: longer than the default time from suspicion to death.
const FRESH: Duration = Duration::from_millis(1500);

#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<HashMap<ContainerName, Found>>);

#[derive(Debug, Clone, Copy)]
struct Found {
    at: Instant,
    answers: bool,
}

impl Node {
    /// Asks the containers of a suspected node, so that the answers are there when it is held for dead.
    pub(super) async fn ask_containers_of(self: &Arc<Self>, suspect: &NodeName) {
        // It may suspect this one, too, and ask the store about it.
        self.ctx.lease.renew_now();
        // Without the store nothing is taken over either.
        let (Ok(owners), Ok(apps)) = tokio::join!(self.look(), apps::all(&self.ctx.store, &self.ctx.apps)) else {
            return;
        };
        for (name, app) in apps {
            let Some(content) = app.ok().and_then(|app| app.content) else { continue };
            if owners.get(&name).is_some_and(|owner| owner.node == *suspect && !owner.released) {
                let node = Arc::clone(self);
                tokio::spawn(async move { node.ask(&name, &content).await });
            }
        }
    }

    /// True while the container answers, by what is known or, when that is old, by asking.
    pub(super) async fn still_runs(&self, name: &ContainerName, content: &AppContent, owner: &NodeName) -> bool {
        let known = self.heard.lock().get(name).copied().filter(|found| found.at.elapsed() < FRESH && !found.answers);
        let answers = match known {
            Some(found) => found.answers,
            // An answer from before the death may have been the last one.
            None => self.ask(name, content).await,
        };
        if answers {
            let text = format!("the manager of {owner} is silent, but the container answers at its address");
            self.hold(name, owner, "answers", &text);
        }
        answers
    }

    async fn ask(&self, name: &ContainerName, content: &AppContent) -> bool {
        // One without an address cannot be asked; the claim will say what is wrong with it.
        let Ok(Some(identity)) = self.known_identity(content).await else { return false };
        let (bridge, timeout) = (self.ctx.config.network.bridge.clone(), self.ctx.config.network.probe_timeout);
        let asked =
            tokio::task::spawn_blocking(move || network::probe(identity.ip, &bridge, timeout, identity.mac)).await;
        let answers = match asked {
            Ok(Ok(conflict)) => conflict.is_some_and(|conflict| conflict.kind == ConflictKind::StillRunning),
            Ok(Err(error)) => {
                tracing::warn!(container = %name, error = crate::chain(&error), "its address cannot be asked for");
                false
            }
            Err(_) => false,
        };
        self.heard.lock().insert(name.clone(), Found { at: Instant::now(), answers });
        answers
    }
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerName, Found>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
