//! The parent of all containers' control groups: stopping everybody in it, also those who come later, and letting them go on.
//!
//! In the version 1 freezer a frozen process does not even die of SIGKILL before it is thawed; in version 2 it does. A group
//! that does not exist is made: a container that begins in it later begins frozen.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Component, Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        statfs::{CGROUP2_SUPER_MAGIC, statfs},
    },
    unistd::Pid,
};

/// What the runtime looks at.
const ROOT: &str = "/sys/fs/cgroup";

/// Freezing is tried this long before anybody is killed, and killing as long before it has failed.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(2);
/// For so long nobody is to be found who is to blame, before all are.
const SETTLE: Duration = Duration::from_millis(50);
/// Groups that are seen to in one round, and named in a sentence.
const GROUPS: usize = 64;
const NAMED: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `freezer.state`.
    V1,
    /// `cgroup.freeze`.
    V2,
}

#[derive(Debug)]
pub(super) struct Freezer {
    kind: Kind,
    dir: PathBuf,
}

/// How everybody was stopped.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    Frozen,
    /// Not by freezing alone: who was killed, and why.
    Killed(String),
}

impl Freezer {
    /// The group `path` (`/ha-manager`) below the hierarchies that this process sees.
    pub fn find(path: &Path) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
        let unified = statfs(ROOT).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
        Self::among(path, &mounts, unified)
    }

    /// Where the runtime has containers: by version 2 alone when `unified`, that is, when [`ROOT`] itself is of version 2, whatever
    /// else is mounted; else in the freezer of version 1, where there is one.
    fn among(path: &Path, mountinfo: &str, unified: bool) -> Result<Self, String> {
        let plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        let relative = path.strip_prefix("/").ok().filter(|path| plain(path) && !path.as_os_str().is_empty());
        let relative = relative.ok_or_else(|| format!("{} is not a control group's path", path.display()))?;
        let mounted = |kind: Kind| {
            let fits = move |line: &&str| kind_of(line) == Some(kind);
            let mut found = mountinfo.lines().filter(fits).filter_map(|line| line.split(' ').nth(4));
            // Of several the usual one: others are somebody else's view.
            let first = found.clone().next();
            found.find(|dir| Path::new(dir).starts_with(ROOT)).or(first)
        };
        let at = |kind: Kind| mounted(kind).map(|dir| Self { kind, dir: Path::new(dir).join(relative) });
        let [first, second] = if unified { [Kind::V2, Kind::V1] } else { [Kind::V1, Kind::V2] };
        at(first).or_else(|| at(second)).ok_or_else(|| {
            "neither the freezer controller nor the version 2 hierarchy of control groups is mounted; mount one, e.g. \
             `mount -t cgroup2 none /sys/fs/cgroup`"
                .to_owned()
        })
    }

    /// A group of version 2 made of plain files.
    #[cfg(test)]
    pub fn painted(dir: PathBuf) -> Self {
        Self { kind: Kind::V2, dir }
    }

    /// Whether it was frozen, by whomever.
    pub fn is_frozen(&self) -> bool {
        match self.kind {
            Kind::V1 => self.read("freezer.self_freezing").is_ok_and(|text| text.trim() == "1"),
            Kind::V2 => self.read("cgroup.freeze").is_ok_and(|text| text.trim() == "1"),
        }
    }

    /// Begins to freeze everybody in it and all who will come, and waits for nobody: [`Self::stop`] says what came of it.
    pub fn begin(&self) {
        let _ = self.order_freeze();
    }

    /// Freezes everybody in it and all who will come; kills those whom that does not stop.
    ///
    /// # Errors
    /// When somebody still runs. Blocks for twice [`PATIENCE`] at most.
    pub fn stop(&self) -> Result<Stopped, String> {
        let Err(why) = self.freeze() else { return Ok(Stopped::Frozen) };
        self.kill_running(&why, Instant::now() + PATIENCE)
    }

    fn freeze(&self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let why = match self.try_freeze() {
                Ok(true) => return Ok(()),
                Ok(false) => format!("{} has not become frozen", self.dir.display()),
                Err(error) => format!("{} cannot be frozen: {error}", self.dir.display()),
            };
            if Instant::now() >= deadline {
                return Err(why);
            }
            thread::sleep(PAUSE);
        }
    }

    /// One attempt; version 1 needs to be told again when processes were being made meanwhile.
    fn try_freeze(&self) -> io::Result<bool> {
        self.order_freeze()?;
        self.has_frozen(&self.dir)
    }

    fn order_freeze(&self) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        match self.kind {
            Kind::V1 => self.write("freezer.state", "FROZEN"),
            Kind::V2 => self.write("cgroup.freeze", "1"),
        }
    }

    /// Whether everybody in `dir`, this group or one below it, stands still.
    fn has_frozen(&self, dir: &Path) -> io::Result<bool> {
        match self.kind {
            Kind::V1 => Ok(fs::read_to_string(dir.join("freezer.state"))?.trim() == "FROZEN"),
            Kind::V2 => Ok(fs::read_to_string(dir.join("cgroup.events"))?.lines().any(|line| line == "frozen 1")),
        }
    }

    /// Lets everybody go on.
    pub fn thaw(&self) -> Result<(), String> {
        let done = match self.kind {
            Kind::V1 => self.write("freezer.state", "THAWED"),
            Kind::V2 => self.write("cgroup.freeze", "0"),
        };
        match done {
            // Without a group there is nobody.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|error| format!("{} cannot be thawed: {error}", self.dir.display())),
        }
    }

    /// Kills the containers that do not say that they are frozen, until everybody stands still or has ended. The others are
    /// left alone, also when it comes to nothing: they are stopped, and their death would help nobody.
    fn kill_running(&self, why: &str, deadline: Instant) -> Result<Stopped, String> {
        let mut killed = BTreeSet::new();
        let mut nobody_since = None;
        loop {
            let running = self.running();
            if self.try_freeze().is_ok_and(|frozen| frozen) {
                break;
            }
            // Who has just been killed, or has just come, may not be counted yet.
            let since = *nobody_since.get_or_insert_with(Instant::now);
            if !running.is_empty() {
                nobody_since = None;
            } else if since.elapsed() < SETTLE && Instant::now() + SETTLE < deadline {
                thread::sleep(PAUSE);
                continue;
            } else {
                // It cannot be told who it is; or nobody is left where nothing can be frozen.
                match self.kill_all(deadline) {
                    Ok(false) if !killed.is_empty() => break,
                    Ok(_) => return Ok(Stopped::Killed(format!("every container was killed, for {why}"))),
                    Err(alive) => return Err(format!("{why}; {alive}")),
                }
            }
            for group in &running {
                kill_once(group);
                if killed.len() < GROUPS {
                    killed.insert(group.file_name().unwrap_or_default().to_string_lossy().into_owned());
                }
            }
            if Instant::now() >= deadline {
                return Err(format!("{why}; of {} somebody can be neither frozen nor killed", some_of(&killed)));
            }
            thread::sleep(PAUSE);
        }
        if killed.is_empty() {
            return Ok(Stopped::Frozen);
        }
        Ok(Stopped::Killed(format!("{} killed, for {why}", some_of(&killed))))
    }

    /// The containers in which somebody is alive, and that do not say that they are frozen; some, when there are many.
    fn running(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let groups = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path());
        let runs = |group: &PathBuf| !self.has_frozen(group).unwrap_or(false) && !alive(group).is_empty();
        groups.filter(runs).take(GROUPS).collect()
    }

    /// False when there was nobody.
    fn kill_all(&self, deadline: Instant) -> Result<bool, String> {
        let mut before = Vec::new();
        let mut all_are_dying = false;
        let mut somebody = false;
        let left = loop {
            let alive = kill_once(&self.dir);
            somebody |= !alive.is_empty();
            if alive.is_empty() || Instant::now() >= deadline {
                break alive;
            }
            // Who is made in a freezing group is frozen from the start. So when two rounds found the same, all have their
            // death before them and may be thawed to meet it: none returns to its program.
            all_are_dying |= alive == before;
            if all_are_dying && self.kind == Kind::V1 {
                let _ = self.thaw();
            }
            before = alive;
            thread::sleep(PAUSE);
        };
        // For those who come later.
        let _ = self.try_freeze();
        if left.is_empty() {
            return Ok(somebody);
        }
        let some: Vec<String> = left.iter().take(NAMED).map(i32::to_string).collect();
        Err(format!("{} of its processes cannot be killed either (pid {})", left.len(), some.join(", ")))
    }

    fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.dir.join(file))
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        write(&self.dir, file, text)
    }
}

