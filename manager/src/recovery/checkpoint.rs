//! One checkpoint: quiesce, freeze and dump, resume, and the draft on its way to the store.
//!
//! ```text
//!   agent ── quiesce ──► dump (frozen: memory + files, gate closed) ──► running again
//!                          │ failed: the container goes on,               │
//!                          ▼ what was written is removed                  ▼
//!                        checkpoint.failed                   uploads: pack ─► upload ─► manifest = committed
//! ```

use std::{
    fs, io,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::Utc;
use ha_proto::agent::Health;
use serde_json::json;

use super::{
    actor::{Actor, State},
    launch,
    upload::Job,
    view::Phase,
};
use crate::{
    checkpoint::{CaptureSource, DumpReport, DumpRequest, Gate},
    network,
    snapshot::{HexBytes, PartName, PartSource, SnapshotHealth, SnapshotKind, SnapshotMeta},
    spec::{MountSource, SnapshotId},
};

/// No healthcheck begins for this long after the quiesce; a dump is over long before.
const HOLD: Duration = Duration::from_secs(2);
/// Dumps that may wait for the store in memory; further ones wait for these.
const PENDING_MAX: usize = 2;

/// The bridge port as the gate of a dump.
struct PortGate {
    gate: network::Gate,
    /// Before a planned move nothing may get out any more, so it stays closed.
    stay_closed: bool,
}

impl Gate for PortGate {
    fn close(&mut self) -> io::Result<()> {
        self.gate.close().map_err(io::Error::other)
    }

    fn open(&mut self) -> io::Result<()> {
        if self.stay_closed { Ok(()) } else { self.gate.open().map_err(io::Error::other) }
    }
}

impl Actor {
    /// Takes a checkpoint. `Ok`: the container runs again and the snapshot is on its way; its commit is reported by the
    /// uploads. `Err`: why there is none; an event has been emitted, the container goes on.
    pub(super) async fn checkpoint(&mut self, kind: SnapshotKind) -> Result<SnapshotId, String> {
        self.view.update(|view| view.phase = Phase::Checkpointing);
        let outcome = self.try_checkpoint(kind).await;
        self.view.update(|view| view.phase = Phase::Running);
        if let Err(cause) = &outcome {
            self.event("checkpoint.failed", cause, json!({"cause": cause}));
            self.view.update(|view| view.checkpoint_problem = Some(cause.clone()));
            if let Some(schedule) = &mut self.schedule {
                schedule.failed(Instant::now());
            }
        }
        outcome
    }

    async fn try_checkpoint(&mut self, kind: SnapshotKind) -> Result<SnapshotId, String> {
        if self.uploads.pending() >= PENDING_MAX {
            return Err(
                "the dumps before this one are still being packed; the store or the disk is too slow for the interval"
                    .into(),
            );
        }
        let State::Up(live) = &self.state else { return Err("the container is not running".into()) };
        let status = live.link.quiesce(HOLD).await.map_err(|error| crate::chain(&error))?;
        let health = match status.health() {
            // Not unhealthy by its retries yet, but the last check has failed: no state to go back to.
            _ if status.failing_streak > 0 => SnapshotHealth::Unhealthy,
            Health::Healthy => SnapshotHealth::Healthy,
            Health::Unhealthy => SnapshotHealth::Unhealthy,
            Health::Unspecified | Health::None | Health::Starting => SnapshotHealth::Unknown,
        };
        let id = SnapshotId { epoch: self.owner.epoch, seq: self.next_seq };
        let (frozen_at, wall) = (Instant::now(), Utc::now());
        let dumped = self.dump(id, live.pid, kind == SnapshotKind::Final).await;
        // Else checkpoints in quick succession would keep healthchecks off for ever. One that cannot be told ends the hold by
        // itself, and its silence is the next ping's to judge.
        let _ = live.link.quiesce(Duration::ZERO).await;
        let report = dumped?;
        self.next_seq += 1;
        self.save(super::record::LocalPhase::Up);
        if let Some(schedule) = &mut self.schedule {
            schedule.dumped(frozen_at);
        }
        let meta = SnapshotMeta {
            id,
            container: self.name.clone(),
            node: self.ctx.config.node.clone(),
            frozen_at: wall,
            kind,
            health,
            frozen_ms: report.frozen.as_secs_f64() * 1000.0,
            network: self.identity.clone(),
            app_generation: self.generation,
            image: self.app.image.clone(),
            agent_digest: Some(self.agent_digest.clone()),
            agent_incarnation: HexBytes(status.incarnation),
            versions: self.ctx.versions.clone(),
            cpuinfo: None,
            previous: self.last_committed,
        };
        let staging = self.place.staging().join(id.to_string());
        let mut parts = vec![PartSource { name: PartName::Memory, dir: self.place.images(&id.to_string()) }];
        parts.push(PartSource { name: PartName::Upper, dir: staging.join("upper") });
        for volume in self.volumes() {
            let name = PartName::volume(&volume).map_err(|error| error.to_string())?;
            parts.push(PartSource { name, dir: staging.join(volume_dir(&volume)) });
        }
        self.uploads.push(Job { meta, parts, staging, frozen_at, wall: report.wall, keep: self.app.spec.keep });
        Ok(id)
    }

    async fn dump(&self, id: SnapshotId, pid: i32, stay_closed: bool) -> Result<DumpReport, String> {
        let images = self.place.images(&id.to_string());
        let staging = self.place.staging().join(id.to_string());
        let mut capture = vec![CaptureSource { name: "upper".into(), path: self.place.upper(), inside: "/".into() }];
        for mount in &self.app.spec.mounts {
            if let MountSource::Volume { name } = &mount.source {
                let (name, path) = (volume_dir(name), self.place.volume(name));
                capture.push(CaptureSource { name, path, inside: mount.target.clone() });
            }
        }
        let request = DumpRequest {
            init_pid: pid,
            bundle: self.place.bundle(),
            work: self.place.bundle(),
            images: images.clone(),
            staging: staging.clone(),
            capture,
            leave_running: true,
            timeout: self.ctx.config.checkpoint.timeout,
        };
        let (ctx, name, mac) = (Arc::clone(&self.ctx), self.name.clone(), self.identity.mac);
        launch::blocking(move || {
            let clean = || {
                // The dump's error is the one to report; a directory left behind is replaced by the next of its name.
                let _ = fs::remove_dir_all(&images);
                let _ = fs::remove_dir_all(&staging);
            };
            clean();
            let made = fs::create_dir_all(&images).and_then(|()| fs::create_dir_all(&staging));
            let outcome = made.map_err(|error| format!("cannot make room for the images: {error}")).and_then(|()| {
                let gate = ctx.network.holding_gate(&name, mac).map_err(|error| crate::chain(&error))?;
                let mut gate = PortGate { gate, stay_closed };
                let outcome = ctx.dumper.dump(&request, &mut gate).map_err(|error| crate::chain(&error));
                if outcome.is_err() && stay_closed {
                    // The move is off: the container goes on here.
                    let _ = gate.gate.open();
                }
                outcome
            });
            if outcome.is_err() {
                clean();
            }
            outcome
        })
        .await
    }

    fn volumes(&self) -> Vec<String> {
        let mounts = self.app.spec.mounts.iter();
        mounts
            .filter_map(|m| if let MountSource::Volume { name } = &m.source { Some(name.clone()) } else { None })
            .collect()
    }
}

/// A volume's directory among the captured trees; no volume can be taken for the upper layer.
fn volume_dir(name: &str) -> String {
    format!("volume-{name}")
}
