//! What the agent inside says of the container, and what its silence means.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use ha_proto::agent::{Event, Health, Phase as AgentPhase, ProcessEnded, event::Kind};
use serde_json::json;

use super::{
    actor::{Actor, State},
    ending,
    live::health_name,
};
use crate::{
    agentlink::Verdict,
    policy::Scope,
    spec::{RestartPolicy, StateKind},
};

/// How often the agent is asked whether it is there.
pub(super) const PING_EVERY: Duration = Duration::from_secs(1);
/// What an agent said before it ended arrives within this time, or was never said.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a ping found.
pub(super) enum Found {
    Well,
    Lost(Scope, String),
    /// The main process ended as it was meant to.
    Done(ProcessEnded),
}

impl Actor {
    /// Asks the agent how things are.
    pub(super) async fn ping(&mut self) -> Found {
        let State::Up(live) = &self.state else { return Found::Well };
        match live.link.ping(PING_EVERY).await {
            Ok(status) => {
                self.watchdog.answered(Instant::now());
                self.view.update(|view| view.health = health_name(&status));
                // Said by events too; asked here because an event can be lost.
                match (status.phase(), status.last_end) {
                    (AgentPhase::Ended, Some(end)) if rests(self.app.spec.restart, end.code) => Found::Done(end),
                    (AgentPhase::Ended, end) => {
                        let said = end.as_ref().map_or("the main process has ended".to_owned(), ending::sentence);
                        Found::Lost(Scope::Process, said)
                    }
                    (AgentPhase::GaveUp, _) => {
                        Found::Lost(Scope::Container, "the main process failed too often in a row".to_owned())
                    }
                    _ => Found::Well,
                }
            }
            Err(_) => {
                self.watchdog.missed();
                match self.watchdog.verdict(Instant::now()) {
                    Verdict::Hung(since) => {
                        Found::Lost(Scope::Container, format!("the agent has not answered for {since:.1?}"))
                    }
                    Verdict::Alive | Verdict::Late(_) => Found::Well,
                }
            }
        }
    }

    /// The container's init is no more: because its work is done, which the agent said before it ended, or for no good reason.
    pub(super) async fn exited(&mut self) -> ControlFlow<()> {
        let policy = self.app.spec.restart;
        while let (State::Up(live), RestartPolicy::No | RestartPolicy::OnFailure { .. }) = (&mut self.state, policy) {
            match tokio::time::timeout(LAST_WORDS, live.events.recv()).await {
                Ok(Some(event)) => {
                    if matches!(&event.kind, Some(Kind::ProcessEnded(ended)) if rests(policy, ended.code)) {
                        return self.agent_event(event).await;
                    }
                }
                Ok(None) | Err(_) => break,
            }
        }
        self.lost(Scope::Container, "the container ended".into()).await
    }

    pub(super) async fn agent_event(&mut self, event: Event) -> ControlFlow<()> {
        match event.kind {
            Some(Kind::ProcessEnded(ended)) => {
                let stateful = matches!(self.app.spec.state, StateKind::Stateful { .. });
                let said = ending::sentence(&ended);
                self.event("process.ended", &said, ending::facts(&ended));
                if rests(self.app.spec.restart, ended.code) {
                    return self.finished(&ended).await;
                }
                if !stateful {
                    return ControlFlow::Continue(());
                }
                self.lost(Scope::Process, said).await
            }
            Some(Kind::Restarting(restart)) => {
                let detail = json!({"attempt": restart.attempt, "delay_ms": restart.delay_ms});
                self.event("process.restarting", "the agent restarts the main process", detail);
                ControlFlow::Continue(())
            }
            Some(Kind::HealthChanged(change)) => {
                let health = change.health();
                let name = match health {
                    Health::Unspecified | Health::None => "none",
                    Health::Starting => "starting",
                    Health::Healthy => "healthy",
                    Health::Unhealthy => "unhealthy",
                };
                self.view.update(|view| view.health = name);
                self.event("health.changed", &format!("now {name}"), json!({"health": name, "output": change.output}));
                if health == Health::Unhealthy {
                    return self.lost(Scope::Process, "the healthcheck fails".into()).await;
                }
                ControlFlow::Continue(())
            }
            Some(Kind::GaveUp(gave_up)) => {
                self.lost(Scope::Container, format!("the main process failed {} times in a row", gave_up.attempts))
                    .await
            }
            Some(Kind::Started(_)) | None => ControlFlow::Continue(()),
        }
    }
}

/// Whether a main process that ended with `code` was meant to.
fn rests(policy: RestartPolicy, code: i32) -> bool {
    match policy {
        RestartPolicy::No => true,
        RestartPolicy::OnFailure { .. } => code == 0,
        RestartPolicy::Always | RestartPolicy::UnlessStopped => false,
    }
}
