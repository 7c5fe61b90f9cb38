//! What is wrong with a file, gathered so that all of it can be said at once.

use std::fmt;

use crate::spec::nearest;

/// A place in the text, counted from 1; the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Pos {
    pub line: usize,
    pub column: usize,
}

/// One thing to say about a Compose file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub file: String,
    pub at: Pos,
    /// Where it is in the document: `services.web.volumes[1]`. Empty for the document itself.
    pub path: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.at.line, self.at.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything wrong with a Compose file, in the order of the file. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", joined(.findings, *.left_out))]
pub struct ComposeErrors {
    pub findings: Vec<Finding>,
    /// How many more there are, beyond the first hundred.
    pub left_out: usize,
}

fn joined(findings: &[Finding], left_out: usize) -> String {
    let mut text = findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n");
    if left_out > 0 {
        text += &format!("\nand {left_out} more");
    }
    text
}

const MAX_FINDINGS: usize = 100;
/// How many words are listed as allowed.
const MAX_ALLOWED: usize = 32;
/// How much of a user's text is repeated in a message.
const MAX_QUOTED: usize = 80;

pub(super) struct Report {
    file: String,
    errors: Vec<Finding>,
    left_out: usize,
    warnings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), errors: Vec::new(), left_out: 0, warnings: Vec::new() }
    }

    pub(super) fn error(&mut self, at: Pos, path: &str, message: impl Into<String>) {
        if self.errors.len() < MAX_FINDINGS {
            self.errors.push(self.finding(at, path, message.into()));
        } else {
            self.left_out += 1;
        }
    }

    pub(super) fn warning(&mut self, at: Pos, path: &str, message: impl Into<String>) {
        if self.warnings.len() < MAX_FINDINGS {
            self.warnings.push(self.finding(at, path, message.into()));
        }
    }

    fn finding(&self, at: Pos, path: &str, message: String) -> Finding {
        Finding { file: self.file.clone(), at, path: path.to_owned(), message }
    }

    /// Whether further errors are only counted; spares the making of their messages.
    pub(super) fn is_full(&self) -> bool {
        self.errors.len() >= MAX_FINDINGS
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// The warnings, or the errors if there are any.
    pub(super) fn finish(mut self) -> Result<Vec<Finding>, ComposeErrors> {
        if self.errors.is_empty() {
            return Ok(self.warnings);
        }
        self.errors.sort_by_key(|finding| finding.at);
        Err(ComposeErrors { findings: self.errors, left_out: self.left_out })
    }
}

/// `text` as it may be repeated in a message: bounded, and without control characters.
pub(super) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_QUOTED).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_QUOTED).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// A name as it may be repeated in a message: it has no characters but those of names, and any length.
pub(super) fn short(name: &str) -> &str {
    crate::cut(name, MAX_QUOTED)
}

/// The path of `key` in the mapping at `path`.
pub(super) fn key_path(path: &str, key: &str) -> String {
    let simple = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    match (simple && key.len() <= MAX_QUOTED, path.is_empty()) {
        (true, true) => key.to_owned(),
        (true, false) => format!("{path}.{key}"),
        (false, _) => format!("{path}[\"{}\"]", quoted(key).trim_matches('`')),
    }
}

/// `allowed here: …; did you mean …?`
pub(super) fn allowed(word: &str, allowed: &[&str]) -> String {
    let mut text = format!("allowed here: {}", allowed[..allowed.len().min(MAX_ALLOWED)].join(", "));
    if allowed.len() > MAX_ALLOWED {
        text += ", …";
    }
    if let Some(near) = nearest(word, allowed.iter().copied()) {
        text += &format!("; did you mean `{near}`?");
    }
    text
}
