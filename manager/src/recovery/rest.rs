//! A container that has come to rest: its main process ended as its restart policy wants, or nothing is left to try. The store
//! is told (`ownership::rest`), so that no node begins it again by itself; an order does, under an epoch of its own.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::Utc;
use ha_proto::agent::{ProcessEnded, harmless};
use serde_json::json;

use super::{
    actor::{Actor, Down, State},
    ending,
    handover::Settled,
    record::LocalPhase,
    recover::{COMMIT_PATIENCE, DRAFT_PATIENCE, UPLOAD_PATIENCE},
    teardown::Extent,
    view::Phase,
};
use crate::{
    api::ApiError,
    ownership::{self, Claim, Claimant, Outcome, Owner, OwnershipError, Rest},
};

/// A store that was away is told again after this long.
const TELL_AGAIN: Duration = Duration::from_secs(5);
/// What is kept of a reason, in bytes.
const MAX_WHY: usize = 4096;

pub(super) struct Resting {
    pub rest: Rest,
    /// When the store is told; `None`: it knows.
    pub tell_at: Option<Instant>,
    /// It does not let itself be told, and that was said.
    refused: bool,
    /// Who claims the next epoch when an order begins it; the same again, for the answer to a claim may be lost.
    claimant: Claimant,
}

/// Why a container at rest is not begun.
pub(super) enum Asleep {
    /// Somebody else owns it by now.
    Deposed(Owner),
    Unavailable(ApiError),
}

impl From<OwnershipError> for Asleep {
    fn from(error: OwnershipError) -> Self {
        match error {
            OwnershipError::Deposed { by, .. } => Self::Deposed(*by),
            error if error.is_retryable() => Self::Unavailable(ApiError::Unavailable(crate::chain(&error))),
            error => Self::Unavailable(ApiError::failed(&error)),
        }
    }
}

impl Actor {
    /// The main process ended as it may.
    pub(super) async fn finished(&mut self, end: &ProcessEnded) -> ControlFlow<()> {
        let why = ending::sentence(end);
        self.event("container.stopped", &why, ending::facts(end));
        let rest =
            Rest { code: Some(end.code), signal: ending::signal_name(end.signal), ..self.rest(Outcome::Finished, why) };
        self.come_to_rest(rest).await
    }

    /// Nothing more is tried, neither here nor by a later owner, until its operator orders something.
    pub(super) async fn give_up(&mut self, cause: String) -> ControlFlow<()> {
        let rest = self.rest(Outcome::Failed, cause);
        self.come_to_rest(rest).await
    }

    fn rest(&self, outcome: Outcome, why: String) -> Rest {
        Rest {
            outcome,
            why: crate::cut(&why, MAX_WHY).to_owned(),
            code: None,
            signal: None,
            since: self.owner.epoch,
            at: Utc::now(),
        }
    }

    async fn come_to_rest(&mut self, rest: Rest) -> ControlFlow<()> {
        self.settle_down(rest.clone());
        let (ctx, name, owner) = (Arc::clone(&self.ctx), self.name.clone(), self.owner.clone());
        // At once: whoever takes over before the store knows begins it again. What cannot be cleared away is reported; the files
        // stay for the operator to look at.
        let (told, _) = tokio::join!(ownership::rest(&ctx.store, &name, &owner, &rest), self.clear(Extent::Running));
        self.told(told).await
    }

    /// Found at rest when this node became the owner.
    pub(super) async fn found_at_rest(&mut self, rest: Rest) -> ControlFlow<()> {
        let rest = Rest { why: harmless(rest.why.as_bytes(), MAX_WHY), ..rest };
        let detail = json!({"outcome": rest.outcome, "code": rest.code, "signal": rest.signal, "since": rest.since,
                            "epoch": self.owner.epoch, "why": rest.why});
        self.event("container.at-rest", &format!("it is at rest and stays so: {}", rest.why), detail);
        let _ = self.clear(Extent::Running).await;
        self.settle_down(rest);
        ControlFlow::Continue(())
    }

    /// An earlier manager of this node left it at rest. Whether the store knows it is not known here.
    pub(super) async fn still_at_rest(&mut self, rest: Option<Rest>) -> ControlFlow<()> {
        // One that was killed may have left anything.
        let _ = self.clear(Extent::Running).await;
        let unsaid = || self.rest(Outcome::Finished, "it had ended before the manager was started".into());
        self.settle_down(rest.unwrap_or_else(unsaid));
        self.tell_rest().await
    }

