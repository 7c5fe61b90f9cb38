//! `healthcheck` of a service.

use std::time::Duration;

use super::{
    cursor::Cursor,
    report::{Report, quoted},
};
use crate::spec::Healthcheck;

const KNOWN: [&str; 7] = ["test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"];

/// More often would keep the container busy with nothing else.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// `None` when the service has no healthcheck, or a wrong one.
pub(super) fn read(cursor: &Cursor<'_>, report: &mut Report) -> Option<Healthcheck> {
    let (mut test, mut disabled) = (None, false);
    // Compose's defaults.
    let mut check = Healthcheck {
        argv: Vec::new(),
        interval: Duration::from_secs(30),
        timeout: Duration::from_secs(30),
        start_period: Duration::ZERO,
        start_interval: None,
        retries: 3,
    };
    for field in cursor.fields(report) {
        match field.name() {
            "test" => test = Some(argv(&field, report)),
            "interval" => check.interval = at_least(MIN_INTERVAL, &field, report).unwrap_or(check.interval),
            "timeout" => check.timeout = at_least(Duration::from_millis(1), &field, report).unwrap_or(check.timeout),
            "start_period" => check.start_period = field.duration(report).unwrap_or_default(),
            "retries" => {
                let retries = field.number(report, 1..=1000).and_then(|number| u32::try_from(number).ok());
                check.retries = retries.unwrap_or(check.retries);
            }
            "start_interval" => check.start_interval = at_least(MIN_INTERVAL, &field, report),
            "disable" => disabled = field.boolean(report).unwrap_or(false),
            _ => field.unknown(report, &KNOWN),
        }
    }
    match test {
        _ if disabled => None,
        Some(argv) => argv.map(|argv| Healthcheck { argv, ..check }),
        None => {
            cursor.error(report, "`test` is missing: the command that exits 0 when the container is healthy");
            None
        }
    }
}

fn at_least(least: Duration, field: &Cursor<'_>, report: &mut Report) -> Option<Duration> {
    let duration = field.duration(report)?;
    if duration < least {
        field.error(report, format!("must be at least {least:?}"));
        return None;
    }
    Some(duration)
}

/// The program to run; `None` for `NONE`, or after an error.
fn argv(test: &Cursor<'_>, report: &mut Report) -> Option<Vec<String>> {
    let shell = |line: String| vec!["/bin/sh".to_owned(), "-c".to_owned(), line];
    if !test.is_list() {
        return test.word(report).map(shell);
    }
    let items = test.items(report);
    let mut words = test.strings(report);
    if words.len() < items.len() {
        return None;
    }
    match (words.first().map(String::as_str), words.len()) {
        (Some("NONE"), 1) => return None,
        (Some("CMD"), 2..) if words[1].is_empty() => test.error(report, "names no program: the first word is empty"),
        (Some("CMD"), 2..) => return Some(words.split_off(1)),
        (Some("CMD-SHELL"), 2) => return words.pop().map(shell),
        (Some("NONE" | "CMD" | "CMD-SHELL"), count) => {
            test.error(report, format!("{} with {} words after it; {FORMS}", quoted(&words[0]), count - 1));
        }
        (Some(first), _) => test.error(report, format!("begins with {}; {FORMS}", quoted(first))),
        (None, _) => test.error(report, format!("is empty; {FORMS}")),
    }
    None
}

const FORMS: &str =
    "allowed are [\"CMD\", program, argument, …], [\"CMD-SHELL\", line], [\"NONE\"], and a string for a shell";
