//! Reading a container's log: `log.1`, then `log`, over rotations.
//!
//! [`LogReader`] is for people and holds its file open, so that a rotation cannot pull it away. [`LogShipper`] is for
//! uploads and keeps only a [`LogCursor`] that survives the manager's restart. Both are synchronous and bounded; neither
//! belongs on a runtime's own thread.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
};

use serde::{Deserialize, Serialize};

use super::{ChannelDir, Error};

const LOG: &str = "log";
const OLD: &str = "log.1";

/// The longest line handed out; the agent's own are about half as long.
const MAX_LINE: usize = 32 * 1024;

/// Read at once.
const CHUNK: u64 = 64 * 1024;

/// Yields the log's lines, oldest first, and goes on with what is appended.
#[derive(Debug)]
pub struct LogReader {
    dir: ChannelDir,
    current: Option<File>,
    partial: Vec<u8>,
}

impl LogReader {
    pub fn new(dir: ChannelDir) -> Self {
        Self { dir, current: None, partial: Vec::new() }
    }

    /// Lines that are there now, without their newlines, at most about 64 KiB of them. Empty at the end; to follow, ask
    /// again after a while.
    ///
    /// # Errors
    /// [`Error::NotA`] and [`Error::Channel`].
    pub fn read(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        loop {
            if self.current.is_none() {
                self.current = match self.dir.file(OLD)? {
                    Some(old) => Some(old),
                    None => self.dir.file(LOG)?,
                };
            }
            let Some(current) = &self.current else { return Ok(Vec::new()) };
            let mut bytes = read_some(current).map_err(self.dir.error("read", LOG))?;
            let mut after = None;
            if bytes.is_empty() {
                let Some(next) = self.next_file(current)? else { return Ok(Vec::new()) };
                // What was appended between the read and the rotation.
                bytes = read_some(current).map_err(self.dir.error("read", LOG))?;
                after = Some(next);
            }
            if bytes.is_empty() {
                self.current = after;
            }
            let lines = self.split(&bytes);
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
    }

    /// The file after `current`, when that is no longer the newest.
    fn next_file(&self, current: &File) -> Result<Option<File>, Error> {
        let inode = |file: &File| file.metadata().map(|m| m.ino()).map_err(self.dir.error("look at", LOG));
        let current = inode(current)?;
        let Some(log) = self.dir.file(LOG)? else { return Ok(None) };
        if inode(&log)? == current {
            return Ok(None);
        }
        match self.dir.file(OLD)? {
            // Rotated more than once: what is left of the time between is `log.1`.
            Some(old) if inode(&old)? != current => Ok(Some(old)),
            _ => Ok(Some(log)),
        }
    }

    fn split(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, ended) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            for text in text.chunks(MAX_LINE) {
                if self.partial.len() + text.len() > MAX_LINE {
                    lines.push(std::mem::take(&mut self.partial));
                }
                self.partial.extend_from_slice(text);
            }
            if ended {
                lines.push(std::mem::take(&mut self.partial));
            }
        }
        lines
    }
}

