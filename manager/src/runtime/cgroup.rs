//! A container's cgroup: whether somebody is in it, and taking it away when the runtime could not.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A bundle's cgroup in every hierarchy that has it.
pub(super) struct Cgroup {
    dirs: Vec<PathBuf>,
    /// Of the group below the hierarchies' roots.
    depth: usize,
}

impl Cgroup {
    /// Of the bundle's `cgroupsPath`; empty when it has none that is safe to use.
    pub fn of_bundle(bundle: &Path) -> Self {
        let path = fs::read(bundle.join("config.json"))
            .ok()
            .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
            .and_then(|config| Some(PathBuf::from(config["linux"]["cgroupsPath"].as_str()?)));
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let dirs = path.as_ref().map(|path| directories(path, &mountinfo)).unwrap_or_default();
        let depth =
            path.map_or(0, |path| path.components().filter(|part| matches!(part, Component::Normal(_))).count());
        Self { dirs, depth }
    }

    /// True when it is not known which group it would be: then nobody can be looked for.
    pub fn is_unknown(&self) -> bool {
        self.dirs.is_empty()
    }

    /// Everybody in it, or below.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for dir in self.dirs.iter().flat_map(|dir| below(dir)) {
            let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            found.extend(members.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 0));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Kills everybody in it when it is frozen by the freezer of version 1, where a killed process ends only once it is let go:
    /// each is taken out of the frozen group with the signal waiting for it, and does nothing more of its own.
    pub fn end_frozen(&self) {
        for dir in &self.dirs {
            let frozen = fs::read_to_string(dir.join("freezer.state")).is_ok_and(|state| state.trim() != "THAWED");
            let Some(root) = dir.ancestors().nth(self.depth).filter(|_| frozen) else { continue };
            for pid in self.processes() {
                // One that has ended meanwhile is where it is to be.
                if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
                    let _ = fs::write(root.join("cgroup.procs"), pid.to_string());
                }
            }
        }
    }

    /// Kills everybody in it and removes it.
    ///
    /// # Errors
    /// When somebody is still there after `timeout`.
    pub fn remove(&self, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            for dir in &self.dirs {
                // Where the kernel has it: all at once, also those that are just being forked.
                let _ = fs::write(dir.join("cgroup.kill"), "1");
            }
            for pid in self.processes() {
                // It may have ended since; who has not is found in the next round.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let mut left = None;
            for dir in self.dirs.iter().flat_map(|dir| below(dir)).filter(|dir| dir.exists()) {
                if let Err(error) = fs::remove_dir(&dir) {
                    left = Some(io::Error::new(error.kind(), format!("{}: {error}", dir.display())));
                }
            }
            match left {
                None => return Ok(()),
                Some(error) if Instant::now() >= deadline => return Err(error),
                Some(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// The path below every mounted hierarchy. Only a path of plain names: anything else could mean somebody else's group.
fn directories(path: &Path, mountinfo: &str) -> Vec<PathBuf> {
    let Ok(relative) = path.strip_prefix("/") else { return Vec::new() };
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || relative.as_os_str().is_empty() {
        return Vec::new();
    }
    let hierarchies = mountinfo.lines().filter_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let kind = back.split(' ').next()?;
        matches!(kind, "cgroup" | "cgroup2").then(|| front.split(' ').nth(4)).flatten()
    });
    hierarchies.map(|hierarchy| Path::new(hierarchy).join(relative)).collect()
}

/// The directory and all below it, deepest first.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        next += 1;
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        found.extend(entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_path_means_a_group_of_ours() {
        let mounts = "31 30 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      33 30 0:29 / /tmp rw - tmpfs tmpfs rw";
        let expected = ["/sys/fs/cgroup/pids/a/b", "/sys/fs/cgroup/unified/a/b"].map(PathBuf::from);
        assert_eq!(directories(Path::new("/a/b"), mounts), expected);
        for bad in ["/", "", "a", "/../a", "/a/../..", "system.slice:x:y"] {
            assert!(directories(Path::new(bad), mounts).is_empty(), "{bad}");
        }
    }
}
