//! Dumps and restores that fail: the container goes on, and nothing is left behind.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use super::lab::{LONG, Lab, Place, alone, chain, skipped};
use crate::{
    checkpoint::{DumpError, Gate, RestoreError, proc, restore, settle_orphan},
    runtime::Runtime,
};

/// A gate that writes down what happens to it, and does something when it is closed or opened.
#[derive(Default)]
struct Hook<'h> {
    log: Vec<&'static str>,
    closing: Option<Box<dyn FnMut() -> io::Result<()> + 'h>>,
    opening: Option<Box<dyn FnMut() + 'h>>,
}

impl<'h> Hook<'h> {
    fn new(closing: impl FnMut() -> io::Result<()> + 'h) -> Self {
        Self { closing: Some(Box::new(closing)), ..Self::default() }
    }
}

impl Gate for Hook<'_> {
    fn close(&mut self) -> io::Result<()> {
        self.log.push("close");
        self.closing.as_mut().map_or(Ok(()), |closing| closing())
    }

    fn open(&mut self) -> io::Result<()> {
        self.log.push("open");
        if let Some(opening) = &mut self.opening {
            opening();
        }
        Ok(())
    }
}

/// The worker that we started: the only child of ours with that name (tests run one at a time).
fn criu() -> i32 {
    let me = std::process::id() as i32;
    proc::descendants(me).into_iter().find(|pid| proc::name(*pid) == "criu").expect("a CRIU of ours")
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn has_tcp_image(images: &Path) -> bool {
    fs::read_dir(images).unwrap().flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("tcp-stream"))
}

#[test]
fn the_gate_is_closed_and_opened_inside_the_freeze() {
    if skipped("the_gate_is_closed_and_opened_inside_the_freeze") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    lab.client().ask("incr");
    let (mut at_closing, mut at_opening) = (None, None);
    let mut gate = Hook::new(|| {
        at_closing = proc::state(pid);
        Ok(())
    });
    gate.opening = Some(Box::new(|| {
        // Time for a container that was let go to run.
        std::thread::sleep(Duration::from_millis(100));
        at_opening = proc::state(pid);
    }));
    let report = place.dump_with(&place.request(pid), &mut gate).unwrap();
    assert_eq!(gate.log, ["close", "open"]);
    drop(gate);
    assert_eq!(at_closing, Some('t'), "the container stands still when the gate closes");
    assert_eq!(at_opening, Some('t'), "what it sends at once has to get out");
    assert!(report.gate_closed.unwrap() <= report.frozen + Duration::from_millis(20), "{report:?}");
}

#[test]
fn what_is_asked_before_the_freeze_is_asked_when_nothing_else_is_left_to_do() {
    if skipped("what_is_asked_before_the_freeze_is_asked_when_nothing_else_is_left_to_do") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    let mut client = lab.client();
    client.ask("incr");
    let (early, late) = (place.dir.join("data/early"), place.dir.join("data/late"));
    fs::write(&early, "").unwrap();
    let request = place.request(pid);
    let mut gate = Hook::default();
    let mut asked = false;
    let mut before = || {
        asked = true;
        assert!(request.staging.join("data/early").exists(), "before the files were copied");
        assert!(!matches!(proc::state(pid), Some('t')), "frozen already");
        fs::write(&late, "")
    };
    place.dump_after(&request, &mut gate, &mut before).unwrap();
    assert!(asked && request.staging.join("data/late").exists(), "what is done meanwhile is of the frozen moment, too");

    let request = place.request(pid);
    let mut gate = Hook::default();
    let error = place.dump_after(&request, &mut gate, &mut || Err(io::Error::other("busy"))).unwrap_err();
    assert!(matches!(error, DumpError::Quiet { .. }) && error.leaves_running(), "{error:?}");
    assert!(gate.log.is_empty() && !request.work.join("dump-under-way").exists(), "{:?}", gate.log);
    assert_eq!(client.ask("incr"), "2");
}

#[test]
fn before_a_move_the_gate_stays_closed_and_the_connections_go_on_elsewhere() {
    if skipped("before_a_move_the_gate_stays_closed_and_the_connections_go_on_elsewhere") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    let mut client = lab.client();
    assert_eq!(client.ask("incr"), "1");
    let mut request = place.request(pid);
    request.stay_closed = true;
    let mut gate = Hook::default();
    let report = place.dump_with(&request, &mut gate).unwrap();
    assert_eq!((gate.log.as_slice(), report.gate_closed), (["close"].as_slice(), None));
    assert!(proc::state(pid).is_some_and(|state| state != 'Z'), "it runs on behind the gate");
    place.destroy();
    let mut there = lab.place();
    there.restore(&request);
    assert_eq!(client.ask("incr"), "2", "the client has noticed nothing but a pause");
}

