//! What the node looks at all the time: what its peers do, and what the store says.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{sync::broadcast, task::JoinHandle};

use super::{Node, trust, unused::Unused};
use crate::{
    image,
    membership::{Event, Liveness},
    spec::{ContainerName, Epoch, ImageRecord, NodeName},
    store::{
        StoreError,
        apps::{self, App},
    },
};

/// How often the store is looked through.
const SCAN_EVERY: Duration = Duration::from_secs(2);
/// A node named as an owner but never heard of is waited for this long after the start before it counts as dead.
const STRANGER_GRACE: Duration = Duration::from_secs(15);

/// An image that could not be fetched is tried again after this long.
const FETCH_AGAIN: Duration = Duration::from_secs(20);

/// After so many looks in which nobody here works on a container of this node's, it is begun again.
const IDLE_SCANS: u32 = 5;

/// What one look remembers for the next.
struct Seen {
    started: Instant,
    prefetch: Prefetch,
    idle: HashMap<ContainerName, u32>,
    /// Epochs of other nodes that are known to have been begun.
    decided: HashMap<ContainerName, Epoch>,
    unused: Unused,
}

pub struct Watching {
    tasks: Vec<JoinHandle<()>>,
}

impl Watching {
    pub fn stop(self) {
        for task in self.tasks {
            task.abort();
        }
    }
}

pub fn start(node: Arc<Node>) -> Watching {
    // Subscribed here, not in the task: what happens in between must not be missed.
    let events = node.ctx.membership.subscribe();
    let peers = tokio::spawn(follow_peers(Arc::clone(&node), events));
    let reminder = tokio::spawn(trust::remind(node.ctx.security.clone()));
    let store = tokio::spawn(follow_store(node));
    Watching { tasks: vec![peers, reminder, store] }
}

