//! `io.ha-manager.*`: what Compose has no word for.

use std::{collections::BTreeMap, time::Duration};

use super::{
    cursor::{Cursor, Pair, whole_number},
    report::{Pos, Report, allowed, quoted},
};
use crate::spec::{RecoveryPolicy, RecoveryStep, StateKind, default_keep_manual, parse_duration};

const PREFIX: &str = "io.ha-manager.";
pub(super) const KNOWN: [&str; 5] = [
    "io.ha-manager.state",
    "io.ha-manager.state-sensitivity",
    "io.ha-manager.keep",
    "io.ha-manager.keep-manual",
    "io.ha-manager.recovery",
];
const DEFAULT_KEEP: u32 = 3;
const MAX_KEEP: u64 = 1000;
const MAX_ATTEMPTS: u64 = 100;
/// Below it a container would do little but be checkpointed.
const MIN_SENSITIVITY: Duration = Duration::from_millis(100);
const STEPS: [&str; 4] = ["restart", "failover", "older-snapshot", "cold-start"];

/// What a service's annotations say.
pub(super) struct Annotations {
    pub(super) state: StateKind,
    pub(super) keep: u32,
    pub(super) keep_manual: u32,
    pub(super) recovery: RecoveryPolicy,
    /// The others, for the runtime.
    pub(super) other: BTreeMap<String, String>,
}

impl Default for Annotations {
    fn default() -> Self {
        Self {
            state: StateKind::Stateless,
            keep: DEFAULT_KEEP,
            keep_manual: default_keep_manual(),
            recovery: RecoveryPolicy::stateless_default(),
            other: BTreeMap::new(),
        }
    }
}

#[derive(Default)]
struct Ours {
    state: Option<Given<Word>>,
    sensitivity: Option<Given<Duration>>,
    keep: Option<Given<u32>>,
    keep_manual: Option<Given<u32>>,
    recovery: Option<Given<RecoveryPolicy>>,
}

/// A value and where it stood.
struct Given<T> {
    value: T,
    at: Pos,
    path: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Word {
    Stateful,
    Stateless,
}

pub(super) fn read(cursor: &Cursor<'_>, report: &mut Report) -> Annotations {
    let (mut ours, mut other, mut broken) = (Ours::default(), BTreeMap::new(), false);
    for pair in cursor.pairs(report) {
        let Some(value) = &pair.value else {
            report.error(pair.at, &pair.path, "has no value");
            continue;
        };
        if !pair.name.starts_with(PREFIX) {
            other.insert(pair.name, value.clone());
        } else if let Err(message) = ours.take(&pair, value.trim()) {
            let is_value = KNOWN.contains(&pair.name.as_str());
            report.error(if is_value { pair.at } else { pair.name_at }, &pair.path, message);
            broken = true;
        }
    }
    let keep = ours.keep.as_ref().map_or(DEFAULT_KEEP, |keep| keep.value);
    let keep_manual = ours.keep_manual.as_ref().map_or_else(default_keep_manual, |keep| keep.value);
    // With one of them unread, what the others lack or contradict cannot be told.
    let (state, recovery) = if broken { Default::default() } else { ours.combine(report) };
    let state = state.unwrap_or(StateKind::Stateless);
    let recovery = recovery.unwrap_or_else(|| match state {
        StateKind::Stateful { .. } => RecoveryPolicy::stateful_default(),
        StateKind::Stateless => RecoveryPolicy::stateless_default(),
    });
    Annotations { state, keep, keep_manual, recovery, other }
}

impl Ours {
    fn take(&mut self, pair: &Pair, value: &str) -> Result<(), String> {
        fn given<T>(pair: &Pair, value: T) -> Option<Given<T>> {
            Some(Given { value, at: pair.at, path: pair.path.clone() })
        }
        match &pair.name[PREFIX.len()..] {
            "state" => match value {
                "stateful" => self.state = given(pair, Word::Stateful),
                "stateless" => self.state = given(pair, Word::Stateless),
                _ => return Err(format!("{} is neither `stateful` nor `stateless`", quoted(value))),
            },
            "state-sensitivity" => {
                let sensitivity = parse_duration(value).map_err(|error| error.to_string())?;
                if sensitivity < MIN_SENSITIVITY {
                    return Err(format!("{} is below 100ms, about what a checkpoint itself takes", quoted(value)));
                }
                self.sensitivity = given(pair, sensitivity);
            }
            "keep" => self.keep = given(pair, count(value)?),
            "keep-manual" => self.keep_manual = given(pair, count(value)?),
            "recovery" => self.recovery = given(pair, recovery(value)?),
            _ => return Err(format!("unknown annotation; {}", allowed(&pair.name, &KNOWN))),
        }
        Ok(())
    }

