//! A node's containers as the machine under all nodes sees them: who is in their control groups, and whether they can run.

use std::{fs, path::PathBuf};

use super::fault::Place;
use crate::{
    cluster::Cluster,
    lab::cgroup::{self, Hierarchy},
};

/// The containers' parent group in every node.
const PARENT: &str = "ha-manager";
const PROGRAM: &[u8] = b"/bin/counter\0";
/// The healthcheck is the same program.
const PROBE: &[u8] = b"--probe";
const SIGKILL: u64 = 1 << 8;
const PF_EXITING: u64 = 4;

/// The main process of a copy of a container. Another process of the same number began at another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Copy {
    pub node: Place,
    pub pid: u32,
    /// Clock ticks since the machine's boot.
    pub started: u64,
}

/// A copy that is there, and whether it can run: its own control group and the parent of all containers are thawed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub copy: Copy,
    pub frozen: bool,
}

/// The control groups that processes are frozen by, and the nodes' names in them.
#[derive(Debug, Clone)]
pub struct Eyes {
    hierarchies: Vec<Hierarchy>,
    groups: Vec<String>,
}

impl Eyes {
    /// # Errors
    /// When there is no hierarchy that freezes.
    pub fn on(cluster: &Cluster) -> anyhow::Result<Self> {
        let groups = cluster.members.iter().map(|member| member.node.group().to_owned()).collect();
        Ok(Self { hierarchies: freezing()?, groups })
    }

    /// The living copies of a container on all nodes.
    pub fn look(&self, container: &str) -> Vec<Seen> {
        let mut seen = Vec::new();
        for node in (0..self.groups.len()).map(Place) {
            for pid in self.members(node, container) {
                if let Some(started) = main_process(pid) {
                    let frozen = self.is_frozen(node, container);
                    seen.push(Seen { copy: Copy { node, pid, started }, frozen });
                }
            }
        }
        seen
    }

