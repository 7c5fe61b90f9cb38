//! A container by hand: plain runc and CRIU as a careful operator would drive them. The yardstick for the manager, and
//! the proof that a node is a place where containers can be checkpointed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::{Value, json};

use crate::lab::Node;

/// A container's outside: names, address and directories. Two of them on different nodes can be the same container.
#[derive(Debug, Clone)]
pub struct Plain {
    pub name: String,
    /// With the prefix length: `10.77.0.50/16`.
    pub address: String,
    pub mac: String,
    pub argv: Vec<String>,
    /// The image; copied to each node it runs on.
    pub image: PathBuf,
}

/// How long the stock checkpoint took.
#[derive(Debug, Clone, Copy)]
pub struct Pause {
    pub wall: Duration,
}

impl Plain {
    /// The container `name` at 10.77.0.`host`.
    pub fn new(name: &str, host: u8, image: &Path, argv: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            address: format!("10.77.0.{host}/16"),
            mac: format!("02:77:00:00:00:{host:02x}"),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            image: image.to_owned(),
        }
    }

    fn bundle(&self, node: &Node) -> PathBuf {
        node.disk().join(&self.name)
    }

    fn runc(&self, node: &Node, args: &str) -> anyhow::Result<()> {
        // A container keeps what it was given as standard output, so nobody may wait for that to end.
        let log = self.bundle(node).join("runc.log");
        let null = || fs::OpenOptions::new().read(true).write(true).open("/dev/null");
        let mut command = node.command("runc")?;
        command.arg("--root=/run/plain-runc").arg("--log").arg(&log).args(args.split(' '));
        let status = command.stdin(null()?).stdout(null()?).stderr(null()?).status()?;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        anyhow::ensure!(status.success(), "runc {args}: {status}\n{}", said());
        Ok(())
    }

    /// A fresh network namespace with the container's address, its cable in the bridge `cbr0` or not yet.
    fn network(&self, node: &Node) -> anyhow::Result<()> {
        let name = &self.name;
        // The bridge is made once per node and takes the uplink in.
        if !node.output("ip link show dev cbr0")?.status.success() {
            node.exec("ip link add name cbr0 type bridge forward_delay 0")?;
            node.exec("ip link set cbr0 up")?;
            node.exec(&format!("ip link set {} master cbr0", Node::UPLINK))?;
        }
        node.exec(&format!("ip netns add {name}"))?;
        let mac = &self.mac;
        node.exec(&format!("ip link add v-{name} type veth peer name eth0 address {mac} netns {name}"))?;
        for args in ["link set lo up", &format!("addr add {} dev eth0", self.address), "link set eth0 up"] {
            node.exec(&format!("ip -n {name} {args}"))?;
        }
        node.exec(&format!("ip link set v-{name} up"))
            .and_then(|_| node.exec(&format!("ip link set v-{name} master cbr0")))
            .map(drop)
    }

    fn lay_out(&self, node: &Node) -> anyhow::Result<()> {
        let bundle = self.bundle(node);
        fs::create_dir_all(&bundle)?;
        let mut copy = std::process::Command::new("cp");
        crate::run(copy.arg("-a").arg(&self.image).arg(bundle.join("rootfs")))?;
        fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&self.config())?)?;
        Ok(())
    }

    /// Lays the container out on the node and starts it.
    ///
    /// # Errors
    /// With what `ip` or runc said.
    pub fn start(&self, node: &Node) -> anyhow::Result<()> {
        self.lay_out(node)?;
        self.network(node)?;
        self.runc(node, &format!("run -d --bundle {} {}", self.bundle(node).display(), self.name))
    }

    /// The stock checkpoint: pause, checkpoint leaving it running, resume; images into `images`.
    ///
    /// # Errors
    /// With what runc said, and the end of CRIU's log.
    pub fn checkpoint(&self, node: &Node, images: &Path) -> anyhow::Result<Pause> {
        fs::create_dir_all(images)?;
        fs::create_dir_all(images.with_extension("work"))?;
        self.checkpoint_into(node, images)
    }

    /// As `checkpoint`, into a directory that the node alone sees (its /run is memory).
    ///
    /// # Errors
    /// As `checkpoint`.
    pub fn checkpoint_inside(&self, node: &Node, images: &Path) -> anyhow::Result<Pause> {
        let work = images.with_extension("work");
        node.exec(&format!("mkdir -p {} {}", images.display(), work.display()))?;
        self.checkpoint_into(node, images)
    }

    fn checkpoint_into(&self, node: &Node, images: &Path) -> anyhow::Result<Pause> {
        let (name, work) = (&self.name, images.with_extension("work"));
        let begin = Instant::now();
        self.runc(node, &format!("pause {name}"))?;
        let options = "--leave-running --tcp-established --file-locks";
        let dump =
            format!("checkpoint {options} --image-path {} --work-path {} {name}", images.display(), work.display());
        let dumped = self.runc(node, &dump).with_context(|| criu_log(&work.join("dump.log")));
        self.runc(node, &format!("resume {name}"))?;
        dumped?;
        Ok(Pause { wall: begin.elapsed() })
    }

    /// Restores the container on a node that has never had it.
    ///
    /// # Errors
    /// As `checkpoint`.
    pub fn restore(&self, node: &Node, images: &Path) -> anyhow::Result<Duration> {
        self.lay_out(node)?;
        let begin = Instant::now();
        self.network(node)?;
        let work = self.bundle(node).join("work");
        fs::create_dir_all(&work)?;
        let dirs = format!("--bundle {} --image-path {}", self.bundle(node).display(), images.display());
        let options = format!("-d --tcp-established --file-locks {dirs} --work-path {}", work.display());
        self.runc(node, &format!("restore {options} {}", self.name))
            .with_context(|| criu_log(&work.join("restore.log")))?;
        Ok(begin.elapsed())
    }

    fn config(&self) -> Value {
        let namespace = |kind: &str| json!({ "type": kind });
        let capabilities = ["CAP_NET_BIND_SERVICE", "CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"];
        json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs", "readonly": false },
            "hostname": self.name,
            "process": {
                "terminal": false,
                "user": { "uid": 0, "gid": 0 },
                "args": self.argv,
                "env": ["PATH=/bin:/usr/bin", "HOME=/root"],
                "cwd": "/",
                "noNewPrivileges": true,
                "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                  "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"] },
            ],
            "annotations": { "org.criu.config": "/run/plain-criu.conf" },
            "linux": {
                "namespaces": [
                    namespace("pid"), namespace("ipc"), namespace("uts"), namespace("mount"),
                    { "type": "network", "path": format!("/run/netns/{}", self.name) },
                ],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
            },
        })
    }
}

/// Prepares a node for containers by hand: CRIU's network lock by nftables, which costs less than iptables.
///
/// # Errors
/// When the node is off.
pub fn prepare(node: &Node) -> anyhow::Result<()> {
    let line = "echo network-lock nftables > /run/plain-criu.conf";
    crate::run(node.command("sh")?.args(["-c", line])).map(drop)
}

fn criu_log(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let errors: Vec<&str> = text.lines().filter(|line| line.contains("Error") || line.contains("Warn")).collect();
    format!("CRIU's log {}:\n{}", path.display(), errors.join("\n"))
}
