//! Tables for people.

use std::time::Duration;

use ha_proto::control::{ContainerStatus, Event, SnapshotInfo, StatusReply};

/// Columns padded to the widest cell, two blanks between.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn cells<const N: usize>(values: [&str; N]) -> Vec<String> {
    values.iter().map(|value| if value.is_empty() { "-".into() } else { (*value).to_owned() }).collect()
}

/// `1.5s`, `3m 20s`: short, for a glance.
pub fn ago(ms: u64) -> String {
    if ms < 10_000 {
        format!("{}.{}s", ms / 1000, ms % 1000 / 100)
    } else {
        humantime::format_duration(Duration::from_secs(ms / 1000)).to_string()
    }
}

pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

pub fn status(reply: &StatusReply) -> String {
    let mut nodes = vec![cells(["NODE", "ADDRESS", "STATE", "VERSION"])];
    for node in &reply.nodes {
        nodes.push(cells([&node.name, &node.address, &node.liveness, &node.version]));
    }
    let mut containers = vec![cells([
        "CONTAINER",
        "NODE",
        "PHASE",
        "HEALTH",
        "STATE",
        "ADDRESS",
        "SNAPSHOT",
        "AGE",
        "EPOCH",
        "RECOVERIES",
    ])];
    containers.extend(reply.containers.iter().map(container_row));
    let mut out = table(&nodes);
    out.push('\n');
    out.push_str(&table(&containers));
    for node in &reply.nodes {
        for problem in &node.problems {
            out.push_str(&format!("\n! node {}: {problem}", node.name));
        }
    }
    for container in &reply.containers {
        for note in &container.notes {
            out.push_str(&format!("\n! {}: {note}", container.name));
        }
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

fn container_row(container: &ContainerStatus) -> Vec<String> {
    let state = match container.sensitivity_ms {
        0 => container.state.clone(),
        ms => format!("{} ≤{}", container.state, humantime::format_duration(Duration::from_millis(ms))),
    };
    let snapshot = container.last_snapshot.as_ref().map(|s| s.id.clone()).unwrap_or_default();
    let age = container.state_age_ms.map(ago).unwrap_or_default();
    cells([
        &container.name,
        &container.node,
        &container.phase,
        &container.health,
        &state,
        &container.ipv4,
        &snapshot,
        &age,
        &container.epoch.to_string(),
        &container.recoveries.to_string(),
    ])
}

pub fn snapshots(list: &[SnapshotInfo]) -> String {
    let mut rows = vec![cells(["SNAPSHOT", "FROZEN AT", "NODE", "KIND", "HEALTH", "RAW", "STORED", "FROZEN FOR"])];
    for info in list {
        rows.push(cells([
            &info.id,
            &info.frozen_at,
            &info.node,
            &info.kind,
            &info.health,
            &bytes(info.raw_bytes),
            &bytes(info.stored_bytes),
            &format!("{:.1} ms", info.frozen_ms),
        ]));
    }
    table(&rows)
}

pub fn event(event: &Event) -> String {
    let subject = if event.container.is_empty() { String::new() } else { format!(" {}", event.container) };
    format!("{} {}{subject} {}: {}", event.at, event.node, event.kind, event.message)
}

/// Records of a log (docs/agent.md) as the program wrote them: no times, and the pieces of a long line in one.
#[derive(Debug, Default)]
pub struct PlainLog {
    /// The stream whose line has not ended yet.
    open: Option<Vec<u8>>,
}

impl PlainLog {
    /// What the next whole records say.
    pub fn text(&mut self, records: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(records.len());
        for record in records.split_inclusive(|byte| *byte == b'\n') {
            let mut fields = record.splitn(4, |byte| *byte == b' ');
            let (stream, mark, text) = match (fields.next(), fields.next(), fields.next(), fields.next()) {
                (Some(_), Some(s @ (b"stdout" | b"stderr" | b"agent")), Some(mark @ (b"P" | b"F")), Some(text)) => {
                    (s, mark, text)
                }
                // What the manager put in between.
                _ => (&b""[..], &b"F"[..], record),
            };
            // Another stream's record is not the end of this line.
            if self.open.take().is_some_and(|open| open != stream) {
                out.push(b'\n');
            }
            if mark == b"P" {
                out.extend_from_slice(text.strip_suffix(b"\n").unwrap_or(text));
                self.open = Some(stream.to_vec());
            } else {
                out.extend_from_slice(text);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_shown_as_it_was_written() {
        let records = b"T stdout F one\nT stderr P tw\nT stderr F o  o\n-- lines are missing here --\nT stdout F \n";
        assert_eq!(PlainLog::default().text(records), b"one\ntwo  o\n-- lines are missing here --\n\n");
        let mut log = PlainLog::default();
        assert_eq!(log.text(b"T stdout P name? \n"), b"name? ");
        assert_eq!(log.text(b"T stderr F warning\nT stdout F x\n"), b"\nwarning\nx\n");
    }

    #[test]
    fn columns_line_up_and_empty_cells_show() {
        let rows = [cells(["A", "LONG", "C"]), cells(["x", "", "zz"])];
        assert_eq!(table(&rows), "A  LONG  C\nx  -     zz\n");
    }

    #[test]
    fn ages_are_short() {
        assert_eq!(ago(1_540), "1.5s");
        assert_eq!(ago(200_000), "3m 20s");
    }
}