    fn settle_down(&mut self, rest: Rest) {
        let phase = match rest.outcome {
            Outcome::Finished => Phase::Stopped,
            Outcome::Failed => Phase::Failed,
        };
        self.state = State::Down(Down::Resting);
        self.view.update(|view| {
            (view.phase, view.pid, view.failure) = (phase, 0, Some(rest.why.clone()));
            // Nothing is checked, and no verdict will come.
            view.health = "none";
        });
        let claimant = Claimant::new(self.ctx.config.node.clone());
        self.resting = Some(Resting { rest, tell_at: None, refused: false, claimant });
        self.save(LocalPhase::Stopped);
    }

    /// When the store is to be told that the container rests; `None`: it knows, or there is nothing to tell.
    pub(super) fn tell_at(&self) -> Option<Instant> {
        self.resting.as_ref().and_then(|resting| resting.tell_at)
    }

    pub(super) async fn tell_rest(&mut self) -> ControlFlow<()> {
        let Some(resting) = &mut self.resting else { return ControlFlow::Continue(()) };
        resting.tell_at = None;
        let told = ownership::rest(&self.ctx.store, &self.name, &self.owner, &resting.rest).await;
        self.told(told).await
    }

    async fn told(&mut self, told: Result<(), OwnershipError>) -> ControlFlow<()> {
        let Err(error) = told else { return ControlFlow::Continue(()) };
        let mut again = Some(Instant::now() + TELL_AGAIN);
        let mut refused = false;
        match &error {
            OwnershipError::Deposed { by, .. } if by.node != self.ctx.config.node || by.released => {
                if let Settled::Gone(flow) = self.settle(by).await {
                    return flow;
                }
            }
            // Claimed by an order whose answer was lost: it rests under that epoch.
            OwnershipError::Deposed { by, .. } => self.rest_under((**by).clone()),
            OwnershipError::Foreign { .. } => (again, refused) = (None, true),
            OwnershipError::Store { source, .. } => refused = !source.is_retryable(),
        }
        if let Some(resting) = &mut self.resting {
            resting.tell_at = again;
            if refused && !std::mem::replace(&mut resting.refused, true) {
                tracing::error!(container = %self.name, error = crate::chain(&error), "the store cannot be told that it is at rest");
            }
        }
        ControlFlow::Continue(())
    }

    /// This node's own next epoch, under which nothing is begun either while it still rests.
    fn rest_under(&mut self, owner: Owner) {
        self.own(owner);
        self.save(LocalPhase::Stopped);
    }

    /// Before an order begins it: from here on it does not rest, whoever owns it next. Under the epoch it rests under nothing is
    /// begun any more, not even where the store was not told yet: what was written to it may still arrive.
    pub(super) async fn awaken(&mut self) -> Result<(), Asleep> {
        let Some(Resting { claimant, .. }) = &self.resting else { return Ok(()) };
        let (ctx, previous) = (Arc::clone(&self.ctx), self.owner.epoch);
        let owner = match ownership::claim(&ctx.store, &self.name, Some(previous), claimant).await? {
            Claim::Won(owner) => owner,
            // By an order before, whose answer was lost.
            Claim::Lost(owner) if owner.node == self.ctx.config.node && !owner.released => owner,
            Claim::Lost(by) => return Err(Asleep::Deposed(by)),
        };
        self.rest_under(owner.clone());
        // Should the base not be settled below, or its answer be lost, it rests under the new epoch, too, and the next order claims
        // another.
        self.resting.iter_mut().for_each(|resting| resting.tell_at = Some(Instant::now()));
        ownership::take_base(&ctx.store, &self.name, &owner).await?;
        let detail = json!({"epoch": owner.epoch, "previous": previous});
        self.event("ownership.claimed", "its operator has it begun again", detail);
        self.resting = None;
        Ok(())
    }

    /// What still waits on this node for the store is committed before an order chooses what it begins from: under another epoch
    /// it would not count. False when some are left.
    pub(super) async fn bring_in_drafts(&mut self) -> bool {
        if self.resting.is_none() {
            return true;
        }
        self.uploads.packed().await;
        self.uploads.settle(COMMIT_PATIENCE, UPLOAD_PATIENCE).await;
        self.uploads.flush(DRAFT_PATIENCE).await;
        self.uploads.are_in()
    }
}
