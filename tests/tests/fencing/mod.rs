//! A place for a watchdog: a control group, a network namespace and a run directory of the test's own.

mod manager;

use std::{
    cell::RefCell,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use ha_lab::lab::cgroup;
use manager::Manager;
pub use manager::manager_if_asked;
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Of the machine in seconds, as [`Counter`] writes it.
pub fn uptime() -> f64 {
    fs::read_to_string("/proc/uptime").unwrap().split(' ').next().unwrap().parse().unwrap()
}

pub fn drain(file: &mut File) -> Vec<u8> {
    let mut bytes = [0; 64];
    match file.read(&mut bytes) {
        Ok(length) => bytes[..length].to_vec(),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

fn wait(what: &str, mut happens: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happens() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub struct Place {
    dir: tempfile::TempDir,
    /// Of the control group and of the network namespace.
    name: String,
    freezer: PathBuf,
    exe: PathBuf,
    begun: RefCell<Vec<Child>>,
}

impl Place {
    /// With the links `hvf1` and `hvf2`, which are up, `hvdown`, which is down, and `other`, which is up.
    pub fn new(test: &str) -> Option<Self> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let missing: Vec<&str> = ["ip", "nsenter"].into_iter().filter(|tool| !ha_lab::have(tool)).collect();
        let hierarchies = cgroup::hierarchies().unwrap();
        let v1 = hierarchies.iter().find(|h| h.v1_options.as_deref() == Some("freezer"));
        let hierarchy = v1.or_else(|| hierarchies.iter().find(|h| h.v1_options.is_none()));
        let why = if !nix::unistd::geteuid().is_root() {
            Some("not root: control groups and namespaces are made".to_owned())
        } else if !missing.is_empty() {
            Some(format!("{} not installed", missing.join(", ")))
        } else if hierarchy.is_none() {
            Some("no hierarchy of control groups that can freeze".to_owned())
        } else {
            None
        };
        if let Some(why) = why {
            ha_lab::skipped(test, &why);
            return None;
        }
        let name = format!("ha-fence-{}-{number}", std::process::id());
        let freezer = hierarchy.unwrap().mount_point.join(&name);
        let exe = ha_lab::lab_program().unwrap().with_file_name("ha-manager");
        assert!(exe.is_file(), "{} is not there: scripts/build --debug makes it", exe.display());
        let place = Self { dir: tempfile::tempdir().unwrap(), name, freezer, exe, begun: RefCell::default() };
        ha_lab::run(Command::new("ip").args(["netns", "add", &place.name])).unwrap();
        for (link, up) in [("hvf1", true), ("hvf2", true), ("hvdown", false), ("other", true)] {
            place.run(&format!("ip link add {link} type veth peer name p{link}"));
            if up {
                place.run(&format!("ip link set {link} up"));
            }
        }
        Some(place)
    }

    pub fn wait(&self, what: &str, happens: impl FnMut() -> bool) {
        wait(what, happens);
    }

    /// The group that the watchdog freezes.
    pub fn group(&self) -> &Path {
        &self.freezer
    }

    /// In the network namespace.
    fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        // Not `ip netns exec`: it takes /sys/fs/cgroup away.
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    pub fn run(&self, line: &str) -> String {
        let mut words = line.split(' ');
        ha_lab::run(self.inside(Path::new(words.next().unwrap())).args(words)).unwrap()
    }

    pub fn is_up(&self, link: &str) -> bool {
        let shown = self.run(&format!("ip -o link show dev {link}"));
        shown.split(['<', '>']).nth(1).unwrap().split(',').any(|flag| flag == "UP")
    }

    pub fn links_are_up(&self) -> bool {
        ["hvf1", "hvf2"].iter().all(|link| self.is_up(link))
    }

    pub fn links_are_down(&self) -> bool {
        !["hvf1", "hvf2"].iter().any(|link| self.is_up(link))
    }

    pub fn manager(&self) -> Manager {
        self.manager_with(&[])
    }

    pub fn manager_with(&self, more: &[(&str, PathBuf)]) -> Manager {
        let mut command = self.inside(&std::env::current_exe().unwrap());
        command.env("FENCE_RUN_DIR", self.dir.path()).env("FENCE_EXE", &self.exe);
        command.env("FENCE_CGROUP", format!("/{}", self.name)).envs(more.iter().cloned());
        Manager::start(command)
    }

    /// The watchdog's number.
    pub fn watchdog(&self) -> i32 {
        fs::read_to_string(self.dir.path().join("watchdog.lock")).unwrap().parse().unwrap()
    }

    pub fn signal_watchdog(&self, signal: Signal) {
        kill(Pid::from_raw(self.watchdog()), signal).unwrap();
    }

    pub fn kill_watchdog(&self) {
        self.signal_watchdog(Signal::SIGKILL);
    }

    pub fn second_watchdog(&self) -> Output {
        let mut command = self.inside(&self.exe);
        command.args(["watchdog", "--link-prefix", "hv", "--cgroup"]).arg(format!("/{}", self.name));
        command.arg("--run-dir").arg(self.dir.path()).output().unwrap()
    }

    pub fn device_path(&self) -> PathBuf {
        self.dir.path().join("device")
    }

    /// The other end of a stand-in for a hardware watchdog.
    pub fn device(&self) -> File {
        mkfifo(&self.device_path(), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(self.device_path()).unwrap()
    }

    /// Begins to count below the group; the group may be frozen.
    pub fn begin(&self, name: &str) -> Counter {
        let group = self.freezer.join(name);
        fs::create_dir_all(&group).unwrap();
        let file = self.dir.path().join(format!("counter-{name}"));
        let script = format!(
            "echo 0 >{}/cgroup.procs; while read up rest </proc/uptime; do echo $up; done >{}",
            group.display(),
            file.display()
        );
        let child = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        self.begun.borrow_mut().push(child);
        Counter { pid, file }
    }

    /// One that counts.
    pub fn counter(&self, name: &str) -> Counter {
        let counter = self.begin(name);
        counter.goes_on();
        counter
    }

    pub fn has(&self, counter: &Counter) -> bool {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", counter.pid)).unwrap();
        groups.contains(&format!("/{}/", self.name))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let run_dir = self.dir.path().to_string_lossy().into_owned();
        let is_ours = |pid: &i32| {
            let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.contains("watchdog") && words.contains(&run_dir)
        };
        let lock = fs::read_to_string(self.dir.path().join("watchdog.lock")).unwrap_or_default();
        let watchdog = lock.parse().ok().filter(is_ours);
        if let Some(pid) = watchdog {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for child in self.begun.borrow_mut().iter_mut() {
            let _ = child.kill();
        }
        // Whichever of the two versions it is.
        let _ = fs::write(self.freezer.join("cgroup.freeze"), "0");
        let _ = fs::write(self.freezer.join("freezer.state"), "THAWED");
        self.begun.borrow_mut().drain(..).for_each(|mut child| drop(child.wait()));
        let removed = cgroup::remove(&self.name);
        let deleted = ha_lab::run(Command::new("ip").args(["netns", "del", &self.name]));
        if !thread::panicking() {
            removed.unwrap();
            deleted.unwrap();
            if let Some(pid) = watchdog {
                wait("the watchdog is gone", || !is_ours(&pid));
            }
        }
    }
}

/// A process that writes the machine's uptime to a file, without end.
pub struct Counter {
    pid: u32,
    file: PathBuf,
}

impl Counter {
    fn size(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |meta| meta.len())
    }

    pub fn goes_on(&self) {
        let before = self.size();
        wait("the counter goes on", || self.size() > before);
    }

    pub fn stands(&self) {
        let before = self.size();
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(5));
            assert_eq!(self.size(), before, "it goes on");
        }
    }

    pub fn has_not_begun(&self) {
        assert_eq!(self.size(), 0);
    }

    /// Waits until it stands still; the last thing that it wrote.
    pub fn stops(&self) -> f64 {
        let still = || {
            let before = self.size();
            (0..40).all(|_| {
                thread::sleep(Duration::from_millis(5));
                self.size() == before
            })
        };
        wait("the counter stops", still);
        let text = fs::read_to_string(&self.file).unwrap();
        let whole = &text[..text.rfind('\n').unwrap()];
        whole.rsplit('\n').next().unwrap().parse().unwrap()
    }
}
