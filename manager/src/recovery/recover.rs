//! Climbing the ladder that `policy` plans: each attempt, its failure, and the end when none is left.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::sync::oneshot;

use super::{
    actor::{Actor, Down, RESTART_WINDOW, State, health_at_first},
    handover::{NotOffered, Settled},
    launch::{self, LaunchError},
    order::ProgressSender,
    place::Volumes,
    record::LocalPhase,
    restore,
    teardown::Extent,
    view::Phase,
};
use crate::{
    api::ApiError,
    ownership,
    policy::{self, Attempt, KnownSnapshot, Scope, Situation, Source},
    snapshot::{self, SnapshotError, SnapshotHealth},
    spec::{RecoveryStep, SnapshotId, StateKind},
};

pub(super) const FIRST_WAIT: Duration = Duration::from_millis(500);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A commit under way when the container is lost is waited for this long: it is the newest state there is.
pub(super) const COMMIT_PATIENCE: Duration = Duration::from_secs(2);
/// As long as it comes on, for this long.
pub(super) const UPLOAD_PATIENCE: Duration = Duration::from_secs(15);
/// How often a recovery looks for snapshots anew because one of them had gone.
pub(super) const PLANS: usize = 3;
/// Drafts that waited for the store are committed first when the container is brought back: the newest state is among them.
pub(super) const DRAFT_PATIENCE: Duration = Duration::from_secs(15);

/// What one plan's attempts leave for the next.
pub(super) struct Climb {
    refused: Vec<SnapshotId>,
    pub last: String,
}

impl Climb {
    /// `nothing`: why it does not come up where there is nothing to try.
    pub fn new(nothing: String) -> Self {
        Self { refused: Vec::new(), last: nothing }
    }
}

/// For whom is climbed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    Owner(Scope),
    /// For its owner, who handed it over: from this snapshot and no other, or from what there is.
    Handed(Option<SnapshotId>),
}

pub(super) enum Climbed {
    /// It is up, or somebody else goes on with it.
    Done(ControlFlow<()>),
    /// The CPU of this node cannot run it.
    Unfit {
        snapshot: SnapshotId,
        cause: String,
    },
    /// What was planned on has changed.
    Again,
    /// The same again later: why.
    Waits(String),
    Exhausted,
}

impl Actor {
    pub(super) async fn first_start(
        &mut self,
        progress: ProgressSender,
        reply: oneshot::Sender<Result<serde_json::Value, ApiError>>,
    ) -> ControlFlow<()> {
        progress.step(format!("{}: starting", self.name));
        let began = Instant::now();
        let outcome = match self.launch(Source::Image, Volumes::Go).await {
            Ok(()) => {
                let detail = json!({"ms": ms(began), "address": self.identity.ip, "epoch": self.owner.epoch});
                self.event("container.started", &format!("started at {}", self.identity.ip), detail);
                Ok(json!({"message": format!("{} runs on {} at {}", self.name, self.ctx.config.node, self.identity.ip),
                          "changed": true}))
            }
            Err(error) if error.is_transient() => {
                let text = crate::chain(&error);
                self.event("container.start-failed", &text, json!({"cause": text}));
                let told = ApiError::Unavailable(format!(
                    "{}: {text}. It is tried again until it is there or removed",
                    self.name
                ));
                let _ = reply.send(Err(told));
                return self.wait(Scope::Container, "its first start has to wait".into(), text);
            }
            Err(error) => {
                let text = crate::chain(&error);
                self.event("container.start-failed", &text, json!({"cause": text}));
                let (name, address) = (&self.name, self.identity.ip);
                let told = ApiError::Failed(format!(
                    "{name}: {text}. It stays registered, as failed, with the address {address}: mend the cause and apply it \
                     again, or take it away with `ha-manager rm {name}`"
                ));
                let flow = self.give_up(text).await;
                let _ = reply.send(Err(told));
                return flow;
            }
        };
        // The caller may have gone away; the container is there all the same.
        let _ = reply.send(outcome);
        ControlFlow::Continue(())
    }

