//! A process with a guard, which does what it is told on standard input.

use std::{
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use ha_manager::fence::{Deadline, Guard, Setting};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Before each answer: what the test harness prints has none.
const MARK: &str = "MANAGER ";

pub struct Manager {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Manager {
    /// `command`: this test program, in its place.
    pub fn start(mut command: Command) -> Self {
        command.args(["--exact", "manager", "--nocapture", "--test-threads", "1"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut manager = Self { child, input, output };
        let begun = manager.answer();
        assert_eq!(begun, "begun");
        manager
    }

    pub fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.answer()
    }

    pub fn wait_for(&mut self, line: &str, answer: &str) {
        let deadline = Instant::now() + super::PATIENCE;
        loop {
            let said = self.ask(line);
            if said == answer {
                return;
            }
            assert!(Instant::now() < deadline, "waited in vain for {answer:?}; it says {said:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the manager ended");
            // The harness begins its line with the test's name and leaves it open.
            if let Some((_, answer)) = line.split_once(MARK) {
                return answer.trim_end().to_owned();
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is a manager when [`Manager::start`] began this process; nothing otherwise.
pub fn manager_if_asked() {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let Some(run_dir) = var("FENCE_RUN_DIR") else { return };
    let (cgroup, exe) = (var("FENCE_CGROUP").unwrap(), var("FENCE_EXE").unwrap());
    let setting = Setting { cgroup, exe, device: var("FENCE_DEVICE"), ..Setting::new(run_dir) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let guard = match runtime.block_on(Guard::start(setting)) {
        Ok(guard) => guard,
        Err(error) => return say(&ha_manager::chain(&error)),
    };
    say("begun");
    for line in std::io::stdin().lines() {
        say(&runtime.block_on(obey(&guard, &line.unwrap())));
    }
}

fn say(text: &str) {
    println!("{MARK}{text}");
}

fn deadline(ahead_ms: &str) -> Deadline {
    match ahead_ms.parse() {
        Ok(ms) => Deadline::At(Instant::now() + Duration::from_millis(ms)),
        Err(_) => Deadline::Never,
    }
}

fn frozen(fired: bool) -> &'static str {
    if fired { "frozen" } else { "thawed" }
}

async fn obey(guard: &Guard, line: &str) -> String {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "inherited" => {
            let found = guard.inherited();
            let left = match found.deadline {
                Deadline::Never => "never".to_owned(),
                Deadline::At(at) => at.saturating_duration_since(Instant::now()).as_millis().to_string(),
            };
            format!("{left} {}", frozen(found.fired))
        }
        "hold" => {
            guard.hold(deadline(rest));
            "held".to_owned()
        }
        "now" => {
            guard.fence_now();
            "told".to_owned()
        }
        "release" => match guard.release(deadline(rest)).await {
            Ok(()) => "released".to_owned(),
            Err(error) => ha_manager::chain(&error),
        },
        "fired" => {
            let mut state = guard.state();
            let fired = tokio::time::timeout(super::PATIENCE, state.wait_for(|state| state.fired)).await;
            if matches!(fired, Ok(Ok(_))) { "fired" } else { "not fired" }.to_owned()
        }
        "state" => {
            let state = guard.state().borrow().clone();
            let problem = state.problem.as_deref().unwrap_or("none");
            format!("{} {problem} {}", frozen(state.fired), state.restarts)
        }
        other => format!("there is no order {other}"),
    }
}
