//! What this process may do, and whether the machine knows the time.

use std::fs;

use super::{Check, sys};

const NET_ADMIN: u32 = 12;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;
const MKNOD: u32 = 27;
const CHECKPOINT_RESTORE: u32 = 40;

/// The effective capabilities from the text of /proc/PID/status.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn has(capability: u32) -> bool {
    let set = fs::read_to_string("/proc/self/status").ok().and_then(|status| effective(&status)).unwrap_or(0);
    set & (1 << capability) != 0
}

pub(super) fn privileges() -> Check {
    const ID: (&str, &str) = ("capabilities", "capabilities");
    let needed = [
        (SYS_ADMIN, "CAP_SYS_ADMIN"),
        (NET_ADMIN, "CAP_NET_ADMIN"),
        (SYS_PTRACE, "CAP_SYS_PTRACE"),
        (MKNOD, "CAP_MKNOD"),
    ];
    let missing: Vec<&str> = needed.iter().filter(|(bit, _)| !has(*bit)).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Check::ok(ID.0, ID.1, needed.map(|(_, name)| name).join(", "));
    }
    Check::fail(ID.0, ID.1, format!("without {}", missing.join(", ")), "run ha-manager as root, outside of a container")
}

pub(super) fn checkpoint_restore() -> Check {
    const ID: (&str, &str) = ("capabilities.checkpoint-restore", "CAP_CHECKPOINT_RESTORE");
    match (has(CHECKPOINT_RESTORE), has(SYS_ADMIN)) {
        (true, _) => Check::ok(ID.0, ID.1, "present"),
        (false, true) => Check::ok(ID.0, ID.1, "absent; CAP_SYS_ADMIN includes what it allows"),
        (false, false) => Check::fail(ID.0, ID.1, "absent", "run ha-manager as root"),
    }
}

pub(super) fn resource() -> Check {
    const ID: (&str, &str) = ("capabilities.resource", "CAP_SYS_RESOURCE");
    if has(SYS_RESOURCE) {
        return Check::ok(ID.0, ID.1, "present");
    }
    let found = "absent: processes with a user other than root cannot be checkpointed (CRIU: Can't get rlimit)";
    Check::warn(ID.0, ID.1, found, "grant CAP_SYS_RESOURCE to ha-manager, or run stateful containers as user 0")
}

pub(super) fn time() -> Check {
    const ID: (&str, &str) = ("time", "time synchronisation");
    const REMEDY: &str = "run chrony or systemd-timesyncd: times in events and snapshots are compared between nodes";
    match sys::clock() {
        Ok(clock) if clock.synchronised => {
            Check::ok(ID.0, ID.1, format!("synchronised, error at most {} ms", clock.max_error / 1000))
        }
        Ok(_) => Check::warn(ID.0, ID.1, "the kernel's clock is not synchronised", REMEDY),
        Err(error) => Check::warn(ID.0, ID.1, format!("cannot ask the kernel: {error}"), REMEDY),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn capabilities_are_read_from_status() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001fffeffffff\nCapBnd:\t0\n";
        let set = super::effective(status).unwrap();
        assert_eq!((set >> super::SYS_RESOURCE & 1, set >> super::SYS_ADMIN & 1), (0, 1));
        assert_eq!(super::effective("Name:\tx\n"), None);
    }
}