    /// Something the container cannot do without is gone.
    pub(super) async fn lost(&mut self, scope: Scope, why: String) -> ControlFlow<()> {
        let detail = json!({"scope": format!("{scope:?}").to_lowercase(), "why": why});
        self.event("container.lost", &why, detail);
        let up = self.view.get().up_since.map_or(Duration::ZERO, |since| since.elapsed());
        let pause = self.backoff.ended(up);
        if pause.is_zero() {
            return self.recover(scope, why).await;
        }
        let health = health_at_first(&self.app);
        self.view.update(|view| (view.phase, view.pid, view.health) = (Phase::Recovering, 0, health));
        // What cannot be cleared away now is cleared away, or waited for, before the next attempt.
        let _ = self.clear(Extent::Running).await;
        let cause = format!("{why}; it has ended soon {} times in a row", self.backoff.hasty());
        self.down_for(pause, scope, why, cause)
    }

    /// Brings the container back as its policy says. Ends with the container up, waiting, handed to a peer, or failed.
    pub(super) async fn recover(&mut self, scope: Scope, why: String) -> ControlFlow<()> {
        if self.conflict
            && let Err(error @ LaunchError::Conflict { .. }) =
                launch::flatten(launch::probe_address(&self.ctx, &self.network_identity()).await)
        {
            // Not worth restoring anything for.
            return self.wait(scope, why, crate::chain(&error));
        }
        let began = Instant::now();
        let health = health_at_first(&self.app);
        self.view.update(|view| (view.phase, view.pid, view.health) = (Phase::Recovering, 0, health));
        self.event("recovery.started", &why, json!({"why": why, "epoch": self.owner.epoch}));
        // What is planned below must not be pruned meanwhile, and what is being packed not be cleared away.
        self.uploads.hold().await;
        self.uploads.packed().await;
        self.uploads.settle(COMMIT_PATIENCE, UPLOAD_PATIENCE).await;
        let mut climb = Climb::new(format!("{why}; its recovery policy has no further step for this"));
        for _ in 0..PLANS {
            match self.climb(Role::Owner(scope), &why, began, &mut climb).await {
                Climbed::Done(flow) => return flow,
                Climbed::Unfit { snapshot, cause } => return self.unfit(scope, why, snapshot, cause).await,
                Climbed::Again => {}
                Climbed::Waits(cause) => return self.wait(scope, why, cause),
                Climbed::Exhausted => {
                    let text = format!("nothing more to try: {}", climb.last);
                    self.event("recovery.exhausted", &text, json!({"cause": climb.last}));
                    return self.give_up(text).await;
                }
            }
        }
        // Snapshots go faster than one is fetched: there are some, and nothing is wrong with them.
        self.wait(scope, why, climb.last)
    }

    /// One plan, and its attempts one after the other.
    pub(super) async fn climb(&mut self, role: Role, why: &str, began: Instant, climb: &mut Climb) -> Climbed {
        let (attempts, volumes) = match self.attempts(role).await {
            Ok(attempts) => attempts,
            Err(text) => return Climbed::Waits(text),
        };
        let mut cannot = None;
        for attempt in attempts {
            if let Attempt::Here { from, .. } = &attempt
                && (cannot.is_some() || matches!(from, Source::Snapshot(id) if climb.refused.contains(id)))
            {
                continue;
            }
            // The step of handing it over was announced by its owner.
            if !matches!((role, &attempt), (Role::Handed(_), Attempt::Here { step: RecoveryStep::Failover, .. })) {
                self.announce(&attempt);
            }
            match attempt {
                Attempt::Here { from, step } => match self.launch(from, volumes).await {
                    Ok(()) => {
                        self.recovered(from, step, began);
                        return Climbed::Done(ControlFlow::Continue(()));
                    }
                    Err(LaunchError::Cpu { snapshot, source }) => {
                        return Climbed::Unfit { snapshot, cause: crate::chain(&source) };
                    }
                    Err(error) => {
                        if let Some(by) = error.deposed_by() {
                            return match self.settle(by).await {
                                Settled::Gone(flow) => Climbed::Done(flow),
                                Settled::Mine => Climbed::Again,
                                Settled::Open(cause) => Climbed::Waits(cause),
                            };
                        }
                        climb.last = crate::chain(&error);
                        if error.is_transient() {
                            return Climbed::Waits(climb.last.clone());
                        }
                        if error.is_of_this_node() {
                            // No other state would do better here; a peer may.
                            cannot = Some(climb.last.clone());
                        } else if let LaunchError::Snapshot { snapshot, source } = error {
                            if matches!(source, SnapshotError::Missing { .. }) && self.has_gone(snapshot).await {
                                return Climbed::Again;
                            }
                            // It will not be any better the next time.
                            self.refuse(snapshot, &climb.last);
                            climb.refused.push(snapshot);
                        }
                    }
                },
                Attempt::Peer { node } => match self.offer(&node, None).await {
                    Ok(flow) => return Climbed::Done(flow),
                    Err(NotOffered::Held(cause)) => return Climbed::Waits(cause),
                    Err(NotOffered::Refused(cause)) => climb.last = cause,
                },
            }
            let detail = json!({"cause": climb.last, "why": why});
            self.event("recovery.failed", &climb.last, detail);
        }
        cannot.map_or(Climbed::Exhausted, Climbed::Waits)
    }

