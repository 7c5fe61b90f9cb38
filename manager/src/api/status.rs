//! What `status` and `snapshots` answer, put together from all nodes and the store.

use std::{collections::BTreeMap, time::Duration};

use chrono::{SecondsFormat, Utc};
use ha_proto::control::{ContainerStatus, NodeStatus, SnapshotInfo, StatusReply, StatusRequest};

use super::{ApiError, forward};
use crate::{
    membership::{Liveness, PeerView},
    node::Node,
    ownership::{self, Owner},
    recovery::ContainerView,
    snapshot::{self, Manifest, SnapshotHealth, SnapshotKind},
    spec::{ContainerName, MountSource, StateKind},
    store::apps,
};

const PEER_PATIENCE: Duration = Duration::from_secs(2);

/// The cluster as far as it answers; `local`: this node alone.
pub async fn gather(node: &Node, local: bool) -> StatusReply {
    let mut reply = StatusReply {
        cluster: node.ctx.config.cluster.clone(),
        node: node.name().to_string(),
        nodes: vec![NodeStatus {
            name: node.name().to_string(),
            address: node.ctx.membership.service().envelope().address,
            liveness: "self".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            problems: node.problems(),
            store_looks: node.looks(),
        }],
        containers: node.views().iter().map(|view| container(view, node.ctx.lease.is_frozen())).collect(),
    };
    if local {
        return reply;
    }
    // All at once: one that does not answer must not keep the others' answers back.
    let asked = node.ctx.membership.peers().into_iter().map(|peer| ask(node, peer));
    for (status, containers) in futures_util::future::join_all(asked).await {
        reply.nodes.push(status);
        reply.containers.extend(containers);
    }
    add_absent(node, &mut reply).await;
    reply.containers.sort_by(|a, b| a.name.cmp(&b.name));
    reply
}

/// What a peer says of itself and its containers. One that is not held for alive is not asked; why it is refused, if it is, is known
/// here.
async fn ask(node: &Node, peer: PeerView) -> (NodeStatus, Vec<ContainerStatus>) {
    let mut status = NodeStatus {
        name: peer.name.to_string(),
        address: peer.address.clone(),
        liveness: peer.liveness.as_str().into(),
        ..NodeStatus::default()
    };
    if matches!(peer.liveness, Liveness::Dead | Liveness::Left) {
        let refused = node.ctx.security.refused_lately(&peer.address);
        let problem = |why| format!("connections with its address are refused: {why}");
        status.problems.extend(refused.map(problem));
        return (status, Vec::new());
    }
    let answer = async {
        let mut client = forward::connect(&node.ctx.security, &peer).await?;
        let answer = client.status(StatusRequest { local: true }).await;
        answer.map_err(|status| ApiError::Failed(status.message().into()))
    };
    match tokio::time::timeout(PEER_PATIENCE, answer).await {
        Ok(Ok(answer)) => {
            let answer = answer.into_inner();
            if let Some(own) = answer.nodes.into_iter().next() {
                (status.version, status.problems, status.store_looks) = (own.version, own.problems, own.store_looks);
            }
            return (status, answer.containers);
        }
        Ok(Err(error)) if peer.liveness == Liveness::Alive => status.problems.push(error.to_string()),
        Err(_) if peer.liveness == Liveness::Alive => {
            status.problems.push("it does not answer a request for its status".into());
        }
        // One that is suspected mostly does not answer, and its liveness says so.
        _ => {}
    }
    (status, Vec::new())
}

/// Containers that are described but that no living node speaks for.
async fn add_absent(node: &Node, reply: &mut StatusReply) {
    let ctx = &node.ctx;
    let (apps, owners) =
        match tokio::try_join!(apps::all(&ctx.store, &ctx.apps), ownership::all(&ctx.store, &ctx.owners)) {
            Ok(both) => both,
            // The node's problems say that the store is away.
            Err(_) => return,
        };
    let known: BTreeMap<&str, ()> = reply.containers.iter().map(|c| (c.name.as_str(), ())).collect();
    let mut absent = Vec::new();
    for (name, app) in &apps {
        let Some(content) = app.as_ref().ok().and_then(|app| app.content.as_ref()) else { continue };
        if known.contains_key(name.as_str()) {
            continue;
        }
        let found = owners.get(name);
        let owner = found.and_then(|owner| owner.as_ref().ok()).filter(|owner| !owner.released);
        let note = match found {
            Some(Err(error)) => format!("who owns it cannot be read: {}", crate::chain(error)),
            _ => absent_note(node, name, owner),
        };
        absent.push(ContainerStatus {
            name: name.to_string(),
            node: owner.map(|owner| owner.node.to_string()).unwrap_or_default(),
            epoch: owner.map_or(0, |owner| owner.epoch.0),
            phase: "unknown".into(),
            state: state_name(content.spec.state).into(),
            image: content.spec.image.clone(),
            notes: vec![note],
            ..ContainerStatus::default()
        });
    }
    reply.containers.extend(absent);
}

