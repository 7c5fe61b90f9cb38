//! The laboratory: whole nodes made of namespaces on one machine, programs worth protecting, and clients that notice.
//!
//! A node here has its own network, processes, mounts, host name and control groups, real runc and real CRIU; what it
//! shares with its peers is the kernel and the store's directory. Cutting its power is a SIGKILL to its first process.
//! The demo, the benchmarks and the integration tests all stand on this.

pub mod bench;
pub mod census;
pub mod chaos;
pub mod clients;
pub mod cluster;
pub mod demo;
pub mod event;
pub mod images;
pub mod lab;
pub mod plain;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, bail};

/// Where the `ha-lab` program is: nodes are kept by copies of it.
///
/// # Errors
/// When neither this process nor a neighbour of it is `ha-lab`.
pub fn lab_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    // Tests run from target/PROFILE/deps, programs from target/PROFILE.
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join("ha-lab")).find(|path| path.is_file());
    found.with_context(|| format!("no ha-lab beside {}; build it with: cargo build -p ha-lab", own.display()))
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// When it cannot be started, or with its standard error when it exits with a code other than 0.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    checked(command, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn checked(command: &Command, output: &Output) -> anyhow::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
}

/// True when `program` is somewhere in PATH, /usr/sbin or /sbin.
pub fn have(program: &str) -> bool {
    which(program).is_some()
}

/// The path of a program in PATH, /usr/sbin or /sbin.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.iter().map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Why a test that needs nodes cannot run on this machine, or `None` when it can.
pub fn why_no_nodes() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root: nodes are made of namespaces".to_owned());
    }
    let missing: Vec<&str> = ["ip", "nsenter", "runc", "criu"].into_iter().filter(|tool| !have(tool)).collect();
    if !missing.is_empty() {
        return Some(format!("{} not installed: run scripts/setup --tests", missing.join(", ")));
    }
    (!Path::new("/sys/fs/cgroup").is_dir()).then(|| "no control groups at /sys/fs/cgroup".to_owned())
}

/// Prints the line that `scripts/test` counts as a skipped test.
pub fn skipped(test: &str, why: &str) {
    println!("SKIPPED {test}: {why}");
}
