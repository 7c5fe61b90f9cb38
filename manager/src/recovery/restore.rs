//! A container back from a snapshot. Everything that does not need the rest is done at the same time:
//!
//! ```text
//!   manifest ─ may this CPU run it?
//!             ┌─ layers, upper, volumes ─ mount ─┐
//!             ├─ memory (CRIU's images) ─────────┼─ restore ─ probe ─┬─ attach ─► serves
//!             ├─ namespace, veth ────────────────┘                   │
//!             └─ does somebody have the address? ────────────────────┘
//!   any failure: the caller clears away what was made
//! ```

use std::{fs, path::PathBuf, sync::Arc, time::Instant};

use chrono::Utc;
use ha_proto::control::SnapshotInfo;
use serde_json::json;

use super::{
    launch::{self, LaunchError},
    live::{self, Live},
    place::{Place, Volumes},
    recover::ms,
    remove_tree::remove_tree,
};
use crate::{
    agentlink::AgentLink,
    api::snapshot_info,
    checkpoint::{self, CpuError},
    network::{self, NetIdentity, SurvivorLimits, Survivors},
    node::Ctx,
    snapshot::{self, Manifest, PartName, SnapshotError},
    spec::{ContainerName, MountSource, SnapshotId},
    store::apps::AppContent,
};

/// What a restore gives: the copy, and the agent it runs (for the manifests of its next snapshots).
pub(super) struct Restored {
    pub live: Live,
    pub agent_digest: Option<String>,
    pub info: SnapshotInfo,
    pub health: &'static str,
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
    let images = place.images("restore");
    {
        let (place, images) = (place.clone(), images.clone());
        launch::blocking(move || place.recreate(Volumes::Go).and_then(|()| fs::create_dir_all(images)))
            .await
            .map_err(LaunchError::io("make the container's directories"))?;
    }
    let manifest = snapshot::load_manifest(&ctx.store, name, id).await.map_err(read)?;
    fits_cpu(ctx, &manifest).await?;
    // The image is the one the snapshot was taken on, whatever was applied since.
    let app = &AppContent { spec: app.spec.clone(), image: manifest.meta.image.clone() };
    let asked = launch::probe_address(ctx, identity);
    let memory =
        async { snapshot::fetch(&ctx.store, &manifest, &PartName::Memory, &images, &|_| {}).await.map_err(read) };
    let files = async {
        fetch_files(ctx, place, app, &manifest).await.map_err(read)?;
        let agent = agent_dir(ctx, &manifest).await?;
        ctx.events.emit(
            Some(name),
            "snapshot.fetched",
            &format!("{id} is here"),
            json!({"snapshot": id, "ms": ms(began)}),
        );
        let layers = launch::mount_root(ctx, place, app).await?;
        Ok::<_, LaunchError>((agent, layers))
    };
    let network = async {
        let attachment = launch::build_network(ctx, name, identity).await?;
        let detail = json!({"ms": ms(began), "address": identity.ip});
        ctx.events.emit(Some(name), "network.ready", "namespace and link are there", detail);
        Ok::<_, LaunchError>(attachment)
    };
    // All are waited for when one fails: what is still being made would outlive the clearing away.
    let (files, memory, network) = tokio::join!(files, memory, network);
    let ((agent, layers), (), attachment) = (files?, memory?, network?);
    // Not read again by the restored agent; there for the next cold start and for people.
    launch::write_down(ctx, place, app, layers, &attachment, agent).await?;
    let link = AgentLink::open(&place.channel(), name.clone())?;
    let asking = tokio::spawn(ask_peers(Arc::clone(ctx), asked, identity.clone(), images.clone()));
    let restoring = {
        let (ctx, runtime_id, bundle, images) = (Arc::clone(ctx), ctx.runtime_id(name), place.bundle(), images.clone());
        tokio::task::spawn_blocking(move || {
            checkpoint::restore(&ctx.runtime, &runtime_id, &bundle, &images, &bundle, ctx.config.checkpoint.timeout)
        })
    };
    // Both are waited for, whatever becomes of the other: what one has made is cleared away by the caller only afterwards.
    let (restored, asked) = tokio::join!(restoring, asking);
    let restored = restored.map_err(|err| LaunchError::io("restore")(std::io::Error::other(err)))?;
    let pid = restored.map_err(|source| LaunchError::Restore { snapshot: id, source: Box::new(source) })?;
    let survivors = asked.map_err(|err| LaunchError::io("ask the peers")(std::io::Error::other(err)))??;
    let restored_ms = ms(began);
    let healthcheck = app.spec.healthcheck.as_ref().map(|check| check.timeout);
    let status = live::probe(&link, &manifest.meta.agent_incarnation.0, healthcheck).await?;
    let survivors = settle(survivors, &attachment).await;
    launch::attach(ctx, &attachment).await?;
    let state_age = Utc::now().signed_duration_since(manifest.meta.frozen_at).num_milliseconds();
    let detail = json!({"snapshot": id, "ms": restored_ms, "total_ms": ms(began), "state_age_ms": state_age,
                        "raw_bytes": manifest.raw_bytes(), "stored_bytes": manifest.stored_bytes()});
    ctx.events.emit(Some(name), "recovery.restored", &format!("restored from {id}"), detail);
    judge_connections(ctx, name, survivors);
    discard(place, images, name).await;
    let live = Live::new(pid, link, status.incarnation.clone()).map_err(LaunchError::io("watch the container"))?;
    let (info, health) = (snapshot_info(&manifest), live::health_name(&status));
    Ok(Restored { live, agent_digest: manifest.meta.agent_digest, info, health })
}

