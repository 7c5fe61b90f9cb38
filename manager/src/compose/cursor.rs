//! A node with its path, and what it can be read as. A reading that fails has reported why and gives `None`.

use std::{collections::HashSet, fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use super::{
    report::{Pos, Report, allowed, key_path, quoted},
    tree::{Key, Node, Value},
};
use crate::spec::{parse_bytes, parse_duration};

pub(super) struct Cursor<'a> {
    /// The key this is the value of; `None` in a list.
    pub(super) key: Option<&'a Key>,
    pub(super) node: &'a Node,
    pub(super) path: String,
}

/// One entry of what Compose writes as a mapping or as a list of `NAME=value`.
pub(super) struct Pair {
    pub(super) name: String,
    /// `None` when only the name is given.
    pub(super) value: Option<String>,
    pub(super) at: Pos,
    pub(super) name_at: Pos,
    pub(super) path: String,
}

impl<'a> Cursor<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self { key: None, node, path: String::new() }
    }

    pub(super) fn name(&self) -> &'a str {
        self.key.map_or("", |key| &key.text)
    }

    pub(super) fn at(&self) -> Pos {
        self.node.at
    }

    /// Where its key stands, or in a list the item itself.
    pub(super) fn key_at(&self) -> Pos {
        self.key.map_or(self.at(), |key| key.at)
    }

    pub(super) fn error(&self, report: &mut Report, message: impl Into<String>) {
        report.error(self.at(), &self.path, message);
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::Seq(_))
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    fn expected(&self, report: &mut Report, what: &str) {
        let found = match &self.node.value {
            Value::Broken => return,
            Value::Null => "nothing".to_owned(),
            Value::Scalar { text, .. } => quoted(text),
            Value::Seq(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        };
        self.error(report, format!("expected {what}, found {found}"));
    }

    /// The entries of a mapping whose keys are the user's own.
    pub(super) fn entries(&self, report: &mut Report) -> Vec<Cursor<'a>> {
        let Value::Map(entries) = &self.node.value else {
            self.expected(report, "a mapping");
            return Vec::new();
        };
        let cursor =
            |(key, node): &'a (Key, Node)| Cursor { key: Some(key), node, path: key_path(&self.path, &key.text) };
        entries.iter().map(cursor).collect()
    }

    /// The entries of a mapping with fixed keys: without the extensions `x-…`, which Compose ignores.
    pub(super) fn fields(&self, report: &mut Report) -> Vec<Cursor<'a>> {
        let mut fields = self.entries(report);
        fields.retain(|field| !field.name().starts_with("x-"));
        fields
    }

    /// As [`fields`](Self::fields), where nothing at all is an empty mapping.
    pub(super) fn optional_fields(&self, report: &mut Report) -> Vec<Cursor<'a>> {
        if self.is_null() { Vec::new() } else { self.fields(report) }
    }

    pub(super) fn items(&self, report: &mut Report) -> Vec<Cursor<'a>> {
        let Value::Seq(items) = &self.node.value else {
            self.expected(report, "a list");
            return Vec::new();
        };
        let cursor =
            |(index, node): (usize, &'a Node)| Cursor { key: None, node, path: format!("{}[{index}]", self.path) };
        items.iter().enumerate().map(cursor).collect()
    }

    /// This key is none of `known`.
    pub(super) fn unknown(&self, report: &mut Report, known: &[&str]) {
        let message = if report.is_full() { String::new() } else { allowed(self.name(), known) };
        report.error(self.key_at(), &self.path, format!("unknown key; {message}"));
    }

    /// This key is Compose's, and we do not do what it says.
    pub(super) fn unsupported(&self, report: &mut Report, instead: &str) {
        report.error(
            self.key_at(),
            &self.path,
            format!("Compose has this key, but it is not supported here: {instead}"),
        );
    }

    /// A string or number, as written; may be empty.
    pub(super) fn text(&self, report: &mut Report) -> Option<String> {
        match &self.node.value {
            Value::Scalar { text, plain: true } if matches!(text.as_str(), "true" | "false") => {
                self.error(
                    report,
                    format!("expected a string, found the boolean {text}; if it is meant as text, put it in quotes"),
                );
                None
            }
            Value::Scalar { text, .. } if text.contains('\0') => {
                self.error(report, "contains a NUL character");
                None
            }
            Value::Scalar { text, .. } => Some(text.clone()),
            _ => {
                self.expected(report, "a string");
                None
            }
        }
    }

    /// A string that is not empty.
    pub(super) fn word(&self, report: &mut Report) -> Option<String> {
        let text = self.text(report)?;
        if text.is_empty() {
            self.error(report, "is empty; leave the key out for its default");
            return None;
        }
        Some(text)
    }

    pub(super) fn parsed<T: FromStr<Err: Display>>(&self, report: &mut Report) -> Option<T> {
        match self.word(report)?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(report, error.to_string());
                None
            }
        }
    }

    pub(super) fn boolean(&self, report: &mut Report) -> Option<bool> {
        match &self.node.value {
            Value::Scalar { text, .. } if text == "true" => Some(true),
            Value::Scalar { text, .. } if text == "false" => Some(false),
            _ => {
                self.expected(report, "true or false");
                None
            }
        }
    }

    pub(super) fn number(&self, report: &mut Report, range: RangeInclusive<u64>) -> Option<u64> {
        let number = match &self.node.value {
            Value::Scalar { text, .. } => whole_number(text).filter(|number| range.contains(number)),
            _ => None,
        };
        if number.is_none() {
            self.expected(report, &format!("a whole number from {} to {}", range.start(), range.end()));
        }
        number
    }

    pub(super) fn duration(&self, report: &mut Report) -> Option<Duration> {
        let text = self.word(report)?;
        parse_duration(&text).map_err(|error| self.error(report, error.to_string())).ok()
    }

    /// Bytes, larger than 0.
    pub(super) fn size(&self, report: &mut Report) -> Option<u64> {
        let text = self.word(report)?;
        match parse_bytes(&text) {
            Ok(0) => {
                self.error(report, "must be larger than 0");
                None
            }
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.error(report, error.to_string());
                None
            }
        }
    }

    /// The strings of a list.
    pub(super) fn strings(&self, report: &mut Report) -> Vec<String> {
        self.items(report).iter().filter_map(|item| item.text(report)).collect()
    }

    /// A mapping, or a list of `NAME=value`. No name comes twice.
    pub(super) fn pairs(&self, report: &mut Report) -> Vec<Pair> {
        if !self.is_list() {
            let entries = self.entries(report);
            return entries.iter().filter_map(|entry| entry.pair(report)).collect();
        }
        let (mut pairs, mut names) = (Vec::new(), HashSet::new());
        for item in self.items(report) {
            let Some(text) = item.word(report) else { continue };
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (text, None),
            };
            if name.is_empty() {
                item.error(report, "has no name before the `=`");
            } else if !names.insert(name.clone()) {
                item.error(report, format!("{} is given twice", quoted(&name)));
            } else {
                pairs.push(Pair { name, value, at: item.at(), name_at: item.at(), path: item.path });
            }
        }
        pairs
    }

    fn pair(&self, report: &mut Report) -> Option<Pair> {
        let value = if self.is_null() { None } else { Some(self.text(report)?) };
        Some(Pair {
            name: self.name().to_owned(),
            value,
            at: self.at(),
            name_at: self.key_at(),
            path: self.path.clone(),
        })
    }
}

/// A decimal number with one spelling: no sign, no leading zeros, which YAML 1.1 took for octal.
pub(super) fn whole_number(text: &str) -> Option<u64> {
    let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}
