//! Whether a restored connection is still the one its peer has. Pure.
//!
//! ```text
//!                  peer's acknowledgement         peer's sequence
//!   ours:          snd_una ≤ ack ≤ snd_nxt        seq = rcv_nxt         → idle: kept
//!   beyond ours:   ack > snd_nxt                                        → moved on: reset
//!   beyond ours:                                  seq > rcv_nxt         → ahead: one of two
//!                    · the peer sends again from rcv_nxt or below: nobody acknowledged it → kept
//!                    · it does not, for `patience`: the dead owner had it                 → reset
//! ```

use std::time::{Duration, Instant};

/// Where a restored socket stands. TCP sequence numbers, compared modulo 2^32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sequences {
    /// The oldest byte the peer has not acknowledged.
    pub(super) snd_una: u32,
    /// The next byte to be sent.
    pub(super) snd_nxt: u32,
    /// The next byte expected from the peer.
    pub(super) rcv_nxt: u32,
}

/// What matters of one TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) seq: u32,
    /// `None` without the ACK flag.
    pub(super) ack: Option<u32>,
    /// Sequence numbers it takes: its data, and one for FIN.
    pub(super) length: u32,
    pub(super) syn: bool,
    pub(super) rst: bool,
}

impl Segment {
    fn end(&self) -> u32 {
        self.seq.wrapping_add(self.length)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing happened since the snapshot that the two sides would not sort out by themselves.
    Idle,
    /// It went on without the snapshot.
    MovedOn,
    /// The peer does not have the connection any more.
    Gone,
}

/// One connection, until there is a verdict.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    ours: Sequences,
    ahead_since: Option<Instant>,
    verdict: Option<Verdict>,
}

/// Whether `a` comes after `b` on the circle of sequence numbers.
fn after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

impl Watch {
    pub(super) fn new(ours: Sequences) -> Self {
        Self { ours, ahead_since: None, verdict: None }
    }

    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    /// Whether anything is known of where the peer stands.
    pub(super) fn answered(&self) -> bool {
        self.verdict.is_some() || self.ahead_since.is_some()
    }

    /// A segment of the restored socket itself, seen on the wire: it has sent and received since.
    pub(super) fn container_sent(&mut self, segment: &Segment) {
        if segment.rst || segment.syn {
            return;
        }
        if after(segment.end(), self.ours.snd_nxt) {
            self.ours.snd_nxt = segment.end();
        }
        if let Some(ack) = segment.ack
            && after(ack, self.ours.rcv_nxt)
        {
            self.ours.rcv_nxt = ack;
            // The gap was filled, so the peer did send it again.
            self.ahead_since = None;
        }
    }

    /// A segment of the peer.
    pub(super) fn peer_sent(&mut self, segment: &Segment, now: Instant) {
        if self.verdict.is_none() {
            self.verdict = self.judge(segment, now);
        }
    }

    /// Time has passed; `patience` is how long a peer that is ahead gets to send again what nobody acknowledged.
    pub(super) fn tick(&mut self, now: Instant, patience: Duration) {
        if self.verdict.is_none() && self.ahead_since.is_some_and(|since| now.duration_since(since) >= patience) {
            self.verdict = Some(Verdict::MovedOn);
        }
    }

