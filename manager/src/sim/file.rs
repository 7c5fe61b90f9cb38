//! Scenario files: TOML in which every key is known, and every name is one of the file's own.

use std::{path::Path, time::Duration};

use serde::Deserialize;

use super::{
    Micros,
    file_fault::At,
    node::{name, number},
    scenario::{Container, Expect, Scenario, micros},
    store::Quality,
};
use crate::{
    ownership::lease::Terms,
    spec::{ContainerName, NodeName, parse_duration},
};

/// The largest file that is read, in bytes; and the most of what it may ask for.
const MAX_FILE: u64 = 1 << 20;
const MAX_NODES: usize = 16;
const MAX_CONTAINERS: usize = 64;
const MAX_TIME: Duration = Duration::from_secs(24 * 3600);

/// Why a scenario's file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("cannot read the scenario {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("the scenario {path} is larger than {MAX_FILE} bytes")]
    Size { path: String },
    #[error("the scenario {path} cannot be used: {source}")]
    Form { path: String, source: Box<toml::de::Error> },
    #[error("the scenario {path} cannot be used: {what}")]
    Content { path: String, what: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    nodes: usize,
    #[serde(default)]
    seed: u64,
    #[serde(default = "yes")]
    met: bool,
    /// When the faults end; by default at the last one.
    quiet: Option<Time>,
    /// When the scenario ends; by default once everything had the time to come back.
    end: Option<Time>,
    #[serde(default)]
    lease: Lease,
    #[serde(rename = "container")]
    containers: Vec<Item>,
    #[serde(default)]
    at: Vec<At>,
    #[serde(default)]
    expect: Vec<Wish>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Lease {
    short: Time,
    long: Time,
}

impl Default for Lease {
    fn default() -> Self {
        Self { short: Time(Duration::from_secs(1)), long: Time(Duration::from_secs(15)) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    name: ContainerName,
    owner: NodeName,
    #[serde(default = "yes")]
    failover: bool,
    #[serde(default = "second")]
    checkpoint: Time,
    #[serde(default = "half")]
    restore: Time,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    container: ContainerName,
    /// With `runs`: when it is looked at.
    at: Option<Time>,
    /// A node, or `nobody`.
    runs: Option<String>,
    failover_within: Option<Time>,
    /// With `failover_within`: from when on.
    after: Option<Time>,
    #[serde(default)]
    never_replaced: bool,
}

/// A duration as people write it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Time(pub Duration);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let time = parse_duration(&text).map_err(|error| error.to_string())?;
        if time > MAX_TIME { Err(format!("{text:?} is longer than a day")) } else { Ok(Self(time)) }
    }
}

impl Time {
    pub fn micros(self) -> Micros {
        micros(self.0)
    }
}

fn yes() -> bool {
    true
}

fn second() -> Time {
    Time(Duration::from_secs(1))
}

fn half() -> Time {
    Time(Duration::from_millis(500))
}

impl Scenario {
    /// Reads a scenario's file.
    ///
    /// # Errors
    /// Names the file and, for what TOML or a key's form forbids, the line.
    pub fn load(path: &Path) -> Result<Self, ScenarioError> {
        let shown = || path.display().to_string();
        let read = |source| ScenarioError::Read { path: shown(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_FILE {
            return Err(ScenarioError::Size { path: shown() });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text, &shown())
    }

    /// As [`Scenario::load`], from the file's text; `path` is for the error.
    ///
    /// # Errors
    /// As there.
    pub fn parse(text: &str, path: &str) -> Result<Self, ScenarioError> {
        let file: File = toml::from_str(text)
            .map_err(|source| ScenarioError::Form { path: path.to_owned(), source: Box::new(source) })?;
        scenario(file).map_err(|what| ScenarioError::Content { path: path.to_owned(), what })
    }
}

fn scenario(file: File) -> Result<Scenario, String> {
    if !(1..=MAX_NODES).contains(&file.nodes) || !(1..=MAX_CONTAINERS).contains(&file.containers.len()) {
        return Err(format!("it has 1 to {MAX_NODES} nodes and 1 to {MAX_CONTAINERS} containers"));
    }
    let terms = Terms { short: file.lease.short.0, long: file.lease.long.0 };
    if terms.short < Duration::from_millis(100) || terms.long < terms.short {
        return Err("lease.short is at least 100ms, and lease.long is not less".to_owned());
    }
    let mut containers = Vec::new();
    for (index, item) in file.containers.iter().enumerate() {
        if file.containers[..index].iter().any(|other| other.name == item.name) {
            return Err(format!("two containers are called {}", item.name));
        }
        let restore = item.restore.micros();
        containers.push(Container {
            name: item.name.to_string(),
            owner: node(&item.owner, file.nodes)?,
            failover: item.failover,
            every: item.checkpoint.micros().max(100_000),
            restore: (restore, restore),
        });
    }
    let mut timeline = Vec::new();
    for at in &file.at {
        let faults = at.faults(file.nodes)?;
        timeline.extend(faults.into_iter().map(|fault| (at.t.micros(), fault)));
    }
    timeline.sort_by_key(|(at, _)| *at);
    let expects = file.expect.iter().map(|wish| wish.expect(&containers, file.nodes)).collect::<Result<Vec<_>, _>>()?;
    let last = timeline.last().map_or(0, |(at, _)| *at);
    let quiet = file.quiet.map_or(last, Time::micros).max(last);
    let end = file.end.map_or(quiet + Scenario::patience(terms), Time::micros).max(quiet);
    for wish in &file.expect {
        let last = wish.last();
        if last > end {
            let (last, end) = (super::expect::seconds(last), super::expect::seconds(end));
            return Err(format!("what is expected of {} at {last} is after the end ({end})", wish.container));
        }
    }
    Ok(Scenario {
        seed: file.seed,
        nodes: file.nodes,
        containers,
        terms,
        delay: (100, 2000),
        loss: 0,
        duplicates: 0,
        store: Quality::good(),
        met: file.met,
        eager: false,
        drifts: vec![0; file.nodes],
        timeline,
        quiet,
        end,
        expects,
        mutation: None,
    })
}

impl Wish {
    /// The last moment that it needs.
    fn last(&self) -> super::Micros {
        let of = |time: Option<Time>| time.map_or(0, Time::micros);
        of(self.at).max(of(self.after) + of(self.failover_within))
    }

    fn expect(&self, containers: &[Container], nodes: usize) -> Result<Expect, String> {
        let named = |container: &Container| container.name == self.container.as_str();
        let container =
            containers.iter().position(named).ok_or_else(|| format!("there is no container {}", self.container))?;
        match (&self.runs, self.at, self.failover_within, self.after, self.never_replaced) {
            (Some(runs), Some(at), None, None, false) => {
                let node = match runs.as_str() {
                    "nobody" => None,
                    name => Some(node(&name.parse().map_err(|error| format!("{error}"))?, nodes)?),
                };
                Ok(Expect::Runs { container, at: at.micros(), node })
            }
            (None, None, Some(within), Some(after), false) => {
                Ok(Expect::FailoverWithin { container, after: after.micros(), within: within.micros() })
            }
            (None, None, None, None, true) => Ok(Expect::NeverReplaced { container }),
            _ => Err(format!(
                "an expectation of {} has `runs` and `at`, or `failover_within` and `after`, or `never_replaced = true`",
                self.container
            )),
        }
    }
}

/// A node's number.
pub(super) fn node(named: &NodeName, nodes: usize) -> Result<usize, String> {
    number(named)
        .filter(|number| *number < nodes && name(*number) == *named)
        .ok_or_else(|| format!("there is no node {named}: the nodes are n1 to n{nodes}"))
}
