//! A container back from a snapshot. Everything that does not need the rest is done at the same time:
//!
//! ```text
//!   manifest ─┬─ layers, upper, volumes ─ mount ─┐
//!             ├─ memory (CRIU's images) ─────────┼─ restore ─ probe ─┬─ attach ─► serves
//!             ├─ namespace, veth ────────────────┘                   │
//!             └─ does somebody have the address? ────────────────────┘
//!   any failure: the caller clears away what was made
//! ```

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde_json::json;

use super::{
    launch::{self, LaunchError},
    live::{self, Live},
    place::Place,
    recover::ms,
};
use crate::{
    agentlink::{self, AgentLink},
    checkpoint,
    network::{self, NetIdentity},
    node::Ctx,
    snapshot::{self, Manifest, PartName, SnapshotError},
    spec::{MountSource, SnapshotId},
    store::apps::AppContent,
};

/// How long a new copy's agent is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// What a restore gives: the copy, the snapshot's agent (for the next checkpoints), and when the state was frozen.
pub(super) struct Restored {
    pub live: Live,
    pub agent_digest: Option<String>,
    pub frozen_at: DateTime<Utc>,
}

pub(super) async fn restore(
    ctx: &Arc<Ctx>,
    place: &Place,
    app: &AppContent,
    identity: &NetIdentity,
    id: SnapshotId,
) -> Result<Restored, LaunchError> {
    let name = &app.spec.name;
    let began = Instant::now();
    let read = |source| LaunchError::Snapshot { snapshot: id, source };
    place.recreate().map_err(LaunchError::io("make the container's directories"))?;
    let images = place.images("restore");
    fs::create_dir_all(&images).map_err(LaunchError::io("make room for the images"))?;
    let manifest = snapshot::load_manifest(&ctx.store, name, id).await.map_err(read)?;
    // The image is the one the snapshot was taken on, whatever was applied since.
    let app = &AppContent { spec: app.spec.clone(), image: manifest.meta.image.clone() };
    let asked = launch::probe_address(ctx, identity);
    let memory = async {
        snapshot::fetch(&ctx.store, &manifest, &PartName::Memory, &images, &|_| {}).await.map_err(read)
    };
    let files = async {
        fetch_files(ctx, place, app, &manifest).await.map_err(read)?;
        let agent = agent_dir(ctx, &manifest).await?;
        ctx.events.emit(Some(name), "snapshot.fetched", &format!("{id} is here"), json!({"snapshot": id, "ms": ms(began)}));
        let layers = launch::mount_root(ctx, place, app).await?;
        Ok((agent, layers))
    };
    let network = async {
        let attachment = launch::build_network(ctx, name, identity).await?;
        let detail = json!({"ms": ms(began), "address": identity.ip});
        ctx.events.emit(Some(name), "network.ready", "namespace and link are there", detail);
        Ok(attachment)
    };
    let ((agent, layers), (), attachment) = tokio::try_join!(files, memory, network)?;
    // Not read again by the restored agent; there for the next cold start and for people.
    agentlink::write_config(&place.channel(), &launch::agent_config(ctx, app, &layers)?)?;
    launch::write_bundle(ctx, place, app, &attachment, agent)?;
    let link = AgentLink::open(&place.channel(), name)?;
    let pid = {
        let (ctx, runtime_id, bundle, images) = (Arc::clone(ctx), ctx.runtime_id(name), place.bundle(), images.clone());
        launch::blocking(move || {
            checkpoint::restore(&ctx.runtime, &runtime_id, &bundle, &images, &bundle, ctx.config.checkpoint.timeout)
        })
        .await
        .map_err(|source| LaunchError::Restore { snapshot: id, source })?
    };
    let restored_ms = ms(began);
    let healthcheck = app.spec.healthcheck.as_ref().map(|check| check.timeout);
    let status = live::probe(&link, Some(&manifest.meta.agent_incarnation.0), healthcheck, PATIENCE).await?;
    launch::flatten(asked.await)?;
    let survivors = network::Survivors::read(&images);
    launch::attach(ctx, &attachment).await?;
    let state_age = Utc::now().signed_duration_since(manifest.meta.frozen_at).num_milliseconds();
    let detail = json!({"snapshot": id, "ms": restored_ms, "total_ms": ms(began), "state_age_ms": state_age,
                        "raw_bytes": manifest.raw_bytes(), "stored_bytes": manifest.stored_bytes()});
    ctx.events.emit(Some(name), "recovery.restored", &format!("restored from {id}"), detail);
    judge_connections(ctx, name, &attachment, survivors);
    if let Err(error) = fs::remove_dir_all(&images) {
        tracing::warn!(container = %name, %error, "the images of the restore could not be removed");
    }
    let live = Live::new(pid, link, attachment, status.incarnation).map_err(LaunchError::io("watch the container"))?;
    Ok(Restored { live, agent_digest: manifest.meta.agent_digest.clone(), frozen_at: manifest.meta.frozen_at })
}

/// The upper layer and the volumes of the snapshot, in place.
async fn fetch_files(ctx: &Ctx, place: &Place, app: &AppContent, manifest: &Manifest) -> Result<(), SnapshotError> {
    let none = |_| {};
    snapshot::fetch(&ctx.store, manifest, &PartName::Upper, &place.upper(), &none).await?;
    for mount in &app.spec.mounts {
        if let MountSource::Volume { name } = &mount.source {
            snapshot::fetch(&ctx.store, manifest, &PartName::volume(name)?, &place.volume(name), &none).await?;
        }
    }
    Ok(())
}

async fn agent_dir(ctx: &Ctx, manifest: &Manifest) -> Result<std::path::PathBuf, LaunchError> {
    match &manifest.meta.agent_digest {
        Some(digest) => {
            let fetched = ctx.agent.dir_of(digest, &ctx.store).await;
            fetched.map_err(|source| LaunchError::Agent { digest: digest.clone(), source })
        }
        None => Ok(ctx.agent.dir()),
    }
}

/// In the background: connections that have moved on since the snapshot are reset, so that their peers need not wait for a
/// time-out.
fn judge_connections(
    ctx: &Arc<Ctx>,
    name: &crate::spec::ContainerName,
    attachment: &network::Attachment,
    survivors: Result<network::Survivors, network::NetworkError>,
) {
    let (ctx, name, attachment) = (Arc::clone(ctx), name.clone(), attachment.clone());
    tokio::task::spawn_blocking(move || match survivors.and_then(|survivors| survivors.judge(&attachment)) {
        Ok(report) => {
            let text = format!("{} kept, {} reset, {} unknown", report.kept, report.reset, report.unknown);
            let detail = json!({"kept": report.kept, "reset": report.reset, "unknown": report.unknown});
            ctx.events.emit(Some(&name), "connections.judged", &text, detail);
        }
        Err(error) => {
            let cause = crate::chain(&error);
            ctx.events.emit(Some(&name), "connections.failed", &cause, json!({"cause": cause}));
        }
    });
}
