//! Managers on the laboratory's nodes: started, asked, stopped, killed, and what they say collected.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

pub use crate::event::Event;
use crate::lab::{Cut, Lab, Node, NodeOptions};

/// The managers' program: `HA_MANAGER_BIN`, or the one built beside `ha-lab`.
///
/// # Errors
/// When it is not built.
pub fn manager_program() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("HA_MANAGER_BIN") {
        return Ok(PathBuf::from(path));
    }
    let beside = crate::lab_program()?.with_file_name("ha-manager");
    anyhow::ensure!(beside.is_file(), "{} is not built: run scripts/build", beside.display());
    Ok(beside)
}

/// The static agent: `HA_AGENT_BIN`, or what scripts/build made. The one beside `ha-manager` serves only when there is no
/// other: `cargo test` puts its own, dynamic one there.
///
/// # Errors
/// When it is not built.
pub fn agent_program() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("HA_AGENT_BIN") {
        return Ok(PathBuf::from(path));
    }
    let manager = manager_program()?;
    let profile = manager.parent().context("ha-manager is in no directory")?;
    let name = profile.file_name().unwrap_or_default();
    let built = profile.with_file_name("agent").join(name).join("ha-agent");
    let agent = if built.is_file() { built } else { manager.with_file_name("ha-agent") };
    anyhow::ensure!(agent.is_file(), "{} is not built: run scripts/build --debug", agent.display());
    Ok(agent)
}

/// The name of every cluster here.
pub const CLUSTER: &str = "lab";

/// A node with a manager, or with one that may be started.
#[derive(Debug)]
pub struct Member {
    pub node: Node,
    config: PathBuf,
    manager: Option<Child>,
    events: Arc<Mutex<Vec<Event>>>,
}

/// Nodes with managers that know each other.
#[derive(Debug)]
pub struct Cluster {
    // Before the laboratory: nodes go first.
    pub members: Vec<Member>,
    pub lab: Lab,
}

impl Cluster {
    /// Switches `count` nodes on and starts their managers. `extra` is added to every node's configuration: lines of
    /// TOML with dotted keys.
    ///
    /// # Errors
    /// With the node or manager that did not come up, and the end of its log.
    pub fn start(count: u8, extra: &str) -> anyhow::Result<Self> {
        let mut cluster = Self::without_managers(count, extra)?;
        cluster.start_managers()?;
        Ok(cluster)
    }

    /// As `start`, without starting the managers.
    ///
    /// # Errors
    /// With the node that did not come up.
    pub fn without_managers(count: u8, extra: &str) -> anyhow::Result<Self> {
        Self::nodes(count, extra, true)
    }

    /// As `without_managers`, with nodes that are told to do without certificates.
    ///
    /// # Errors
    /// With the node that did not come up.
    pub fn insecure(count: u8) -> anyhow::Result<Self> {
        Self::nodes(count, "tls.insecure = true", false)
    }

