//! A command written as one string, split into words as Compose does it: quotes and backslashes, no shell.

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ShellError {
    #[error(
        "`{0}` means something to a shell only, and none runs: put it in quotes, or write a list: \
         [\"/bin/sh\", \"-c\", \"…\"]"
    )]
    Operator(char),
    #[error("a {0} is not closed")]
    Unclosed(&'static str),
}

/// The words of `line`. Outside quotes a backslash takes the next character as it is (`\n` and `\t` are a newline and a
/// tab), inside double quotes too, inside single quotes it does not. Compose drops what follows an unquoted `;`, `&`,
/// `|`, `<` or `>`; here that is an error.
pub(super) fn split(line: &str) -> Result<Vec<String>, ShellError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && matches!(c, ' ' | '\t' | '\r' | '\n') {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        match (c, quote) {
            ('\\', None | Some('"')) => match chars.next().ok_or(ShellError::Unclosed("backslash"))? {
                'n' => word.push('\n'),
                't' => word.push('\t'),
                other => word.push(other),
            },
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.push(c),
            ('"' | '\'', None) => quote = Some(c),
            (';' | '&' | '|' | '<' | '>' | '(' | ')' | '`', None) => return Err(ShellError::Operator(c)),
            (c, None) => word.push(c),
        }
    }
    match quote {
        Some('"') => Err(ShellError::Unclosed("double quote")),
        Some(_) => Err(ShellError::Unclosed("single quote")),
        None => {
            words.extend(word);
            Ok(words)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_quotes_and_backslashes() {
        for (line, expected) in [
            ("", vec![]),
            ("  a   b\tc\n", vec!["a", "b", "c"]),
            ("sh -c 'echo a; echo b'", vec!["sh", "-c", "echo a; echo b"]),
            (r#"a "b c"d 'e "f"'"#, vec!["a", "b cd", r#"e "f""#]),
            (r"a\ b \'c \n", vec!["a b", "'c", "\n"]),
            (r#""a\"b" 'a\b'"#, vec![r#"a"b"#, r"a\b"]),
            ("'' \"\" a''", vec!["", "", "a"]),
            ("--sout '#rtp{sdp=rtsp://:8554/x}' $HOME", vec!["--sout", "#rtp{sdp=rtsp://:8554/x}", "$HOME"]),
        ] {
            assert_eq!(split(line).unwrap(), expected, "{line:?}");
        }
    }

    #[test]
    fn what_only_a_shell_understands_is_refused() {
        for (line, operator) in
            [("a; b", ';'), ("a && b", '&'), ("a | b", '|'), ("a > b", '>'), ("$(a)", '('), ("`a`", '`')]
        {
            assert_eq!(split(line), Err(ShellError::Operator(operator)));
        }
        assert_eq!(split("a 'b"), Err(ShellError::Unclosed("single quote")));
        assert_eq!(split("a \"b"), Err(ShellError::Unclosed("double quote")));
        assert_eq!(split("a\\"), Err(ShellError::Unclosed("backslash")));
    }

    proptest! {
        #[test]
        fn quoted_words_come_back(words in proptest::collection::vec("[^']{0,12}", 0..5)) {
            let line = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
            prop_assert_eq!(split(&line), Ok(words));
        }

        #[test]
        fn any_text_is_answered(line in ".{0,60}") {
            let _ = split(&line);
        }
    }
}