    /// A container is stateful when `state` says so, or when it has a `state-sensitivity` and no `state`.
    fn combine(self, report: &mut Report) -> (Option<StateKind>, Option<RecoveryPolicy>) {
        let state = match (self.state.as_ref().map(|state| state.value), self.sensitivity) {
            (Some(Word::Stateful) | None, Some(sensitivity)) => StateKind::Stateful { sensitivity: sensitivity.value },
            (Some(Word::Stateless), Some(sensitivity)) => {
                let message = "contradicts `io.ha-manager.state: stateless`: what has no state cannot lose it";
                report.error(sensitivity.at, &sensitivity.path, message);
                return (None, None);
            }
            (Some(Word::Stateful), None) => {
                if let Some(state) = &self.state {
                    let message = "a stateful container needs `io.ha-manager.state-sensitivity` too: the longest loss of \
                                   state that is acceptable, e.g. \"5s\"";
                    report.error(state.at, &state.path, message);
                }
                return (None, None);
            }
            (Some(Word::Stateless) | None, None) => StateKind::Stateless,
        };
        let older = |recovery: &Given<RecoveryPolicy>| {
            recovery.value.steps.iter().any(|step| matches!(step, RecoveryStep::OlderSnapshot { .. }))
        };
        if let (StateKind::Stateless, Some(recovery)) =
            (state, self.recovery.as_ref().filter(|recovery| older(recovery)))
        {
            report.error(recovery.at, &recovery.path, "`older-snapshot`: a stateless container has no snapshots");
        }
        for keep in [&self.keep, &self.keep_manual].into_iter().flatten().filter(|_| state == StateKind::Stateless) {
            report.warning(keep.at, &keep.path, "has no effect: a stateless container has no snapshots");
        }
        (Some(state), self.recovery.map(|recovery| recovery.value))
    }
}

/// Of snapshots to be kept.
fn count(text: &str) -> Result<u32, String> {
    let number = whole_number(text).filter(|number| (1..=MAX_KEEP).contains(number));
    let number = number.and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| format!("{} is not a number from 1 to {MAX_KEEP}", quoted(text)))
}

/// `restart:3, failover, older-snapshot:2, cold-start`: each at most once, in the order they are tried.
fn recovery(text: &str) -> Result<RecoveryPolicy, String> {
    let mut steps: Vec<RecoveryStep> = Vec::new();
    for word in text.split(',').map(str::trim) {
        let (name, limit) = match word.split_once(':') {
            Some((name, limit)) => (name.trim_end(), Some(limit.trim_start())),
            None => (word, None),
        };
        let max = |default: u32| match limit {
            None => Ok(default),
            Some(limit) => whole_number(limit)
                .filter(|number| (1..=MAX_ATTEMPTS).contains(number))
                .and_then(|number| u32::try_from(number).ok())
                .ok_or_else(|| format!("{}: the limit has to be a number from 1 to {MAX_ATTEMPTS}", quoted(word))),
        };
        let step = match (name, limit) {
            ("restart", _) => RecoveryStep::Restart { max: max(3)? },
            ("older-snapshot", _) => RecoveryStep::OlderSnapshot { max: max(2)? },
            ("failover", None) => RecoveryStep::Failover,
            ("cold-start", None) => RecoveryStep::ColdStart,
            ("failover" | "cold-start", Some(_)) => return Err(format!("{}: this step takes no limit", quoted(word))),
            ("", _) => return Err("a step is empty; write e.g. \"restart:3, failover, older-snapshot:2\"".into()),
            _ => return Err(format!("{} is not a step; {}", quoted(name), allowed(name, &STEPS))),
        };
        if steps.iter().any(|other| std::mem::discriminant(other) == std::mem::discriminant(&step)) {
            return Err(format!("{} comes twice", quoted(name)));
        }
        if steps.last() == Some(&RecoveryStep::ColdStart) {
            return Err("`cold-start` gives the state up, so it has to be the last step".into());
        }
        steps.push(step);
    }
    Ok(RecoveryPolicy { steps })
}
