//! With real groups, in both versions where both are there.

use std::process::{Child, Command, Stdio};

use nix::{sys::stat::Mode, unistd::mkfifo};

use super::*;

/// A group of the test's own, in both hierarchies where they are there.
struct Own {
    path: PathBuf,
    kinds: Vec<Freezer>,
}

impl Own {
    /// `None`, said aloud, where groups cannot be made.
    fn new(test: &str) -> Option<Self> {
        let path = PathBuf::from(format!("/ha-unit-{test}-{}", std::process::id()));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let only = |kind| {
            let lines: Vec<&str> = mounts.lines().filter(|line| kind_of(line) == Some(kind)).collect();
            Freezer::among(&path, &lines.join("\n"), false).ok()
        };
        let kinds: Vec<Freezer> = [Kind::V1, Kind::V2].into_iter().filter_map(only).collect();
        let usable = |freezer: &Freezer| {
            let made = fs::create_dir(&freezer.dir);
            made.is_ok() && fs::remove_dir(&freezer.dir).is_ok()
        };
        if kinds.is_empty() || !kinds.iter().all(usable) {
            println!("SKIPPED {test}: control groups cannot be made here");
            return None;
        }
        Some(Self { path, kinds })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        for freezer in &self.kinds {
            let _ = freezer.thaw();
            let deadline = Instant::now() + Duration::from_secs(10);
            let gone = |dir: &Path| fs::remove_dir(dir).is_ok() || !dir.exists();
            while !(gone(&freezer.dir.join("c")) && gone(&freezer.dir)) && Instant::now() < deadline {
                thread::sleep(PAUSE);
            }
            let left = freezer.dir.exists();
            assert!(!left || thread::panicking(), "{} was left", self.path.display());
        }
    }
}

struct Counter(Child, PathBuf);

impl Counter {
    /// Begins inside `dir`.
    fn start(dir: &Path, file: PathBuf) -> Self {
        let script = format!(
            "echo 0 >{}/cgroup.procs; i=0; while :; do i=$((i+1)); echo $i >{}; done",
            dir.display(),
            file.display()
        );
        let child = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
        Self(child, file)
    }

