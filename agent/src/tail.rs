//! The last lines of a process, for telling why it ended: in memory, so that a full disk hides nothing.

use std::collections::VecDeque;

use ha_proto::agent::{LAST_LINES, MAX_TEXT, last_lines};

/// The newest lines of the main process, its two streams together, each cut to what could be shown.
#[derive(Debug, Default)]
pub struct Tail {
    lines: VecDeque<Vec<u8>>,
    /// The last line has not ended.
    open: bool,
}

impl Tail {
    /// Takes in a record of the log (`frame`).
    pub fn push(&mut self, record: &[u8]) {
        let mut fields = record.splitn(4, |byte| *byte == b' ').skip(2);
        let (Some(mark), Some(content)) = (fields.next(), fields.next()) else { return };
        let content = content.strip_suffix(b"\n").unwrap_or(content);
        if content.is_empty() && !self.open {
            return;
        }
        if !self.open {
            if self.lines.len() == LAST_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(Vec::new());
        }
        if let Some(line) = self.lines.back_mut() {
            let room = MAX_TEXT - line.len();
            line.extend_from_slice(&content[..content.len().min(room)]);
        }
        self.open = mark == b"P";
    }

    /// The lines, and none of them the next time.
    pub fn take(&mut self) -> Vec<String> {
        self.open = false;
        last_lines(std::mem::take(&mut self.lines).into_iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_both_streams_are_kept_whole_and_given_once() {
        let mut tail = Tail::default();
        for record in ["stdout F 1", "stderr F 2", "stdout F ", "stderr P thr", "stderr F ee", "stdout F \x1b[2Jfour"] {
            tail.push(format!("T {record}\n").as_bytes());
        }
        assert_eq!(tail.take(), ["2", "three", "\u{fffd}[2Jfour"]);
        assert_eq!(tail.take(), Vec::<String>::new());
        tail.push(format!("T stdout F {}\n", "x".repeat(9000)).as_bytes());
        assert_eq!(tail.take(), ["x".repeat(MAX_TEXT)]);
    }
}
