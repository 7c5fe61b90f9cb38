//! Text that a container's program wrote, made fit for events, terminals and logs. Both ends use it: what comes out of a
//! container is hostile to the manager, whoever says it.

/// What is kept of a program's words about its end, in bytes.
pub const MAX_TEXT: usize = 512;
/// Lines of output that are kept for telling why a process ended.
pub const LAST_LINES: usize = 3;

/// One line of at most `max` bytes that a terminal shows and does not obey.
pub fn harmless(text: &[u8], max: usize) -> String {
    const MARK: char = char::REPLACEMENT_CHARACTER;
    // A character takes at least a byte, so what is behind cannot be among the first `max`.
    let text = String::from_utf8_lossy(&text[..text.len().min(max)]);
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        let c = match c {
            '\t' => ' ',
            c if c.is_control() || reorders(c) => MARK,
            c => c,
        };
        if line.len() + c.len_utf8() > max {
            break;
        }
        line.push(c);
    }
    line.trim_end().to_owned()
}

/// Characters that let a line look like another one.
fn reorders(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The newest of `lines`, oldest first: at most [`LAST_LINES`], and [`MAX_TEXT`] bytes together. Blank lines are left out.
pub fn last_lines<T: AsRef<[u8]>>(lines: impl DoubleEndedIterator<Item = T>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    let mut room = MAX_TEXT;
    for line in lines.rev() {
        let line = harmless(line.as_ref(), room);
        if line.is_empty() {
            continue;
        }
        room -= line.len();
        kept.push(line);
        if kept.len() == LAST_LINES || room == 0 {
            break;
        }
    }
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_replaced() {
        assert_eq!(harmless(b"a\x1b[31mb\x07\tc\r\n", 99), "a\u{fffd}[31mb\u{fffd} c\u{fffd}\u{fffd}");
        assert_eq!(harmless("user\u{202e}gpj.exe".as_bytes(), 99), "user\u{fffd}gpj.exe");
        assert_eq!(harmless("gr\u{fc}n".as_bytes(), 99), "gr\u{fc}n");
    }

    #[test]
    fn the_newest_lines_are_kept_in_their_order() {
        assert_eq!(last_lines(["1", "2", "", "3", "4", " "].iter()), ["2", "3", "4"]);
        let long = "x".repeat(500);
        assert_eq!(last_lines([long.as_str(), "a line of 20 letters"].iter()), [&long[..492], "a line of 20 letters"]);
    }

    proptest! {
        #[test]
        fn whatever_is_written_stays_within_its_bounds(
            lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..700), 0..8), max in 0usize..600
        ) {
            let kept = last_lines(lines.iter());
            prop_assert!(kept.len() <= LAST_LINES && kept.iter().map(String::len).sum::<usize>() <= MAX_TEXT);
            for line in kept.iter().cloned().chain(lines.iter().map(|line| harmless(line, max))) {
                prop_assert!(!line.chars().any(|c| c.is_control() || reorders(c)), "{line:?}");
            }
            prop_assert!(lines.iter().all(|line| harmless(line, max).len() <= max));
        }
    }
}
