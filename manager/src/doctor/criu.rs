//! CRIU: there, content with the kernel, and able to do what we need of it.

use std::{path::Path, time::Duration};

use super::{
    Check,
    tool::{self, ToolError, chain},
    trial,
};
use crate::checkpoint::Dumper;

const TIMEOUT: Duration = Duration::from_secs(20);
const VERSION: (&str, &str) = ("criu.version", "CRIU");
const CHECK: (&str, &str) = ("criu.check", "criu check");
const CPU: (&str, &str) = ("criu.cpu", "CPU key");
const TRIAL: (&str, &str) = ("criu.trial", "CRIU dump and restore");
const REMEDY: &str = "install a CRIU that works on this kernel; scripts/setup chooses one by trying it";

pub(super) fn checks(criu: &str, scratch: &Path) -> Vec<Check> {
    let version = match tool::run(criu, &["--version"], TIMEOUT) {
        Ok(output) if output.ok() => output.text,
        Ok(output) => return without(format!("{criu} --version: {}", output.last_line())),
        Err(error @ ToolError::Missing { .. }) => return without(error.to_string()),
        Err(error) => return without(chain(&error)),
    };
    let found = match version_of(&version) {
        Some(version) => format!("{version} ({criu})"),
        None => format!("{criu}: {}", version.lines().next().unwrap_or_default()),
    };
    vec![Check::ok(VERSION.0, VERSION.1, found), content(criu), cpu(criu), dump_and_restore(criu, scratch)]
}

/// `4.2.1` of `Version: 4.2.1`.
fn version_of(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("Version:")).map(str::trim)
}

fn without(found: String) -> Vec<Check> {
    let mut checks = vec![Check::fail(VERSION.0, VERSION.1, found, REMEDY)];
    checks.extend([CHECK, CPU, TRIAL].map(|(id, title)| Check::not_applicable(id, title, "needs CRIU")));
    checks
}

fn content(criu: &str) -> Check {
    match tool::run(criu, &["check"], TIMEOUT) {
        Ok(output) if output.ok() => Check::ok(CHECK.0, CHECK.1, output.last_line()),
        Ok(output) => Check::fail(CHECK.0, CHECK.1, output.last_line(), REMEDY),
        Err(error) => Check::fail(CHECK.0, CHECK.1, chain(&error), REMEDY),
    }
}

/// Nodes with the same key can take over whatever the other has run.
fn cpu(criu: &str) -> Check {
    let remedy = "without CRIU's description of the CPU no checkpoint can be taken; install a CRIU that gives it";
    match Dumper::new(criu).cpuinfo(TIMEOUT) {
        Ok(cpuinfo) => {
            let key = blake3::hash(cpuinfo).to_hex();
            Check::ok(CPU.0, CPU.1, format!("{} ({})", &key[..12], model()))
        }
        Err(error) => Check::fail(CPU.0, CPU.1, chain(&error), remedy),
    }
}

fn model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

fn dump_and_restore(criu: &str, scratch: &Path) -> Check {
    match trial::run(criu, scratch) {
        Ok(found) => Check::ok(TRIAL.0, TRIAL.1, found),
        Err(error) => Check::fail(TRIAL.0, TRIAL.1, chain(&error), REMEDY),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_found_among_other_lines() {
        assert_eq!(super::version_of("Version: 4.2.1\nGitID: v4.2\n"), Some("4.2.1"));
        assert_eq!(super::version_of("criu\n"), None);
    }
}
