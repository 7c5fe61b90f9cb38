//! Finding in CRIU's log the lines that say what went wrong.

use std::{fs::File, io::Read, path::Path};

/// At most this much of a log is looked at.
const LOG_CAP: u64 = 8 << 20;
const LINES: usize = 4;

/// Errors that CRIU logs and goes on from: it wants more descriptors than a manager without CAP_SYS_RESOURCE may have.
const HARMLESS: [&str; 1] = ["Can't setup RLIMIT_NOFILE for self"];

/// The first lines of the log at error level, without their time stamps, in one string; `None` when there are none. The
/// first errors are the cause; the later ones follow from it.
pub fn decisive_lines(log: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(log).ok()?.take(LOG_CAP).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let is_error = |line: &&str| line.contains("Error (") && !HARMLESS.iter().any(|harmless| line.contains(harmless));
    let errors: Vec<&str> = text.lines().filter(is_error).map(without_stamp).take(LINES).collect();
    if errors.is_empty() { None } else { Some(errors.join("; ")) }
}

fn without_stamp(line: &str) -> &str {
    let line = line.trim();
    match line.strip_prefix('(').and_then(|rest| rest.split_once(") ")) {
        Some((stamp, rest)) if stamp.bytes().all(|b| b.is_ascii_digit() || b == b'.') => rest.trim(),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_errors_are_taken_without_their_time_stamps() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dump.log");
        let lines =
            "(00.001) Warn (x.c:1): no\n(00.002)     12: Error (a.c:3): first\n(00.003) Error (b.c:4): second\n";
        std::fs::write(&log, lines).unwrap();
        assert_eq!(decisive_lines(&log).unwrap(), "12: Error (a.c:3): first; Error (b.c:4): second");
        std::fs::write(&log, "(00.001) all well\n").unwrap();
        assert_eq!(decisive_lines(&log), None);
    }
}
