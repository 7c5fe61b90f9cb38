//! Waiting for one snapshot's commit in the middle of an order that goes on only with it.

use std::time::{Duration, Instant};

use super::{
    actor::{Actor, State},
    checkpoint::NoCheckpoint,
    order::Command,
    upload::Report,
};
use crate::spec::SnapshotId;

/// Why an order stops before anything was ended here; the container is on the network.
pub(super) enum Stopped {
    Failed(String),
    /// It does not run here any more, or cannot be reached.
    Broken(String),
    /// By something that was heard meanwhile and is heeded next.
    Interrupted,
    /// Its init has ended, which is heeded next. In a move it is off the network still: nobody is to hear how its connections end.
    Ended,
}

impl From<NoCheckpoint> for Stopped {
    fn from(error: NoCheckpoint) -> Self {
        match error {
            NoCheckpoint::Goes(text) => Stopped::Failed(text),
            NoCheckpoint::Broken(text) => Stopped::Broken(text),
        }
    }
}

impl Actor {
    /// Waits until a snapshot is committed, `allowed` from `since`, but hears all that may end the container meanwhile. Other orders
    /// are told that the container is just `being` something.
    pub(super) async fn commit_of(
        &mut self,
        id: SnapshotId,
        since: Instant,
        allowed: Duration,
        being: &str,
    ) -> Result<(), Stopped> {
        let deadline = since + allowed;
        loop {
            let State::Up(live) = &self.state else { return Err(Stopped::Interrupted) };
            let report = tokio::select! {
                command = self.inbox.recv() => {
                    if self.defer(command, being) {
                        return Err(Stopped::Interrupted);
                    }
                    continue;
                }
                // Heeded next, by the actor's own loop.
                () = live.exit.wait() => return Err(Stopped::Ended),
                report = self.uploads.report() => report,
                () = tokio::time::sleep_until(deadline.into()) => {
                    let text = format!("{id} was not in the store after {allowed:?}, which is too slow for this");
                    return Err(Stopped::Failed(text));
                }
            };
            match report {
                // Older drafts that wait keep this one waiting behind them.
                Report::Waiting { id, cause } => {
                    let _ = self.uploaded(Report::Waiting { id, cause: cause.clone() }).await;
                    return Err(Stopped::Failed(cause));
                }
                Report::Failed { id: failed, cause } if failed == id => {
                    let _ = self.uploaded(Report::Failed { id, cause: cause.clone() }).await;
                    return Err(Stopped::Failed(cause));
                }
                Report::Deposed { by, .. } if by.epoch > self.owner.epoch => {
                    self.deferred = Some(Command::Outdated(by));
                    return Err(Stopped::Interrupted);
                }
                Report::Committed { manifest, timing, pruned } => {
                    let committed = manifest.meta.id;
                    let _ = self.uploaded(Report::Committed { manifest, timing, pruned }).await;
                    if committed == id {
                        return Ok(());
                    }
                }
                earlier => drop(self.uploaded(earlier).await),
            }
        }
    }
}
