//! An observer outside of all nodes, who looks every few milliseconds at what runs on each: who is frozen, whose links are up, and
//! how far the program with `--tick` has come.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ha_lab::{
    cluster::{Cluster, Member},
    lab::cgroup,
};

/// Where the program's ticks go, in the container.
pub const TICKS: &str = "/data/ticks";
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// One node at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct View {
    /// There is somebody in a container's group, dead or alive.
    pub inhabited: bool,
    /// Somebody there may execute an instruction of his program.
    pub runs: bool,
    /// The parent of all containers' groups has been told to freeze.
    pub fenced: bool,
    /// Somebody outside could reach a container.
    pub linked: bool,
    /// The length of the ticks' file of the copy that was here at the start, kept open over its removal.
    pub ticks: u64,
}

/// Where to look on one node.
struct Place {
    parent: PathBuf,
    links: PathBuf,
    ticks: Option<File>,
}

impl Place {
    fn of(member: &Member) -> Self {
        let all = cgroup::hierarchies().unwrap();
        let of_freezer = |options: &str| options.split(',').any(|word| word == "freezer");
        let v1 = all.iter().find(|hierarchy| hierarchy.v1_options.as_deref().is_some_and(of_freezer));
        let hierarchy = v1.or_else(|| all.iter().find(|hierarchy| hierarchy.v1_options.is_none())).unwrap();
        // One that is off has none.
        let links = member.node.pid().map_or(PathBuf::new(), |pid| format!("/proc/{pid}/root/sys/class/net").into());
        let containers = member.node.disk().join("state/containers");
        let ticks = super::operator::walk(&containers).into_iter().find(|path| path.ends_with(&TICKS[1..]));
        Self {
            parent: hierarchy.mount_point.join(member.node.group()).join("ha-manager"),
            links,
            ticks: ticks.map(|path| File::open(path).unwrap()),
        }
    }

    fn look(&self) -> View {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let fenced =
            ["freezer.self_freezing", "cgroup.freeze"].iter().any(|f| read(&self.parent.join(f)).trim() == "1");
        let (mut inhabited, mut runs) = (false, false);
        for group in entries(&self.parent).filter(|path| path.is_dir()) {
            let pids = read(&group.join("cgroup.procs"));
            inhabited |= !pids.is_empty();
            let frozen = read(&group.join("freezer.state")).trim() == "FROZEN"
                || read(&group.join("cgroup.events")).lines().any(|line| line == "frozen 1");
            runs |= !frozen && pids.lines().any(may_execute);
        }
        let is_up = |link: PathBuf| {
            let flags = read(&link.join("flags"));
            u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).is_ok_and(|flags| flags & 1 == 1)
        };
        let of_container =
            |link: &PathBuf| link.file_name().is_some_and(|name| name.to_string_lossy().starts_with("hv"));
        let linked = entries(&self.links).filter(of_container).any(is_up);
        let ticks = self.ticks.as_ref().map_or(0, |file| file.metadata().unwrap().len());
        View { inhabited, runs, fenced, linked, ticks }
    }
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Not of one that has ended, or that has its death before it and executes nothing but its end in the kernel.
fn may_execute(pid: &str) -> bool {
    const PF_EXITING: u64 = 4;
    const SIGKILL: u64 = 1 << 8;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let kills = |name: &str| u64::from_str_radix(field(name), 16).is_ok_and(|set| set & SIGKILL != 0);
    if status.is_empty() || field("State:").starts_with(['Z', 'X']) || kills("SigPnd:") || kills("ShdPnd:") {
        return false;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & PF_EXITING == 0)
}

/// Looks until it is dropped or asked for what it has seen.
pub struct Observer {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<Vec<Vec<View>>>,
}

impl Observer {
    /// To be begun when the container ticks. Nodes that are switched off later stay in the list.
    pub fn begin(cluster: &Cluster) -> Self {
        let places: Vec<Place> = cluster.members.iter().map(Place::of).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let looking = thread::spawn(move || {
            let mut seen: Vec<Vec<View>> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let now: Vec<View> = places.iter().map(Place::look).collect();
                if seen.last() != Some(&now) {
                    seen.push(now);
                }
                thread::sleep(PAUSE);
            }
            seen
        });
        Self { stop, looking }
    }

    pub fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        Seen(self.looking.join().unwrap())
    }
}

/// What was seen, in the order of time; what stayed the same is there once.
pub struct Seen(Vec<Vec<View>>);

impl Seen {
    /// No two nodes ran a copy at the same moment.
    pub fn never_two(&self) {
        let two = self.0.iter().position(|views| views.iter().filter(|view| view.runs).count() > 1);
        assert!(two.is_none(), "two copies ran: {:#?}", two.map(|at| &self.0[at.saturating_sub(2)..=at]));
        let ran = |views: Option<&Vec<View>>| views.is_some_and(|views| views.iter().any(|view| view.runs));
        assert!(ran(self.0.first()) && ran(self.0.last()), "nobody was seen running: the observer is blind");
    }

    /// The copy on `from` stood still and could not be reached before anything of one was on `to`, and it has not executed
    /// anything since.
    pub fn stood_before_another_began(&self, from: usize, to: usize) {
        let begun = self.0.iter().position(|views| views[to].inhabited).expect("it was never begun elsewhere");
        let before = &self.0[begun - 1][from];
        assert!(
            before.inhabited && before.fenced && !before.runs && !before.linked,
            "when another was begun: {before:?}"
        );
        let since: Vec<u64> = self.0[begun - 1..].iter().map(|views| views[from].ticks).collect();
        assert!(since[0] > 0 && since.iter().all(|ticks| *ticks == since[0]), "it went on: {since:?}");
    }

    /// No node was fenced.
    pub fn never_fenced(&self) {
        let fenced = self.0.iter().find(|views| views.iter().any(|view| view.fenced));
        assert!(fenced.is_none(), "{fenced:?}");
    }

    /// The node was fenced, and was not any more at the end.
    pub fn fenced_for_a_while(&self, node: usize) {
        let fenced = self.0.iter().filter(|views| views[node].fenced).count();
        assert!(fenced > 0, "it was never fenced");
        let (first, last) = (self.0.iter().find(|views| views[node].fenced), self.0.last());
        let ticks = |views: Option<&Vec<View>>| views.map(|views| views[node].ticks);
        assert!(last.is_some_and(|views| !views[node].fenced && views[node].linked), "{last:?}");
        assert!(ticks(last) > ticks(first), "it did not go on");
    }
}
