//! Typing commands at a node.

use std::{
    fs,
    process::{Output, Stdio},
};

use ha_lab::{
    cluster::{Cluster, Member},
    demo::Workload,
};
use serde_json::Value;

pub fn run(member: &Member, args: &[&str]) -> Output {
    member.cli_command().unwrap().args(args).stdin(Stdio::null()).output().unwrap()
}

/// Standard output; the exit code has to be 0.
pub fn ok(member: &Member, args: &[&str]) -> String {
    let output = run(member, args);
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{args:?}: {}\n{out}\n{err}", output.status);
    out
}

/// Standard error; the exit code has to be `code`, and the text a sentence of this program.
pub fn refused(member: &Member, args: &[&str], code: i32) -> String {
    let output = run(member, args);
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
    assert!(code == 2 || err.contains("ha-manager: "), "{args:?}: {err:?}");
    err
}

pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Writes a file beside the Compose files of `Member::apply` and returns its path.
pub fn file(member: &Member, name: &str, text: &str) -> String {
    let path = member.node.disk().join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

pub fn counter_with(change: impl FnOnce(&mut Value)) -> String {
    let mut compose: Value = serde_json::from_str(&Workload::Counter.compose(super::NEVER).unwrap()).unwrap();
    change(&mut compose["services"]["counter"]);
    compose.to_string()
}

pub fn phase(cluster: &Cluster, member: usize, name: &str) -> String {
    let container = cluster.members[member].container(name).unwrap_or_default();
    container.get("phase").and_then(Value::as_str).unwrap_or_default().to_owned()
}

pub fn notes(member: &Member, name: &str) -> String {
    member.container(name).unwrap_or_default().get("notes").map(ToString::to_string).unwrap_or_default()
}

pub fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