fn read_some(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(CHUNK).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How far a log was shipped. Kept by the caller; a default one begins at the beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogCursor {
    /// Inode and hash of the first line: an inode alone is used again.
    file: Option<(u64, String)>,
    offset: u64,
}

/// Whole lines that follow a cursor.
#[derive(Debug, PartialEq, Eq)]
pub struct Segment {
    pub bytes: Vec<u8>,
    /// Where to go on once `bytes` are safe.
    pub next: LogCursor,
    /// Lines between the cursor and `bytes` are gone: the log rotated faster than it was shipped.
    pub gap: bool,
}

/// What of a log is not shipped yet.
#[derive(Debug)]
pub struct LogShipper {
    dir: ChannelDir,
}

impl LogShipper {
    pub fn new(dir: ChannelDir) -> Self {
        Self { dir }
    }

    /// The next segment of at most `max` bytes, at least 64 KiB; `None` when all is shipped.
    ///
    /// # Errors
    /// [`Error::NotA`] and [`Error::Channel`].
    pub fn after(&self, cursor: &LogCursor, max: u64) -> Result<Option<Segment>, Error> {
        // The newer first: a rotation in between makes both the same file, not a gap.
        let log = self.dir.file(LOG)?;
        let old = self.dir.file(OLD)?;
        let mut files = Vec::new();
        for file in [old, log].into_iter().flatten() {
            if let Some(identity) = identity(&file).map_err(self.dir.error("read", LOG))? {
                if files.last().is_none_or(|(_, before)| *before != identity) {
                    files.push((file, identity));
                }
            }
        }
        let known = files.iter().position(|(_, identity)| cursor.file.as_ref() == Some(identity));
        let gap = cursor.file.is_some() && known.is_none() && !files.is_empty();
        let mut offset = if known.is_some() { cursor.offset } else { 0 };
        for (file, identity) in files.into_iter().skip(known.unwrap_or(0)) {
            let bytes = whole_lines(&file, offset, max.max(CHUNK)).map_err(self.dir.error("read", LOG))?;
            if !bytes.is_empty() {
                let next = LogCursor { file: Some(identity), offset: offset + bytes.len() as u64 };
                return Ok(Some(Segment { bytes, next, gap }));
            }
            offset = 0;
        }
        Ok(None)
    }
}

/// `None` before the first line is complete.
fn identity(file: &File) -> io::Result<Option<(u64, String)>> {
    let mut first = vec![0; 512];
    let length = file.read_at(&mut first, 0)?;
    first.truncate(length);
    match first.iter().position(|b| *b == b'\n') {
        Some(end) => first.truncate(end),
        None if length < 512 => return Ok(None),
        None => {}
    }
    Ok(Some((file.metadata()?.ino(), blake3::hash(&first).to_hex().to_string())))
}

fn whole_lines(mut file: &File, offset: u64, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(offset))?;
    file.take(max).read_to_end(&mut bytes)?;
    match bytes.iter().rposition(|b| *b == b'\n') {
        Some(end) => bytes.truncate(end + 1),
        None if bytes.len() as u64 == max => {} // No line of the agent's: shipped as it is.
        None => bytes.clear(),
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    fn append(dir: &std::path::Path, text: &str) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(dir.join(LOG)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rotate(dir: &std::path::Path) {
        fs::rename(dir.join(LOG), dir.join(OLD)).unwrap();
    }

    fn lines(reader: &mut LogReader) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let lines = reader.read().unwrap();
            if lines.is_empty() {
                return all;
            }
            all.extend(lines.into_iter().map(|l| String::from_utf8(l).unwrap()));
        }
    }

    #[test]
    fn a_reader_follows_over_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let mut reader = LogReader::new(ChannelDir::open(path).unwrap());
        assert!(lines(&mut reader).is_empty());
        append(path, "a\nb\nha");
        assert_eq!(lines(&mut reader), ["a", "b"]);
        append(path, "lf\n");
        rotate(path);
        append(path, "c\n");
        assert_eq!(lines(&mut reader), ["half", "c"]);
        append(path, "d\n");
        rotate(path);
        append(path, "e\n");
        rotate(path);
        append(path, "f\n");
        assert_eq!(lines(&mut reader), ["d", "e", "f"]);
        let mut late = LogReader::new(ChannelDir::open(path).unwrap());
        assert_eq!(lines(&mut late), ["e", "f"]);
    }

    #[test]
    fn a_line_without_an_end_does_not_grow() {
        let dir = tempfile::tempdir().unwrap();
        append(dir.path(), &"x".repeat(1_000_000));
        let mut reader = LogReader::new(ChannelDir::open(dir.path()).unwrap());
        assert!(lines(&mut reader).iter().all(|l| l.len() <= MAX_LINE));
        assert!(reader.partial.len() <= MAX_LINE);
    }

    #[test]
    fn segments_add_up_and_a_gap_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let shipper = LogShipper::new(ChannelDir::open(path).unwrap());
        let mut cursor = LogCursor::default();
        assert_eq!(shipper.after(&cursor, 1).unwrap(), None);
        let ship = |cursor: &mut LogCursor| {
            shipper.after(cursor, 1).unwrap().map(|segment| {
                *cursor = segment.next;
                (String::from_utf8(segment.bytes).unwrap(), segment.gap)
            })
        };
        append(path, "1 a\n2 b\n3");
        assert_eq!(ship(&mut cursor), Some(("1 a\n2 b\n".to_owned(), false)));
        assert_eq!(ship(&mut cursor), None);
        append(path, " c\n");
        rotate(path);
        append(path, "4 d\n");
        cursor = serde_json::from_str(&serde_json::to_string(&cursor).unwrap()).unwrap();
        assert_eq!(ship(&mut cursor), Some(("3 c\n".to_owned(), false)));
        assert_eq!(ship(&mut cursor), Some(("4 d\n".to_owned(), false)));
        for text in ["5 e\n", "6 f\n"] {
            rotate(path);
            append(path, text);
        }
        assert_eq!(ship(&mut cursor), Some(("5 e\n".to_owned(), true)));
        assert_eq!(ship(&mut cursor), Some(("6 f\n".to_owned(), false)));
        assert_eq!(ship(&mut cursor), None);
    }

    #[test]
    fn a_log_that_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(LOG)).unwrap();
        let mut reader = LogReader::new(ChannelDir::open(dir.path()).unwrap());
        assert!(matches!(reader.read(), Err(Error::NotA { .. })));
        fs::remove_file(dir.path().join(LOG)).unwrap();
        nix::unistd::mkfifo(&dir.path().join(LOG), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(reader.read(), Err(Error::NotA { .. })));
    }
}
