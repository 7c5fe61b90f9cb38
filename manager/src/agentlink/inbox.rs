//! What comes from an agent, made fit for the rest of the manager: bounded, harmless to a terminal, each event once.

use std::time::{Duration, Instant};

use ha_proto::agent::{Event, MAX_MESSAGE, MAX_TEXT, Reply, event::Kind, harmless, last_lines};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc,
};

use super::Error;

/// Events that are taken at once, and how long it takes until there is room for one more. An agent sends fewer; what else is
/// written into the socket waits there, and keeps nobody but its writer waiting.
const BURST: u32 = 64;
const PER_EVENT: Duration = Duration::from_millis(100);

/// The longest an agent calls itself; it draws 16 bytes.
const MAX_INCARNATION: usize = 64;
/// The most events that a status brings.
const MAX_RECENT: usize = 64;

/// The event in a datagram; `None` when it is none.
pub(crate) fn datagram(bytes: &[u8]) -> Option<Event> {
    if bytes.len() > MAX_MESSAGE { None } else { Event::decode(bytes).ok() }
}

/// Reads one answer: its length, then itself.
pub(crate) async fn read_reply(stream: &mut (impl AsyncRead + Unpin)) -> Result<Reply, Error> {
    let length = stream.read_u32().await.map_err(Error::Unreachable)? as usize;
    if length > MAX_MESSAGE {
        return Err(Error::Protocol("it is larger than 64 KiB"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.map_err(Error::Unreachable)?;
    Reply::decode(&bytes[..]).map_err(|_| Error::Protocol("it cannot be decoded"))
}

/// The end of what a check wrote, in one line: at most [`MAX_TEXT`] bytes of it.
fn said(output: &str) -> String {
    last_lines(output.lines()).join(" | ")
}

/// The newest event handed on, and of which incarnation.
#[derive(Debug)]
pub(crate) struct Seen {
    incarnation: Vec<u8>,
    seq: u64,
    pace: Pace,
}

/// Whether there is room for one more event: a bucket of [`BURST`], filled by one every [`PER_EVENT`].
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// When the bucket would be full.
    full_at: Instant,
}

impl Pace {
    /// How long to wait for room; zero when there is some.
    fn wait(&self, now: Instant) -> Duration {
        let behind = self.full_at.saturating_duration_since(now);
        behind.saturating_sub(PER_EVENT * (BURST - 1))
    }

    fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + PER_EVENT;
    }
}

impl Seen {
    pub(crate) fn new(now: Instant) -> Self {
        Self { incarnation: Vec::new(), seq: 0, pace: Pace { full_at: now } }
    }

    /// How long to wait until there is room for one more event.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        self.pace.wait(now)
    }

    /// Hands the event on unless it was before, or there is no room; the status will bring it again.
    pub(crate) fn hand_on(&mut self, event: Event, now: Instant, sender: &mpsc::Sender<Event>) {
        let is_new = event.incarnation != self.incarnation || event.seq > self.seq;
        if event.incarnation.len() > MAX_INCARNATION || !is_new || !self.pace.wait(now).is_zero() {
            return;
        }
        let (incarnation, seq) = (event.incarnation.clone(), event.seq);
        if sender.try_send(bounded(event)).is_ok() {
            (self.incarnation, self.seq) = (incarnation, seq);
            self.pace.take(now);
        }
    }

    /// The answer to the request with `nonce`; the events that its status brought are handed on.
    ///
    /// # Errors
    /// [`Error::Protocol`], and [`Error::Refused`] with the agent's reason.
    pub(crate) fn answer(
        &mut self,
        mut reply: Reply,
        nonce: u64,
        now: Instant,
        sender: &mpsc::Sender<Event>,
    ) -> Result<Reply, Error> {
        if reply.nonce != nonce {
            return Err(Error::Protocol("the nonce is another"));
        }
        if let Some(status) = &mut reply.status {
            if status.incarnation.len() > MAX_INCARNATION {
                return Err(Error::Protocol("its incarnation is too long"));
            }
            status.recent.truncate(MAX_RECENT);
            for event in status.recent.iter().filter(|event| event.incarnation == status.incarnation) {
                self.hand_on(event.clone(), now, sender);
            }
        }
        if let Some(check) = &mut reply.check {
            check.output = said(&check.output);
        }
        if reply.error.is_empty() { Ok(reply) } else { Err(Error::Refused(harmless(reply.error.as_bytes(), MAX_TEXT))) }
    }
}

