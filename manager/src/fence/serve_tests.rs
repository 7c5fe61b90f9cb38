//! The loop, turn by turn, over a group made of plain files.

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
        socket::{AddressFamily, Backlog, SockType, UnixAddr, bind, connect, listen, socket},
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

    fn connect(&self) -> OwnedFd {
        let manager = seqpacket();
        connect(manager.as_raw_fd(), &address(self.dir.path())).unwrap();
        manager
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

fn tell(manager: &OwnedFd, order: Order) {
    send(manager.as_raw_fd(), &order.encode(), MsgFlags::empty()).unwrap();
}

fn told(manager: &OwnedFd) -> Report {
    let mut frame = [0; 1024];
    let length = recv(manager.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).unwrap();
    Report::decode(&frame[..length]).unwrap()
}

#[test]
fn what_a_manager_said_before_the_next_one_came_is_heard() {
    let mut scene = Scene::new("none");
    let first = scene.connect();
    assert_eq!(scene.watchdog.turn(), Ok(false));
    let far = clock::now() + 3_600_000_000_000;
    tell(&first, Order::Hold(Due::At(2 * far)));
    tell(&first, Order::Hold(Due::At(far)));
    let second = scene.connect();
    tell(&second, Order::Hello);
    // Both are there: the newcomer, and what the other has said.
    assert_eq!((scene.watchdog.turn(), scene.watchdog.turn()), (Ok(false), Ok(false)));
    let Report::State(standing) = told(&second) else { panic!() };
    assert_eq!(standing.due, Due::At(far));
}

#[test]
fn a_manager_that_sends_without_end_does_not_keep_the_next_one_out() {
    let mut scene = Scene::new("none");
    let first = scene.connect();
    assert_eq!(scene.watchdog.turn(), Ok(false));
    for _ in 0..QUEUED {
        tell(&first, Order::Hold(Due::Never));
    }
    // More than a manager's queue holds: it sends while it is read.
    tell(&first, Order::Hold(Due::At(clock::now() + 3_600_000_000_000)));
    let second = scene.connect();
    tell(&second, Order::Hello);
    assert_eq!((scene.watchdog.turn(), scene.watchdog.turn()), (Ok(false), Ok(false)));
    let Report::State(standing) = told(&second) else { panic!() };
    assert_eq!(standing.due, Due::Never);
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
