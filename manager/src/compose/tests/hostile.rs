//! Any text is answered, in bounded time and memory.

use std::{fmt::Write, time::Instant};

use proptest::prelude::*;

use super::*;

fn refusal(text: &str) -> String {
    parse(text, "f", &no_variables).unwrap_err().to_string()
}

#[test]
fn aliases_that_multiply_are_stopped() {
    let mut text = String::from("x0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n");
    for level in 1..12 {
        let previous = format!("*a{}, ", level - 1).repeat(10);
        writeln!(text, "x{level}: &a{level} [{previous}]").unwrap();
    }
    assert!(refusal(&text).contains("too large once its aliases"), "{}", refusal(&text));
}

#[test]
fn long_values_repeated_by_aliases_are_stopped() {
    let text = format!("x0: &a \"{}\"\nx1: [{}]\n", "y".repeat(500_000), "*a, ".repeat(100));
    assert!(refusal(&text).contains("too large"), "{}", refusal(&text));
    let text = format!("x1: [{}]\n", "$BIG, ".repeat(10_000));
    let refused = parse(&text, "f", &|_| Some("x".repeat(100_000))).unwrap_err();
    assert!(refused.to_string().contains("too large"), "{refused}");
}

#[test]
fn depth_and_length_are_bounded() {
    assert!(parse(&"[".repeat(100_000), "f", &no_variables).is_err());
    let nested: String = (0..1000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert!(parse(&nested, "f", &no_variables).is_err());
    let mut deep = String::from("x0: &a0 [[[[[[[[1]]]]]]]]\n");
    for level in 1..8 {
        writeln!(deep, "x{level}: &a{level} [[[[[[[[*a{}]]]]]]]]", level - 1).unwrap();
    }
    assert!(refusal(&deep).contains("nested deeper"), "{}", refusal(&deep));
    assert!(refusal(&"#".repeat((1 << 20) + 1)).contains("longer than"));
}

#[test]
fn a_flood_of_errors_is_cut_short() {
    let mut text = String::from("services:\n");
    for index in 0..2000 {
        writeln!(text, "  s{index}: {{a{index}: 1, depends_on: [n{index}]}}").unwrap();
    }
    let start = Instant::now();
    let errors = parse(&text, "f", &no_variables).unwrap_err();
    assert_eq!(errors.findings.len(), 100);
    assert!(errors.left_out > 100 && errors.to_string().ends_with("more"), "{}", errors.left_out);
    // Generous: it takes some ten milliseconds, but quadratic work would take minutes.
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn messages_repeat_no_control_characters_and_no_long_text() {
    let text = format!("services:\n  web: {{image: /i, \"k\\e[31m{}\": 1}}\n", "y".repeat(900));
    let message = refusal(&text);
    assert!(!message.contains('\u{1b}') && message.len() < 1000, "{message:?}");
}

const SAMPLE: &str = include_str!("sample.yaml");

proptest! {
    #[test]
    fn any_text(text in "(.|\n){0,200}") {
        let _ = parse(&text, "f", &no_variables);
    }

    #[test]
    fn anything_made_of_yaml(parts in proptest::collection::vec(
        prop_oneof![
            Just("services:\n"), Just("  web:\n"), Just("    "), Just("image"), Just(": "), Just("- "), Just("[") , Just("]"),
            Just("{"), Just("}"), Just(","), Just("&a "), Just("*a "), Just("<<: "), Just("\""), Just("'"), Just("|\n"),
            Just(">-\n"), Just("!!str "), Just("? "), Just("---\n"), Just("${A:-"), Just("$$"), Just("\n"), Just("#"),
            Just("volumes"), Just("healthcheck"), Just("test"), Just("depends_on"), Just("networks"), Just("%TAG ! x\n"),
        ], 0..40)) {
        let _ = parse(&parts.concat(), "f", &no_variables);
    }

    #[test]
    fn a_good_file_with_a_piece_replaced(start in 0..SAMPLE.len(), length in 0usize..40, with in "[ -~\n]{0,10}") {
        let end = (start + length).min(SAMPLE.len());
        if SAMPLE.is_char_boundary(start) && SAMPLE.is_char_boundary(end) {
            let text = format!("{}{with}{}", &SAMPLE[..start], &SAMPLE[end..]);
            if let Err(errors) = parse(&text, "f", &no_variables) {
                let lines = text.lines().count() + 1;
                prop_assert!(!errors.findings.is_empty());
                prop_assert!(errors.findings.iter().all(|f| (1..=lines).contains(&f.at.line) && f.at.column > 0), "{}", errors);
            }
        }
    }
}