/// Removes the images, which are as large as the container's memory, behind the back of what goes on. They are moved first, since
/// the next restore has its own in their place.
async fn discard(place: &Place, images: PathBuf, name: &ContainerName) {
    let (doomed, name) = (place.images("restored"), name.clone());
    let moved = launch::blocking(move || {
        // What is there is of a restore before, and mostly gone.
        let moved = remove_tree(&doomed).and_then(|()| fs::rename(&images, &doomed));
        moved.map(|()| doomed)
    })
    .await;
    let said = move |error: std::io::Error| {
        tracing::warn!(container = %name, %error, "the images of the restore could not be removed");
    };
    match moved {
        Ok(doomed) => drop(tokio::task::spawn_blocking(move || remove_tree(&doomed).unwrap_or_else(said))),
        Err(error) => said(error),
    }
}

/// Before anything is fetched: whether programs that found out what their CPU can do may go on with this node's.
async fn fits_cpu(ctx: &Arc<Ctx>, manifest: &Manifest) -> Result<(), LaunchError> {
    let Some(cpuinfo) = manifest.meta.cpuinfo.clone() else { return Ok(()) };
    let asking = Arc::clone(ctx);
    let timeout = ctx.config.checkpoint.timeout;
    match launch::blocking(move || asking.dumper.check_cpu(&cpuinfo.0, timeout)).await {
        Ok(()) => Ok(()),
        Err(source @ CpuError::Incompatible { .. }) => Err(LaunchError::Cpu { snapshot: manifest.meta.id, source }),
        Err(error) => {
            // Not a reason to leave the container down: the restore itself checks once more, if less.
            tracing::warn!(snapshot = %manifest.meta.id, error = crate::chain(&error), "the CPUs could not be compared");
            Ok(())
        }
    }
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

async fn agent_dir(ctx: &Ctx, manifest: &Manifest) -> Result<PathBuf, LaunchError> {
    match &manifest.meta.agent_digest {
        Some(digest) => {
            let fetched = ctx.agent.dir_of(digest, &ctx.store).await;
            fetched.map_err(|source| LaunchError::Agent { digest: digest.clone(), source })
        }
        None => Ok(ctx.agent.dir()),
    }
}

/// First whether the address is free, then, in the container's name, where its connections' peers stand.
async fn ask_peers(
    ctx: Arc<Ctx>,
    asked: tokio::task::JoinHandle<Result<(), LaunchError>>,
    identity: NetIdentity,
    images: PathBuf,
) -> Result<Result<Survivors, network::NetworkError>, LaunchError> {
    launch::flatten(asked.await)?;
    let bridge = ctx.config.network.bridge.clone();
    // Without an answer connections are left as they are; that is reported, and no reason to give the restore up.
    Ok(launch::blocking(move || Survivors::start(&bridge, &identity, &images, SurvivorLimits::default())).await)
}

/// Before the container is heard: connections whose peers have moved on end here, those peers know already.
async fn settle(
    survivors: Result<Survivors, network::NetworkError>,
    attachment: &network::Attachment,
) -> Result<Survivors, network::NetworkError> {
    let netns = attachment.netns.clone();
    let survivors = survivors?;
    Ok(launch::blocking(move || {
        survivors.settle(&netns);
        survivors
    })
    .await)
}

/// In the background: the last verdicts, and what became of all connections.
fn judge_connections(ctx: &Arc<Ctx>, name: &ContainerName, survivors: Result<Survivors, network::NetworkError>) {
    let (ctx, name) = (Arc::clone(ctx), name.clone());
    tokio::task::spawn_blocking(move || match survivors.map(Survivors::finish) {
        Ok(report) => {
            let (kept, reset, unknown) = (report.kept(), report.reset(), report.unknown());
            let text = format!("{kept} kept, {reset} reset because they had moved on, {unknown} without an answer");
            let detail = json!({"kept": kept, "reset": reset, "unknown": unknown, "errors": report.errors});
            ctx.events.emit(Some(&name), "connections.judged", &text, detail);
        }
        Err(error) => {
            let cause = crate::chain(&error);
            ctx.events.emit(Some(&name), "connections.failed", &cause, json!({"cause": cause}));
        }
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn images_that_are_done_with_are_removed_and_not_those_that_come_after_them() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::in_dir(root.path());
        let (images, name) = (place.images("restore"), "test".parse().unwrap());
        for _ in 0..20 {
            fs::create_dir_all(&images).unwrap();
            for page in 0..100 {
                fs::write(images.join(format!("pages-{page}.img")), "").unwrap();
            }
            discard(&place, images.clone(), &name).await;
            assert!(!images.exists());
            fs::create_dir(&images).unwrap();
            fs::write(images.join("next"), "").unwrap();
            let gone = async {
                while place.images("restored").exists() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
            assert!(images.join("next").exists());
        }
    }
}