async fn follow_peers(node: Arc<Node>, mut events: broadcast::Receiver<Event>) {
    loop {
        match events.recv().await {
            Ok(event) => {
                report(&node, &event);
                let node = Arc::clone(&node);
                match event {
                    Event::Suspect { node: suspect, .. } => {
                        drop(tokio::spawn(async move { node.ask_containers_of(&suspect).await }));
                    }
                    Event::Dead { node: dead } => drop(tokio::spawn(async move { node.peer_died(&dead).await })),
                    _ => {}
                }
            }
            // The scan of the store finds what the missed events were about.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

fn report(node: &Node, event: &Event) {
    let (kind, text) = match event {
        Event::Up { node, address, restarted, .. } => {
            ("peer.up", format!("{node} is up at {address}{}", if *restarted { " (started anew)" } else { "" }))
        }
        Event::Suspect { node, accuser } => ("peer.suspected", format!("{node} does not answer {accuser}")),
        Event::ConfirmedByPeer { node, accuser } => ("peer.confirmed", format!("{accuser} cannot reach {node} either")),
        Event::Refuted { node } => ("peer.refuted", format!("{node} lives after all")),
        Event::Dead { node } => ("peer.dead", format!("{node} is held for dead")),
        Event::Left { node } => ("peer.left", format!("{node} stopped its manager")),
        Event::RefutedSelf { liveness, .. } => {
            ("self.refuted", format!("peers held this node for {}", liveness.as_str()))
        }
        Event::NameConflict { node, address, other_address } => {
            ("peer.name-conflict", format!("{address} and {other_address} both call themselves {node}; rename one"))
        }
        Event::Stalled { late } => ("self.stalled", format!("this manager was not run for {late:?}")),
        Event::TooManyPeers { refused } => ("peer.too-many", format!("{refused} and further nodes are ignored")),
    };
    // What is about this node itself has none.
    let detail = event.node().map_or(json!({}), |peer| json!({"peer": peer}));
    node.events().emit(None, kind, &text, detail);
}

async fn follow_store(node: Arc<Node>) {
    let started = Instant::now();
    let mut away_since: Option<Instant> = None;
    let mut seen = Seen {
        started,
        prefetch: Prefetch::default(),
        idle: HashMap::new(),
        decided: HashMap::new(),
        unused: Unused::new(),
    };
    loop {
        match scan(&node, &mut seen).await {
            Ok(()) => {
                node.looks.fetch_add(1, Ordering::Relaxed);
                if let Some(since) = away_since.take() {
                    let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                    node.events().emit(None, "store.back", "the store answers again", json!({"away_ms": ms}));
                }
                seen.unused.tend(&node, &mut seen.prefetch.ready).await;
                node.set_problems(node.uplink.cut_off(Instant::now()).into_iter().collect());
            }
            Err(error) => {
                let text = crate::chain(&error);
                if away_since.is_none() {
                    away_since = Some(Instant::now());
                    node.events().emit(None, "store.away", &format!("the store does not answer: {text}"), json!({}));
                }
                node.set_problems(vec![format!("the store does not answer: {text}; checkpoints wait on this node")]);
            }
        }
        tokio::time::sleep(SCAN_EVERY).await;
    }
}

/// One look through the store: own containers that were taken over, containers of dead nodes, images needed one day.
async fn scan(node: &Arc<Node>, seen: &mut Seen) -> Result<(), StoreError> {
    let owners = node.look().await?;
    let apps = apps::all(&node.ctx.store, &node.ctx.apps).await?;
    let retired = node.look_for_retired().await?;
    node.forget_retired(&retired, &owners).await?;
    for (name, owner) in &owners {
        if node.view(name).is_some_and(|view| view.owner.epoch < owner.epoch) {
            node.contested(name, owner).await;
        }
    }
    let alive: BTreeMap<NodeName, Liveness> =
        node.ctx.membership.peers().into_iter().map(|peer| (peer.name, peer.liveness)).collect();
    let started = seen.started;
    let dead = |node: &NodeName| match alive.get(node) {
        Some(liveness) => *liveness == Liveness::Dead,
        None => started.elapsed() > STRANGER_GRACE,
    };
    node.release_holds(&owners, dead);
    for (name, app) in apps {
        let Ok(app @ App { content: Some(content), .. }) = &app else { continue };
        seen.prefetch.want(node, &content.image).await;
        let Some(owner) = owners.get(&name).filter(|owner| !owner.released) else { continue };
        if node.has(&name) {
            seen.idle.remove(&name);
            continue;
        }
        if owner.node == *node.name() {
            // Being started, handed over or removed; when it stays so, its task was lost and it is begun again.
            let scans = seen.idle.entry(name.clone()).or_insert(0);
            *scans += 1;
            if *scans >= IDLE_SCANS {
                seen.idle.remove(&name);
                if let Some(one) = node.taking.begin(&name) {
                    let (node, owner, app) = (Arc::clone(node), owner.clone(), app.clone());
                    // It may have to wait for another node's silence.
                    tokio::spawn(async move {
                        let why = "this node owns it and does not run it";
                        if let Err(text) = node.resume(owner, app, why).await {
                            tracing::warn!(container = %name, error = text, "it cannot be begun again yet");
                        }
                        drop(one);
                    });
                }
            }
            continue;
        }
        if dead(&owner.node) {
            let (node, owner, owners) = (Arc::clone(node), owner.clone(), owners.clone());
            tokio::spawn(async move { node.consider(&name, &owner, &owners).await });
        } else if seen.decided.get(&name) != Some(&owner.epoch) && node.reclaim(&name, owner).await.unwrap_or(false) {
            seen.decided.insert(name.clone(), owner.epoch);
        }
    }
    Ok(())
}

/// Brings images' layers here ahead of need, so that a takeover does not wait for them. One image at a time and beside the
/// scan, which has to notice a later owner within seconds, however long a download takes.
#[derive(Default)]
struct Prefetch {
    /// Digests of layers that are on this node.
    ready: HashSet<String>,
    under_way: Option<JoinHandle<Vec<String>>>,
    /// When each image was last tried: one that fails must not keep the others from their turn.
    tried: HashMap<String, Instant>,
}

impl Prefetch {
    async fn want(&mut self, node: &Arc<Node>, image: &ImageRecord) {
        if let Some(task) = self.under_way.take_if(|task| task.is_finished()) {
            self.ready.extend(task.await.unwrap_or_default());
        }
        if self.under_way.is_some() || image.layers.iter().all(|layer| self.ready.contains(&layer.digest)) {
            return;
        }
        self.tried.retain(|_, at| at.elapsed() < FETCH_AGAIN);
        if self.tried.contains_key(&image.reference) {
            return;
        }
        self.tried.insert(image.reference.clone(), Instant::now());
        let (ctx, image) = (Arc::clone(&node.ctx), image.clone());
        self.under_way = Some(tokio::spawn(async move {
            let (limits, silent) = (image::Limits::default(), image::silent());
            match image::ensure(&image, &ctx.store, &ctx.layers_dir(), &limits, &silent).await {
                Ok(_) => image.layers.into_iter().map(|layer| layer.digest).collect(),
                Err(error) => {
                    tracing::warn!(
                        image = image.reference,
                        error = crate::chain(&error),
                        "cannot be fetched ahead of need"
                    );
                    Vec::new()
                }
            }
        }));
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.under_way.iter().for_each(JoinHandle::abort);
    }
}