    fn members(&self, node: Place, container: &str) -> Vec<u32> {
        let procs = self.group(&self.hierarchies[0], node).join(container).join("cgroup.procs");
        let text = fs::read_to_string(procs).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn group(&self, hierarchy: &Hierarchy, node: Place) -> PathBuf {
        hierarchy.mount_point.join(&self.groups[node.0]).join(PARENT)
    }

    /// A group on its way into the freezer counts as frozen: its processes do not return to their program any more.
    fn is_frozen(&self, node: Place, container: &str) -> bool {
        self.hierarchies.iter().any(|hierarchy| {
            let parent = self.group(hierarchy, node);
            [parent.join(container), parent].iter().any(|dir| match hierarchy.v1_options {
                Some(_) => fs::read_to_string(dir.join("freezer.state")).is_ok_and(|state| state.trim() != "THAWED"),
                None => {
                    let events = fs::read_to_string(dir.join("cgroup.events")).unwrap_or_default();
                    events.lines().any(|line| line == "frozen 1")
                }
            })
        })
    }

    /// Whether the copy can run its program at this moment: it lives, nobody has killed it, it is not frozen, and not all of
    /// its tasks are stopped by a debugger or a signal (as CRIU does).
    pub fn runs(&self, container: &str, copy: Copy) -> bool {
        let before = self.is_frozen(copy.node, container);
        let runs = main_process(copy.pid) == Some(copy.started) && !killed(copy.pid) && has_free_task(copy.pid);
        runs && !before && !self.is_frozen(copy.node, container)
    }
}

/// The hierarchies that freeze. On a machine with both versions the freezer of version 1 comes first: it has all containers.
fn freezing() -> anyhow::Result<Vec<Hierarchy>> {
    let freezes = |h: &Hierarchy| h.v1_options.as_deref().is_none_or(|o| o.split(',').any(|word| word == "freezer"));
    let mut hierarchies: Vec<Hierarchy> = cgroup::hierarchies()?.into_iter().filter(freezes).collect();
    hierarchies.sort_by_key(|h| h.v1_options.is_none());
    anyhow::ensure!(!hierarchies.is_empty(), "no control group hierarchy here freezes processes");
    Ok(hierarchies)
}

/// When the process began, if it is a container's main process and neither dead nor on its way there.
fn main_process(pid: u32) -> Option<u64> {
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    if !command.starts_with(PROGRAM) || command.split(|byte| *byte == 0).any(|word| word == PROBE) {
        return None;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let alive = !matches!(*fields.first()?, "Z" | "X" | "x") && fields.get(6)?.parse::<u64>().ok()? & PF_EXITING == 0;
    alive.then(|| fields.get(19)?.parse().ok())?
}

/// A SIGKILL is on the way to the process or to one of its tasks.
fn killed(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")))
        .any(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & SIGKILL != 0))
}

fn has_free_task(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let state = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    tasks.filter_map(state).any(|state| !matches!(state, 'T' | 't' | 'Z' | 'X' | 'x'))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::CommandExt,
        path::Path,
        process::{Child, Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::*;

    fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(10), "waited 10 s for {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn freeze(dir: &Path, v1: bool, frozen: bool) {
        let (file, text) = match (v1, frozen) {
            (true, true) => ("freezer.state", "FROZEN"),
            (true, false) => ("freezer.state", "THAWED"),
            (false, true) => ("cgroup.freeze", "1"),
            (false, false) => ("cgroup.freeze", "0"),
        };
        fs::write(dir.join(file), text).unwrap();
    }

    /// However the test ends, nothing of it stays.
    struct Gone(Child, String);

    impl Drop for Gone {
        fn drop(&mut self) {
            let _ = self.0.kill();
            // In version 1 what is frozen cannot die.
            let _ = cgroup::thaw(&self.1);
            let _ = self.0.wait();
            cgroup::remove(&self.1).unwrap();
        }
    }

    /// In real control groups, laid out as a node's are.
    #[test]
    fn a_copy_runs_unless_it_or_its_parent_group_is_frozen_or_it_is_stopped_or_killed() {
        if let Some(why) = crate::why_no_nodes() {
            return crate::skipped("a_copy_runs_unless_it_or_its_parent_group_is_frozen", &why);
        }
        let group = format!("{}{}-look", crate::lab::PREFIX, std::process::id());
        let eyes = Eyes { hierarchies: freezing().unwrap(), groups: vec![group.clone()] };
        cgroup::create(&group).unwrap();
        let hierarchy = eyes.hierarchies[0].clone();
        let v1 = hierarchy.v1_options.is_some();
        let parent = eyes.group(&hierarchy, Place(0));
        let own = parent.join("tally");
        fs::create_dir_all(&own).unwrap();
        let child = Command::new("sleep").arg0("/bin/counter").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let _gone = Gone(child, group);
        fs::write(own.join("cgroup.procs"), pid.to_string()).unwrap();

        let frozen = || eyes.look("tally").first().map(|seen| seen.frozen);
        wait_for("the copy", || frozen() == Some(false));
        let copy = eyes.look("tally")[0].copy;
        assert!(eyes.runs("tally", copy));
        assert!(!eyes.runs("tally", Copy { started: copy.started + 1, ..copy }), "another life of the number");
        for dir in [&own, &parent] {
            freeze(dir, v1, true);
            wait_for("it to be frozen", || frozen() == Some(true));
            assert!(!eyes.runs("tally", copy), "{}", dir.display());
            freeze(dir, v1, false);
            wait_for("it to be thawed", || frozen() == Some(false) && eyes.runs("tally", copy));
        }
        kill(pid, Signal::SIGSTOP).unwrap();
        wait_for("it to be stopped", || !eyes.runs("tally", copy));
        assert_eq!(frozen(), Some(false));
        kill(pid, Signal::SIGKILL).unwrap();
        // A zombie, still: nobody has waited for it.
        wait_for("it to be gone", || eyes.look("tally").is_empty());
    }
}