    fn judge(&mut self, segment: &Segment, now: Instant) -> Option<Verdict> {
        let ours = self.ours;
        if segment.rst {
            // The answer to a probe carries the probe's acknowledgement; others could come from anyone.
            return (segment.seq == ours.rcv_nxt).then_some(Verdict::Gone);
        }
        if segment.syn {
            return None;
        }
        let ack = segment.ack?;
        if after(ack, ours.snd_nxt) {
            return Some(Verdict::MovedOn);
        }
        if after(ours.snd_una, ack) {
            return None; // older than the snapshot: it was long on its way
        }
        if segment.length > 0 && !after(segment.seq, ours.rcv_nxt) {
            return Some(Verdict::Idle);
        }
        // Without data: a probe of the peer's own keepalive is one below where it stands.
        if segment.length == 0 && (segment.seq == ours.rcv_nxt || segment.seq == ours.rcv_nxt.wrapping_sub(1)) {
            return Some(Verdict::Idle);
        }
        if after(segment.seq, ours.rcv_nxt) {
            self.ahead_since.get_or_insert(now);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);
    /// 10 bytes sent and not acknowledged, close to the end of the circle.
    const OURS: Sequences = Sequences { snd_una: u32::MAX - 4, snd_nxt: 5, rcv_nxt: u32::MAX };

    fn segment(seq: u32, ack: u32, length: u32) -> Segment {
        Segment { seq, ack: Some(ack), length, syn: false, rst: false }
    }

    fn after_one(peer: Segment) -> (Option<Verdict>, Watch) {
        let mut watch = Watch::new(OURS);
        watch.peer_sent(&peer, Instant::now());
        (watch.verdict(), watch)
    }

    #[test]
    fn an_idle_peer_is_kept_whatever_it_has_acknowledged() {
        for ack in [OURS.snd_una, u32::MAX, 0, OURS.snd_nxt] {
            assert_eq!(after_one(segment(OURS.rcv_nxt, ack, 0)).0, Some(Verdict::Idle), "ack {ack}");
        }
        assert_eq!(after_one(segment(OURS.rcv_nxt - 1, OURS.snd_nxt, 0)).0, Some(Verdict::Idle), "its keepalive");
    }

    #[test]
    fn a_peer_that_acknowledges_what_was_never_sent_has_moved_on() {
        for ack in [OURS.snd_nxt + 1, OURS.snd_nxt + (1 << 30)] {
            assert_eq!(after_one(segment(OURS.rcv_nxt, ack, 0)).0, Some(Verdict::MovedOn));
            assert_eq!(after_one(segment(OURS.rcv_nxt, ack, 10)).0, Some(Verdict::MovedOn));
        }
    }

    #[test]
    fn a_peer_ahead_is_kept_when_it_sends_again_and_reset_when_it_does_not() {
        let start = Instant::now();
        let ahead = segment(OURS.rcv_nxt.wrapping_add(100), OURS.snd_nxt, 0);
        for again in [segment(OURS.rcv_nxt, OURS.snd_nxt, 100), segment(OURS.rcv_nxt - 50, OURS.snd_nxt, 150)] {
            let (verdict, mut watch) = after_one(ahead);
            assert_eq!(verdict, None);
            watch.tick(start + Duration::from_secs(1), PATIENCE);
            assert_eq!(watch.verdict(), None);
            watch.peer_sent(&again, start);
            assert_eq!(watch.verdict(), Some(Verdict::Idle));
        }
        let (_, mut watch) = after_one(ahead);
        watch.peer_sent(&segment(OURS.rcv_nxt.wrapping_add(100), OURS.snd_nxt, 50), start); // new data, not again
        watch.tick(start + PATIENCE * 2, PATIENCE);
        assert_eq!(watch.verdict(), Some(Verdict::MovedOn));
    }

    #[test]
    fn what_the_restored_side_does_itself_is_not_held_against_it() {
        let now = Instant::now();
        let mut watch = Watch::new(OURS);
        watch.container_sent(&segment(OURS.snd_nxt, OURS.rcv_nxt.wrapping_add(20), 100));
        watch.peer_sent(&segment(OURS.rcv_nxt.wrapping_add(20), OURS.snd_nxt + 100, 0), now);
        assert_eq!(watch.verdict(), Some(Verdict::Idle));
        let (_, mut watch) = after_one(segment(OURS.rcv_nxt.wrapping_add(20), OURS.snd_nxt, 0));
        watch.container_sent(&segment(OURS.snd_nxt, OURS.rcv_nxt.wrapping_add(20), 0));
        watch.tick(now + PATIENCE * 2, PATIENCE);
        assert_eq!(watch.verdict(), None, "the gap was filled");
    }

    #[test]
    fn resets_count_only_as_answers_and_old_segments_not_at_all() {
        let reset = |seq| Segment { seq, ack: None, length: 0, syn: false, rst: true };
        assert_eq!(after_one(reset(OURS.rcv_nxt)).0, Some(Verdict::Gone));
        assert_eq!(after_one(reset(OURS.rcv_nxt.wrapping_add(1))).0, None);
        assert_eq!(after_one(segment(OURS.rcv_nxt, OURS.snd_una - 1, 0)).0, None);
        assert_eq!(after_one(Segment { ack: None, ..segment(OURS.rcv_nxt, 0, 0) }).0, None);
    }

    proptest! {
        /// The verdict does not depend on where on the circle a connection stands.
        #[test]
        fn numbers_wrap_around(shift: u32, seq in 0_u32..300, ack in 0_u32..300, length in 0_u32..50) {
            let judge = |by: u32| {
                let ours = Sequences {
                    snd_una: 100_u32.wrapping_add(by),
                    snd_nxt: 150_u32.wrapping_add(by),
                    rcv_nxt: 120_u32.wrapping_add(by),
                };
                let mut watch = Watch::new(ours);
                watch.peer_sent(&segment(seq.wrapping_add(by), ack.wrapping_add(by), length), Instant::now());
                (watch.verdict(), watch.ahead_since.is_some())
            };
            prop_assert_eq!(judge(0), judge(shift));
        }
    }
}