    fn nodes(count: u8, extra: &str, certificates: bool) -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let mut cluster = Self { members: Vec::new(), lab };
        for number in 1..=count {
            let node = cluster.lab.node(number, NodeOptions { bare_uplink: true })?;
            let peers: Vec<String> =
                (1..=count).filter(|n| *n != number).map(|n| format!("\"10.77.0.{n}:7420\"")).collect();
            let config = node.disk().join("node.toml");
            let mut text = configuration(&node, &cluster.lab, &peers.join(", "), extra)?;
            if certificates {
                let tls = node.disk().join("tls");
                cluster.issue(node.name(), &tls)?;
                text = format!("tls.dir = \"{}\"\n{text}", tls.display());
            }
            fs::write(&config, text)?;
            cluster.members.push(Member { node, config, manager: None, events: Arc::default() });
        }
        Ok(cluster)
    }

    /// Where the cluster's authority is, made with the first certificate.
    pub fn authority(&self) -> PathBuf {
        self.lab.dir().join("ca")
    }

    /// Makes a certificate for a node, in the directory `out`.
    ///
    /// # Errors
    /// With what `ha-manager ca` said.
    pub fn issue(&self, node: &str, out: &Path) -> anyhow::Result<()> {
        let dir = self.authority();
        let ca =
            |args: &[&str]| crate::run(Command::new(manager_program()?).arg("ca").args(args).arg("--dir").arg(&dir));
        if !dir.exists() {
            ca(&["init", "--cluster", CLUSTER])?;
        }
        ca(&["issue", node, "--out", &out.display().to_string()])?;
        Ok(())
    }

    /// Starts the manager of every node and waits until they see each other.
    ///
    /// # Errors
    /// With the manager that did not come up, and the end of its log.
    pub fn start_managers(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            member.start_manager()?;
        }
        self.wait_for_all()
    }

    /// Waits until every manager holds every node alive.
    ///
    /// # Errors
    /// As `wait`.
    pub fn wait_for_all(&self) -> anyhow::Result<()> {
        let all = self.members.len();
        self.wait("all managers to see each other", Duration::from_secs(20), |cluster| {
            cluster.members.iter().all(|member| member.sees_alive() == all)
        })
    }

    /// The number of the member that runs the container `name`, by its own account.
    pub fn owner_of(&self, name: &str) -> Option<usize> {
        let runs = |member: &Member| {
            let container = member.container(name);
            container.is_some_and(|c| c.get("node").is_some_and(|node| node == member.node.name()))
        };
        self.members.iter().position(|member| member.node.is_on() && runs(member))
    }

    /// Waits until `condition` holds.
    ///
    /// # Errors
    /// When it does not within `patience`; with the ends of the managers' logs.
    pub fn wait(&self, what: &str, patience: Duration, mut condition: impl FnMut(&Self) -> bool) -> anyhow::Result<()> {
        let start = Instant::now();
        while !condition(self) {
            if start.elapsed() > patience {
                let logs: Vec<String> = self.members.iter().map(Member::log_end).collect();
                bail!("waited {patience:?} for {what}\n{}", logs.join("\n"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until every manager that runs has looked through the whole store `times` times more: what it does by itself on
    /// what it finds there, it has done by then.
    ///
    /// # Errors
    /// As `wait`.
    pub fn wait_for_looks(&self, times: u64, patience: Duration) -> anyhow::Result<()> {
        self.looks_of(&self.members.iter().collect::<Vec<_>>(), times, patience)
    }

    /// As `wait_for_looks`, of one manager: others may not reach the store.
    ///
    /// # Errors
    /// As `wait`.
    pub fn wait_for_looks_of(&self, member: usize, times: u64, patience: Duration) -> anyhow::Result<()> {
        self.looks_of(&[&self.members[member]], times, patience)
    }

    fn looks_of(&self, members: &[&Member], times: u64, patience: Duration) -> anyhow::Result<()> {
        let running: Vec<&&Member> = members.iter().filter(|member| member.manager.is_some()).collect();
        let before: Vec<Option<u64>> = running.iter().map(|member| member.store_looks()).collect();
        // The first of them may have begun before.
        let done = |(member, before): (&&&Member, &Option<u64>)| member.store_looks() > before.map(|n| n + times);
        self.wait(&format!("{times} looks through the store"), patience, |_| running.iter().zip(&before).all(done))
    }

    /// Every event of every node up to now, each once, by time.
    pub fn events(&self) -> Vec<Event> {
        let mut all: Vec<Event> = Vec::new();
        for member in &self.members {
            for event in member.events.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                if !all.contains(event) {
                    all.push(event.clone());
                }
            }
        }
        all.sort_by_key(|event| event.at);
        all
    }

    /// The events of one kind, by time.
    pub fn of_kind(&self, kind: &str) -> Vec<Event> {
        self.events().into_iter().filter(|event| event.kind == kind).collect()
    }

    /// Waits for `count` events of a kind at or after `since`.
    ///
    /// # Errors
    /// As `wait`.
    pub fn wait_for_event(
        &self,
        kind: &str,
        since: SystemTime,
        count: usize,
        patience: Duration,
    ) -> anyhow::Result<Event> {
        let since = DateTime::<Utc>::from(since);
        let found = || self.of_kind(kind).into_iter().filter(|event| event.at >= since).nth(count - 1);
        self.wait(&format!("{count} × {kind}"), patience, |_| found().is_some())?;
        found().context("an event vanished")
    }
}

/// Why a test that needs managers cannot run here, or `None` when it can.
pub fn why_no_cluster() -> Option<String> {
    crate::why_no_nodes().or_else(|| agent_program().err().map(|err| err.to_string()))
}

fn configuration(node: &Node, lab: &Lab, peers: &str, extra: &str) -> anyhow::Result<String> {
    let agent = agent_program()?;
    let agent = agent.display();
    let (name, address, disk, store) = (node.name(), node.address(), node.disk(), lab.store());
    let (uplink, disk, store) = (Node::UPLINK, disk.display(), store.display());
    let network = format!(
        "[network]\nbridge = \"ha0\"\naddress = \"{address}/16\"\npool = \"10.77.1.0/24\"\nuplink = \"{uplink}\"\n"
    );
    Ok(format!(
        "agent = \"{agent}\"\nnode = \"{name}\"\ncluster = \"{CLUSTER}\"\nlisten = \"0.0.0.0:7420\"\nadvertise = \"{address}:7420\"\n\
         peers = [{peers}]\nstore = \"file://{store}\"\nstate_dir = \"{disk}/state\"\n{extra}\n\n{network}"
    ))
}

impl Member {
    /// Starts the manager and waits for nothing.
    ///
    /// # Errors
    /// When the node is off, or the manager runs already.
    pub fn launch_manager(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(self.manager.is_none(), "the manager of {} runs already", self.node.name());
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = self.node.command(manager_program()?)?;
        command.arg("run").arg("--config").arg(&self.config);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.manager = Some(command.spawn()?);
        Ok(())
    }

    /// How the manager ended, once, when it has ended by itself.
    pub fn manager_ended(&mut self) -> Option<ExitStatus> {
        let ended = self.manager.as_mut()?.try_wait().ok()??;
        self.manager = None;
        Some(ended)
    }

    /// Starts the manager and waits until it answers on its socket.
    ///
    /// # Errors
    /// When it ends or does not answer, with the end of its log.
    pub fn start_manager(&mut self) -> anyhow::Result<()> {
        self.launch_manager()?;
        let start = Instant::now();
        while self.cli(&["status", "--json"]).is_err() {
            let ended = self.manager.as_mut().and_then(|manager| manager.try_wait().ok().flatten());
            if ended.is_some() || start.elapsed() > Duration::from_secs(20) {
                let state = ended.map_or("does not answer".to_owned(), |status| format!("ended: {status}"));
                bail!("the manager of {} {state}\n{}", self.node.name(), self.log_end());
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.follow_events()
    }

    fn follow_events(&self) -> anyhow::Result<()> {
        let mut command = self.node.command(manager_program()?)?;
        command.args(["events", "--json", "--follow"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        let events = Arc::clone(&self.events);
        // It ends with its manager or its node.
        thread::Builder::new().name("events".to_owned()).spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                match serde_json::from_str::<Event>(&line) {
                    Ok(event) => {
                        let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
                        if !events.contains(&event) {
                            events.push(event);
                        }
                    }
                    Err(err) => eprintln!("ha-lab: not an event ({err}): {line}"),
                }
            }
            let _ = child.wait();
        })?;
        Ok(())
    }

    /// Adds lines to the end of the node's configuration, for the manager's next start.
    ///
    /// # Errors
    /// From the file system.
    pub fn add_configuration(&self, lines: &str) -> anyhow::Result<()> {
        let text = fs::read_to_string(&self.config)? + lines;
        Ok(fs::write(&self.config, text)?)
    }

    /// Sends the manager a signal and, when it is to end, waits for its end.
    ///
    /// # Errors
    /// When it does not run, or does not end within 20 s of a SIGTERM.
    pub fn stop_manager(&mut self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.manager_pid()?;
        let mut manager = self.manager.take().context("the manager does not run")?;
        // Killing the stand-in kills the manager; every other signal goes through.
        kill(Pid::from_raw(manager.id().cast_signed()), signal)?;
        let start = Instant::now();
        while manager.try_wait()?.is_none() {
            if start.elapsed() > Duration::from_secs(20) {
                manager.kill()?;
                manager.wait()?;
                bail!("the manager of {} did not end on {signal}\n{}", self.node.name(), self.log_end());
            }
            thread::sleep(Duration::from_millis(5));
        }
        // A killed stand-in is gone before the manager it takes with it, which holds its lock until then.
        while Path::new(&format!("/proc/{pid}")).exists() && start.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Cuts the node's power, its manager with it.
    ///
    /// # Errors
    /// As [`Node::power_cut`].
    pub fn power_cut(&mut self) -> anyhow::Result<Cut> {
        let cut = self.node.power_cut();
        if let Some(mut manager) = self.manager.take() {
            // Already dead.
            let _ = manager.wait();
        }
        cut
    }

    /// Runs `ha-manager ARGS` in the node and returns its output.
    ///
    /// # Errors
    /// With its standard error when it fails.
    pub fn cli(&self, args: &[&str]) -> anyhow::Result<String> {
        crate::run(self.cli_command()?.args(args))
    }

    /// `ha-manager` in the node, to be given arguments.
    ///
    /// # Errors
    /// When the node is off or the manager not built.
    pub fn cli_command(&self) -> anyhow::Result<Command> {
        self.node.command(manager_program()?)
    }

    /// `ha-manager ARGS --json`, parsed.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let text = crate::run(self.cli_command()?.args(args).arg("--json"))?;
        serde_json::from_str(&text).with_context(|| format!("ha-manager {args:?} --json printed {text:?}"))
    }

    /// Writes a Compose file to the node's disk and applies it.
    ///
    /// # Errors
    /// With what the manager said.
    pub fn apply(&self, compose: &str) -> anyhow::Result<String> {
        let file = self.node.disk().join("app.yaml");
        fs::write(&file, compose)?;
        self.cli(&["apply", "-f", &file.display().to_string()])
    }

    /// The status of a container as this node sees it.
    pub fn container(&self, name: &str) -> Option<Value> {
        let status = self.json(&["status"]).ok()?;
        status.get("containers")?.as_array()?.iter().find(|c| c.get("name").is_some_and(|n| n == name)).cloned()
    }

    /// How often the manager has looked through the store.
    fn store_looks(&self) -> Option<u64> {
        let status = self.json(&["status"]).ok()?;
        let own =
            status.get("nodes")?.as_array()?.iter().find(|node| node.get("liveness").is_some_and(|l| l == "self"))?;
        own.get("store_looks")?.as_u64()
    }

    /// How many nodes this one holds alive, itself included.
    pub fn sees_alive(&self) -> usize {
        let Ok(status) = self.json(&["status"]) else { return 0 };
        let nodes = status.get("nodes").and_then(Value::as_array).cloned().unwrap_or_default();
        let alive = |node: &&Value| matches!(node.get("liveness").and_then(Value::as_str), Some("alive" | "self"));
        nodes.iter().filter(alive).count()
    }

    fn log(&self) -> PathBuf {
        self.node.disk().join("manager.log")
    }

    /// What the manager has logged, over all its starts.
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// The last lines of the manager's log.
    pub fn log_end(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(30);
        format!("--- the manager's log on {}:\n{}", self.node.name(), lines[from..].join("\n"))
    }

    /// Copies the manager's log to a file that outlives the laboratory.
    ///
    /// # Errors
    /// From the file system.
    pub fn keep_log(&self, to: &Path) -> anyhow::Result<()> {
        let mut target = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        std::io::copy(&mut File::open(self.log())?, &mut target)?;
        Ok(())
    }

    /// The manager's process in the machine's numbering (its stand-in's child).
    ///
    /// # Errors
    /// When it does not run.
    pub fn manager_pid(&self) -> anyhow::Result<u32> {
        let stand_in = self.manager.as_ref().context("the manager does not run")?.id();
        let children = fs::read_to_string(format!("/proc/{stand_in}/task/{stand_in}/children"))?;
        children.trim().parse().with_context(|| format!("the manager's stand-in has children {children:?}"))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut manager) = self.manager.take() {
            // The node goes down with everything in it right after; this only reaps the stand-in.
            let _ = manager.kill();
            let _ = manager.wait();
        }
    }
}
