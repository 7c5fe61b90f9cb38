//! Compose's variables: `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME:?message}`, `${NAME:+instead}` and the same
//! without the colon, nested; `$$` is a dollar sign.

use ha_proto::agent::{MAX_TEXT, harmless};

use super::report::{quoted, short};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InterpolateError {
    #[error("a `$` has to begin a variable, `$NAME` or `${{NAME}}`; write `$$` for a dollar sign")]
    LoneDollar,
    #[error("`${{` is not closed by `}}`; write `$$` for a dollar sign")]
    Unclosed,
    #[error(
        "{} is not a variable; allowed are ${{NAME}} and ${{NAME:-default}}, with one of :- - :? ? :+ + after the name",
        quoted(.0)
    )]
    Malformed(String),
    #[error("the variable {} is required{}", short(.name), if .message.is_empty() { ": set it".into() } else { format!(": {}", harmless(.message.as_bytes(), MAX_TEXT)) })]
    Required { name: String, message: String },
    #[error("variables are nested deeper than {MAX_DEPTH} times")]
    TooDeep,
    #[error("is longer than {MAX_BYTES} bytes after its variables were put in")]
    TooLong,
}

const MAX_DEPTH: usize = 16;
const MAX_BYTES: usize = 1 << 20;

/// What a lookup of a variable answers: `None` when it is not set.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// `text` with its variables replaced; the names that were not set and had no default are added to `unset`.
pub(super) fn interpolate(text: &str, lookup: Lookup<'_>, unset: &mut Vec<String>) -> Result<String, InterpolateError> {
    expand(text, lookup, unset, 0)
}

fn expand(text: &str, lookup: Lookup<'_>, unset: &mut Vec<String>, depth: usize) -> Result<String, InterpolateError> {
    if depth > MAX_DEPTH {
        return Err(InterpolateError::TooDeep);
    }
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        out += before;
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = after.strip_prefix('{') {
            let end = closing_brace(inner).ok_or(InterpolateError::Unclosed)?;
            out += &braced(&inner[..end], lookup, unset, depth)?;
            rest = &inner[end + 1..];
        } else {
            let name = &after[..name_length(after)];
            if name.is_empty() {
                return Err(InterpolateError::LoneDollar);
            }
            out += &plain(name, lookup, unset);
            rest = &after[name.len()..];
        }
        if out.len() > MAX_BYTES {
            return Err(InterpolateError::TooLong);
        }
    }
    out += rest;
    if out.len() > MAX_BYTES { Err(InterpolateError::TooLong) } else { Ok(out) }
}

/// What stands between the braces of `${…}`.
fn braced(inner: &str, lookup: Lookup<'_>, unset: &mut Vec<String>, depth: usize) -> Result<String, InterpolateError> {
    let (name, rest) = inner.split_at(name_length(inner));
    if name.is_empty() {
        return Err(InterpolateError::Malformed(inner.to_owned()));
    }
    if rest.is_empty() {
        return Ok(plain(name, lookup, unset));
    }
    let (empty_counts_as_unset, rest) = match rest.strip_prefix(':') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let value = lookup(name).filter(|value| !(empty_counts_as_unset && value.is_empty()));
    // The word is looked at even when it is not used: a mistake in it is one whatever the variable holds.
    let word = |rest: &str, unset: &mut Vec<String>| expand(rest, lookup, unset, depth + 1);
    let (operator, rest) = rest.split_at_checked(1).unwrap_or(("", rest));
    match (operator, value) {
        ("-", None) => word(rest, unset),
        ("-", Some(value)) => word(rest, &mut Vec::new()).map(|_| value),
        ("?", None) => Err(InterpolateError::Required { name: name.to_owned(), message: word(rest, unset)? }),
        ("?", Some(value)) => word(rest, &mut Vec::new()).map(|_| value),
        ("+", None) => word(rest, &mut Vec::new()).map(|_| String::new()),
        ("+", Some(_)) => word(rest, unset),
        _ => Err(InterpolateError::Malformed(inner.to_owned())),
    }
}

fn plain(name: &str, lookup: Lookup<'_>, unset: &mut Vec<String>) -> String {
    lookup(name).unwrap_or_else(|| {
        unset.push(name.to_owned());
        String::new()
    })
}

fn name_length(text: &str) -> usize {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return 0;
    }
    text.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count()
}

/// The offset of the brace that closes the one before `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 1;
    text.bytes().position(|byte| {
        match byte {
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        open == 0
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "SET" => Some("value".into()),
            "EMPTY" => Some(String::new()),
            "BIG" => Some("x".repeat(600 << 10)),
            _ => None,
        }
    }

    fn run(text: &str) -> Result<String, InterpolateError> {
        interpolate(text, &lookup, &mut Vec::new())
    }

    #[test]
    fn every_form_of_compose() {
        for (text, expected) in [
            ("plain", "plain"),
            ("$SET.", "value."),
            ("${SET}x", "valuex"),
            ("$$SET $${SET}", "$SET ${SET}"),
            ("${SET:-d}${SET-d}", "valuevalue"),
            ("${EMPTY:-d}|${EMPTY-d}", "d|"),
            ("${NO:-d}${NO-d}", "dd"),
            ("${SET:+i}|${EMPTY:+i}|${EMPTY+i}|${NO+i}", "i||i|"),
            ("${SET:?m}${EMPTY?m}", "value"),
            ("${NO:-a${NO:-${SET}}b}", "avalueb"),
            ("${NO:-{\"a\":1}}", "{\"a\":1}"),
            ("${NO:-}", ""),
            ("äö${SET}ü", "äövalueü"),
        ] {
            assert_eq!(run(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_variable_is_refused() {
        use InterpolateError::*;
        assert_eq!(run("cost: $5"), Err(LoneDollar));
        assert_eq!(run("$"), Err(LoneDollar));
        assert_eq!(run("${SET"), Err(Unclosed));
        for bad in ["${}", "${1}", "${SET!}", "${SET:}", "${SET:x}", "${SETä}"] {
            assert!(matches!(run(bad), Err(Malformed(_))), "{bad} gave {:?}", run(bad));
        }
        assert_eq!(run("${SET:-$}"), Err(LoneDollar), "a mistake in a default that is not used");
    }

    #[test]
    fn a_required_variable_says_its_message() {
        let error = run("${EMPTY:?set it to ${SET}}").unwrap_err();
        assert_eq!(error.to_string(), "the variable EMPTY is required: set it to value");
        let error = run(&format!("${{{}?\u{1b}]0;owned\u{7}{}}}", "N".repeat(9000), "long ".repeat(9000))).unwrap_err();
        assert!(error.to_string().len() < 1000 && !error.to_string().contains(char::is_control), "{error}");
    }

    #[test]
    fn unset_variables_are_named_once_per_use_and_defaults_silence_them() {
        let mut unset = Vec::new();
        interpolate("$A ${B} ${C:-d} ${SET:-$D}", &lookup, &mut unset).unwrap();
        assert_eq!(unset, ["A", "B"]);
    }

    #[test]
    fn size_and_depth_are_bounded() {
        assert_eq!(run("$BIG$BIG"), Err(InterpolateError::TooLong));
        let deep = format!("{}{}", "${NO:-".repeat(40), "}".repeat(40));
        assert_eq!(run(&deep), Err(InterpolateError::TooDeep));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[${}A-Z:?+ä-]{0,60}") {
            let _ = run(&text);
        }

        #[test]
        fn doubled_dollars_give_back_the_text(text in ".{0,60}") {
            prop_assert_eq!(run(&text.replace('$', "$$")), Ok(text));
        }
    }
}