    async fn attempts(&mut self, role: Role) -> Result<(Vec<Attempt>, Volumes), String> {
        let scope = match role {
            Role::Handed(Some(id)) => {
                let only = Attempt::Here { from: Source::Snapshot(id), step: RecoveryStep::Failover };
                return Ok((vec![only], Volumes::Go));
            }
            Role::Handed(None) => Scope::Node,
            Role::Owner(scope) => scope,
        };
        let snapshots = self.restorable().await?;
        let nothing_newer = matches!(self.app.spec.state, StateKind::Stateless) || snapshots.is_empty();
        let volumes = if nothing_newer && scope != Scope::Node { Volumes::Stay } else { Volumes::Go };
        let situation = self.situation(scope, snapshots).await;
        let plan = if matches!(role, Role::Handed(_)) { policy::handed } else { policy::plan };
        Ok((plan(&self.app.spec.recovery, &situation), volumes))
    }

    /// Whether a snapshot that was listed is there no more: it was removed meanwhile, as it may be when there are newer ones.
    async fn has_gone(&self, id: SnapshotId) -> bool {
        snapshot::list(&self.ctx.store, &self.name).await.is_ok_and(|ids| !ids.contains(&id))
    }

    /// What may be restored, newest first, once everything is committed that waited on this node.
    async fn restorable(&mut self) -> Result<Vec<KnownSnapshot>, String> {
        let known = self.known_snapshots().await?;
        if self.uploads.flush(DRAFT_PATIENCE).await { self.known_snapshots().await } else { Ok(known) }
    }

    fn refuse(&self, id: SnapshotId, cause: &str) {
        self.event(
            "snapshot.refused",
            &format!("{id} is not restored: {cause}"),
            json!({"snapshot": id, "cause": cause}),
        );
    }

    pub(super) fn announce(&self, attempt: &Attempt) {
        let (step, text) = match attempt {
            Attempt::Here { from: Source::Snapshot(id), step } => {
                (step_name(*step), format!("from snapshot {id}, here"))
            }
            Attempt::Here { from: Source::Image, step } => {
                (step_name(*step), "from the image: processes begin anew".into())
            }
            Attempt::Peer { node } => ("failover", format!("on {node}")),
        };
        self.event("recovery.step", &format!("{step}: {text}"), json!({"step": step}));
    }

