//! What the manager is told unasked: one datagram per event, each from a fresh socket.
//!
//! An event is sent until the kernel has taken it, which needs a manager that listens. That it was also read cannot be
//! known: the newest 64 stay in memory and are part of the status, where a manager finds what it has missed.

use std::{collections::VecDeque, io, os::unix::net::UnixDatagram, path::PathBuf, time::Duration};

use ha_proto::agent::{Event, event::Kind};
use prost::Message;

use crate::clock;

/// How many are kept.
const KEEP: usize = 64;

/// How long an event waits for a manager before it is tried again: doubling between these.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// The events of this incarnation, sent and unsent.
#[derive(Debug)]
pub struct Events {
    incarnation: Vec<u8>,
    manager: PathBuf,
    newest: u64,
    sent: u64,
    kept: VecDeque<Event>,
    retry: Duration,
    retry_at: Duration,
}

impl Events {
    pub fn new(incarnation: Vec<u8>, manager: PathBuf) -> Self {
        Self {
            incarnation,
            manager,
            newest: 0,
            sent: 0,
            kept: VecDeque::with_capacity(KEEP),
            retry: FIRST_RETRY,
            retry_at: Duration::ZERO,
        }
    }

    pub fn push(&mut self, kind: Kind) {
        self.newest += 1;
        if let Kind::ProcessEnded(_) = kind {
            // A status holds 64 events within 64 KiB: the words of the newest end are kept, of earlier ends what happened.
            for event in &mut self.kept {
                if let Some(Kind::ProcessEnded(before)) = &mut event.kind {
                    (before.not_started, before.last_output) = Default::default();
                }
            }
        }
        if self.kept.len() == KEEP {
            self.kept.pop_front();
        }
        self.kept.push_back(Event {
            seq: self.newest,
            incarnation: self.incarnation.clone(),
            at_unix_ms: u64::try_from(clock::wall().as_millis()).unwrap_or(u64::MAX),
            kind: Some(kind),
        });
    }

    /// Those after `seen`, oldest first.
    pub fn after(&self, seen: u64) -> Vec<Event> {
        self.kept.iter().filter(|event| event.seq > seen).cloned().collect()
    }

    pub fn deadline(&self) -> Option<Duration> {
        (self.sent < self.newest).then_some(self.retry_at)
    }

    /// A manager may be there again: do not wait for the next try.
    pub fn retry_now(&mut self) {
        self.retry_at = Duration::ZERO;
        self.retry = FIRST_RETRY;
    }

    /// Sends what is due, without blocking.
    pub fn flush(&mut self, now: Duration) {
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        let sent = self.sent;
        for event in self.kept.iter().filter(|event| event.seq > sent) {
            if let Err(_absent) = self.send(event) {
                self.retry_at = now + self.retry;
                self.retry = (self.retry * 2).min(LAST_RETRY);
                return;
            }
            self.sent = event.seq;
        }
        self.retry = FIRST_RETRY;
        self.retry_at = Duration::ZERO;
    }

    fn send(&self, event: &Event) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to(&event.encode_to_vec(), &self.manager).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use ha_proto::agent::{MAX_MESSAGE, MAX_TEXT, ProcessEnded, Started, Status};

    use super::*;

    fn started(main_pid: u32) -> Kind {
        Kind::Started(Started { main_pid })
    }

    #[test]
    fn events_wait_for_the_manager_and_arrive_once_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manager.sock");
        let mut events = Events::new(vec![7], path.clone());
        events.push(started(1));
        events.flush(Duration::ZERO);
        events.push(started(2));
        assert_eq!(events.deadline(), Some(FIRST_RETRY));
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        events.flush(Duration::ZERO);
        events.flush(FIRST_RETRY);
        assert_eq!(events.deadline(), None);
        let mut buffer = [0; 1024];
        for seq in [1, 2] {
            let length = manager.recv(&mut buffer).unwrap();
            assert_eq!(Event::decode(&buffer[..length]).unwrap().seq, seq);
        }
        assert_eq!(manager.recv(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn only_the_newest_are_kept() {
        let mut events = Events::new(vec![7], "/nonexistent/manager.sock".into());
        for pid in 0..200 {
            events.push(started(pid));
        }
        let kept = events.after(0);
        assert_eq!((kept.len(), kept[0].seq, kept[63].seq), (64, 137, 200));
        assert_eq!(events.after(199).len(), 1);
    }

    #[test]
    fn a_status_has_room_for_all_that_is_kept() {
        let mut events = Events::new(vec![7; 16], "/nonexistent/manager.sock".into());
        let end = || ProcessEnded {
            code: 1,
            last_output: vec!["x".repeat(MAX_TEXT)],
            not_started: "x".repeat(MAX_TEXT),
            ..ProcessEnded::default()
        };
        (0..200).for_each(|_| events.push(Kind::ProcessEnded(end())));
        let status = Status { recent: events.after(0), last_end: Some(end()), ..Status::default() };
        assert!(status.encode_to_vec().len() < MAX_MESSAGE / 4, "{}", status.encode_to_vec().len());
        assert_eq!(status.recent[63].kind, Some(Kind::ProcessEnded(end())));
    }

    #[test]
    fn a_manager_that_does_not_read_blocks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manager.sock");
        let _deaf = UnixDatagram::bind(&path).unwrap();
        let mut events = Events::new(vec![7], path);
        for pid in 0..2000 {
            events.push(started(pid));
            events.flush(Duration::ZERO);
        }
        assert!(events.deadline().is_some(), "the socket's queue is not that long");
    }
}
