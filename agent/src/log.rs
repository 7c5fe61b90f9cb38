//! The log file: records are collected and appended in batches by open, append, close.
//!
//! The file is on a bind mount of the node, so it may not be open while the container is dumped, and it may fail in every
//! way a node's disk can. None of them reaches the main process: its pipes are read regardless, what cannot be written
//! waits in a bounded buffer, and what does not fit there is counted and owned up to in the log itself. Only a disk that
//! fails costs lines: while it takes them, a full buffer is written at once.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    clock,
    frame::{MAX_CONTENT, Stream, record},
    names,
};

/// What waits for the disk, in bytes.
const MAX_BUFFER: usize = 256 * 1024;

/// Batches are at least this far apart, unless a lot is waiting.
const GATHER: Duration = Duration::from_millis(20);
const A_LOT: usize = 64 * 1024;

/// Written at once; more than the longest record.
const PIECE: usize = 32 * 1024;

/// More than the longest record: one always fits into an empty buffer.
const LONGEST: usize = MAX_CONTENT + 64;

/// After a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Appends records to `log` and keeps the one before as `log.1`.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    old: PathBuf,
    /// A file that would grow beyond this is put aside first.
    max_file: u64,
    max_buffer: usize,
    buffer: Vec<u8>,
    /// Lines lost since the last notice, and since the start.
    dropped: u64,
    dropped_total: u64,
    flush_at: Duration,
    /// The last write failed: what does not fit is dropped without another try before `flush_at`.
    failing: bool,
    /// The time of the last `flush`.
    now: Duration,
}

impl Log {
    /// `max` bytes for both files together, at least 64 KiB.
    pub fn new(channel: &Path, max: u64) -> Self {
        let max = max.max(64 * 1024);
        Self {
            path: channel.join(names::LOG),
            old: channel.join(names::OLD_LOG),
            max_file: max / 2,
            max_buffer: usize::try_from(max / 4).unwrap_or(MAX_BUFFER).clamp(LONGEST, MAX_BUFFER),
            buffer: Vec::new(),
            dropped: 0,
            dropped_total: 0,
            flush_at: Duration::ZERO,
            failing: false,
            now: Duration::ZERO,
        }
    }

    /// Takes one record in, or counts it as dropped when there is no room and the disk gives none.
    pub fn push(&mut self, record: &[u8]) {
        if !self.fits(record) && !self.failing {
            self.flush_now(self.now);
        }
        if !self.fits(record) {
            self.dropped += 1;
            self.dropped_total += 1;
            return;
        }
        if self.dropped > 0 {
            self.buffer.extend_from_slice(&self.notice());
            self.dropped = 0;
        }
        self.buffer.extend_from_slice(record);
    }

    fn fits(&self, record: &[u8]) -> bool {
        let notice = if self.dropped > 0 { self.notice().len() } else { 0 };
        self.buffer.len() + notice + record.len() <= self.max_buffer
    }

    /// Something the agent itself has to say, on one line.
    pub fn say(&mut self, text: &str) {
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(2000).collect();
        self.push(&record(&clock::rfc3339(clock::wall()), Stream::Agent, true, line.as_bytes()));
    }

    pub fn dropped_total(&self) -> u64 {
        self.dropped_total
    }

    /// When `flush` has something to do.
    pub fn deadline(&self) -> Option<Duration> {
        (!self.buffer.is_empty() || self.dropped > 0).then_some(self.flush_at)
    }

    /// Writes what is waiting, if it is time. A failure is retried later.
    pub fn flush(&mut self, now: Duration) {
        self.now = now;
        let due = now >= self.flush_at || (self.buffer.len() >= A_LOT && self.dropped == 0);
        if self.deadline().is_some() && due {
            self.flush_now(now);
        }
    }

