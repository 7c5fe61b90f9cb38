//! What a reader has to remember of a stream's directories until their contents are there, counted alike by who writes one and
//! who reads it: what a reader would refuse is not written.

use std::path::Path;

/// Names and attributes of all directories of a part, in bytes.
const MAX: u64 = 512 << 20;
/// Beside the bytes of names and values.
const PER_DIRECTORY: usize = 128;
const PER_ATTRIBUTE: usize = 64;

/// How much more may be held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    left: u64,
}

impl Default for Held {
    fn default() -> Self {
        Self { left: MAX }
    }
}

/// It is more than a reader holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMuch;

impl Held {
    #[cfg(test)]
    pub fn of(left: u64) -> Self {
        Self { left }
    }

    /// Counts a directory, by its path below the root, and the names and values of its extended attributes.
    pub fn directory<'a>(
        &mut self,
        path: &Path,
        xattrs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<(), TooMuch> {
        let attributes: usize = xattrs.into_iter().map(|(name, value)| name.len() + value.len() + PER_ATTRIBUTE).sum();
        let bytes = (path.as_os_str().len() + attributes + PER_DIRECTORY) as u64;
        self.left = self.left.checked_sub(bytes).ok_or(TooMuch)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsStr,
        fs,
        io::{self, Read},
        os::unix::ffi::OsStrExt,
    };

    use super::*;
    use crate::snapshot::{
        SnapshotError,
        tree_read::{Bounds, read_within},
        tree_write::{Sink, write_within},
    };

    impl Sink for Vec<u8> {
        fn fill(&mut self, source: &mut dyn Read, len: u64) -> io::Result<()> {
            source.take(len).read_to_end(self).map(drop)
        }
    }

    #[test]
    fn a_reader_takes_what_a_writer_wrote_and_the_writer_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for below in ["a/b", "a/c", &"long".repeat(50)] {
            fs::create_dir_all(root.join(below)).unwrap();
        }
        fs::write(root.join("a/file"), "not held").unwrap();
        for (name, value) in [("user.plain", "value"), ("user.with\nline feed", "value"), ("user.hex", "line\nfeed")] {
            if xattr::set(root.join("a"), OsStr::from_bytes(name.as_bytes()), value.as_bytes()).is_err() {
                return println!("SKIPPED a_reader_takes_what_a_writer_wrote…: no extended attributes");
            }
        }
        let write = |held| write_within(&root, Vec::new(), Held::of(held));
        let least = (1..10_000).find(|held| write(*held).is_ok()).unwrap();
        assert!(matches!(write(least - 1), Err(SnapshotError::Unsupported { .. })));
        let (stream, written) = write(least).unwrap();
        let read = |held| {
            let target = tempfile::tempdir_in(dir.path()).unwrap();
            let bounds = Bounds { entries: written.entries, logical_bytes: written.logical_bytes };
            read_within("it", stream.as_slice(), target.path(), bounds, Held::of(held))
        };
        read(least).unwrap();
        assert!(matches!(read(least - 1), Err(SnapshotError::Hostile { .. })));
    }
}
