//! Typed access to a TOML table that keeps positions and gathers problems instead of stopping at the first.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::Problem;
use crate::spec::nearest;

/// The keys of each section; the unnamed one is the top of the file.
pub(super) const SECTIONS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "node",
            "cluster",
            "listen",
            "advertise",
            "peers",
            "store",
            "state_dir",
            "run_dir",
            "scratch",
            "runtime",
            "runtime_root",
            "criu",
            "agent",
            "pace",
            "quorum",
            "voters",
            "watchdog_device",
        ],
    ),
    ("tls", &["dir", "insecure"]),
    ("network", &["bridge", "address", "pool", "gateway", "uplink", "probe_timeout"]),
    ("membership", &["probe_interval", "probe_timeout", "suspicion", "indirect_probes"]),
    ("lease", &["short", "long"]),
    ("checkpoint", &["min_interval", "timeout", "compression_level", "queue_max_bytes"]),
    ("logs", &["max_bytes"]),
];

/// `[fence.NODE]`: a section with a part for each node, and the keys of such a part.
pub(super) const PER_NODE: (&str, &[&str]) = ("fence", &["command", "agent", "options", "action", "timeout"]);

/// How many problems of one file are reported.
const MAX_PROBLEMS: usize = 50;

pub(super) struct Reader<'t> {
    text: &'t str,
    table: DeTable<'t>,
    found: Vec<(usize, String)>,
}

impl<'t> Reader<'t> {
    /// Reads the syntax; what is wrong with it is gathered too.
    pub(super) fn new(text: &'t str) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let found = errors
            .iter()
            .map(|error| (error.span().map_or(0, |span| span.start), error.message().to_owned()))
            .collect();
        let mut reader = Self { text, table: table.into_inner(), found };
        reader.refuse_unknown_keys();
        reader
    }

    pub(super) fn problem(&mut self, offset: usize, message: impl Into<String>) {
        self.found.push((offset, message.into()));
    }

    /// Where the value of `key` stands; without one, the section, else the start of the file.
    pub(super) fn place(&self, section: &str, key: &str) -> usize {
        match self.get(section, key) {
            Some((_, span)) => span.start,
            None => self.table.get_key_value(section).map_or(0, |(name, _)| name.span().start),
        }
    }

    /// The sections below `section`, each with its place. What is below it and no section is a problem already.
    pub(super) fn subsections(&self, section: &str) -> Vec<(String, usize)> {
        let table = self.table.get(section).and_then(|value| value.get_ref().as_table());
        let below = table.into_iter().flatten().filter(|(_, value)| value.get_ref().as_table().is_some());
        below.map(|(name, _)| (name.get_ref().to_string(), name.span().start)).collect()
    }

    pub(super) fn is_set(&self, section: &str, key: &str) -> bool {
        self.get(section, key).is_some()
    }

    /// Whether there is a section of this name, with keys or without.
    pub(super) fn has_section(&self, section: &str) -> bool {
        self.table.get(section).is_some()
    }

    /// `section` is empty at the top of the file, and `fence.NODE` below a section.
    fn get(&self, section: &str, key: &str) -> Option<(&DeValue<'t>, Range<usize>)> {
        let table = match section.split_once('.') {
            _ if section.is_empty() => &self.table,
            None => self.table.get(section)?.get_ref().as_table()?,
            Some((outer, inner)) => self.table.get(outer)?.get_ref().as_table()?.get(inner)?.get_ref().as_table()?,
        };
        table.get(key).map(|value| (value.get_ref(), value.span()))
    }

    /// The converted value of a key; `None` when it is not there or when it was refused (which is then a problem).
    pub(super) fn take<T>(
        &mut self,
        section: &str,
        key: &str,
        convert: impl FnOnce(&DeValue<'t>) -> Result<T, String>,
    ) -> Option<T> {
        let (value, span) = self.get(section, key)?;
        match convert(value) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problem(span.start, format!("`{key}`: {message}"));
                None
            }
        }
    }

    fn refuse_unknown_keys(&mut self) {
        let mut found = Vec::new();
        let names = || SECTIONS.iter().map(|(name, _)| *name).chain([PER_NODE.0]).filter(|name| !name.is_empty());
        for (name, keys) in SECTIONS {
            let table = match (*name, self.table.get(*name)) {
                ("", _) => &self.table,
                (_, None) => continue,
                (_, Some(value)) => match value.get_ref().as_table() {
                    Some(table) => table,
                    None => {
                        found.push((
                            value.span().start,
                            format!("`{name}` is a section: write [{name}] on its own line"),
                        ));
                        continue;
                    }
                },
            };
            let allowed = || keys.iter().copied().chain(names().filter(|_| name.is_empty()));
            for key in table.keys() {
                let word: &str = key.get_ref();
                if !allowed().any(|known| known == word) {
                    found.push((key.span().start, unknown_key(name, word, allowed().collect())));
                }
            }
        }
        self.refuse_unknown_keys_per_node(&mut found);
        self.found.extend(found);
    }

    fn refuse_unknown_keys_per_node(&self, found: &mut Vec<(usize, String)>) {
        let (section, keys) = PER_NODE;
        let Some(value) = self.table.get(section) else { return };
        let Some(nodes) = value.get_ref().as_table() else {
            return found.push((
                value.span().start,
                format!("`{section}` is a section: write [{section}.NODE] on its own line"),
            ));
        };
        for (node, value) in nodes {
            let Some(table) = value.get_ref().as_table() else {
                let shown: String = node.get_ref().chars().take(60).collect();
                let message =
                    format!("`{shown}` is in no node's section: write [{section}.NODE] above it, with the node's name");
                found.push((node.span().start, message));
                continue;
            };
            for key in table.keys().filter(|key| !keys.contains(&key.get_ref().as_ref())) {
                found.push((key.span().start, unknown_key(section, key.get_ref(), keys.to_vec())));
            }
        }
    }

    /// Every problem with its line and column, in the order of the file.
    pub(super) fn finish(mut self, file: &str) -> Vec<Problem> {
        self.found.sort();
        self.found.dedup();
        self.found.truncate(MAX_PROBLEMS);
        let place = |offset: usize| {
            let before = self.text.get(..offset.min(self.text.len())).unwrap_or(self.text);
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
        };
        self.found
            .iter()
            .map(|(offset, message)| {
                let (line, column) = place(*offset);
                Problem { file: file.to_owned(), line, column, message: message.clone() }
            })
            .collect()
    }
}

fn unknown_key(section: &str, word: &str, allowed: Vec<&str>) -> String {
    let shown: String = word.chars().take(60).collect();
    let mut message = format!("unknown key `{shown}`; allowed here: {}", allowed.join(", "));
    let elsewhere = SECTIONS.iter().find(|(name, keys)| *name != section && keys.contains(&word));
    if let Some(near) = nearest(word, allowed) {
        message += &format!("; did you mean `{near}`?");
    } else if let Some((name, _)) = elsewhere {
        message += &match *name {
            "" => format!("; `{shown}` belongs at the top of the file, before the first [section]"),
            name => format!("; `{shown}` belongs in [{name}]"),
        };
    }
    message
}