/// Anybody in the container can write an event, with any text. What is cut is copied: its room goes, too.
fn bounded(mut event: Event) -> Event {
    match &mut event.kind {
        Some(Kind::HealthChanged(change)) => change.output = said(&change.output),
        Some(Kind::ProcessEnded(end)) => {
            end.not_started = harmless(end.not_started.as_bytes(), MAX_TEXT);
            end.last_output = last_lines(end.last_output.iter());
        }
        _ => {}
    }
    event
}

#[cfg(test)]
mod tests {
    use ha_proto::agent::{CheckResult, HealthChanged, ProcessEnded, Status};

    use super::*;

    #[test]
    fn events_are_taken_at_once_up_to_a_limit_and_then_at_a_pace() {
        let start = Instant::now();
        let mut pace = Pace { full_at: start };
        for n in 0..BURST {
            assert!(pace.wait(start).is_zero(), "{n}");
            pace.take(start);
        }
        assert_eq!(pace.wait(start), PER_EVENT);
        let later = start + PER_EVENT;
        assert!(pace.wait(later).is_zero());
        pace.take(later);
        assert_eq!(pace.wait(later), PER_EVENT);
        // After a rest there is room for as many again, and not for more.
        let rested = start + 10 * BURST * PER_EVENT;
        for _ in 0..BURST {
            assert!(pace.wait(rested).is_zero());
            pace.take(rested);
        }
        assert!(!pace.wait(rested).is_zero());
        // What is written faster is not handed on; it is not taken for seen either.
        let (sender, mut receiver) = mpsc::channel(4);
        let mut seen = Seen::new(start + BURST * PER_EVENT * 100);
        seen.hand_on(Event { seq: 1, ..Default::default() }, start, &sender);
        assert!(receiver.try_recv().is_err());
        seen.pace.full_at = start;
        seen.hand_on(Event { seq: 1, ..Default::default() }, start, &sender);
        assert_eq!(receiver.try_recv().unwrap().seq, 1);
    }

    #[test]
    fn a_check_s_output_cannot_give_orders_to_a_terminal() {
        let now = Instant::now();
        let (sender, mut receiver) = mpsc::channel(4);
        let mut seen = Seen::new(now);
        let output = format!("{}\n\x1b]0;owned\x07 down\r\n\n", "é".repeat(3000));
        let check = Some(CheckResult { output: output.clone(), ..Default::default() });
        let reply = seen.answer(Reply { check, ..Default::default() }, 0, now, &sender).unwrap();
        assert!(reply.check.unwrap().output.ends_with(" | \u{fffd}]0;owned\u{fffd} down"));
        let wild = |kind| Event { seq: 1, incarnation: vec![1], kind: Some(kind), at_unix_ms: 0 };
        let health = HealthChanged { health: 0, output };
        seen.hand_on(wild(Kind::HealthChanged(health)), now, &sender);
        let end = ProcessEnded {
            not_started: "\x07".repeat(9000),
            last_output: vec!["\x07".into(); 9],
            ..Default::default()
        };
        seen.hand_on(Event { seq: 2, ..wild(Kind::ProcessEnded(end)) }, now, &sender);
        let Some(Kind::HealthChanged(health)) = receiver.try_recv().unwrap().kind else { panic!("another event") };
        assert!(
            health.output.len() <= MAX_TEXT + 6 && !health.output.contains(char::is_control),
            "{:?}",
            health.output
        );
        let Some(Kind::ProcessEnded(end)) = receiver.try_recv().unwrap().kind else { panic!("another event") };
        assert!(end.not_started.len() <= MAX_TEXT && end.last_output.len() == 3, "{end:?}");
    }

    #[test]
    fn an_incarnation_of_any_length_is_not_kept() {
        let (sender, _receiver) = mpsc::channel(4);
        let status = Some(Status { incarnation: vec![0; 1000], ..Default::default() });
        let answer =
            Seen::new(Instant::now()).answer(Reply { status, ..Default::default() }, 0, Instant::now(), &sender);
        assert!(matches!(answer, Err(Error::Protocol("its incarnation is too long"))), "{answer:?}");
    }
}
