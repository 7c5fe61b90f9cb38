//! Copying a container's changed files (its overlay's upper directory and its volumes) so that they fit its memory.
//!
//! ```text
//!   running │ Capture::begin   copies everything, notes what every entry looked like
//!   ────────┼──────────────────────────────────────────────────────────────────────────
//!   frozen  │ Capture::finish  walks again and copies only what changed since
//! ```
//!
//! An entry is taken for unchanged when inode, size, mtime and ctime are what they were, and none of this holds:
//! - its mtime or ctime is not older than the start of the first walk (with a margin for the clock that stamps them): the
//!   same stamp may hide a second write;
//! - a process has it mapped shared and writable, or open with O_DIRECT, at the start of the first walk or in the freeze:
//!   such writes need not move the time stamps. A mapping made in between is caught by the rule above, since its first
//!   write moves the mtime.
//!
//! What is copied: regular files (holes stay holes, reflinks where the file system has them), directories, symlinks,
//! fifos, devices (an overlay's whiteouts are 0/0 character devices), hard links, owners, modes, times and extended
//! attributes. Sockets are left out: nobody can connect to one whose process is elsewhere, and CRIU makes those it
//! restores anew. `trusted.overlay.origin` is left out: it names an inode of this node's lower layers.

mod copy;
mod hot;
#[cfg(test)]
mod tests;
mod tree;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hot::Hot;
use tree::{Node, Walk};

/// How far file time stamps may lag behind the clock: they come from a tick (up to 10 ms at 100 Hz).
const STAMP_LAG_NS: i128 = 20_000_000;

/// Bytes of stack a walk may need: it goes as deep as the directories do.
pub const STACK: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("cannot {operation} {path:?}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{path:?} is nested more than {limit} directories deep, which is not captured")]
    TooDeep { path: PathBuf, limit: usize },
    #[error("{path:?} holds more than {limit} files, which is not captured")]
    TooMany { path: PathBuf, limit: usize },
    #[error(
        "the container's files are more than the {room} bytes there is room for in {path:?}: a copy and the packed snapshot lie \
         there for a moment, and the container must not run out of room for it; make room, or keep data that need not be \
         restored in a bind"
    )]
    NoRoom { room: u64, path: PathBuf },
    #[error("the files were not copied in time")]
    Cancelled,
    #[error("the capture's name {name:?} is not usable: it has to be one path component")]
    Name { name: String },
    #[error("the thread that copies the files panicked")]
    Panicked,
}

/// How much may be copied: as much again is packed at worst, and a tenth of what is free stays so, since the container's own
/// files mostly are on the same file system.
fn room(staging: &Path) -> Result<u64, CaptureError> {
    let error = |source| CaptureError::Io { operation: "measure the room in", path: staging.to_owned(), source };
    let room = nix::sys::statvfs::statvfs(staging).map_err(|errno| error(errno.into()))?;
    let free = room.blocks_available().saturating_mul(room.fragment_size());
    Ok((free - free / 10) / 2)
}

/// One directory to copy.
#[derive(Debug, Clone)]
pub struct CaptureSource {
    /// The directory made for it in the staging directory.
    pub name: String,
    /// Where it is on this node.
    pub path: PathBuf,
    /// Where the container sees it: `/` for the upper directory, a volume's target otherwise.
    pub inside: PathBuf,
}

/// What was copied, and when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptureReport {
    /// Entries now in the staging directory.
    pub entries: u64,
    /// Bytes of the regular files among them, as `ls` shows them.
    pub bytes: u64,
    /// Entries copied inside the freeze.
    pub frozen_entries: u64,
    /// Bytes read for them (holes not counted).
    pub frozen_bytes: u64,
    /// Sockets left out.
    pub sockets: u64,
    /// Time taken before the freeze.
    pub before: Duration,
    /// Time taken inside the freeze, beside CRIU's own work.
    pub frozen: Duration,
}

/// A capture between its two walks.
pub struct Capture {
    sources: Vec<(CaptureSource, PathBuf, Option<Node>)>,
    init_pid: i32,
    /// Stamps from here on do not prove that an entry is unchanged. Nanoseconds since 1970.
    racy_from: i128,
    hot_before: Hot,
    stop: Arc<AtomicBool>,
    report: CaptureReport,
}

impl Capture {
    /// The walk while the container runs. `staging` has to be an empty directory that the container cannot reach.
    pub fn begin(
        sources: &[CaptureSource],
        staging: &Path,
        init_pid: i32,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, CaptureError> {
        let started = Instant::now();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i128;
        let mut capture = Self {
            sources: Vec::new(),
            init_pid,
            racy_from: now - STAMP_LAG_NS,
            hot_before: Hot::scan(init_pid, sources),
            stop,
            report: CaptureReport::default(),
        };
        let room = room(staging)?;
        let mut left = room;
        for source in sources {
            if source.name.is_empty() || source.name.contains('/') || matches!(source.name.as_str(), "." | "..") {
                return Err(CaptureError::Name { name: source.name.clone() });
            }
            let staged = staging.join(&source.name);
            let mut walk = Walk::running(&capture.stop, left);
            let node = walk.run(&source.path, &staged, None).map_err(|error| match error {
                CaptureError::NoRoom { path, .. } => CaptureError::NoRoom { room, path },
                other => other,
            })?;
            left = walk.room;
            capture.sources.push((source.clone(), staged, Some(node)));
        }
        capture.report.before = started.elapsed();
        Ok(capture)
    }

    /// The walk inside the freeze.
    pub fn finish(mut self) -> Result<CaptureReport, CaptureError> {
        let started = Instant::now();
        let sources: Vec<CaptureSource> = self.sources.iter().map(|(source, ..)| source.clone()).collect();
        let hot = self.hot_before.union(Hot::scan(self.init_pid, &sources));
        for (source, staged, before) in &mut self.sources {
            let mut walk = Walk::frozen(&self.stop, self.racy_from, &hot);
            walk.run(&source.path, staged, before.take())?;
            self.report.entries += walk.entries as u64;
            self.report.bytes += walk.bytes;
            self.report.frozen_entries += walk.copied_entries;
            self.report.frozen_bytes += walk.copied_bytes;
            self.report.sockets += walk.sockets;
        }
        self.report.frozen = started.elapsed();
        Ok(self.report)
    }
}
