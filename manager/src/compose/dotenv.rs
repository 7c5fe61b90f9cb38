//! `.env` beside a Compose file: values for the variables in it, where the shell has none.
//!
//! Of Compose's form: `NAME=value`, with or without `export`; `#` begins a comment, in a line of its own or after a space.
//! `'…'` is taken as it is; in `"…"` a backslash stands before n, r, t, `"`, `\` and `$`; variables are put in except in `'…'`.

use std::collections::BTreeMap;

use super::{
    ComposeErrors, Finding,
    interpolate::{Lookup, interpolate},
    report::{Pos, Report, quoted, short},
};

/// The variables of `text`, and what its user should know. `lookup` is the shell: a value of its own goes first in what is put
/// in here, too.
///
/// # Errors
/// Every line that is not understood.
pub fn parse(
    text: &str,
    file: &str,
    lookup: Lookup<'_>,
) -> Result<(BTreeMap<String, String>, Vec<Finding>), ComposeErrors> {
    let mut report = Report::new(file);
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let at = Pos { line: index + 1, column: 1 };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=') else {
            report.error(at, "", format!("{} is not of the form NAME=value", quoted(line)));
            continue;
        };
        let name = name.trim();
        if !is_name(name) {
            report.error(at, "", format!("{} is not a name of a variable: letters, digits and `_`", quoted(name)));
            continue;
        }
        let known = |name: &str| lookup(name).or_else(|| variables.get(name).cloned());
        match read(value.trim(), at, name, &known, &mut report) {
            Ok(value) => drop(variables.insert(name.to_owned(), value)),
            Err(message) => report.error(at, name, message),
        }
    }
    report.finish().map(|warnings| (variables, warnings))
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn read(value: &str, at: Pos, name: &str, lookup: Lookup<'_>, report: &mut Report) -> Result<String, String> {
    let text = match value.chars().next() {
        Some('\'') => {
            let (inner, rest) = value[1..].split_once('\'').ok_or(UNCLOSED)?;
            return after(rest).map(|()| inner.to_owned());
        }
        Some('"') => {
            let (inner, rest) = unescaped(&value[1..])?;
            after(rest)?;
            inner
        }
        _ => {
            let comment = value
                .match_indices('#')
                .map(|(at, _)| at)
                .find(|at| *at == 0 || value[..*at].ends_with(char::is_whitespace));
            value[..comment.unwrap_or(value.len())].trim_end().to_owned()
        }
    };
    let mut unset = Vec::new();
    let read = interpolate(&text, lookup, &mut unset).map_err(|error| error.to_string())?;
    for unset in unset {
        report.warning(at, name, format!("the variable {} is not set and taken as empty", short(&unset)));
    }
    Ok(read)
}

const UNCLOSED: &str = "its quotes are not closed in the same line; a value of several lines is not supported";

/// What may follow the closing quotes.
fn after(rest: &str) -> Result<(), String> {
    let rest = rest.trim_start();
    if rest.is_empty() || rest.starts_with('#') {
        return Ok(());
    }
    Err(format!("{} after the closing quotes", quoted(rest)))
}

/// The text up to the closing quotes, a `$` that is meant as `$$`, and what comes after them.
fn unescaped(text: &str) -> Result<(String, &str), String> {
    let mut inner = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((inner, &text[at + 1..])),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => inner.push('\n'),
                Some('r') => inner.push('\r'),
                Some('t') => inner.push('\t'),
                Some('$') => inner.push_str("$$"),
                Some(c @ ('"' | '\\')) => inner.push(c),
                Some(c) => inner.extend(['\\', c]),
                None => break,
            },
            c => inner.push(c),
        }
    }
    Err(UNCLOSED.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shell(name: &str) -> Option<String> {
        (name == "SHELL").then(|| "sh".to_owned())
    }

    #[test]
    fn every_form_of_a_line() {
        let text = "\u{feff}# a comment\n\nA=1\r\nexport B = two words # and no more\nC='$A # \\n'\nD=\"$A \\$A \\\"x\\\"\\n\" # c\n\
                    E=${A}-${SHELL}-${NO:-x}\nF=\nG=a#b\nSHELL=zsh\nH=$SHELL\nA=3\n";
        let (variables, warnings) = parse(text, ".env", &shell).unwrap();
        let expected = [
            ("A", "3"),
            ("B", "two words"),
            ("C", "$A # \\n"),
            ("D", "1 $A \"x\"\n"),
            ("E", "1-sh-x"),
            ("F", ""),
            ("G", "a#b"),
            ("H", "sh"),
            ("SHELL", "zsh"),
        ];
        assert_eq!(variables, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert!(warnings.is_empty());
        let (_, warnings) = parse("A=1\nB=$NO", ".env", &shell).unwrap();
        assert_eq!(warnings[0].to_string(), ".env:2:1: B: the variable NO is not set and taken as empty");
    }

    #[test]
    fn every_line_that_is_not_understood_is_named() {
        let errors = parse("A\nB-C=1\n1=2\nD='x\nE=\"x\\\nF=\"x\" y\nG=${H\n", ".env", &shell).unwrap_err();
        let lines: Vec<_> = errors.findings.iter().map(|finding| finding.at.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7], "{errors}");
        assert!(errors.findings[3].to_string().starts_with(".env:4:1: D: its quotes are not closed"), "{errors}");
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[A-C=\"'\\\\$# \nä{}]{0,80}") {
            let _ = parse(&text, ".env", &shell);
        }
    }
}