#[test]
fn a_last_dump_that_fails_opens_the_gate_again() {
    if skipped("a_last_dump_that_fails_opens_the_gate_again") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    let mut client = lab.client();
    client.ask("incr");
    let mut request = place.request(pid);
    request.stay_closed = true;
    // CRIU is content; what it should have written down about the dump is not to be read.
    let stats = request.work.join("stats-dump");
    let mut gate = Hook::new(|| fs::create_dir(&stats));
    let error = place.dump_with(&request, &mut gate).unwrap_err();
    assert!(error.leaves_running(), "{error:?}");
    assert_eq!(gate.log, ["close", "open"]);
    assert_eq!(client.ask("incr"), "2");
}

#[test]
fn a_criu_that_hangs_is_ended_and_the_container_and_its_connections_go_on() {
    if skipped("a_criu_that_hangs_is_ended_and_the_container_and_its_connections_go_on") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    let mut client = lab.client();
    assert_eq!(client.ask("incr"), "1");
    for late in [false, true] {
        let mut request = place.request(pid);
        request.timeout = Duration::from_secs(2);
        let images = request.images.clone();
        let mut gate = Hook::new(|| {
            let criu = criu();
            if late {
                // Once the sockets are in repair mode.
                let images = images.clone();
                std::thread::spawn(move || {
                    wait_for("a socket is dumped", || has_tcp_image(&images));
                    signal(criu, nix::sys::signal::Signal::SIGSTOP);
                });
            } else {
                signal(criu, nix::sys::signal::Signal::SIGSTOP);
            }
            Ok(())
        });
        let error = place.dump_with(&request, &mut gate).unwrap_err();
        assert_eq!(gate.log, ["close", "open"]);
        println!("late {late}: {}", chain(&error));
        let DumpError::Timeout { remains, .. } = error else { panic!("{error}") };
        assert!(remains.killed && remains.is_running(), "{remains:?}");
        assert_eq!(remains.mended_sockets > 0, late, "{remains:?}");
        let next = if late { "3" } else { "2" };
        assert_eq!(client.ask("incr"), next, "the same connection goes on");
    }
    let (images, _) = place.dump(pid);
    assert_eq!(client.ask("incr"), "4");
    place.destroy();
    let mut there = lab.place();
    there.restore(&images);
    assert_eq!(lab.client().ask("get"), "3", "a dump after broken ones is sound");
}

#[test]
fn a_criu_that_is_killed_leaves_the_container_running() {
    if skipped("a_criu_that_is_killed_leaves_the_container_running") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    let mut client = lab.client();
    client.ask("incr");
    client.ask("fill 64");
    let request = place.request(pid);
    let images = request.images.clone();
    let mut gate = Hook::new(|| {
        let (criu, images) = (criu(), images.clone());
        std::thread::spawn(move || {
            wait_for("a socket is dumped", || has_tcp_image(&images));
            signal(criu, nix::sys::signal::Signal::SIGKILL);
        });
        Ok(())
    });
    let error = place.dump_with(&request, &mut gate).unwrap_err();
    println!("{}", chain(&error));
    assert!(matches!(&error, DumpError::Swrk { remains, .. } if remains.is_running()), "{error:?}");
    assert_eq!(gate.log, ["close", "open"]);
    // The connection that was being dumped may be lost; the state and the listening socket are not.
    assert_eq!(lab.client().ask("incr"), "2");
    place.dump(pid);
    assert_eq!(lab.client().ask("incr"), "3");
}

#[test]
fn a_manager_that_dies_in_the_middle_leaves_the_container_running() {
    if skipped("a_manager_that_dies_in_the_middle_leaves_the_container_running") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    let mut client = lab.client();
    client.ask("incr");
    let request = place.request(pid);
    let mut gate = Hook::new(|| panic!("on purpose"));
    // Unwinding closes the socket to CRIU, as a manager's death does.
    catch_unwind(AssertUnwindSafe(|| place.dump_with(&request, &mut gate))).unwrap_err();
    assert_eq!(gate.log, ["close", "open"]);
    assert_eq!(client.ask("incr"), "2");
}

#[test]
fn a_debugger_is_not_taken_for_a_criu_that_was_left() {
    if skipped("a_debugger_is_not_taken_for_a_criu_that_was_left") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    lab.client().ask("incr");
    // ptrace(PTRACE_SEIZE, pid)
    let script = format!("syscall(101, 0x4206, {pid}, 0, 0) == 0 or exit 1; sleep 600");
    let mut debugger = match Command::new("perl").args(["-e", &script]).spawn() {
        Ok(debugger) if cfg!(target_arch = "x86_64") => debugger,
        _ => return println!("SKIPPED a_debugger_is_not_taken_for_a_criu_that_was_left: no perl"),
    };
    let traced = debugger.id() as i32;
    wait_for("the debugger has attached", || proc::tracer(pid) == Some(traced));
    let remains = settle_orphan(Path::new("criu"), pid, &place.dir, Duration::from_millis(100));
    let lives = debugger.try_wait().unwrap().is_none();
    debugger.kill().unwrap();
    debugger.wait().unwrap();
    assert!(lives && !remains.killed && remains.is_running(), "{remains:?}");
    assert_eq!(lab.client().ask("incr"), "2");
}

