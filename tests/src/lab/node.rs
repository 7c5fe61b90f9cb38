//! One node: switched on, cut, its cable pulled, switched on again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Instant, SystemTime},
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Lab, holder::Holder, warden::NodeArgs};
use crate::census::Census;

/// How a node is wired.
#[derive(Debug, Clone, Copy, Default)]
pub struct NodeOptions {
    /// Leave the uplink without an address: something in the node (a bridge) will carry it.
    pub bare_uplink: bool,
}

/// When a power cut began, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub at: SystemTime,
    pub instant: Instant,
}

/// A node of a [`Lab`]. Dropping it cuts its power.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    options: NodeOptions,
    args: NodeArgs,
    /// Puts `ip` into the switch's namespace; a path, so that a node does not borrow its laboratory.
    switch_netns: PathBuf,
    switch_pid: u32,
    life: Option<Holder>,
}

impl Node {
    /// The name of the link to the switch, in every node.
    pub const UPLINK: &str = "uplink";

    pub(super) fn start(lab: &Lab, number: u8, options: NodeOptions) -> anyhow::Result<Self> {
        let name = format!("n{number}");
        let nodes_dir = lab.dir().join("nodes");
        fs::create_dir_all(nodes_dir.join(&name))?;
        let args = NodeArgs { group: format!("{}-{name}", lab.id()), hostname: name.clone(), nodes_dir };
        let (switch_netns, switch_pid) = (lab.switch.netns(), lab.switch.pid);
        let mut node = Self { name, number, options, args, switch_netns, switch_pid, life: None };
        node.power_on()?;
        Ok(node)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// 10.77.0.NUMBER.
    pub fn address(&self) -> String {
        format!("10.77.0.{}", self.number)
    }

    /// The node's disk: kept over power cuts, not seen by its peers, the same path inside and outside.
    pub fn disk(&self) -> PathBuf {
        self.args.nodes_dir.join(&self.name)
    }

    /// The name of the node's control group in every hierarchy.
    pub fn group(&self) -> &str {
        &self.args.group
    }

    pub fn is_on(&self) -> bool {
        self.life.is_some()
    }

    /// The node's PID 1 as this process sees it.
    ///
    /// # Errors
    /// When the node is off.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.life.as_ref().map(|life| life.pid).with_context(|| format!("the node {} is off", self.name))
    }

    /// The node's network namespace, for `in_netns`.
    ///
    /// # Errors
    /// When the node is off.
    pub fn netns(&self) -> anyhow::Result<PathBuf> {
        self.pid().map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    fn port(&self) -> String {
        format!("p-{}", self.name)
    }

    fn switch_ip(&self, args: &str) -> anyhow::Result<()> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.switch_netns.display())).arg("ip").args(args.split(' '));
        crate::run(&mut command).map(drop)
    }

    /// Switches a node on that is off: /run is empty, the disk is as it was.
    ///
    /// # Errors
    /// With the part that could not be made; the node is then off.
    pub fn power_on(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(self.life.is_none(), "the node {} is on already", self.name);
        let args = &self.args;
        let life = Holder::start([
            "node-warden".to_owned(),
            format!("--group={}", args.group),
            format!("--hostname={}", args.hostname),
            format!("--nodes-dir={}", args.nodes_dir.display()),
        ])?;
        let port = self.port();
        self.switch_ip(&format!("link add {port} type veth peer name {} netns {}", Self::UPLINK, life.pid))?;
        self.switch_ip(&format!("link set {port} master sw up"))?;
        let mut ip = vec![format!("link set {} up", Self::UPLINK)];
        if !self.options.bare_uplink {
            ip.push(format!("addr add {}/16 dev {}", self.address(), Self::UPLINK));
        }
        for args in ip {
            crate::run(life.net_command("ip").args(args.split(' ')))?;
        }
        self.life = Some(life);
        Ok(())
    }

    /// The power cut: the cable goes dead, so that no dying process says goodbye, then everything is killed at once.
    /// Returns, after all of it is dead and gone, when it began.
    ///
    /// # Errors
    /// When the node is off, or its warden could not remove its control groups.
    pub fn power_cut(&mut self) -> anyhow::Result<Cut> {
        let pid = self.pid()?;
        let cut = Cut { at: SystemTime::now(), instant: Instant::now() };
        self.link_down()?;
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).context("cannot kill the node")?;
        let life = self.life.take();
        life.map_or(Ok(()), |mut life| life.wait())?;
        // The namespace's end takes the cable with it, but the kernel does that when it finds the time.
        let _ = self.switch_ip(&format!("link del {}", self.port()));
        Ok(cut)
    }

    /// Pulls the cable at the switch: the node goes on, alone, and sees no carrier.
    ///
    /// # Errors
    /// When the switch has no such port any more.
    pub fn link_down(&self) -> anyhow::Result<()> {
        self.switch_ip(&format!("link set {} down", self.port()))
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// When the switch has no such port any more.
    pub fn link_up(&self) -> anyhow::Result<()> {
        self.switch_ip(&format!("link set {} up", self.port()))
    }

    /// A command that will run inside the node, in its control groups. Its process here is a stand-in: signals sent to
    /// it go through, its exit code is the program's, and killing it kills the program.
    ///
    /// # Errors
    /// When the node is off.
    pub fn command(&self, program: impl AsRef<Path>) -> anyhow::Result<Command> {
        let mut command = Command::new(crate::lab_program()?);
        command.arg("node-exec").arg(format!("--pid={}", self.pid()?)).arg(format!("--group={}", self.group()));
        command.arg("--").arg(program.as_ref());
        Ok(command)
    }

    /// Runs a command line (split at blanks) in the node to its end and returns its output.
    ///
    /// # Errors
    /// When it cannot be started or fails; the error has its standard error.
    pub fn exec(&self, line: &str) -> anyhow::Result<String> {
        let mut words = line.split_whitespace();
        crate::run(self.command(words.next().context("no command given")?)?.args(words))
    }

    /// Runs a command line (split at blanks) in the node and returns whatever came of it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, line: &str) -> anyhow::Result<Output> {
        let mut words = line.split_whitespace();
        Ok(self.command(words.next().context("no command given")?)?.args(words).output()?)
    }

    /// The processes in the node whose command line begins with `program`, in the machine's numbering.
    pub fn processes(&self, program: &str) -> Vec<u32> {
        let runs = |pid: &u32| {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            // The counter is its own healthcheck, too: for a moment each second, or for as long as it is frozen in the middle.
            let checks = command.contains(" --probe");
            command.starts_with(program) && !checks && self.holds(&String::from_utf8_lossy(&read("cgroup")))
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(runs).collect()
    }

    /// Whether a process with this /proc/PID/cgroup is in the node's groups or below.
    fn holds(&self, cgroup: &str) -> bool {
        cgroup.lines().any(|line| line.split('/').any(|part| part == self.group()))
    }

    /// Everything in the node that a program could leave behind.
    ///
    /// # Errors
    /// When the node is off.
    pub fn census(&self) -> anyhow::Result<Census> {
        let json = crate::run(self.command(crate::lab_program()?)?.arg("census"))?;
        Ok(serde_json::from_str(&json)?)
    }

    /// The switch's process, for tests that look at the wire.
    pub fn switch_pid(&self) -> u32 {
        self.switch_pid
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.is_on()
            && let Err(err) = self.power_cut()
        {
            eprintln!("ha-lab: {err:#}");
        }
    }
}
