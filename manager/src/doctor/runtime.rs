//! The OCI runtime and the cgroups it will meet.

use std::{path::Path, time::Duration};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{
    Check,
    tool::{self, chain},
};

const TIMEOUT: Duration = Duration::from_secs(10);

fn is_crun(runtime: &str) -> bool {
    Path::new(runtime).file_name().is_some_and(|name| name == "crun")
}

pub(super) fn runtime(runtime: &str) -> Check {
    const ID: (&str, &str) = ("runtime", "OCI runtime");
    let remedy = "install runc, or set `runtime` in node.toml";
    let output = match tool::run(runtime, &["--version"], TIMEOUT) {
        Ok(output) if output.ok() => output,
        Ok(output) => return Check::fail(ID.0, ID.1, format!("{runtime} --version: {}", output.last_line()), remedy),
        Err(error) => return Check::fail(ID.0, ID.1, chain(&error), remedy),
    };
    let version = output.text.lines().next().unwrap_or(runtime).to_owned();
    if is_crun(runtime) {
        let found = format!("{version}: crun has not been tried with this release and is called like runc");
        return Check::warn(ID.0, ID.1, found, "install runc, and set `runtime = \"runc\"` in node.toml");
    }
    Check::ok(ID.0, ID.1, version)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    V1,
    Hybrid,
    V2,
}

fn mode() -> Result<Mode, nix::Error> {
    let is_v2 = |path: &str| statfs(path).map(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC);
    Ok(match (is_v2("/sys/fs/cgroup")?, is_v2("/sys/fs/cgroup/unified")) {
        (true, _) => Mode::V2,
        (false, Ok(true)) => Mode::Hybrid,
        (false, _) => Mode::V1,
    })
}

pub(super) fn cgroups(runtime: &str) -> Check {
    const ID: (&str, &str) = ("cgroups", "cgroups");
    match mode() {
        Ok(Mode::V2) => Check::ok(ID.0, ID.1, "v2"),
        Ok(Mode::Hybrid) if is_crun(runtime) => Check::fail(
            ID.0,
            ID.1,
            "hybrid (v1 and unified), which crun refuses",
            "set `runtime = \"runc\"`, or boot with cgroup v2",
        ),
        Ok(Mode::Hybrid) => Check::ok(ID.0, ID.1, "hybrid (v1 and unified)"),
        Ok(Mode::V1) => Check::ok(ID.0, ID.1, "v1"),
        Err(error) => Check::fail(ID.0, ID.1, format!("/sys/fs/cgroup: {error}"), "mount the cgroup file system"),
    }
}