/// Of a line of mountinfo.
fn kind_of(line: &str) -> Option<Kind> {
    let mut words = line.split_once(" - ")?.1.split(' ');
    match words.next()? {
        "cgroup2" => Some(Kind::V2),
        "cgroup" => words.nth(1)?.split(',').any(|word| word == "freezer").then_some(Kind::V1),
        _ => None,
    }
}

/// Everybody in a group, or below, who has not ended; sorted.
fn alive(group: &Path) -> Vec<i32> {
    let (mut found, mut todo) = (Vec::new(), vec![group.to_owned()]);
    while let Some(dir) = todo.pop() {
        let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        found.extend(members.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 0));
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        todo.extend(entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
    }
    found.retain(|pid| !has_ended(*pid));
    found.sort_unstable();
    found.dedup();
    found
}

/// Sends everybody in a group, or below, their death; returns whom it found.
fn kill_once(group: &Path) -> Vec<i32> {
    // Where the kernel has it: all at once, also those that are just being forked.
    let _ = write(group, "cgroup.kill", "1");
    let alive = alive(group);
    for pid in &alive {
        // It may have ended since; who has not is found in the next round.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    alive
}

/// Never makes a file: on a hierarchy that lacks it that has to be an error.
fn write(group: &Path, file: &str, text: &str) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new().write(true).open(group.join(file))?.write_all(text.as_bytes())
}

/// Of names, a few.
fn some_of(names: &BTreeSet<String>) -> String {
    let some = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        0..=NAMED => some,
        more => format!("{some} and {} more", more - NAMED),
    }
}

fn has_ended(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    // The name, in parentheses, may have anything in it.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('Z' | 'X'))
}

#[cfg(test)]
#[path = "freezer_tests.rs"]
mod tests;
