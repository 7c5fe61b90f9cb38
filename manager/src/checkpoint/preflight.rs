//! Finding what CRIU would fail on, before the freeze: each obstacle with its process, its descriptor and its remedy.
//!
//! It looks at a running container, so it may be out of date by the time of the freeze; then CRIU's own error is what is
//! reported. It never refuses what CRIU can dump.

use std::{
    collections::{HashMap, HashSet},
    fmt, fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use super::{
    proc,
    sockets::{self, UnixSocket},
};
use crate::runtime::{ExitWatch, may_raise_limits};

/// Something that makes a dump fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// As the node sees it.
    pub pid: i32,
    pub program: String,
    /// The descriptor, where it is one.
    pub fd: Option<i32>,
    pub what: String,
    pub remedy: &'static str,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.program)?;
        if let Some(fd) = self.fd {
            write!(f, ", descriptor {fd}")?;
        }
        write!(f, ": {}; {}", self.what, self.remedy)
    }
}

pub(super) fn join(obstacles: &[Obstacle]) -> String {
    obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// All obstacles found in the container's processes.
pub fn preflight(init_pid: i32) -> Vec<Obstacle> {
    let processes = proc::descendants(init_pid);
    let mut look = Look::new(init_pid, &processes);
    // In the manager's own PID namespace (which a container never has) everybody would be such a session.
    let is_apart = look.pid_namespace != proc::namespace_inode(std::process::id() as i32, "pid");
    for pid in proc::in_pid_namespace_of(init_pid) {
        if is_apart && !processes.contains(&pid) {
            let what = "it was started from outside into the container (an exec session)".to_owned();
            look.found(pid, None, what, "end the session before the checkpoint");
        }
    }
    for pid in processes {
        look.process(pid);
    }
    look.obstacles
}

struct Look {
    pid_namespace: Option<u64>,
    /// What the processes have open, by process and descriptor.
    links: HashMap<i32, Vec<(i32, String)>>,
    /// Inodes of all their sockets.
    inside: HashSet<u32>,
    /// Those that wait for a listener inside to accept them: their other ends have no inode yet.
    waiting: HashSet<u32>,
    unix: HashMap<u32, UnixSocket>,
    /// Numbers of the pseudo-terminals whose masters are inside.
    masters: HashSet<u32>,
    may_raise_limits: bool,
    obstacles: Vec<Obstacle>,
}

impl Look {
    fn new(init_pid: i32, processes: &[i32]) -> Self {
        let mut links = HashMap::new();
        let mut inside = HashSet::new();
        let mut masters = HashSet::new();
        for &pid in processes {
            let open: Vec<(i32, String)> =
                proc::descriptors(pid).into_iter().filter_map(|fd| Some((fd, link(pid, fd)?))).collect();
            for (fd, link) in &open {
                inside.extend(socket_inode(link));
                if link.ends_with("/ptmx") {
                    masters.extend(fdinfo(pid, *fd, "tty-index").and_then(|index| index.parse::<u32>().ok()));
                }
            }
            links.insert(pid, open);
        }
        // Without an answer unix sockets are left to CRIU to judge.
        let unix = if inside.is_empty() { HashMap::new() } else { sockets::unix_sockets(init_pid).unwrap_or_default() };
        let waiting = unix.iter().filter(|(inode, _)| inside.contains(inode)).flat_map(|(_, socket)| &socket.waiting);
        let waiting = waiting.copied().collect();
        Self {
            pid_namespace: proc::namespace_inode(init_pid, "pid"),
            links,
            inside,
            waiting,
            unix,
            masters,
            may_raise_limits: may_raise_limits(),
            obstacles: Vec::new(),
        }
    }

    fn found(&mut self, pid: i32, fd: Option<i32>, what: String, remedy: &'static str) {
        self.obstacles.push(Obstacle { pid, program: proc::name(pid), fd, what, remedy });
    }

    fn process(&mut self, pid: i32) {
        if let Some(tracer) = proc::status_field(pid, "TracerPid").filter(|tracer| tracer != "0") {
            let what = format!("it is being traced by process {tracer}");
            self.found(pid, None, what, "end the debugger or strace");
        }
        let namespace = proc::namespace_inode(pid, "pid");
        if namespace.is_some() && namespace != self.pid_namespace {
            let what = "it has a PID namespace of its own inside the container".to_owned();
            self.found(pid, None, what, "run such a program (a container in the container, a sandbox) without it");
        }
        let uids = proc::status_field(pid, "Uid").unwrap_or_default();
        let user = uids.split_ascii_whitespace().find(|uid| *uid != "0");
        if let Some(user) = user.filter(|_| !self.may_raise_limits) {
            let what = format!("it runs as user {user}, and the manager lacks CAP_SYS_RESOURCE to read its limits");
            self.found(pid, None, what, "give the manager CAP_SYS_RESOURCE, or run the container as root");
        }
        let mounts: HashSet<u32> = proc::mounts(pid).into_iter().map(|mount| mount.id).collect();
        let watch = ExitWatch::new(pid).ok();
        let mut half_removed = HashSet::new();
        for (fd, link) in self.links.remove(&pid).unwrap_or_default() {
            if let Some(name) = half_removed_file(pid, &format!("fd/{fd}"), &link) {
                self.half_removed(pid, Some(fd), name);
                half_removed.insert(link);
            } else if let Some(inode) = socket_inode(&link) {
                self.socket(pid, fd, inode, watch.as_ref());
            } else if let Some(kind) = link.strip_prefix("anon_inode:") {
                self.anonymous(pid, fd, kind);
            } else if link.starts_with('/') {
                self.file(pid, fd, &link, &mounts);
            }
        }
        for (range, name) in proc::removed_mappings(pid) {
            if let Some(plain) = half_removed_file(pid, &format!("map_files/{range}"), &name)
                && half_removed.insert(name.clone())
            {
                self.half_removed(pid, None, plain);
            }
        }
    }

    fn half_removed(&mut self, pid: i32, fd: Option<i32>, name: &str) {
        let what = format!(
            "{name} has been removed while it is in use, and its file has another name (a hard link), or belongs to the image"
        );
        let remedy = "let the program close it, or restart it after an upgrade of its files";
        self.found(pid, fd, what, remedy);
    }

    fn anonymous(&mut self, pid: i32, fd: i32, kind: &str) {
        let kind = kind.trim_matches(['[', ']']);
        let remedy = match kind {
            "inotify" => {
                if self.watches_overlay(pid, fd) {
                    let what = "it watches a file of the overlay with inotify".to_owned();
                    let remedy = "watch a volume or a tmpfs instead, or switch the watching off (polling)";
                    self.found(pid, Some(fd), what, remedy);
                }
                return;
            }
            "io_uring" => {
                "switch io_uring off in the program, or start the container with the manager's own seccomp profile"
            }
            "perf_event" => "stop the profiling",
            "userfaultfd" => "the program manages its own page faults, which cannot be dumped",
            _ if kind.starts_with("kvm") => "virtual machines cannot be dumped",
            _ => return,
        };
        self.found(pid, Some(fd), format!("it has an {kind} open"), remedy);
    }

    /// The kernel finds a watched file again by its handle, which an overlay cannot give.
    fn watches_overlay(&self, pid: i32, fd: i32) -> bool {
        let overlays: HashSet<(u32, u32)> =
            proc::mounts(pid).into_iter().filter(|mount| mount.kind == "overlay").map(|mount| mount.device).collect();
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
        let watches = info.lines().filter(|line| line.starts_with("inotify "));
        let devices = watches.filter_map(|line| {
            let hex = line.split(' ').find_map(|field| field.strip_prefix("sdev:"))?;
            u32::from_str_radix(hex, 16).ok()
        });
        devices.map(|device| (device >> 20, device & 0xf_ffff)).any(|device| overlays.contains(&device))
    }

    fn socket(&mut self, pid: i32, fd: i32, inode: u32, watch: Option<&ExitWatch>) {
        if let Some(socket) = self.unix.get(&inode) {
            let is_inside = |peer: u32| match peer {
                0 => self.waiting.contains(&inode),
                peer => self.inside.contains(&peer),
            };
            if socket.peer.is_some_and(|peer| !is_inside(peer)) {
                let what = "it is a unix socket connected to a process outside the container".to_owned();
                let remedy = "connect per message, or let the container be the side that listens";
                self.found(pid, Some(fd), what, remedy);
            }
            return;
        }
        let Some(socket) = watch.and_then(|watch| sockets::take_descriptor(watch, fd).ok()) else { return };
        let option = |name| sockets::get_int(&socket, libc::SOL_SOCKET, name).unwrap_or(-1);
        let (domain, kind, protocol) = (option(libc::SO_DOMAIN), option(libc::SO_TYPE), option(libc::SO_PROTOCOL));
        let (what, remedy) = match (domain, protocol) {
            (libc::AF_UNIX, _) if !self.unix.is_empty() => {
                ("it is a unix socket of another network namespace", "do not pass the container a socket of the node")
            }
            (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_MPTCP) => (
                "it is a Multipath TCP socket",
                "switch MPTCP off (Go: GODEBUG=multipathtcp=0; node-wide: sysctl net.mptcp.enabled=0)",
            ),
            (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_SCTP) => ("it is an SCTP socket", "use TCP or UDP"),
            (libc::AF_INET, libc::IPPROTO_ICMP) | (libc::AF_INET6, libc::IPPROTO_ICMPV6)
                if kind == libc::SOCK_DGRAM =>
            {
                ("it is a ping socket", "close it between pings, or use a raw socket")
            }
            (libc::AF_VSOCK, _) => ("it is a vsock socket", "use TCP"),
            (libc::AF_ALG, _) => ("it is a kernel crypto socket", "use a library for cryptography"),
            (libc::AF_XDP, _) => ("it is an XDP socket", "use ordinary sockets"),
            (libc::AF_BLUETOOTH, _) => ("it is a Bluetooth socket", "keep it out of a stateful container"),
            _ => return,
        };
        self.found(pid, Some(fd), what.to_owned(), remedy);
    }

    fn file(&mut self, pid: i32, fd: i32, path: &str, mounts: &HashSet<u32>) {
        // Memory with a name: of no mount that anybody sees.
        if path.starts_with("/memfd:") || path.starts_with("/SYSV") || path.starts_with("/dev/zero (deleted)") {
            return;
        }
        let Ok(meta) = fs::metadata(format!("/proc/{pid}/fd/{fd}")) else { return };
        let mount = fdinfo(pid, fd, "mnt_id").and_then(|id| id.parse().ok());
        if mount.is_some_and(|id| !mounts.contains(&id)) {
            let what = format!("{path} is a file of the node, outside the container's mounts");
            self.found(pid, Some(fd), what, "start the container with /dev/null or a file of its own there");
            return;
        }
        if !meta.file_type().is_char_device() {
            return;
        }
        let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        match major {
            136..=143 => {
                let number = (major - 136) * 256 + minor;
                if !self.masters.contains(&number) {
                    let what = format!("{path} is a terminal whose other end is outside the container");
                    self.found(pid, Some(fd), what, "start the container without a terminal");
                }
            }
            4 => {
                let what = format!("{path} is a terminal of the node");
                self.found(pid, Some(fd), what, "start the container without a terminal");
            }
            // Memory devices (null, zero, random …) and /dev/tty, ptmx.
            1 | 5 => {}
            10 if minor == 200 => {} // TUN, which CRIU knows
            _ => {
                let what = format!("{path} is a device ({major}:{minor}), whose state is not in the process");
                self.found(
                    pid,
                    Some(fd),
                    what,
                    "close the device before the checkpoint, or make the container stateless",
                );
            }
        }
    }
}

fn link(pid: i32, fd: i32) -> Option<String> {
    Some(fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?.to_string_lossy().into_owned())
}

fn fdinfo(pid: i32, fd: i32, field: &str) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// The name by which a file was opened that has lost this name and has others, which CRIU cannot open it by. One without any
/// name is dumped with its content.
fn half_removed_file<'l>(pid: i32, at: &str, link: &'l str) -> Option<&'l str> {
    let name = link.strip_suffix(" (deleted)").filter(|name| name.starts_with('/'))?;
    if name.starts_with("/memfd:") || name.starts_with("/SYSV") || name == "/dev/zero" {
        return None;
    }
    let meta = fs::metadata(format!("/proc/{pid}/{at}")).ok().filter(|meta| meta.is_file() && meta.nlink() > 0)?;
    // A file may be called so.
    let called = fs::symlink_metadata(format!("/proc/{pid}/root{link}")).ok();
    let is_called_so = called.is_some_and(|called| (called.dev(), called.ino()) == (meta.dev(), meta.ino()));
    (!is_called_so).then_some(name)
}

fn socket_inode(link: &str) -> Option<u32> {
    proc::bracketed(Path::new(link), "socket").and_then(|inode| u32::try_from(inode).ok())
}

/// CRIU keeps the contents of deleted files that are still open or mapped in the images, up to a size it is told.
pub(super) fn ghost_limit(init_pid: i32) -> u32 {
    const DEFAULT: u64 = 1 << 20;
    let mut largest = 0;
    let mut consider = |path: String| largest = largest.max(fs::metadata(path).map_or(0, |meta| meta.size()));
    for pid in proc::descendants(init_pid) {
        for fd in proc::descriptors(pid) {
            if link(pid, fd).is_some_and(|link| link.ends_with(" (deleted)")) {
                consider(format!("/proc/{pid}/fd/{fd}"));
            }
        }
        for (range, _) in proc::removed_mappings(pid) {
            consider(format!("/proc/{pid}/map_files/{range}"));
        }
    }
    // It may grow until the freeze.
    u32::try_from(largest.saturating_mul(2).max(DEFAULT)).unwrap_or(u32::MAX)
}
