//! Against a real process that holds pages as a killed CRIU leaves them.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
};

use super::*;
use crate::checkpoint::proc;

const LONG: Duration = Duration::from_secs(20);

/// Maps such pages when told "map", waits in the kernel for a child of its own after "fork", and otherwise says how many signals
/// it has got.
const PROGRAM: &str = r#"
$| = 1; my $signals = 0;
$SIG{USR1} = sub { $signals++ }; $SIG{NUM36} = sub { $signals++ };
while (defined(my $line = <STDIN>)) {
    if ($line =~ /map/) {
        my $name = "CRIUMFD"; my $fd = syscall(319, $name, 0);
        syscall(77, $fd, 8192); syscall(9, 0, 8192, 1, 1, $fd, 0) > 0 or die; syscall(3, $fd);
    } elsif ($line =~ /fork/) {
        # clone(CLONE_VFORK | SIGCHLD); the child ends with its parent (PR_SET_PDEATHSIG)
        my $child = syscall(56, 0x4000 | 17, 0, 0, 0, 0);
        if ($child == 0) { syscall(157, 1, 9); syswrite(STDOUT, syscall(39) . "\n"); syscall(34); syscall(231, 0) }
    }
    print "$signals\n";
}
"#;

struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(test: &str) -> Option<Self> {
        let spawned = Command::new("perl").args(["-e", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = spawned else {
            println!("SKIPPED {test}: no perl");
            return None;
        };
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Some(Self { child, input, output })
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.input, "{what}").unwrap();
    }

    fn number(&mut self) -> i32 {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().parse().unwrap_or_else(|_| panic!("{line:?} from {:?}", self.child.try_wait()))
    }

    fn ask(&mut self, what: &str) -> i32 {
        self.tell(what);
        self.number()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In a thread that is given up when it hangs.
fn evicted(pid: i32) -> io::Result<bool> {
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || sender.send(evict(pid, Instant::now() + PATIENCE)));
    receiver.recv_timeout(LONG).unwrap_or_else(|_| Err(io::Error::other("it hangs")))
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_process_that_does_not_stop_is_named_and_runs_on() {
    let Some(mut process) = Process::start("a_process_that_does_not_stop_is_named_and_runs_on") else { return };
    process.ask("map");
    let pid = process.pid();
    process.tell("fork");
    let child = process.number();
    wait_for("it waits in the kernel", || proc::state(pid) == Some('D'));
    let error = evicted(pid).unwrap_err().to_string();
    assert!(error.contains(&format!("process {pid} (perl, in state D)")), "{error}");
    assert_eq!(proc::tracer(pid), None);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(process.number(), 0);
    assert!(evicted(pid).unwrap());
    assert!(!evicted(pid).unwrap());
    assert_eq!(process.ask(""), 0);
}

/// A control group of this test's own.
struct Group(PathBuf);

impl Group {
    fn new(parent: &str, freezer: &str) -> Option<Self> {
        let path = Path::new(parent).join(format!("evict-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let group = Self(path);
        group.0.join(freezer).exists().then_some(group)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        wait_for("the group is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_process_in_a_frozen_group_is_given_up_and_as_it_was() {
    let test = "a_process_in_a_frozen_group_is_given_up_and_as_it_was";
    let kinds = [
        ("/sys/fs/cgroup", "cgroup.freeze", "1", "0"),
        ("/sys/fs/cgroup/unified", "cgroup.freeze", "1", "0"),
        ("/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED"),
    ];
    for (parent, file, frozen, thawed) in kinds {
        let Some(group) = Group::new(parent, file) else {
            println!("SKIPPED {test}: {parent} has no freezer");
            continue;
        };
        let Some(mut process) = Process::start(test) else { return };
        process.ask("map");
        group.write("cgroup.procs", &process.pid().to_string());
        group.write(file, frozen);
        let began = Instant::now();
        let outcome = evicted(process.pid());
        group.write(file, thawed);
        println!("{parent}: {outcome:?} after {:?}", began.elapsed());
        let error = outcome.unwrap_err();
        assert!(error.to_string().contains(&format!("process {} (perl", process.pid())), "{parent}: {error}");
        assert_eq!(process.ask(""), 0, "{parent}: it goes on where it was");
        assert!(evicted(process.pid()).unwrap());
        assert_eq!(process.ask(""), 0);
    }
}

#[test]
fn signals_that_come_meanwhile_are_the_programs() {
    let Some(mut process) = Process::start("signals_that_come_meanwhile_are_the_programs") else { return };
    let pid = process.pid();
    let flood = format!("while (kill('USR1', {pid}) && kill(36, {pid})) {{ select(undef, undef, undef, 0.0001) }}");
    process.ask("");
    let mut flooding = Command::new("perl").args(["-e", &flood]).spawn().unwrap();
    let mut outcomes = Vec::new();
    for _ in 0..100 {
        process.ask("map");
        outcomes.push(evicted(pid).map_err(|error| error.to_string()));
    }
    flooding.kill().unwrap();
    flooding.wait().unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(true)), "{outcomes:?}");
    assert!(process.ask("") > 0);
    let blocked = proc::status_field(pid, "SigBlk").unwrap();
    assert_eq!(blocked.trim().trim_matches('0'), "", "signals stay blocked");
}
