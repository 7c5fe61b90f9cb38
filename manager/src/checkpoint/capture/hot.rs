//! Files whose time stamps do not tell of every write: mapped shared and writable, or open with O_DIRECT.

use std::{
    collections::HashSet,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::CaptureSource;
use crate::checkpoint::proc;

/// Hot files by device and inode of the file in the captured directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Hot {
    files: HashSet<(u64, u64)>,
    /// A hot file could not be found in the sources by its path: every file counts as hot.
    unresolved: bool,
}

impl Hot {
    /// Of all the container's processes. A process forked during the scan is found by looking again.
    pub fn scan(init_pid: i32, sources: &[CaptureSource]) -> Self {
        let mut hot = Self::default();
        let mut seen = HashSet::new();
        loop {
            let fresh: Vec<i32> = proc::descendants(init_pid).into_iter().filter(|pid| seen.insert(*pid)).collect();
            if fresh.is_empty() {
                return hot;
            }
            for pid in fresh {
                hot.scan_maps(pid, sources);
                hot.scan_descriptors(pid, sources);
            }
        }
    }

    pub fn union(mut self, other: Self) -> Self {
        self.files.extend(other.files);
        self.unresolved |= other.unresolved;
        self
    }

    pub fn contains(&self, device: u64, inode: u64) -> bool {
        self.unresolved || self.files.contains(&(device, inode))
    }

    fn scan_maps(&mut self, pid: i32, sources: &[CaptureSource]) {
        // A process that has ended maps nothing any more.
        let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
        for line in maps.split(|byte| *byte == b'\n') {
            let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
            let (Some(range), Some(permissions)) = (fields.next(), fields.next()) else { continue };
            let writable_shared = permissions.get(1) == Some(&b'w') && permissions.get(3) == Some(&b's');
            if !writable_shared || !line.contains(&b'/') {
                continue;
            }
            let range = String::from_utf8_lossy(range);
            self.add(pid, &format!("/proc/{pid}/map_files/{range}"), sources);
        }
    }

    fn scan_descriptors(&mut self, pid: i32, sources: &[CaptureSource]) {
        for fd in proc::descriptors(pid) {
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0);
            if flags & libc::O_DIRECT != 0 && flags & libc::O_ACCMODE != libc::O_RDONLY {
                self.add(pid, &format!("/proc/{pid}/fd/{fd}"), sources);
            }
        }
    }

    fn add(&mut self, pid: i32, link: &str, sources: &[CaptureSource]) {
        let (Ok(path), Ok(meta)) = (fs::read_link(link), fs::metadata(link)) else { return };
        let bytes = path.as_os_str().as_bytes();
        let elsewhere = !bytes.starts_with(b"/")
            || bytes.starts_with(b"/memfd:")
            || bytes.starts_with(b"/SYSV")
            || bytes.starts_with(b"/dev/")
            || bytes.ends_with(b" (deleted)")
            || !meta.is_file();
        if elsewhere {
            return;
        }
        match resolve(&path, sources).map(fs::symlink_metadata) {
            // Not copied up: a writable mapping of a lower file cannot be, so it is no file of ours.
            Some(Err(_)) if has_own_root(pid) => self.unresolved = true,
            Some(Err(_)) => {}
            Some(Ok(meta)) => {
                self.files.insert((meta.dev(), meta.ino()));
            }
            None => {}
        }
    }
}

/// The file in the source that covers the path most closely.
fn resolve(path: &Path, sources: &[CaptureSource]) -> Option<PathBuf> {
    let covering = sources.iter().filter(|source| path.starts_with(&source.inside));
    let source = covering.max_by_key(|source| source.inside.components().count())?;
    Some(source.path.join(path.strip_prefix(&source.inside).ok()?))
}

/// A process with a root of its own (chroot): its paths say nothing here.
fn has_own_root(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/root")).map_or(true, |root| root != Path::new("/"))
}
