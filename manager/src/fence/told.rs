//! What the watchdog is to know, what it has been sent, and what it was asked and has not answered.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::oneshot;

use super::{
    FenceError,
    connection::Connection,
    protocol::{Due, Order},
};

#[derive(Debug)]
pub(super) struct Told {
    connection: Option<Arc<Connection>>,
    /// What the watchdog is to know.
    wanted: Due,
    /// What it was sent, on this connection.
    sent: Option<Due>,
    /// It is to fence, whatever the deadline.
    now: bool,
    releases: BTreeMap<u64, oneshot::Sender<Result<(), FenceError>>>,
    number: u64,
}

impl Told {
    /// `due`: what the watchdog was found with.
    pub fn new(connection: Arc<Connection>, due: Due) -> Self {
        let (connection, sent) = (Some(connection), Some(due));
        Self { connection, wanted: due, sent, now: false, releases: BTreeMap::new(), number: 0 }
    }

    pub fn want(&mut self, due: Due) {
        (self.wanted, self.now) = (due, false);
    }

    pub fn fence_now(&mut self) {
        self.now = true;
    }

    /// The watchdog is gone, and with it every release that was asked for.
    pub fn lost(&mut self) {
        (self.connection, self.sent) = (None, None);
        for (_, waiting) in std::mem::take(&mut self.releases) {
            let _ = waiting.send(Err(FenceError::Lost));
        }
    }

    /// Another one is there: it is told everything.
    pub fn found(&mut self, connection: Arc<Connection>) {
        (self.connection, self.sent) = (Some(connection), None);
        self.flush();
    }

    pub fn answered(&mut self, number: u64, answer: Result<(), FenceError>) {
        if let Some(waiting) = self.releases.remove(&number) {
            // Nobody waits for one that came too late.
            let _ = waiting.send(answer);
        }
    }

    /// Sends what has not been sent; false when something is left.
    pub fn flush(&mut self) -> bool {
        if self.sent == Some(self.wanted) && !self.now {
            return true;
        }
        let Some(connection) = &self.connection else { return false };
        if self.now {
            if connection.try_send(Order::FenceNow).is_err() {
                return false;
            }
            self.now = false;
        }
        if self.sent != Some(self.wanted) {
            if connection.try_send(Order::Hold(self.wanted)).is_err() {
                return false;
            }
            self.sent = Some(self.wanted);
        }
        true
    }

    /// `None` when there is no room, or no watchdog.
    pub fn send_release(&mut self, due: Due) -> Option<oneshot::Receiver<Result<(), FenceError>>> {
        let connection = self.connection.as_ref()?;
        self.number += 1;
        connection.try_send(Order::Release { number: self.number, due }).ok()?;
        // What was to be fenced before this is fenced; what is held now is this deadline.
        (self.wanted, self.sent, self.now) = (due, Some(due), false);
        let (answer, answered) = oneshot::channel();
        self.releases.retain(|_, waiting| !waiting.is_closed());
        self.releases.insert(self.number, answer);
        Some(answered)
    }
}
