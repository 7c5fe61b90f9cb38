//! One checkpoint: quiesce, freeze and dump, resume, and the draft on its way to the store.
//!
//! ```text
//!   agent ── quiesce ──► dump (frozen: memory + files, gate closed) ──► running again
//!                          │ failed: the container goes on,               │
//!                          ▼ what was written is removed                  ▼
//!                        checkpoint.failed                   uploads: pack ─► upload ─► manifest = committed
//! ```
//! A dump that leaves processes stopped, or the gate closed for good, has broken the container: it is recovered like one
//! that has ended.

use std::{
    fs, io,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::Utc;
use serde_json::json;

use super::{
    actor::{Actor, State},
    launch,
    quiet::Quiet,
    remove_tree::remove_tree,
    upload::Job,
    view::Phase,
};
use crate::{
    checkpoint::{CaptureSource, DumpError, DumpReport, DumpRequest, Gate},
    network::{self, NetworkError},
    snapshot::{HexBytes, PartName, PartSource, SnapshotKind, SnapshotMeta},
    spec::{ContainerName, MountSource, SnapshotId},
};

/// Dumps that may wait for the store in memory; further ones wait for these.
const PENDING_MAX: usize = 2;

/// How often, and with what pauses, a gate that does not open is tried again before the container counts as cut off.
const OPENING: (u32, Duration) = (20, Duration::from_millis(50));

/// The bridge port as the gate of a dump.
struct PortGate(network::Gate);

impl Gate for PortGate {
    fn close(&mut self) -> io::Result<()> {
        self.0.close().map_err(io::Error::other)
    }

    fn open(&mut self) -> io::Result<()> {
        self.0.open().map_err(io::Error::other)
    }
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoCheckpoint {
    /// The container goes on.
    #[error("{0}")]
    Goes(String),
    /// It does not: it stands still, has ended, or cannot be reached.
    #[error("{0}")]
    Broken(String),
}

#[derive(Debug, thiserror::Error)]
enum CheckpointError {
    #[error("cannot make room for the images")]
    Room(#[source] io::Error),
    #[error("the gate of the dump cannot be prepared")]
    Gate(#[source] NetworkError),
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error("the gate opened only when tried again, so the snapshot was given up; the container goes on")]
    Late,
    #[error("the gate could not be opened after a checkpoint: the container cannot be reached")]
    CutOff(#[source] NetworkError),
}

impl From<CheckpointError> for NoCheckpoint {
    fn from(error: CheckpointError) -> Self {
        let text = crate::chain(&error);
        match error {
            CheckpointError::Room(_) | CheckpointError::Gate(_) | CheckpointError::Late => NoCheckpoint::Goes(text),
            CheckpointError::Dump(dump) if dump.leaves_running() => NoCheckpoint::Goes(text),
            CheckpointError::Dump(_) | CheckpointError::CutOff(_) => NoCheckpoint::Broken(text),
        }
    }
}

impl From<String> for NoCheckpoint {
    fn from(text: String) -> Self {
        NoCheckpoint::Goes(text)
    }
}

/// Blocks until the container's gate is open, with a fresh connection to the kernel for each try.
pub(super) fn open_gate(network: &network::Network, name: &ContainerName) -> Result<(), NetworkError> {
    let (tries, pause) = OPENING;
    let mut outcome = network.gate(name).and_then(|mut gate| gate.open());
    for _ in 1..tries {
        if outcome.is_ok() {
            break;
        }
        std::thread::sleep(pause);
        outcome = network.gate(name).and_then(|mut gate| gate.open());
    }
    outcome
}

impl Actor {
    /// Takes a checkpoint. `Ok`: the container runs again and the snapshot is on its way; its commit is reported by the
    /// uploads. `Err`: why there is none; an event has been emitted. A container that is [`NoCheckpoint::Broken`] is the
    /// caller's to recover.
    pub(super) async fn checkpoint(&mut self, kind: SnapshotKind) -> Result<SnapshotId, NoCheckpoint> {
        self.view.update(|view| view.phase = Phase::Checkpointing);
        let outcome = match self.try_checkpoint(kind).await {
            // Frozen in the middle of it. Whether it goes on is seen once it may.
            Err(NoCheckpoint::Broken(why)) if !self.ctx.lease.may_run() => Err(NoCheckpoint::Goes(why)),
            outcome => outcome,
        };
        self.view.update(|view| view.phase = Phase::Running);
        if let Err(error) = &outcome {
            let cause = error.to_string();
            let detail = json!({"cause": cause, "broken": matches!(error, NoCheckpoint::Broken(_))});
            self.event("checkpoint.failed", &cause, detail);
            self.view.update(|view| view.checkpoint_problem = Some(cause));
            if let Some(schedule) = &mut self.schedule {
                schedule.failed(Instant::now());
            }
        }
        outcome
    }

    async fn try_checkpoint(&mut self, kind: SnapshotKind) -> Result<SnapshotId, NoCheckpoint> {
        if self.uploads.pending() >= PENDING_MAX {
            let text =
                "the dumps before this one are still being packed; the store or the disk is too slow for the interval";
            return Err(text.to_owned().into());
        }
        let State::Up(live) = &self.state else { return Err("the container is not running".to_owned().into()) };
        if !self.ctx.lease.may_run() {
            return Err(launch::FENCED.to_owned().into());
        }
        let check = self.app.spec.healthcheck.as_ref().map_or(Duration::ZERO, |check| check.timeout);
        let quiet = Quiet::ask(live.link.clone(), check).await.map_err(|error| crate::chain(&error))?;
        let id = SnapshotId { epoch: self.owner.epoch, seq: self.next_seq };
        let (frozen_at, wall) = (Instant::now(), Utc::now());
        let dumped = self.dump(id, live.pid, kind == SnapshotKind::Final, quiet).await;
        Quiet::end(&live.link).await;
        let (report, quiet) = dumped?;
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
            health: quiet.health(),
            frozen_ms: millis(report.frozen),
            network: self.identity.clone(),
            app_generation: self.generation,
            image: self.app.image.clone(),
            agent_digest: Some(self.agent_digest.clone()),
            agent_incarnation: HexBytes(quiet.incarnation().to_vec()),
            versions: self.ctx.versions.clone(),
            cpuinfo: self
                .ctx
                .dumper
                .cpuinfo(self.ctx.config.checkpoint.timeout)
                .ok()
                .map(|info| HexBytes(info.to_vec())),
            previous: self.last_committed,
        };
        let staging = self.place.staging().join(id.to_string());
        let mut parts = vec![PartSource { name: PartName::Memory, dir: self.place.images(&id.to_string()) }];
        parts.push(PartSource { name: PartName::Upper, dir: staging.join("upper") });
        for volume in self.volumes() {
            let name = PartName::volume(&volume).map_err(|error| error.to_string())?;
            parts.push(PartSource { name, dir: staging.join(volume_dir(&volume)) });
        }
        self.uploads.push(Job { meta, parts, staging, frozen_at, wall: report.wall, keep: (&self.app.spec).into() });
        Ok(id)
    }

    async fn dump(
        &self,
        id: SnapshotId,
        pid: i32,
        stay_closed: bool,
        mut quiet: Quiet,
    ) -> Result<(DumpReport, Quiet), CheckpointError> {
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
            stay_closed,
            timeout: self.ctx.config.checkpoint.timeout,
        };
        let (ctx, name, mac) = (Arc::clone(&self.ctx), self.name.clone(), self.identity.mac);
        let agent = tokio::runtime::Handle::current();
        launch::blocking(move || {
            let clean = || {
                // The dump's error is the one to report; a directory left behind is replaced by the next of its name.
                let _ = remove_tree(&images);
                let _ = remove_tree(&staging);
            };
            clean();
            let made = fs::create_dir_all(&images).and_then(|()| fs::create_dir_all(&staging));
            let outcome =
                made.map_err(CheckpointError::Room).and_then(|()| {
                    let mut gate = PortGate(ctx.network.holding_gate(&name, mac).map_err(CheckpointError::Gate)?);
                    let mut before = || agent.block_on(quiet.renew()).map_err(io::Error::other);
                    match ctx.dumper.dump(&request, &mut gate, &mut before) {
                        Err(DumpError::GateOpen { .. }) => Err(open_gate(&ctx.network, &name)
                            .map_or_else(CheckpointError::CutOff, |()| CheckpointError::Late)),
                        outcome => outcome.map_err(CheckpointError::Dump),
                    }
                });
            if outcome.is_err() {
                clean();
            }
            outcome.map(|report| (report, quiet))
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

/// Milliseconds to the microsecond: what is behind that is the arithmetic's, not the clock's.
pub(super) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// A volume's directory among the captured trees; no volume can be taken for the upper layer.
fn volume_dir(name: &str) -> String {
    format!("volume-{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Remains, SwrkError};

    fn judged(error: impl Into<CheckpointError>) -> NoCheckpoint {
        error.into().into()
    }

    #[test]
    fn milliseconds_have_three_decimals() {
        let shown =
            [69_046, 114_086_499, 0, 8_000_000_001].map(|ns| json!(millis(Duration::from_nanos(ns))).to_string());
        assert_eq!(shown, ["0.069", "114.086", "0.0", "8000.0"]);
        assert_eq!(json!(millis(Duration::from_micros(69_046))).to_string(), "69.046");
    }

    #[test]
    fn a_dump_that_leaves_the_container_standing_or_cut_off_has_broken_it() {
        let broken_off = |remains| DumpError::Swrk { source: SwrkError::Timeout, remains };
        let stands = Remains { not_running: vec![7], ..Remains::default() };
        let ended = Remains { dead: true, ..Remains::default() };
        let late = DumpError::Timeout { timeout: Duration::ZERO, step: "post-dump".into(), remains: stands.clone() };
        for broken in [judged(broken_off(stands)), judged(broken_off(ended)), judged(late)] {
            assert!(matches!(broken, NoCheckpoint::Broken(_)), "{broken:?}");
        }
        let cut_off = CheckpointError::CutOff(NetworkError::NoBridge { name: "br".into() });
        assert!(matches!(judged(cut_off), NoCheckpoint::Broken(_)));
        // Killed, mended and running: nothing to recover.
        let mended = Remains { killed: true, mended_sockets: 1, ..Remains::default() };
        for goes in [judged(broken_off(mended)), judged(DumpError::NoPages), judged(CheckpointError::Late)] {
            assert!(matches!(goes, NoCheckpoint::Goes(_)), "{goes:?}");
        }
    }
}