    pub(super) async fn situation(&mut self, scope: Scope, snapshots: Vec<KnownSnapshot>) -> Situation {
        let now = Instant::now();
        self.tried.retain(|(at, ..)| now.duration_since(*at) < RESTART_WINDOW);
        let recent = |is: fn(&RecoveryStep) -> bool| {
            u32::try_from(self.tried.iter().filter(|(_, _, step)| is(step)).count()).unwrap_or(u32::MAX)
        };
        let peers = self.ctx.membership.peers().into_iter();
        let alive = peers.filter(|peer| peer.liveness == crate::membership::Liveness::Alive);
        let candidates = alive.map(|peer| policy::Candidate { node: peer.name, containers: 0 }).collect();
        Situation {
            scope,
            stateful: matches!(self.app.spec.state, StateKind::Stateful { .. }),
            snapshots,
            recent_restarts: recent(|step| matches!(step, RecoveryStep::Restart { .. })),
            recent_older: recent(|step| matches!(step, RecoveryStep::OlderSnapshot { .. })),
            tried: self
                .tried
                .iter()
                .filter_map(|(_, from, _)| if let Source::Snapshot(id) = from { Some(*id) } else { None })
                .collect(),
            recent_cold_starts: recent(|step| matches!(step, RecoveryStep::ColdStart)),
            recent_failovers: self.recent_failovers().await,
            peers: policy::rank(&self.name, candidates),
        }
    }

    /// Changes of node within the restart window. By the claimants' clocks: it bounds effort, it decides nothing else.
    async fn recent_failovers(&self) -> u32 {
        let window = chrono::Duration::from_std(RESTART_WINDOW).unwrap_or_default();
        ownership::moves_since(&self.ctx.store, &self.name, chrono::Utc::now() - window).await.unwrap_or(0)
    }

    /// What may be restored, newest first.
    pub(super) async fn known_snapshots(&mut self) -> Result<Vec<KnownSnapshot>, String> {
        if matches!(self.app.spec.state, StateKind::Stateless) {
            return Ok(Vec::new());
        }
        let ids = snapshot::list(&self.ctx.store, &self.name).await.map_err(|error| crate::chain(&error))?;
        // No number is used twice, even when this node's record of the last one was lost.
        let used = ids.iter().filter(|id| id.epoch == self.owner.epoch).map(|id| id.seq).max().unwrap_or(0);
        self.next_seq = self.next_seq.max(used + 1);
        let mut known = Vec::new();
        let health = |manifest: snapshot::Manifest| manifest.meta.health;
        let read = snapshot::survey(&self.ctx.store, &self.name, &ids, health).await;
        for (id, health) in read.map_err(|error| crate::chain(&error))? {
            if let Err(error) = &health {
                self.refuse(id, &crate::chain(error));
            }
            let healthy = health.as_ref().is_ok_and(|health| *health != SnapshotHealth::Unhealthy);
            known.push(KnownSnapshot { id, healthy, readable: health.is_ok() });
        }
        Ok(known)
    }

    async fn may_begin(&self) -> Result<(), LaunchError> {
        if !self.ctx.lease.may_run() {
            return Err(LaunchError::Fenced);
        }
        // A node that stood still may have lost it since it last looked.
        ownership::ensure_current(&self.ctx.store, &self.name, &self.owner).await.map_err(LaunchError::Ownership)
    }

    /// One attempt: whatever was here goes, then the container comes up from `from` or nothing is left of it.
    pub(super) async fn launch(&mut self, from: Source, volumes: Volumes) -> Result<(), LaunchError> {
        // Marked before the lease is looked at, and that before the epoch: a renewal from here on looks at this copy, too.
        let before = self.view.get().copy;
        self.view.update(|view| view.copy = true);
        let moment = self.ctx.lease.moment();
        if let Err(error) = self.may_begin().await {
            self.view.update(|view| view.copy = before);
            return Err(error);
        }
        self.uploads.hold().await;
        self.uploads.packed().await;
        let volumes = if from == Source::Image { volumes } else { Volumes::Go };
        self.make_room(Extent::Files(volumes)).await?;
        self.save(LocalPhase::Launching);
        let identity = self.network_identity();
        let outcome = match from {
            Source::Image => {
                launch::cold_start(&self.ctx, &self.place, &self.app, &identity, volumes).await.inspect(|_| {
                    self.agent_digest = self.ctx.agent.digest();
                    // Until the first commit there is nothing to go back to.
                    self.schedule.iter_mut().for_each(|schedule| schedule.due_now(Instant::now()));
                })
            }
            Source::Snapshot(id) => {
                restore::restore(&self.ctx, &self.place, &self.app, &identity, id).await.map(|restored| {
                    self.agent_digest = restored.agent_digest.unwrap_or_else(|| self.ctx.agent.digest());
                    self.schedule.iter_mut().for_each(|schedule| schedule.restart(Instant::now()));
                    self.last_committed = Some(id);
                    self.view.update(|view| {
                        (view.last_snapshot, view.last_frozen) = (Some(restored.info), None);
                        view.health = restored.health;
                    });
                    restored.live
                })
            }
        };
        match outcome {
            Ok(live) => {
                self.up(live);
                Ok(())
            }
            Err(error) => {
                // Reported; the next attempt clears again, and does not begin before it could.
                let _ = self.clear(Extent::Files(volumes)).await;
                if !self.ctx.lease.undisturbed_since(moment) {
                    // Frozen in the middle of it: that says nothing about what was to be begun.
                    return Err(LaunchError::Fenced);
                }
                if let LaunchError::Conflict { address, conflict } = &error
                    && !std::mem::replace(&mut self.conflict, true)
                {
                    let detail = json!({"address": address, "mac": conflict.mac.to_string()});
                    self.event("network.conflict", &error.to_string(), detail);
                }
                Err(error)
            }
        }
    }