    /// Writes what is waiting, due or not.
    pub fn flush_now(&mut self, now: Duration) {
        if self.deadline().is_none() {
            return;
        }
        while !self.buffer.is_empty() {
            // In pieces of whole lines: a disk with little room left takes some of them.
            let piece = &self.buffer[..self.buffer.len().min(PIECE)];
            let end = piece.iter().rposition(|b| *b == b'\n').map_or(piece.len(), |at| at + 1);
            if let Err(_unwritable) = self.append(&self.buffer[..end]) {
                self.failing = true;
                self.flush_at = now + RETRY; // Nowhere to say it: `Status.log_dropped_lines` tells once lines are lost.
                return;
            }
            self.buffer.drain(..end);
        }
        self.failing = false;
        self.flush_at = now + GATHER;
        if self.dropped > 0 {
            self.buffer = self.notice();
            self.dropped = 0;
        }
        if self.buffer.capacity() > A_LOT {
            self.buffer.shrink_to(A_LOT);
        }
    }

    fn append(&self, piece: &[u8]) -> io::Result<()> {
        let mut file = self.open()?;
        let mut length = file.metadata()?.len();
        if length > 0 && length + piece.len() as u64 > self.max_file {
            drop(file);
            fs::rename(&self.path, &self.old)?;
            file = self.open()?;
            length = file.metadata()?.len();
        }
        file.write_all(piece).inspect_err(|_| {
            // Half a piece would be written again, and its last line torn. If this fails too, that is what happens.
            let _ = file.set_len(length);
        })
    }

    fn open(&self) -> io::Result<File> {
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(&self.path)?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn notice(&self) -> Vec<u8> {
        let text = format!("{} log lines were lost here: the log could not be written fast enough", self.dropped);
        record(&clock::rfc3339(clock::wall()), Stream::Agent, true, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"2026-11-23T06:45:00.123Z stdout F a line of some length, forty bytes or so\n";

    #[test]
    fn both_files_together_stay_below_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path(), 64 * 1024);
        let size = |name: &str| fs::metadata(dir.path().join(name)).map_or(0, |m| m.len());
        let mut rotated = false;
        for n in 0..5000 {
            log.push(LINE);
            if n % 50 == 0 {
                log.flush_now(Duration::ZERO);
                assert!(size("log") + size("log.1") <= 64 * 1024);
                rotated |= size("log.1") > 0;
            }
        }
        assert!(rotated);
        assert_eq!(log.dropped_total(), 0);
        let text = fs::read(dir.path().join("log.1")).unwrap();
        assert!(text.chunks(LINE.len()).all(|line| line == LINE), "a line was torn by the rotation");
    }

    #[test]
    fn lines_for_a_missing_directory_wait_and_the_lost_ones_are_counted_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let channel = dir.path().join("channel");
        let mut log = Log::new(&channel, 64 * 1024);
        for _ in 0..1000 {
            log.push(LINE);
            log.flush(Duration::ZERO);
        }
        let lost = log.dropped_total();
        assert!(lost > 700 && lost < 800, "{lost}");
        assert!(log.deadline() >= Some(RETRY));
        fs::create_dir(&channel).unwrap();
        log.flush(RETRY);
        log.push(LINE);
        log.flush(RETRY * 2);
        let text = fs::read_to_string(channel.join("log")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len() as u64, 1000 - lost + 2);
        let notice = lines[lines.len() - 2];
        assert!(notice.contains(&format!(" agent F {lost} log lines were lost here")), "{notice}");
    }

    #[test]
    fn more_than_the_buffer_holds_is_written_and_not_dropped_while_the_disk_takes_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path(), 1 << 30);
        log.push(&record("2026-11-23T06:45:00.123Z", Stream::Stdout, false, &[b'x'; MAX_CONTENT]));
        for _ in 0..20_000 {
            log.push(LINE);
        }
        log.flush_now(Duration::ZERO);
        assert_eq!(log.dropped_total(), 0);
        let text = fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(text.lines().count(), 20_001);
    }

    #[test]
    fn the_longest_record_fits_into_the_smallest_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path(), 64 * 1024);
        log.push(&record("2026-11-23T06:45:00.123Z", Stream::Stdout, false, &[b'x'; MAX_CONTENT]));
        assert_eq!(log.dropped_total(), 0);
    }

    #[test]
    fn a_log_that_is_no_regular_file_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("log")).unwrap();
        let mut log = Log::new(dir.path(), 64 * 1024);
        log.push(LINE);
        log.flush_now(Duration::ZERO);
        assert_eq!(fs::read(&elsewhere).unwrap(), b"");
        assert!(log.deadline().is_some());
    }
}
