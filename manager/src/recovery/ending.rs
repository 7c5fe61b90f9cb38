//! How a main process ended, in words and as facts. The agent's words come out of the container, so they are bounded and
//! made harmless here once more.

use ha_proto::agent::{MAX_TEXT, ProcessEnded, harmless, last_lines};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Of a program's words, in bytes: a sentence is one line of `events`. The facts have more of them.
const MAX_SAID: usize = 120;

/// A sentence: how it ended, after how long, and what it said last.
pub(crate) fn sentence(end: &ProcessEnded) -> String {
    if !end.not_started.is_empty() {
        return format!("the main process was not started: {}", harmless(end.not_started.as_bytes(), MAX_TEXT));
    }
    let mut text = match signal_name(end.signal) {
        Some(signal) => format!("the main process was ended by {signal}"),
        None => format!("the main process ended with exit code {}", end.code),
    };
    match end.ran_ms {
        // An agent of an earlier release does not say.
        0 => {}
        ms if ms < 10_000 => text += &format!(" after {}.{} s", ms / 1000, ms % 1000 / 100),
        ms => text += &format!(" after {}", humantime::format_duration(std::time::Duration::from_secs(ms / 1000))),
    }
    let said = last_lines(end.last_output.iter());
    let (all, last) = (said.join(" | "), said.last());
    match last {
        None => {}
        Some(_) if all.len() <= MAX_SAID => text += &format!("; it said last: {all}"),
        Some(last) if last.len() <= MAX_SAID => text += &format!("; it said last: {last}"),
        Some(last) => text += &format!("; it said last: {}…", crate::cut(last, MAX_SAID)),
    }
    text
}

/// The detail of `process.ended` and `container.stopped`.
pub(crate) fn facts(end: &ProcessEnded) -> Value {
    let mut facts = json!({"code": end.code, "ran_ms": end.ran_ms, "last_output": last_lines(end.last_output.iter())});
    if let Some(signal) = signal_name(end.signal) {
        facts["signal"] = json!(signal);
    }
    if !end.not_started.is_empty() {
        facts["not_started"] = json!(harmless(end.not_started.as_bytes(), MAX_TEXT));
    }
    facts
}

pub(super) fn signal_name(number: i32) -> Option<String> {
    match (number, Signal::try_from(number)) {
        (1.., Ok(signal)) => Some(signal.as_str().to_owned()),
        (1.., Err(_)) => Some(format!("signal {number}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32, signal: i32, ran_ms: u64, said: &[&str]) -> ProcessEnded {
        let last_output = said.iter().map(|line| (*line).to_owned()).collect();
        ProcessEnded { code, signal, ran_ms, last_output, ..ProcessEnded::default() }
    }

    #[test]
    fn the_cause_is_named() {
        assert_eq!(sentence(&ended(3, 0, 0, &[])), "the main process ended with exit code 3");
        let vlc = ended(1, 0, 234, &["no suitable interface module", "exiting"]);
        let said =
            "the main process ended with exit code 1 after 0.2 s; it said last: no suitable interface module | exiting";
        assert_eq!(sentence(&vlc), said);
        assert_eq!(sentence(&ended(139, 11, 61_000, &[])), "the main process was ended by SIGSEGV after 1m 1s");
        assert_eq!(sentence(&ended(163, 35, 0, &[])), "the main process was ended by signal 35");
        assert_eq!(
            facts(&ended(139, 11, 5, &["a"])),
            json!({"code": 139, "signal": "SIGSEGV", "ran_ms": 5, "last_output": ["a"]})
        );
    }

    #[test]
    fn a_sentence_has_the_last_line_where_there_is_room_for_one_only() {
        let said =
            |lines: &[&str]| sentence(&ended(1, 0, 0, lines)).split_once("; it said last: ").unwrap().1.to_owned();
        let (long, longer) = ("l".repeat(118), "é".repeat(100));
        assert_eq!(said(&[&long, "end of it"]), "end of it");
        assert_eq!(said(&["begin", &long]), long);
        assert_eq!(said(&["begin", &longer]), format!("{}…", "é".repeat(60)));
    }

    #[test]
    fn what_a_container_says_of_itself_is_bounded_and_obeyed_by_no_terminal() {
        let mut end = ended(1, 0, 1, &[&"x".repeat(4000), "\u{1b}[2J\u{202e}"]);
        assert!(sentence(&end).len() < 250 && !sentence(&end).contains('\u{1b}'));
        assert!(facts(&end).to_string().len() < 700);
        end.not_started = format!("\u{7}{}", "y".repeat(4000));
        assert!(sentence(&end).len() < 700 && !sentence(&end).contains('\u{7}'));
    }
}
