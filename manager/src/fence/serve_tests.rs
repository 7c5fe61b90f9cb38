//! Over a group made of plain files.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        socket::{AddressFamily, Backlog, SockType, UnixAddr, bind, listen, socket},
        stat::Mode,
    },
    unistd::mkfifo,
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    dir: tempfile::TempDir,
    watchdog: Watchdog,
}

impl Scene {
    fn new(prefix: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("group");
        fs::create_dir(&group).unwrap();
        fs::write(group.join("cgroup.freeze"), "0").unwrap();
        fs::write(group.join("cgroup.procs"), "").unwrap();
        let listener = seqpacket();
        bind(listener.as_raw_fd(), &address(dir.path())).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        let links = HostLinks::open(prefix).unwrap();
        let freezer = Freezer::painted(group);
        let watchdog = Watchdog::new(Core::new(false), freezer, links, None, listener, 7, Journal::none());
        Self { dir, watchdog }
    }

    fn group(&self) -> PathBuf {
        self.dir.path().join("group")
    }
}

fn seqpacket() -> OwnedFd {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

fn address(dir: &Path) -> UnixAddr {
    UnixAddr::new(&dir.join("socket")).unwrap()
}

#[test]
fn the_links_do_not_wait_for_those_that_do_not_freeze() {
    let test = "the_links_do_not_wait_for_those_that_do_not_freeze";
    let run = |words: &str| {
        let mut words = words.split(' ');
        Command::new(words.next().unwrap()).args(words).output().is_ok_and(|output| output.status.success())
    };
    // Of this test's thread, and gone with it.
    if unshare(CloneFlags::CLONE_NEWNET).is_err() || !run("ip link add hvx type veth peer name peer") {
        println!("SKIPPED {test}: no network namespace of its own");
        return;
    }
    assert!(run("ip link set hvx up"));
    let up = || {
        let shown = Command::new("ip").args(["-o", "link", "show", "dev", "hvx"]).output().unwrap();
        String::from_utf8(shown.stdout).unwrap().contains(",UP")
    };
    assert!(up());
    let mut scene = Scene::new("hv");
    // Whoever asks whether all are frozen waits for the answer.
    let (group, events) = (scene.group(), scene.group().join("cgroup.events"));
    mkfifo(&events, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    thread::scope(|scope| {
        let observer = scope.spawn(|| {
            let begun = Instant::now();
            let mut asked = loop {
                assert!(begun.elapsed() < PATIENCE, "nobody asks");
                // There is no reader before somebody asks.
                match fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&events) {
                    Ok(file) => break file,
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            };
            let seen = (up(), fs::read_to_string(group.join("cgroup.freeze")).unwrap());
            asked.write_all(b"frozen 1\n").unwrap();
            seen
        });
        let fencing = scene.watchdog.fence();
        assert!(fencing.stopped && fencing.problem.is_empty(), "{fencing:?}");
        assert_eq!(observer.join().unwrap(), (false, "1".into()), "it was asked before the links were down");
    });
}
