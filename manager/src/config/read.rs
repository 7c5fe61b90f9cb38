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
        ],
    ),
    ("tls", &["dir", "insecure"]),
    ("network", &["bridge", "address", "pool", "gateway", "uplink", "probe_timeout"]),
    ("membership", &["probe_interval", "probe_timeout", "suspicion", "indirect_probes"]),
    ("checkpoint", &["min_interval", "timeout", "compression_level", "queue_max_bytes"]),
    ("logs", &["max_bytes"]),
];

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

    pub(super) fn is_set(&self, section: &str, key: &str) -> bool {
        self.get(section, key).is_some()
    }

    /// Whether there is a section of this name, with keys or without.
    pub(super) fn has_section(&self, section: &str) -> bool {
        self.table.get(section).is_some()
    }

    fn get(&self, section: &str, key: &str) -> Option<(&DeValue<'t>, Range<usize>)> {
        let table = if section.is_empty() { &self.table } else { self.table.get(section)?.get_ref().as_table()? };
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
        let names = || SECTIONS.iter().map(|(name, _)| *name).filter(|name| !name.is_empty());
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
        self.found.extend(found);
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