fn absent_note(node: &Node, name: &ContainerName, owner: Option<&Owner>) -> String {
    let Some(owner) = owner else {
        return format!("nobody runs it: its start was interrupted; apply it again, or `ha-manager rm {name}`");
    };
    match node.absence(&owner.node) {
        Some(why) => node.advice(name, owner, why),
        None => node.why_held(name).unwrap_or_else(|| {
            format!("node {} does not speak for it just now; it is being begun, handed over or removed", owner.node)
        }),
    }
}

fn container(view: &ContainerView, frozen: bool) -> ContainerStatus {
    let (phase, health) = view.shown(frozen);
    let sensitivity = match view.spec.state {
        StateKind::Stateful { sensitivity } => sensitivity,
        StateKind::Stateless => Duration::ZERO,
    };
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    ContainerStatus {
        name: view.spec.name.to_string(),
        node: view.owner.node.to_string(),
        epoch: view.owner.epoch.0,
        phase: phase.into(),
        health: health.into(),
        state: state_name(view.spec.state).into(),
        sensitivity_ms: millis(sensitivity),
        ipv4: view.network.ip.to_string(),
        mac: view.network.mac.to_string(),
        image: view.spec.image.clone(),
        last_snapshot: view.last_snapshot.clone(),
        state_age_ms: view.last_frozen.map(|at| millis(at.elapsed())).or_else(|| {
            let frozen = chrono::DateTime::parse_from_rfc3339(&view.last_snapshot.as_ref()?.frozen_at).ok()?;
            u64::try_from(Utc::now().signed_duration_since(frozen).num_milliseconds()).ok()
        }),
        recoveries: view.recoveries,
        notes: notes(view),
        pid: view.pid,
        running_for_ms: view.up_since.filter(|_| view.pid != 0).map_or(0, |at| millis(at.elapsed())),
    }
}

fn notes(view: &ContainerView) -> Vec<String> {
    let mut notes = Vec::new();
    for mount in &view.spec.mounts {
        match &mount.source {
            MountSource::HostBind { path } => {
                notes.push(format!("host bind {}: not in snapshots, each node has its own", path.display()));
            }
            MountSource::Volume { name } if matches!(view.spec.state, StateKind::Stateless) => {
                notes.push(format!("volume {name}: the container is stateless, so it stays behind at a failover"));
            }
            _ => {}
        }
    }
    notes.extend(view.checkpoint_problem.as_ref().map(|problem| format!("the last checkpoint failed: {problem}")));
    notes.extend(view.failure.as_ref().map(|failure| format!("not running: {failure}")));
    notes
}

fn state_name(state: StateKind) -> &'static str {
    match state {
        StateKind::Stateful { .. } => "stateful",
        StateKind::Stateless => "stateless",
    }
}

/// A container's committed snapshots that may be restored, newest first.
pub async fn snapshots(node: &Node, name: &ContainerName) -> Result<Vec<SnapshotInfo>, ApiError> {
    let store = &node.ctx.store;
    let unavailable = |error: &(dyn std::error::Error + 'static)| ApiError::Unavailable(crate::chain(error));
    let app = apps::newest(store, name).await.map_err(|error| unavailable(&error))?;
    if app.is_none_or(|app| app.content.is_none()) {
        return Err(ApiError::no_container(name));
    }
    let manifests = snapshot::list_valid(store, name).await.map_err(|error| unavailable(&error))?;
    Ok(manifests.iter().map(info).collect())
}

pub fn info(manifest: &Manifest) -> SnapshotInfo {
    let meta = &manifest.meta;
    SnapshotInfo {
        id: meta.id.to_string(),
        node: meta.node.to_string(),
        frozen_at: meta.frozen_at.to_rfc3339_opts(SecondsFormat::Millis, true),
        raw_bytes: manifest.raw_bytes(),
        stored_bytes: manifest.stored_bytes(),
        frozen_ms: meta.frozen_ms,
        health: match meta.health {
            SnapshotHealth::Healthy => "healthy",
            SnapshotHealth::Unhealthy => "unhealthy",
            SnapshotHealth::Unknown => "unknown",
        }
        .into(),
        kind: match meta.kind {
            SnapshotKind::Periodic => "periodic",
            SnapshotKind::Manual => "manual",
            SnapshotKind::Final => "final",
        }
        .into(),
    }
}
