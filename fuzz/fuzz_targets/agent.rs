//! What comes out of a container: an agent's datagrams and answers. Anybody in it who is root can write them.
//!
//! ```text
//! step   = kind u8, length u16 (little-endian), that many bytes: a datagram, or a stream with an answer (its own length first)
//! ```
#![no_main]

use std::time::{Duration, Instant};

use ha_manager::{agentlink::Error, fuzzing::Inbox, fuzzing::ending};
use ha_proto::agent::{Event, LAST_LINES, MAX_MESSAGE, MAX_TEXT, Reply, event::Kind};
use libfuzzer_sys::fuzz_target;
use prost::Message;

const ROOM: usize = 16;
const MAX_STEPS: usize = 100;

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut now = Instant::now();
    let mut inbox = Inbox::new(ROOM, now);
    let mut books = Books::default();
    let mut rest = data;
    for _ in 0..MAX_STEPS {
        let Some((&[kind, low, high], after)) = rest.split_first_chunk::<3>() else { break };
        let (bytes, after) = after.split_at(usize::from(u16::from_le_bytes([low, high])).min(after.len()));
        rest = after;
        if kind % 2 == 0 {
            same::<Event>(bytes);
            inbox.datagram(bytes, now);
        } else {
            same::<Reply>(bytes.get(4..).unwrap_or_default());
            // The manager draws nonces; that of this answer is right unless the kind says otherwise.
            let sent = bytes.get(4..).and_then(|bytes| Reply::decode(bytes).ok()).map_or(0, |reply| reply.nonce);
            let nonce = if kind < 250 { sent } else { sent.wrapping_add(1) };
            answered(runtime.block_on(inbox.answer(bytes, nonce, now)), nonce);
        }
        // The node reads now and then.
        if kind & 4 == 0 {
            while let Ok(event) = inbox.events.try_recv() {
                books.check(&event);
            }
        }
        now += Duration::from_millis(u64::from(kind) * 10);
    }
    while let Ok(event) = inbox.events.try_recv() {
        books.check(&event);
    }
});

/// The newest event, of which incarnation.
#[derive(Default)]
struct Books {
    newest: Option<(Vec<u8>, u64)>,
}

impl Books {
    fn check(&mut self, event: &Event) {
        assert!(event.encoded_len() <= 4 * MAX_TEXT, "{} bytes", event.encoded_len());
        if let Some((incarnation, seq)) = &self.newest {
            assert!(*incarnation != event.incarnation || *seq < event.seq, "an event came twice, or late");
        }
        self.newest = Some((event.incarnation.clone(), event.seq));
        match &event.kind {
            Some(Kind::HealthChanged(change)) => harmless(&change.output, MAX_TEXT + 6),
            Some(Kind::ProcessEnded(end)) => {
                harmless(&end.not_started, MAX_TEXT);
                assert!(end.last_output.len() <= LAST_LINES);
                ended(end);
            }
            _ => {}
        }
    }
}

fn answered(answer: Result<Reply, Error>, nonce: u64) {
    match answer {
        Ok(reply) => {
            assert_eq!(reply.nonce, nonce, "the answer to another request");
            if let Some(check) = &reply.check {
                harmless(&check.output, MAX_TEXT + 6);
            }
            if let Some(status) = &reply.status {
                assert!(status.recent.len() <= 64 && status.incarnation.len() <= 64);
                status.last_end.iter().for_each(ended);
            }
        }
        Err(error) => harmless(&ha_manager::chain(&error), 1024),
    }
}

/// How it is told of.
fn ended(end: &ha_proto::agent::ProcessEnded) {
    let (sentence, facts) = ending(end);
    harmless(&sentence, 2 * MAX_TEXT);
    assert!(facts.to_string().len() <= 8 * MAX_TEXT);
}

fn harmless(text: &str, max: usize) {
    assert!(text.len() <= max && !text.contains(char::is_control), "{text:?}");
}

/// What can be read means the same when it is written again.
fn same<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Some(message) =
        Some(bytes).filter(|bytes| bytes.len() <= MAX_MESSAGE).and_then(|bytes| M::decode(bytes).ok())
    {
        assert_eq!(M::decode(&message.encode_to_vec()[..]).unwrap(), message);
    }
}
