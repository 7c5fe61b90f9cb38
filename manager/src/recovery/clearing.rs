//! How a copy on this node ends: for the next attempt, or for good because somebody else has the container.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use serde_json::json;

use super::{
    actor::{Actor, Down, State},
    launch,
    order::Command,
    teardown::{self, Extent, TeardownError},
};
use crate::{api::ApiError, ownership::Owner};

impl Actor {
    /// Another node owns the container: this copy must not go on.
    pub(super) async fn deposed(&mut self, by: &Owner) -> ControlFlow<()> {
        let text = format!("{} owns it under epoch {}; the copy here is removed", by.node, by.epoch);
        self.event("ownership.deposed", &text, json!({"by": by.node, "epoch": by.epoch, "held": self.owner.epoch}));
        self.end().await
    }

    /// The last of an actor: nothing of the copy stays here. Tried until it is so, for a copy nobody watches is a second one.
    pub(super) async fn end(&mut self) -> ControlFlow<()> {
        const LONGEST: Duration = Duration::from_secs(30);
        let mut wait = Duration::from_millis(500);
        while self.clear(Extent::All).await.is_err() {
            let again = tokio::time::sleep(wait);
            tokio::pin!(again);
            loop {
                tokio::select! {
                    () = &mut again => break,
                    command = self.inbox.recv() => match command {
                        Some(Command::Shutdown) | None => return ControlFlow::Break(()),
                        Some(Command::Order { reply, .. }) => {
                            let text = format!("the copy of {} on this node is being cleared away", self.name);
                            let _ = reply.send(Err(ApiError::Unavailable(text)));
                        }
                        Some(Command::Update(_) | Command::Outdated(_)) => {}
                    },
                }
            }
            wait = (wait * 2).min(LONGEST);
        }
        ControlFlow::Break(())
    }

    /// Ends the copy here, whatever state it is in, and clears it away. After an error, which has been reported, it may still
    /// run: it must neither be begun anew nor handed over.
    pub(super) async fn clear(&mut self, extent: Extent) -> Result<(), TeardownError> {
        let cleared = self.make_room(extent).await;
        self.view.update(|view| view.copy = cleared.is_err());
        cleared
    }

    /// As [`Self::clear`], for a copy that is about to be begun and counts as being here already.
    pub(super) async fn make_room(&mut self, extent: Extent) -> Result<(), TeardownError> {
        self.state = State::Down(Down::Resting);
        self.uploads.may_prune(false);
        let (ctx, name, place) = (Arc::clone(&self.ctx), self.name.clone(), self.place.clone());
        let cleared = launch::blocking(move || teardown::clear(&ctx, &name, &place, extent)).await;
        if let Err(error) = &cleared {
            self.event("teardown.failed", &error.to_string(), json!({"problems": error.problems}));
        }
        cleared
    }
}
