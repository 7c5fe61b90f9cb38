//! What this node can and cannot do, found by trying it.
//!
//! A version number promises little: one CRIU starts and cannot dump a socket, another dumps everything but not on this
//! kernel. So what matters is done once, small and with its traces removed: a process with an open socket is dumped and
//! restored, an overlay is mounted, links are made, each in a namespace of its own where it would be seen.
//!
//! The object store is asked by whoever has it open: the node adds those checks (create-only, clock) to [`run`]'s
//! and gives all of them to [`render_text`], [`render_json`] and [`exit_code`].

mod agent;
mod criu;
mod disk;
mod fence;
mod forward;
mod kernel;
mod network;
mod process;
mod runtime;
mod sys;
mod tls;
mod tool;
mod trial;

use std::{fmt::Write, path::Path};

use serde::Serialize;

use crate::config::NodeConfig;

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Ok,
    /// There was nothing to check, or something it needs has failed already.
    NotApplicable,
    /// The node works, with less.
    Warn,
    /// The node cannot do its work.
    Fail,
}

/// One answer of the doctor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable, for programs: `criu.trial`.
    pub id: &'static str,
    /// For people.
    pub title: &'static str,
    pub verdict: Verdict,
    /// The facts, in one line.
    pub found: String,
    /// What to do, where something is to be done.
    pub remedy: Option<String>,
}

impl Check {
    pub fn ok(id: &'static str, title: &'static str, found: impl Into<String>) -> Self {
        Self { id, title, verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    pub fn not_applicable(id: &'static str, title: &'static str, found: impl Into<String>) -> Self {
        Self { id, title, verdict: Verdict::NotApplicable, found: found.into(), remedy: None }
    }

    pub fn warn(id: &'static str, title: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { id, title, verdict: Verdict::Warn, found: found.into(), remedy: Some(remedy.into()) }
    }

    pub fn fail(id: &'static str, title: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { id, title, verdict: Verdict::Fail, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// The agent's check alone: a manager refuses an agent that fails it.
pub fn agent(program: &std::path::Path) -> Check {
    agent::check(program)
}

/// Every check of this node but those of its store; `file` is where its configuration was read from. Takes about a second,
/// blocks, and leaves nothing behind.
pub fn run(config: &NodeConfig, file: &Path) -> Vec<Check> {
    let mut checks = vec![process::privileges(), process::checkpoint_restore(), process::resource()];
    checks.extend(criu::checks(&config.criu, &config.scratch));
    checks.extend(kernel::checks());
    checks.extend([disk::overlay(&config.state_dir), disk::scratch(&config.scratch)]);
    checks.extend(network::checks());
    checks.push(forward::check(&config.network.bridge));
    checks.push(network::uplink(config.network.uplink.as_deref()));
    checks.extend([runtime::runtime(&config.runtime), runtime::cgroups(&config.runtime)]);
    checks.extend([agent::check(&config.agent), process::time(), tls::check(config)]);
    checks.push(fence::check(config, file));
    checks
}

/// 1 when any check failed, else 0: warnings do not keep a node from its work.
pub fn exit_code(checks: &[Check]) -> u8 {
    u8::from(checks.iter().any(|check| check.verdict == Verdict::Fail))
}

/// One line per check, its remedy below it, and a summary.
pub fn render_text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.title.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let mark = match check.verdict {
            Verdict::Ok => "ok  ",
            Verdict::NotApplicable => "n/a ",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        // Writing to a String does not fail.
        let _ = writeln!(text, "{mark}  {:width$}  {}", check.title, check.found);
        if let Some(remedy) = &check.remedy {
            let _ = writeln!(text, "      {:width$}  → {remedy}", "");
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let _ = writeln!(
        text,
        "{} ok, {} warnings, {} failures, {} not applicable",
        count(Verdict::Ok),
        count(Verdict::Warn),
        count(Verdict::Fail),
        count(Verdict::NotApplicable)
    );
    text
}

/// `{"checks": [{id, title, verdict, found, remedy}], "exit_code": 0}`; verdicts are `ok`, `warn`, `fail` and
/// `not-applicable`.
pub fn render_json(checks: &[Check]) -> serde_json::Value {
    serde_json::json!({ "checks": checks, "exit_code": exit_code(checks) })
}

/// `path`, or the nearest directory above it that is there: what it will be made in.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests;
