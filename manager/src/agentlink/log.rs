//! Reading a container's log: `log.1`, then `log`, over rotations.
//!
//! [`LogShipper`] keeps only a [`LogCursor`], which survives the manager's restart. It is synchronous and bounded, and does
//! not belong on a runtime's own thread.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
};

use serde::{Deserialize, Serialize};

use super::{ChannelDir, Error};

const LOG: &str = "log";
const OLD: &str = "log.1";

/// The least that is read at once.
const CHUNK: u64 = 64 * 1024;

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
    /// Bytes of one file that are read at most.
    limit: u64,
}

impl LogShipper {
    /// `file_max`: where the agent begins a new file. A container's root can make a file of any size; what lies far beyond is
    /// not the agent's, and not read.
    pub fn new(dir: ChannelDir, file_max: u64) -> Self {
        Self { dir, limit: file_max.saturating_mul(2) }
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
            let identity = identity(&file).map_err(self.dir.error("read", LOG))?;
            if let Some(identity) = identity.filter(|new| files.last().is_none_or(|(_, before)| before != new)) {
                files.push((file, identity));
            }
        }
        let known = files.iter().position(|(_, identity)| cursor.file.as_ref() == Some(identity));
        let gap = cursor.file.is_some() && known.is_none() && !files.is_empty();
        let mut offset = if known.is_some() { cursor.offset } else { 0 };
        for (file, identity) in files.into_iter().skip(known.unwrap_or(0)) {
            let bytes = whole_lines(&file, offset, max.max(CHUNK).min(self.limit.saturating_sub(offset)))
                .map_err(self.dir.error("read", LOG))?;
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
        None if max > 0 && bytes.len() as u64 == max => {} // No line of the agent's: shipped as it is.
        None => bytes.clear(),
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    const FILE_MAX: u64 = 4 * CHUNK;

    fn append(dir: &std::path::Path, text: &str) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(dir.join(LOG)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rotate(dir: &std::path::Path) {
        fs::rename(dir.join(LOG), dir.join(OLD)).unwrap();
    }

    #[test]
    fn segments_add_up_and_a_gap_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let shipper = LogShipper::new(ChannelDir::open(path).unwrap(), FILE_MAX);
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
    fn a_log_longer_than_the_agent_makes_it_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        append(dir.path(), "1 a\n");
        // What the container's root can do to it.
        fs::OpenOptions::new().write(true).open(dir.path().join(LOG)).unwrap().set_len(1 << 40).unwrap();
        let shipper = LogShipper::new(ChannelDir::open(dir.path()).unwrap(), FILE_MAX);
        let (mut cursor, mut shipped) = (LogCursor::default(), 0);
        while let Some(segment) = shipper.after(&cursor, 1).unwrap() {
            shipped += segment.bytes.len() as u64;
            assert!(shipped <= 2 * FILE_MAX, "it is read without end");
            cursor = segment.next;
        }
        rotate(dir.path());
        append(dir.path(), "2 b\n");
        assert_eq!(shipper.after(&cursor, 1).unwrap().unwrap().bytes, b"2 b\n", "what follows is shipped");
    }

    #[test]
    fn a_log_that_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(LOG)).unwrap();
        let shipper = LogShipper::new(ChannelDir::open(dir.path()).unwrap(), FILE_MAX);
        let read = || shipper.after(&LogCursor::default(), 1);
        assert!(matches!(read(), Err(Error::NotA { .. })));
        fs::remove_file(dir.path().join(LOG)).unwrap();
        nix::unistd::mkfifo(&dir.path().join(LOG), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(), Err(Error::NotA { .. })));
    }
}
