//! A container with the agent as PID 1: checkpointed by CRIU, restored from another channel directory.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use common::{Channel, healthcheck, is_root, shell, skipped, wait_for};
use ha_proto::agent::{Health, Phase, RestartRule::No, State::Stateful};

const TEST: &str = "the_agent_is_the_same_after_a_restore_elsewhere";

/// Everything this test makes that outlives a process.
struct Container {
    name: String,
    dir: tempfile::TempDir,
    netns: Vec<String>,
}

impl Container {
    fn runc(&self, arguments: &[&str]) -> Output {
        let log = self.dir.path().join("runc.log");
        let _ = fs::remove_file(&log);
        let mut command = Command::new("runc");
        command.arg("--log").arg(&log).arg("--root").arg(self.dir.path().join("runc")).args(arguments);
        // What the container inherits may not be a file or a pipe of the host.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().unwrap();
        Output { status, stdout: Vec::new(), stderr: fs::read(log).unwrap_or_default() }
    }

    fn must(&self, arguments: &[&str]) {
        let output = self.runc(arguments);
        let work = fs::read_to_string(self.dir.path().join("work/restore.log")).unwrap_or_default();
        let dump = fs::read_to_string(self.dir.path().join("work/dump.log")).unwrap_or_default();
        let errors: Vec<&str> = work.lines().chain(dump.lines()).filter(|l| l.contains("Error")).collect();
        assert!(output.status.success(), "runc {arguments:?}: {} {errors:#?}", String::from_utf8_lossy(&output.stderr));
    }

    fn netns(&mut self, which: &str) -> bool {
        let netns = format!("{}{which}", self.name);
        let made = Command::new("ip").args(["netns", "add", &netns]).status().is_ok_and(|s| s.success());
        if made {
            self.netns.push(netns);
        }
        made
    }

    /// A bundle with its own channel directory, in the newest network namespace.
    fn bundle(&self, which: &str) -> (PathBuf, PathBuf) {
        let (bundle, channel) = (self.dir.path().join(which), self.dir.path().join(format!("channel-{which}")));
        fs::create_dir(&bundle).unwrap();
        fs::create_dir(&channel).unwrap();
        let caps = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "root": {"path": self.dir.path().join("rootfs")},
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": [], "args": ["/.ha-manager/bin/ha-agent"],
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                {"destination": "/.ha-manager/bin/ha-agent", "type": "bind", "options": ["bind", "ro"],
                 "source": self.dir.path().join("ha-agent")},
                {"destination": "/.ha-manager/channel", "type": "bind", "options": ["bind", "rw"], "source": channel},
            ],
            "linux": {
                "cgroupsPath": format!("/{}", self.name),
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "network", "path": format!("/run/netns/{}", self.netns.last().unwrap())},
                ],
            },
        });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        (bundle, channel)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.runc(&["delete", "--force", &self.name]);
        for netns in &self.netns {
            let _ = Command::new("ip").args(["netns", "del", netns]).status();
        }
    }
}

/// The program and the libraries it needs, under the same paths in `root`.
fn install(program: &str, root: &Path) {
    let libraries = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&libraries.stdout).into_owned();
    for path in text.split_whitespace().filter(|w| w.starts_with('/')).chain([program]) {
        let target = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
}

fn has(program: &str, argument: &str) -> bool {
    Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

#[test]
fn the_agent_is_the_same_after_a_restore_elsewhere() {
    if !is_root() {
        return skipped(TEST, "CRIU needs root");
    }
    for (program, argument) in [("runc", "--version"), ("criu", "check"), ("ip", "-V")] {
        if !has(program, argument) {
            return skipped(TEST, &format!("`{program} {argument}` fails here"));
        }
    }
    let dir = tempfile::Builder::new().prefix("hag-").tempdir().unwrap();
    let mut container = Container { name: format!("hag{}", std::process::id()), dir, netns: Vec::new() };
    let root = container.dir.path().join("rootfs");
    for path in ["proc", "dev", ".ha-manager/channel", ".ha-manager/bin"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    fs::write(root.join(".ha-manager/bin/ha-agent"), "").unwrap();
    let agent = shipped_agent();
    println!("the agent under test is {agent}");
    for program in ["/bin/sh", "/bin/sleep", &agent] {
        install(program, &root);
    }
    fs::copy(&agent, container.dir.path().join("ha-agent")).unwrap();
    if !container.netns("a") {
        return skipped(TEST, "a network namespace cannot be made here");
    }

    let (bundle, dir) = container.bundle("one");
    let mut config = shell("i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.05; done", Stateful, No);
    config.healthcheck = Some(healthcheck("exit 0"));
    let first = Channel::new(&dir, &config);
    container.must(&["run", "-d", "--bundle", bundle.to_str().unwrap(), &container.name]);
    first.wait_for_log("stdout F tick 5");
    wait_for("a healthy container", || (first.status().health() == Health::Healthy).then_some(()));
    let before = first.status();

    let [images, work] = ["images", "work"].map(|d| container.dir.path().join(d).to_str().unwrap().to_owned());
    let mut channel = first;
    for generation in ["two", "three", "four"] {
        channel.quiesce(60_000);
        container.must(&["checkpoint", "--image-path", &images, "--work-path", &work, &container.name]);
        let last = ticks(&channel);
        container.runc(&["delete", "--force", &container.name]);
        assert!(container.netns(&generation[..2]));
        let (bundle, dir) = container.bundle(generation);
        channel = Channel::open(&dir);
        let bundle = bundle.to_str().unwrap();
        container.must(&[
            "restore",
            "-d",
            "--bundle",
            bundle,
            "--image-path",
            &images,
            "--work-path",
            &work,
            &container.name,
        ]);
        let after = channel.status();
        assert_eq!(after.incarnation, before.incarnation, "the state is another");
        assert_eq!((after.phase(), after.main_pid), (Phase::Running, before.main_pid));
        assert!(channel.check(2000).check.unwrap().healthy);
        let next = wait_for("ticks in the log of the new directory", || Some(ticks(&channel)).filter(|n| *n > last));
        assert!(next < last + 200, "{last} to {next}");
        fs::remove_dir_all(&images).unwrap();
        let held = channel.quiesce(0);
        assert_eq!(held.status.unwrap().health(), Health::Healthy);
    }
    channel.stop(100);
    wait_for("the end", || channel.connect().is_err().then_some(()));
}

/// The static binary that containers get, where `scripts/build --debug` has made it; else cargo's own.
fn shipped_agent() -> String {
    if let Ok(path) = std::env::var("HA_AGENT_BIN") {
        return path;
    }
    let own = std::path::Path::new(env!("CARGO_BIN_EXE_ha-agent"));
    let built = own.ancestors().nth(2).map(|target| target.join("agent/debug/ha-agent"));
    built.filter(|path| path.is_file()).unwrap_or(own.to_owned()).display().to_string()
}

/// The newest tick in the channel's log.
fn ticks(channel: &Channel) -> u64 {
    let number = |line: &String| line.rsplit(' ').next().and_then(|n| n.parse().ok());
    channel.log().iter().filter(|l| l.starts_with("stdout F tick")).filter_map(number).next_back().unwrap_or(0)
}
