//! What the recovery tests share: a counter described to measure, and the search for what a recovery left behind.

use std::{collections::BTreeSet, fs};

use ha_lab::{
    cluster::{Cluster, Event},
    demo::Workload,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value as Json, json};

use super::{PATIENCE, cannot_run};

pub const COUNTER: &str = "/bin/counter";
pub const AGENT: &str = "/.ha-manager/bin/ha-agent";

/// A Compose file with the counter, to be changed before it is applied.
pub struct Described(Json);

impl Described {
    pub fn stateful(command: &[&str]) -> Self {
        Self::new(command, Some(super::NEVER))
    }

    pub fn stateless(command: &[&str]) -> Self {
        Self::new(command, None)
    }

    fn new(command: &[&str], sensitivity: Option<&str>) -> Self {
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let text = Workload::Counter.compose_with(&command, sensitivity).unwrap();
        Self(serde_json::from_str(&text).unwrap())
    }

    fn service(mut self, key: &str, value: Json) -> Self {
        self.0["services"]["counter"][key] = value;
        self
    }

    pub fn restart(self, policy: &str) -> Self {
        self.service("restart", json!(policy))
    }

    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.0["services"]["counter"]["annotations"][format!("io.ha-manager.{name}")] = json!(value);
        self
    }

    pub fn recovery(self, steps: &str) -> Self {
        self.annotation("recovery", steps)
    }

    pub fn check_every(mut self, interval: &str, retries: u32) -> Self {
        let check = &mut self.0["services"]["counter"]["healthcheck"];
        (check["interval"], check["retries"]) = (json!(interval), json!(retries));
        self
    }

    pub fn without_healthcheck(mut self) -> Self {
        self.0["services"]["counter"].as_object_mut().unwrap().remove("healthcheck");
        self
    }

    pub fn volume(mut self, name: &str, target: &str) -> Self {
        self.0["volumes"] = json!({ name: {} });
        self.service("volumes", json!([format!("{name}:{target}")]))
    }

    pub fn text(&self) -> String {
        self.0.to_string()
    }
}

/// Nodes before anything ran on them, and then with the container on the first.
pub struct Watched {
    pub cluster: Cluster,
    before: Vec<BTreeSet<String>>,
}

impl Watched {
    /// `None` after saying why the test is skipped.
    pub fn start(test: &str, count: u8, described: &Described) -> Option<Self> {
        if cannot_run(test) {
            return None;
        }
        let cluster = Cluster::start(count, "").unwrap();
        let before = (0..cluster.members.len()).map(|number| look(&cluster, number)).collect();
        cluster.members[0].apply(&described.text()).unwrap();
        Some(Self { cluster, before })
    }

    pub fn phase(&self) -> Option<String> {
        let mut on = self.cluster.members.iter().filter(|member| member.node.is_on());
        let container = on.next()?.container("counter")?;
        container.get("phase").and_then(Json::as_str).map(str::to_owned)
    }

    pub fn wait_for_phase(&self, phase: &str) {
        self.cluster
            .wait(&format!("the phase {phase}"), PATIENCE * 2, |_| self.phase().as_deref() == Some(phase))
            .unwrap();
    }

    pub fn wait_until_on(&self, number: usize) {
        self.cluster
            .wait(&format!("node {number} to run the container"), PATIENCE * 2, |cluster| {
                cluster.owner_of("counter") == Some(number) && self.phase().as_deref() == Some("running")
            })
            .unwrap();
    }

    /// Switches a node on again after a power cut; returns when all see each other.
    pub fn switch_on(&mut self, number: usize) {
        self.cluster.members[number].node.power_on().unwrap();
        self.cluster.members[number].start_manager().unwrap();
        self.cluster.wait_for_all().unwrap();
    }

    /// Every step of the ladder up to now, in order.
    pub fn steps(&self) -> Vec<String> {
        self.cluster.of_kind("recovery.step").iter().map(|event| event.text("step").unwrap().to_owned()).collect()
    }

    pub fn signal(&self, number: usize, program: &str, signal: Signal) {
        let pids = self.cluster.members[number].node.processes(program);
        assert_eq!(pids.len(), 1, "{program} runs {} times on node {number}", pids.len());
        kill(Pid::from_raw(pids[0].cast_signed()), signal).unwrap();
    }

    /// Nothing of the container is on the node any more: no process, link, namespace, mount, control group, rule or file.
    pub fn clean(&self, number: usize) {
        let left = || look(&self.cluster, number).difference(&self.before[number]).cloned().collect::<Vec<_>>();
        let gone = self.cluster.wait("the leftovers to go", PATIENCE, |_| left().is_empty());
        assert!(gone.is_ok(), "left on node {number}: {:#?}\n{:?}", left(), gone);
    }

    /// As `clean`, but the container may still be this node's: its files may be there.
    pub fn clean_but_for_files(&self, number: usize) {
        let left = || {
            let left = look(&self.cluster, number);
            left.difference(&self.before[number]).filter(|line| !line.starts_with("file ")).cloned().collect::<Vec<_>>()
        };
        let gone = self.cluster.wait("what was made to go", PATIENCE, |_| left().is_empty());
        assert!(gone.is_ok(), "left on node {number}: {:#?}\n{:?}", left(), gone);
    }

    /// Nothing is left on the nodes that do not run the container, and nothing anywhere once it is removed.
    pub fn finish(self) {
        let owner = self.cluster.owner_of("counter").expect("nobody has the counter");
        let on: Vec<usize> =
            (0..self.cluster.members.len()).filter(|number| self.cluster.members[*number].node.is_on()).collect();
        on.iter().filter(|number| **number != owner).for_each(|number| self.clean(*number));
        self.cluster.members[owner].cli(&["rm", "counter"]).unwrap();
        on.iter().for_each(|number| self.clean(*number));
    }

    pub fn events(&self, kind: &str) -> Vec<Event> {
        self.cluster.of_kind(kind)
    }
}

/// The node's census without process numbers, and its files of containers.
fn look(cluster: &Cluster, number: usize) -> BTreeSet<String> {
    let node = &cluster.members[number].node;
    let census = node.census().unwrap();
    let without_pid = |line: &str| match line.strip_prefix("process ").and_then(|rest| rest.split_once(' ')) {
        Some((_, command)) => format!("process {command}"),
        None => line.to_owned(),
    };
    // The test's own questions to the manager come and go.
    let ours =
        |line: &String| !(line.starts_with("process ") && line.contains("ha-manager ") && !line.contains(" run "));
    // Made once and kept: the parent of all containers' control groups, the place of named network namespaces.
    let kept = |line: &String| {
        line.ends_with("/ha-manager") && line.starts_with("cgroup ") || line == "mount /run/netns (tmpfs)"
    };
    let mut found: BTreeSet<String> =
        census.lines().map(without_pid).filter(|line| ours(line) && !kept(line)).collect();
    let containers = fs::read_dir(node.disk().join("state/containers")).into_iter().flatten().flatten();
    found.extend(containers.map(|entry| format!("file {}", entry.path().display())));
    for dir in ["runc", "images"] {
        let listed = node.output(&format!("ls /run/ha-manager/{dir}")).unwrap();
        found.extend(String::from_utf8_lossy(&listed.stdout).lines().map(|name| format!("file {dir}/{name}")));
    }
    found
}
