//! The fencing commands: there, executable, and their passwords not everybody's to read.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use super::Check;
use crate::config::{FenceMethod, NodeConfig};

const ID: (&str, &str) = ("fence.commands", "fencing commands");

/// `file` is where `config` was read from.
pub(super) fn check(config: &NodeConfig, file: &Path) -> Check {
    let (mut ready, mut unready, mut secret) = (Vec::new(), Vec::new(), false);
    for (node, fence) in config.fence.iter().filter(|(node, _)| **node != config.node) {
        let program = match &fence.method {
            FenceMethod::Command { command } => command.first().map(Path::new),
            FenceMethod::Agent { agent, options, .. } => {
                secret |= !options.0.is_empty();
                Some(agent.as_path())
            }
        };
        match program.map_or(Err("no program".to_owned()), executable) {
            Ok(()) => ready.push(node.as_str()),
            Err(why) => unready.push(format!("[fence.{node}]: {why}")),
        }
    }
    if !unready.is_empty() {
        const REMEDY: &str = "install it, or correct its path; until then that node's lease is waited for";
        return Check::warn(ID.0, ID.1, unready.join("; "), REMEDY);
    }
    if ready.is_empty() {
        return Check::not_applicable(ID.0, ID.1, "none is configured");
    }
    let open = fs::metadata(file).is_ok_and(|about| about.mode() & 0o077 != 0);
    if secret && open {
        let file = file.display();
        let found = format!("{file} holds the options of a fence agent and is not its owner's alone");
        return Check::warn(ID.0, ID.1, found, format!("chmod 600 {file}"));
    }
    Check::ok(ID.0, ID.1, format!("for {}", ready.join(", ")))
}

fn executable(program: &Path) -> Result<(), String> {
    let about = fs::metadata(program).map_err(|error| format!("{}: {error}", program.display()))?;
    if !about.is_file() || about.permissions().mode() & 0o111 == 0 {
        return Err(format!("{} is not an executable file", program.display()));
    }
    Ok(())
}