#[test]
fn what_a_dead_criu_left_stopped_goes_on_and_what_its_user_stopped_does_not() {
    if skipped("what_a_dead_criu_left_stopped_goes_on_and_what_its_user_stopped_does_not") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    lab.client().ask("incr");
    let work = &place.dir;
    let settled = || {
        signal(pid, nix::sys::signal::Signal::SIGSTOP);
        wait_for("it has stopped", || proc::state(pid) == Some('T'));
        settle_orphan(Path::new("criu"), pid, work, Duration::from_millis(100))
    };
    // No dump was under way, or it was stopped before the dump began.
    assert!(settled().is_running() && proc::state(pid) == Some('T'));
    fs::write(work.join("dump-under-way"), pid.to_string()).unwrap();
    assert!(settled().is_running() && proc::state(pid) == Some('T'));
    fs::write(work.join("dump-under-way"), "").unwrap();
    assert!(settled().is_running() && proc::state(pid) != Some('T'), "{:?}", proc::state(pid));
    assert!(!work.join("dump-under-way").exists());
    let (request, _) = place.dump(pid);
    assert!(!request.work.join("dump-under-way").exists(), "a dump that has ended is not under way");
    assert_eq!(lab.client().ask("incr"), "2");
}

#[test]
fn a_gate_that_does_not_close_and_a_capture_that_fails_break_the_dump_off() {
    if skipped("a_gate_that_does_not_close_and_a_capture_that_fails_break_the_dump_off") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    let mut client = lab.client();
    client.ask("incr");

    let mut gate = Hook::new(|| Err(io::Error::other("stuck")));
    let error = place.dump_with(&place.request(pid), &mut gate).unwrap_err();
    assert!(matches!(error, DumpError::GateClose { .. }), "{error:?}");
    assert_eq!(gate.log, ["close", "open"], "half a closing is opened");
    assert_eq!(client.ask("incr"), "2");

    let request = place.request(pid);
    let mut gate = Hook::new(|| fs::remove_dir_all(&request.staging));
    let error = place.dump_with(&request, &mut gate).unwrap_err();
    assert!(matches!(error, DumpError::Capture { .. }), "{error:?}");
    assert_eq!(gate.log, ["close", "open"]);
    assert_eq!(client.ask("incr"), "3");
}

#[test]
fn a_failed_restore_says_why_and_leaves_nothing() {
    if skipped("a_failed_restore_says_why_and_leaves_nothing") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let pid = place.start();
    let (request, _) = place.dump(pid);
    place.destroy();

    let mut there = lab.place();
    there.mount();
    let images = fs::read_dir(&request.images).unwrap().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let named = |start: &str| images.iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with(start));
    // Memory pages cut short: CRIU does not notice and waits for ever.
    let pages = named("pages-").unwrap();
    let whole = fs::read(pages).unwrap();
    fs::write(pages, &whole[..4096]).unwrap();
    let short = Duration::from_secs(5);
    let error = restore(&lab.runc, &there.id, &there.spec.dir, &request.images, &there.dir, short).unwrap_err();
    println!("{}", chain(&error));
    assert_nothing_left(&lab, &there);
    fs::write(pages, &whole).unwrap();

    // A process without its registers: CRIU notices when half of the container is set up.
    fs::write(named("core-").unwrap(), "nonsense").unwrap();
    let error = restore(&lab.runc, &there.id, &there.spec.dir, &request.images, &there.dir, LONG).unwrap_err();
    println!("{}", chain(&error));
    assert!(matches!(&error, RestoreError::Criu { lines, .. } if lines.contains("Error (")), "{error:?}");
    assert_nothing_left(&lab, &there);

    fs::remove_file(request.images.join("inventory.img")).unwrap();
    let error = restore(&lab.runc, &there.id, &there.spec.dir, &request.images, &there.dir, LONG).unwrap_err();
    assert!(matches!(error, RestoreError::Incomplete { part: "inventory.img", .. }), "{error:?}");
}

fn assert_nothing_left(lab: &Lab, there: &Place<'_>) {
    assert_eq!(lab.runc.state(&there.id, LONG).unwrap(), None);
    let in_cgroups = Command::new("find").args(["/sys/fs/cgroup", "-name", &there.id]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&in_cgroups.stdout), "", "no cgroup is left");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let criu_root = lab.runc.root().join(&there.id);
    assert!(!mounts.contains(&criu_root.display().to_string()), "no mount is left: {mounts}");
    let rules = Command::new("ip").args(["netns", "exec", &there.id, "iptables-save"]).output();
    assert!(rules.is_ok_and(|rules| !String::from_utf8_lossy(&rules.stdout).contains("CRIU")), "no lock is left");
    assert!(!criu_root.exists(), "no state is left");
}
