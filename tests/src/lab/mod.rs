//! Nodes, a switch between them, and clients on the same switch.
//!
//! ```text
//!    node n1                 node n2                  clients
//!   (net pid mnt uts        (net pid mnt uts         (net)
//!    ipc cgroup)             ipc cgroup)
//!      uplink                  uplink                 eth0 10.77.0.200
//!        │                       │                      │
//!   ─────┴───────────────────────┴──────────────────────┴─────  bridge in a namespace of its own
//! ```
//!
//! Nothing of it is in the machine's own network namespace, and nothing has a global name except control groups and one
//! directory, which carry the laboratory's process number: laboratories run side by side.

pub mod cgroup;
mod holder;
mod node;
pub mod warden;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::Context;
use holder::Holder;
pub use holder::in_netns;
pub use node::{Cut, Node, NodeOptions};

/// Begins the name of everything global a laboratory makes.
pub const PREFIX: &str = "halab";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A switch, a client namespace and a directory. Nodes are added to it; dropping it takes all of it away.
#[derive(Debug)]
pub struct Lab {
    id: String,
    dir: PathBuf,
    switch: Holder,
    clients: Holder,
}

impl Lab {
    /// The clients' address.
    pub const CLIENT: &str = "10.77.0.200";

    /// Builds the switch and the client namespace, and removes what laboratories that were killed have left.
    ///
    /// # Errors
    /// With the step that failed: not root, no `ip`, no room for the directory.
    pub fn new() -> anyhow::Result<Self> {
        Self::under(&std::env::temp_dir())
    }

    /// As `new`, with the laboratory's directory (disks and store) below `parent`.
    ///
    /// # Errors
    /// As `new`.
    pub fn under(parent: &Path) -> anyhow::Result<Self> {
        sweep(parent);
        let id = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = parent.join(&id);
        fs::create_dir_all(dir.join("nodes")).with_context(|| format!("cannot create {}", dir.display()))?;
        fs::create_dir_all(dir.join("store"))?;
        let hold = || Holder::start(["hold".to_owned()]);
        let lab = Self { switch: hold()?, clients: hold()?, id, dir };
        lab.wire()?;
        Ok(lab)
    }

    fn wire(&self) -> anyhow::Result<()> {
        // Without the zero the bridge holds a new port's packets back for 15 s.
        self.switch_ip("link add sw type bridge forward_delay 0 mcast_snooping 0")?;
        self.switch_ip("link set sw up")?;
        self.plug("p-client", "eth0", self.clients.pid)?;
        for args in [format!("addr add {}/16 dev eth0", Self::CLIENT), "link set eth0 up".to_owned()] {
            crate::run(self.clients.net_command("ip").args(args.split(' ')))?;
        }
        Ok(())
    }

    /// A cable from the switch's new port `port` to `link` in the network namespace of process `pid`.
    fn plug(&self, port: &str, link: &str, pid: u32) -> anyhow::Result<()> {
        self.switch_ip(&format!("link add {port} type veth peer name {link} netns {pid}"))?;
        self.switch_ip(&format!("link set {port} master sw up"))
    }

    fn switch_ip(&self, args: &str) -> anyhow::Result<()> {
        crate::run(self.switch.net_command("ip").args(args.split(' '))).map(drop)
    }

    /// Unique on this machine; part of every global name of this laboratory.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The laboratory's directory, the same path in every node.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The shared object store's directory: what nodes see of each other.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Switches a new node on. The number is also the last part of its address: 10.77.0.NUMBER.
    ///
    /// # Errors
    /// With the part of the node that could not be made.
    pub fn node(&self, number: u8, options: NodeOptions) -> anyhow::Result<Node> {
        Node::start(self, number, options)
    }

    /// The clients' network namespace, for `in_netns`.
    pub fn client_netns(&self) -> PathBuf {
        self.clients.netns()
    }

    /// A command run in the clients' network namespace.
    pub fn client_command(&self, program: &str) -> Command {
        self.clients.net_command(program)
    }

    /// Runs `work` on a thread in the clients' network namespace.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn on_client<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<thread::JoinHandle<anyhow::Result<T>>> {
        in_netns(self.client_netns(), work)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir_all(&self.dir) {
            eprintln!("ha-lab: {} stays behind: {err}", self.dir.display());
        }
    }
}

/// Removes the directories of laboratories whose process is gone. Their wardens have removed everything else.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('-')?.0.parse::<u32>().ok());
        if let Some(pid) = pid
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            // A race with another sweep is harmless.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