    fn value(&self) -> u64 {
        fs::read_to_string(&self.1).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn wait_beyond(&self, value: u64) {
        wait_for("the counter goes on", || self.value() > value);
    }

    fn member_of(&self, freezer: &Freezer) -> bool {
        alive(&freezer.dir).contains(&(self.0.id() as i32))
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn wait_for(what: &str, mut happens: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !happens() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(PAUSE);
    }
}

/// Whether it stands still: what is seen twice, with enough time between for many steps.
fn stands(counter: &Counter) -> bool {
    let settled = fs::read(&counter.1).unwrap();
    (0..20).all(|_| {
        thread::sleep(Duration::from_millis(5));
        fs::read(&counter.1).unwrap() == settled
    })
}

#[test]
fn who_is_in_it_stops_who_comes_later_too_and_all_go_on() {
    let Some(own) = Own::new("stop") else { return };
    let files = tempfile::tempdir().unwrap();
    for freezer in &own.kinds {
        assert!(!freezer.is_frozen());
        let child = freezer.dir.join("c");
        fs::create_dir_all(&child).unwrap();
        let file = |name: &str| files.path().join(format!("{name}-{:?}", freezer.kind));
        let counter = Counter::start(&child, file("a"));
        counter.wait_beyond(10);
        assert_eq!(freezer.stop(), Ok(Stopped::Frozen), "{:?}", freezer.kind);
        assert!(freezer.is_frozen() && stands(&counter), "{:?}", freezer.kind);
        let later = Counter::start(&child, file("b"));
        wait_for("the second is in the group", || later.member_of(freezer));
        assert_eq!(freezer.stop(), Ok(Stopped::Frozen), "{:?}", freezer.kind);
        assert!(later.value() == 0, "{:?}", freezer.kind);
        freezer.thaw().unwrap();
        assert!(!freezer.is_frozen());
        counter.wait_beyond(counter.value());
        later.wait_beyond(1);
        drop((counter, later));
        wait_for("nobody is left", || alive(&freezer.dir).is_empty());
    }
}

#[test]
fn a_group_that_does_not_exist_is_made_and_frozen() {
    let Some(own) = Own::new("made") else { return };
    for freezer in &own.kinds {
        freezer.thaw().unwrap();
        assert!(!freezer.dir.exists());
        assert_eq!(freezer.stop(), Ok(Stopped::Frozen));
        assert!(freezer.is_frozen());
    }
}

#[test]
fn killing_reaches_the_frozen_and_leaves_it_frozen_for_those_to_come() {
    let Some(own) = Own::new("kill") else { return };
    let files = tempfile::tempdir().unwrap();
    for freezer in &own.kinds {
        let child = freezer.dir.join("c");
        fs::create_dir_all(&child).unwrap();
        let mut counter = Counter::start(&child, files.path().join(format!("a-{:?}", freezer.kind)));
        counter.wait_beyond(10);
        assert_eq!(freezer.stop(), Ok(Stopped::Frozen));
        freezer.kill_all(Instant::now() + PATIENCE).unwrap();
        assert!(freezer.is_frozen() && alive(&freezer.dir).is_empty(), "{:?}", freezer.kind);
        let status = counter.0.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
}

#[test]
fn where_freezing_fails_everybody_is_killed_and_it_is_said() {
    let Some(own) = Own::new("last") else { return };
    let Some(v1) = own.kinds.iter().find(|freezer| freezer.kind == Kind::V1) else {
        println!("SKIPPED where_freezing_fails_everybody_is_killed_and_it_is_said: no version 1 freezer");
        return;
    };
    // The file of the other version is not there, as on a kernel too old to have it.
    let broken = Freezer { kind: Kind::V2, dir: v1.dir.clone() };
    let child = v1.dir.join("c");
    fs::create_dir_all(&child).unwrap();
    let files = tempfile::tempdir().unwrap();
    let mut counter = Counter::start(&child, files.path().join("a"));
    counter.wait_beyond(10);
    let Ok(Stopped::Killed(why)) = broken.stop() else { panic!() };
    assert!(why.contains("cannot be frozen"), "{why}");
    counter.0.wait().unwrap();
}

/// A group of version 2 made of plain files, for what no kernel does when it is asked to.
struct Painted {
    freezer: Freezer,
    _dir: tempfile::TempDir,
}

impl Painted {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let painted = Self { freezer: Freezer::painted(dir.path().join("g")), _dir: dir };
        painted.group("", false, &[]);
        fs::write(painted.freezer.dir.join("cgroup.freeze"), "0").unwrap();
        painted
    }

    fn group(&self, name: &str, frozen: bool, members: &[&Idle]) {
        let dir = self.freezer.dir.join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cgroup.events"), format!("populated 1\nfrozen {}\n", u8::from(frozen))).unwrap();
        let members = members.iter().map(|member| format!("{}\n", member.0.id())).collect::<String>();
        fs::write(dir.join("cgroup.procs"), members).unwrap();
    }
}

/// A process that does nothing.
struct Idle(Child);

impl Idle {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn only_the_container_that_does_not_freeze_is_killed() {
    let (mut stuck, mut well) = (Idle::start(), Idle::start());
    let painted = Painted::new();
    painted.group("stuck", false, &[&stuck]);
    painted.group("well", true, &[&well]);
    // One round.
    let killed = painted.freezer.kill_running("it has not become frozen", Instant::now()).unwrap_err();
    assert!(killed.contains("of stuck somebody can be neither frozen nor killed"), "{killed}");
    wait_for("it has ended", || !stuck.lives());
    assert!(well.lives());
    // Another one, without which all are frozen.
    let (mut second, freezer) = (Idle::start(), &painted.freezer);
    painted.group("second", false, &[&second]);
    fs::remove_file(freezer.dir.join("cgroup.events")).unwrap();
    mkfifo(&freezer.dir.join("cgroup.events"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let answer = |frozen: &str| fs::write(freezer.dir.join("cgroup.events"), frozen).unwrap();
    let stopped = thread::scope(|scope| {
        let stopping = scope.spawn(|| freezer.kill_running("why", Instant::now() + Duration::from_secs(60)));
        answer("frozen 0\n");
        wait_for("it has ended", || !second.lives());
        answer("frozen 1\n");
        stopping.join().unwrap()
    });
    assert_eq!(stopped, Ok(Stopped::Killed("second killed, for why".into())));
    assert!(well.lives());
}

#[test]
fn where_nobody_is_to_blame_everybody_is_killed() {
    let (mut one, mut member) = (Idle::start(), Idle::start());
    let painted = Painted::new();
    painted.group("one", true, &[&one]);
    painted.group("", false, &[&member]);
    let stopped = painted.freezer.kill_running("why", Instant::now() + PATIENCE);
    assert_eq!(stopped, Ok(Stopped::Killed("every container was killed, for why".into())));
    wait_for("both have ended", || !one.lives() && !member.lives());
}

#[test]
fn the_freezer_is_where_the_runtime_has_containers_and_the_usual_place() {
    let v1 = "40 30 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
              41 30 0:31 / /mnt/freezer rw - cgroup cgroup rw,freezer\n\
              42 30 0:31 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n";
    let v2 = "43 30 0:32 / /sys/fs/cgroup/unified rw,nosuid shared:3 - cgroup2 cgroup2 rw\n";
    let found = |mounts: &str, unified| Freezer::among(Path::new("/a/b"), mounts, unified).map(|f| (f.kind, f.dir));
    assert_eq!(found(&format!("{v2}{v1}"), false), Ok((Kind::V1, PathBuf::from("/sys/fs/cgroup/freezer/a/b"))));
    assert_eq!(found(v2, false), Ok((Kind::V2, PathBuf::from("/sys/fs/cgroup/unified/a/b"))));
    // Somebody has mounted a freezer of version 1 beside it, which the runtime does not use.
    let unified = "29 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
    let beside = "41 30 0:31 / /mnt/freezer rw - cgroup cgroup rw,freezer\n";
    for mounts in [format!("{unified}{beside}"), format!("{beside}{unified}")] {
        assert_eq!(found(&mounts, true), Ok((Kind::V2, PathBuf::from("/sys/fs/cgroup/a/b"))), "{mounts}");
    }
    assert!(found("", false).unwrap_err().contains("mount one") && found("", true).is_err());
    for bad in ["/", "", "a", "/../a", "/a/../b"] {
        assert!(Freezer::among(Path::new(bad), v2, false).is_err(), "{bad}");
    }
}
