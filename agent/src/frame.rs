//! Output of a process, cut into records.
//!
//! A record is one line of the log file, as the Kubernetes container runtimes write it:
//!
//! ```text
//! 2026-11-23T06:45:00.123Z stdout F a whole line, or the last piece of one
//! 2026-11-23T06:45:00.123Z stdout P a piece; the line goes on in the next record of this stream
//! ```

use std::time::Duration;

/// The longest content of a record, in bytes; a longer line is cut into pieces.
pub const MAX_CONTENT: usize = 16 * 1024;

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
    /// What the agent itself has to say.
    Agent,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
            Stream::Agent => "agent",
        }
    }
}

/// One record, newline included. `whole` ends the line.
pub fn record(timestamp: &str, stream: Stream, whole: bool, content: &[u8]) -> Vec<u8> {
    let mut record = format!("{timestamp} {} {} ", stream.name(), if whole { 'F' } else { 'P' }).into_bytes();
    record.extend_from_slice(content);
    record.push(b'\n');
    record
}

/// Cuts one stream into records.
#[derive(Debug)]
pub struct Framer {
    stream: Stream,
    pending: Vec<u8>,
    /// When `pending` began, on the agent's clock.
    since: Duration,
    /// A piece was written and its line has not ended.
    open: bool,
}

impl Framer {
    pub fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new(), since: Duration::ZERO, open: false }
    }

    /// Takes output in; `emit` gets each record that is complete by it.
    pub fn push(&mut self, mut bytes: &[u8], now: Duration, timestamp: &str, emit: &mut impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            if self.pending.is_empty() {
                self.since = now;
            }
            let room = MAX_CONTENT - self.pending.len();
            let end = bytes.iter().take(room + 1).position(|b| *b == b'\n');
            let taken = end.unwrap_or(room.min(bytes.len()));
            self.pending.extend_from_slice(&bytes[..taken]);
            if end.is_some() {
                self.emit(true, timestamp, emit);
                bytes = &bytes[taken + 1..];
            } else {
                bytes = &bytes[taken..];
                if !bytes.is_empty() {
                    self.emit(false, timestamp, emit);
                }
            }
        }
    }

    /// Since when a piece without its end has been waiting.
    pub fn waiting_since(&self) -> Option<Duration> {
        (!self.pending.is_empty()).then_some(self.since)
    }

    /// Writes out what is waiting as a piece: a prompt, a progress bar.
    pub fn flush(&mut self, timestamp: &str, emit: &mut impl FnMut(&[u8])) {
        if !self.pending.is_empty() {
            self.emit(false, timestamp, emit);
        }
    }

    /// The process has ended, and with it its last line.
    pub fn finish(&mut self, timestamp: &str, emit: &mut impl FnMut(&[u8])) {
        if self.open || !self.pending.is_empty() {
            self.emit(true, timestamp, emit);
        }
    }

    fn emit(&mut self, whole: bool, timestamp: &str, emit: &mut impl FnMut(&[u8])) {
        emit(&record(timestamp, self.stream, whole, &self.pending));
        self.pending.clear();
        self.open = !whole;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(chunks: &[Vec<u8>], flush_after: &[bool]) -> Vec<Vec<u8>> {
        let mut framer = Framer::new(Stream::Stdout);
        let mut records = Vec::new();
        for (n, chunk) in chunks.iter().enumerate() {
            framer.push(chunk, Duration::ZERO, "T", &mut |r| records.push(r.to_vec()));
            if flush_after.get(n) == Some(&true) {
                framer.flush("T", &mut |r| records.push(r.to_vec()));
            }
        }
        framer.finish("T", &mut |r| records.push(r.to_vec()));
        records
    }

    /// What a reader makes of the records.
    fn joined(records: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let (mut lines, mut line) = (Vec::new(), Vec::new());
        for record in records {
            let content = &record[b"T stdout F ".len()..record.len() - 1];
            line.extend_from_slice(content);
            if record[b"T stdout ".len()] == b'F' {
                lines.push(std::mem::take(&mut line));
            }
        }
        assert!(line.is_empty(), "the last line has no end");
        lines
    }

    #[test]
    fn lines_pieces_and_the_unfinished_end() {
        assert_eq!(
            run(&[b"one\ntw".to_vec(), b"o\n\nthree".to_vec()], &[]),
            [
                b"T stdout F one\n".to_vec(),
                b"T stdout F two\n".to_vec(),
                b"T stdout F \n".to_vec(),
                b"T stdout F three\n".to_vec(),
            ]
        );
        assert_eq!(
            run(&[b"name? ".to_vec(), b"\n".to_vec()], &[true]),
            [b"T stdout P name? \n".to_vec(), b"T stdout F \n".to_vec()]
        );
    }

    #[test]
    fn a_line_of_just_the_longest_length_is_one_record_and_a_longer_one_two() {
        let exact = [vec![b'x'; MAX_CONTENT], b"\n".to_vec()].concat();
        assert_eq!(run(&[exact], &[]).len(), 1);
        let longer = [vec![b'x'; MAX_CONTENT + 1], b"\n".to_vec()].concat();
        assert_eq!(run(&[longer], &[]).len(), 2);
    }

    proptest! {
        #[test]
        fn joined_records_are_the_lines_written(
            lines in prop::collection::vec(prop::collection::vec(any::<u8>().prop_map(|b| if b == b'\n' { b' ' } else { b }), 0..40_000), 0..6),
            cuts in prop::collection::vec(1usize..20_000, 1..20),
            flushes in prop::collection::vec(any::<bool>(), 0..40),
        ) {
            let mut text: Vec<u8> = lines.iter().flat_map(|l| l.iter().copied().chain([b'\n'])).collect();
            let mut chunks = Vec::new();
            for cut in cuts.iter().cycle() {
                if text.is_empty() { break; }
                let rest = text.split_off((*cut).min(text.len()));
                chunks.push(std::mem::replace(&mut text, rest));
            }
            let records = run(&chunks, &flushes);
            prop_assert!(records.iter().all(|r| r.len() <= MAX_CONTENT + b"T stdout F \n".len()));
            prop_assert!(records.iter().all(|r| r.iter().filter(|b| **b == b'\n').count() == 1));
            prop_assert_eq!(joined(&records), lines);
        }
    }
}
