//! What every container gets: Docker's capabilities, the default mounts and masks, and a seccomp filter without io_uring.

use serde_json::{Value, json};

/// Docker's default set.
pub(super) const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Docker's masked files. The directories Docker masks are made read-only instead ([`READONLY_PATHS`]): each masked
/// directory is one more tmpfs, which CRIU archives while the container stands still (5 ms each).
pub(super) const MASKED_PATHS: [&str; 6] =
    ["/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/timer_list"];

pub(super) const READONLY_PATHS: [&str; 7] =
    ["/proc/acpi", "/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// No `/sys/fs/cgroup`: its layout differs between nodes, and few programs need it.
pub(super) fn mounts() -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ]
}

/// Everything is allowed but io_uring, which answers "not implemented": CRIU cannot dump a ring, and programs fall back
/// to epoll or threads when the system calls are missing. The capabilities are what confines a container here.
pub(super) fn seccomp() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["io_uring_setup", "io_uring_enter", "io_uring_register"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": libc::ENOSYS,
        }],
    })
}

/// What CRIU reads at a restore through the runtime. The runtime has put CRIU into the container's cgroup already, and
/// errors are enough of a log. (How the network was locked at the dump is in the images.)
pub(super) const CRIU_CONF: &str = "manage-cgroups=ignore\nverbosity=1\n";