    fn recovered(&mut self, from: Source, step: RecoveryStep, began: Instant) {
        self.tried.push((Instant::now(), from, step));
        self.view.update(|view| view.recoveries += 1);
        let detail = json!({"ms": ms(began), "epoch": self.owner.epoch, "from": source_name(from)});
        self.event("recovery.serving", &format!("the container serves again, from {}", source_name(from)), detail);
        if matches!(step, RecoveryStep::OlderSnapshot { .. }) {
            // Until this state is committed a later recovery would go on from a newer snapshot again.
            self.schedule.iter_mut().for_each(|schedule| schedule.due_now(Instant::now()));
        }
        if from == Source::Image && matches!(self.app.spec.state, StateKind::Stateful { .. }) {
            self.event("recovery.state-lost", "it began anew from the image: its state is lost", json!({}));
        }
    }

    /// What is needed is away for now: the same again later.
    pub(super) fn wait(&mut self, scope: Scope, why: String, cause: String) -> ControlFlow<()> {
        let wait = self.waited.map_or(FIRST_WAIT, |waited| (waited * 2).min(LONGEST_WAIT));
        self.waited = Some(wait);
        self.down_for(wait, scope, why, cause)
    }

    fn down_for(&mut self, wait: Duration, scope: Scope, why: String, cause: String) -> ControlFlow<()> {
        let detail = json!({"cause": cause, "again_in_ms": u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)});
        self.event("recovery.waiting", &cause, detail);
        self.view.update(|view| view.failure = Some(cause));
        self.state = State::Down(Down::Waiting { until: Instant::now() + wait, scope, why });
        ControlFlow::Continue(())
    }

    /// Nothing more is tried by this manager; the next one does.
    pub(super) fn fail(&mut self, cause: String) {
        self.state = State::Down(Down::Resting);
        self.view.update(|view| (view.phase, view.pid, view.failure) = (Phase::Failed, 0, Some(cause)));
        self.save(self.local_phase());
    }

    /// Another node has it now; nothing of it stays here.
    pub(super) async fn gone(&mut self, to: &crate::spec::NodeName) -> ControlFlow<()> {
        self.event("container.moved", &format!("it runs on {to} now"), json!({"to": to}));
        self.end().await
    }

    pub(super) fn network_identity(&self) -> crate::network::NetIdentity {
        let identity = &self.identity;
        // The gateway is the node's, not the container's: each node may have another.
        let gateway = self.ctx.network.config().gateway;
        crate::network::NetIdentity { ip: identity.ip, prefix_len: identity.prefix_len, mac: identity.mac, gateway }
    }
}

fn step_name(step: RecoveryStep) -> &'static str {
    match step {
        RecoveryStep::Restart { .. } => "restart",
        RecoveryStep::Failover => "failover",
        RecoveryStep::OlderSnapshot { .. } => "older-snapshot",
        RecoveryStep::ColdStart => "cold-start",
    }
}

pub(super) fn source_name(source: Source) -> String {
    match source {
        Source::Snapshot(id) => id.to_string(),
        Source::Image => "image".into(),
    }
}

pub(super) fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
