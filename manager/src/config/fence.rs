//! `[fence.NODE]`: how the power of another node is cut.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use serde::{Serialize, Serializer};
use toml::de::DeValue;

use super::{
    read::{PER_NODE, Reader},
    values::{absolute, duration, list_of_text, one_of},
};
use crate::spec::NodeName;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const LEAST_TIMEOUT: Duration = Duration::from_secs(1);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);
const MAX_OPTION_NAME: usize = 64;

/// How one node is fenced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FenceConfig {
    #[serde(flatten)]
    pub method: FenceMethod,
    /// Unsuccessful when it takes longer; 1 s to 10 min. Default `30s`.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum FenceMethod {
    /// The program, by its absolute path, and its arguments. Exit status 0: the node runs no more.
    Command { command: Vec<String> },
    /// A fence agent of the ClusterLabs collection, given its options on standard input.
    Agent { agent: PathBuf, options: FenceOptions, action: FenceAction },
}

/// What a fence agent does to the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FenceAction {
    #[default]
    Off,
    Reboot,
}

/// Options of a fence agent, name to value. Passwords are among them: their values are neither shown nor serialized.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FenceOptions(pub BTreeMap<String, String>);

impl fmt::Debug for FenceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Serialize for FenceOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.keys())
    }
}

impl FenceAction {
    const NAMES: &[(&'static str, Self)] = &[("off", Self::Off), ("reboot", Self::Reboot)];
}

pub(super) fn read(r: &mut Reader<'_>) -> BTreeMap<NodeName, FenceConfig> {
    let mut fences = BTreeMap::new();
    for (name, place) in r.subsections(PER_NODE.0) {
        match name.parse::<NodeName>() {
            Ok(node) => fences.extend(read_one(r, &name, place).map(|fence| (node, fence))),
            Err(error) => r.problem(place, error.to_string()),
        }
    }
    fences
}

fn read_one(r: &mut Reader<'_>, node: &str, place: usize) -> Option<FenceConfig> {
    let section = format!("{}.{node}", PER_NODE.0);
    let command = r.take(&section, "command", command);
    let agent = r.take(&section, "agent", absolute);
    let options = r.take(&section, "options", options).unwrap_or_default();
    let action = r.take(&section, "action", |value| one_of(value, FenceAction::NAMES)).unwrap_or_default();
    let timeout = r.take(&section, "timeout", duration).unwrap_or(DEFAULT_TIMEOUT);
    if !(LEAST_TIMEOUT..=LONGEST_TIMEOUT).contains(&timeout) {
        let place = r.place(&section, "timeout");
        let [value, low, high] = [timeout, LEAST_TIMEOUT, LONGEST_TIMEOUT].map(humantime::format_duration);
        r.problem(place, format!("`timeout`: {value} is not between {low} and {high}"));
    }
    match (r.is_set(&section, "command"), r.is_set(&section, "agent")) {
        (true, true) => {
            let place = r.place(&section, "command");
            r.problem(
                place,
                "`command`: `agent` is given, too; a node is fenced in one way, so leave one of the two out",
            );
        }
        (false, false) => {
            const WAYS: &str =
                "command = [\"/path/to/program\", …] or agent = \"/usr/sbin/fence_ipmilan\" with options = { … }";
            r.problem(place, format!("[{section}] does not say how; add {WAYS}"));
        }
        (true, false) => {
            for key in ["options", "action"].into_iter().filter(|key| r.is_set(&section, key)).collect::<Vec<_>>() {
                let place = r.place(&section, key);
                r.problem(place, format!("`{key}`: is for an `agent`; what a command needs is among its arguments"));
            }
        }
        (false, true) => {}
    }
    let method = match (command, agent) {
        (Some(command), None) => FenceMethod::Command { command },
        (None, Some(agent)) => FenceMethod::Agent { agent, options, action },
        _ => return None,
    };
    Some(FenceConfig { method, timeout })
}

fn command(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let words = list_of_text(value)?;
    match words.first() {
        Some(program) if program.starts_with('/') => Ok(words),
        Some(program) => Err(format!("{program:?} is not the absolute path of a program")),
        None => Err("is empty; name a program by its absolute path, then its arguments".into()),
    }
}

/// What can be written as `name=value` lines; no value is repeated in a message.
fn options(value: &DeValue<'_>) -> Result<FenceOptions, String> {
    let Some(table) = value.as_table() else {
        return Err("expected names and values, e.g. { ip = \"10.0.0.9\", username = \"ha\" }".into());
    };
    let mut options = BTreeMap::new();
    for (name, value) in table {
        let name: &str = name.get_ref();
        let shown: String = name.chars().take(MAX_OPTION_NAME).collect();
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if name.is_empty() || name.len() > MAX_OPTION_NAME || !name.bytes().all(good) {
            return Err(format!(
                "{shown:?} is not the name of an option: 1 to {MAX_OPTION_NAME} letters, digits, `-` and `_`"
            ));
        }
        if name == "action" {
            return Err("`action` is a key of its own, beside `options`".into());
        }
        let Some(text) = value.get_ref().as_str() else {
            return Err(format!("the value of `{shown}` is not a string in quotes"));
        };
        if text.contains(['\n', '\r', '\0']) {
            return Err(format!("the value of `{shown}` has more than one line, or a NUL character"));
        }
        options.insert(name.to_owned(), text.to_owned());
    }
    Ok(FenceOptions(options))
}
