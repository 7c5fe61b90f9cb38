//! Everything on a machine (or in a node) that a careless program leaves behind, listed before and after.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};

use crate::lab::cgroup;

/// What is there now, each thing as one line: `link eth0`, `netns x`, `mount /a (overlay)`, `cgroup /sys/…`,
/// `nft table bridge ha`, `process 12 runc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Census(BTreeSet<String>);

impl Census {
    /// Looks around in the namespaces of the calling process.
    pub fn here() -> Self {
        let mut found = BTreeSet::new();
        let mut add = |kind: &str, things: Vec<String>| found.extend(things.into_iter().map(|t| format!("{kind} {t}")));
        add("link", names("/sys/class/net"));
        add("netns", names("/run/netns"));
        add("mount", mounts());
        add("cgroup", cgroups());
        add("nft", nft_tables());
        add("iptables", iptables_chains());
        add("process", processes());
        Self(found)
    }

    /// Only the things whose line contains `word`: on a shared machine, only one's own.
    #[must_use]
    pub fn only(&self, word: &str) -> Self {
        Self(self.0.iter().filter(|line| line.contains(word)).cloned().collect())
    }

    /// What `after` has and this has not.
    pub fn left_behind(&self, after: &Census) -> Vec<String> {
        after.0.difference(&self.0).cloned().collect()
    }

    /// The lines, sorted.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        Some(format!("{} ({})", left.split(' ').nth(4)?, right.split(' ').next()?))
    };
    text.lines().filter_map(line).collect()
}

fn cgroups() -> Vec<String> {
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = cgroup::hierarchies().unwrap_or_default().into_iter().map(|h| h.mount_point).collect();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path().display().to_string());
                todo.push(entry.path());
            }
        }
    }
    found
}

fn nft_tables() -> Vec<String> {
    stdout(Command::new("nft").args(["list", "tables"])).lines().map(str::to_owned).collect()
}

/// CRIU's own chains (`CRIU`) live in tables that exist anyway, so the chains are listed.
fn iptables_chains() -> Vec<String> {
    let chain = |line: &str| line.strip_prefix("-N ").map(str::to_owned);
    ["iptables-legacy", "ip6tables-legacy"]
        .iter()
        .filter(|program| crate::have(program))
        .flat_map(|program| {
            let listed = stdout(Command::new(program).arg("-S"));
            listed.lines().filter_map(chain).map(|name| format!("{program} {name}")).collect::<Vec<_>>()
        })
        .collect()
}

fn stdout(command: &mut Command) -> String {
    command.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Every process but this one and its ancestors, kernel threads and the programs this census itself runs.
fn processes() -> Vec<String> {
    let mut own = BTreeSet::from([std::process::id()]);
    let mut pid = std::process::id();
    while let Some(parent) = parent_of(pid).filter(|parent| *parent > 1) {
        own.insert(parent);
        pid = parent;
    }
    let describe = |name: String| {
        let pid: u32 = name.parse().ok()?;
        if own.contains(&pid)
            || parent_of(pid).is_some_and(|parent| parent == 2 || own.contains(&parent) && parent == std::process::id())
        {
            return None;
        }
        let dir = Path::new("/proc").join(&name);
        let command = fs::read(dir.join("cmdline")).ok().filter(|line| !line.is_empty())?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let group = fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
        let group = group.lines().next().and_then(|line| line.rsplit(':').next()).unwrap_or_default();
        Some(format!("{pid} {} [{group}]", command.trim()))
    };
    names("/proc").into_iter().filter_map(describe).collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
