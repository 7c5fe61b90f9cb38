//! What happened on this node: kept in memory for readers, on disk across restarts, and in the log for operators.
//!
//! Kinds are stable identifiers, listed in `docs/events.md`.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::{SecondsFormat, Utc};
use ha_proto::control::Event;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::spec::{ContainerName, NodeName};

/// Events kept in memory, and their texts together, in bytes.
const KEPT: usize = 4096;
const KEPT_BYTES: usize = 8 << 20;
/// Texts of one event, in bytes. Written to the file as JSON within JSON, they are within [`LINE_MAX`].
const MESSAGE_MAX: usize = 4 << 10;
const DETAIL_MAX: usize = 16 << 10;
/// The file is begun anew (the old one kept as `.1`) at this size, in bytes.
const FILE_MAX: u64 = 4 << 20;
/// A line longer than this in the file is not one of ours.
const LINE_MAX: usize = 64 << 10;

#[derive(Debug)]
pub struct EventLog {
    node: NodeName,
    inner: Mutex<Inner>,
    sender: broadcast::Sender<Event>,
}

#[derive(Debug)]
struct Inner {
    recent: Recent,
    path: PathBuf,
    file: File,
    size: u64,
}

/// The newest events, as many as memory is meant for them.
#[derive(Debug, Default)]
struct Recent {
    events: VecDeque<Event>,
    bytes: usize,
}

impl Recent {
    fn push(&mut self, event: Event) {
        self.bytes += weight(&event);
        self.events.push_back(event);
        while self.events.len() > KEPT || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.events.pop_front() else { return };
            self.bytes -= weight(&oldest);
        }
    }
}

fn weight(event: &Event) -> usize {
    let texts = [&event.at, &event.node, &event.container, &event.kind, &event.message, &event.detail_json];
    texts.iter().map(|text| text.len()).sum()
}

#[derive(Serialize, Deserialize)]
struct Line {
    at: String,
    node: String,
    container: String,
    kind: String,
    message: String,
    /// JSON as text: read back it has to be what was written to the last digit, for followers know an event by what it says.
    detail: String,
}

impl EventLog {
    /// Opens `<state_dir>/events.jsonl` and reads back what it holds; lines that are no events are passed over with a warning.
    pub fn open(state_dir: &Path, node: NodeName) -> io::Result<Self> {
        let path = state_dir.join("events.jsonl");
        let mut recent = Recent::default();
        for path in [path.with_extension("jsonl.1"), path.clone()] {
            match File::open(&path) {
                Ok(file) => read_back(file, &path, &mut recent)?,
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => return Err(err),
            }
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        // After a power cut the last line may be torn: what follows starts on a line of its own.
        file.write_all(b"\n")?;
        let size = file.metadata()?.len();
        Ok(Self { node, inner: Mutex::new(Inner { recent, path, file, size }), sender: broadcast::channel(1024).0 })
    }

    /// Records an event. `detail` is its facts, for programs.
    pub fn emit(&self, container: Option<&ContainerName>, kind: &str, message: &str, detail: serde_json::Value) {
        let container = container.map(ContainerName::as_str).unwrap_or_default();
        let event = Event {
            at: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
            node: self.node.to_string(),
            container: container.to_owned(),
            kind: kind.to_owned(),
            message: crate::cut(message, MESSAGE_MAX).to_owned(),
            detail_json: bounded(detail),
        };
        tracing::info!(container, kind, detail = %event.detail_json, "{}", event.message);
        let mut inner = self.lock();
        if let Err(err) = inner.append(&event) {
            tracing::warn!(error = %err, "the event could not be written to {}", inner.path.display());
        }
        inner.recent.push(event.clone());
        // Sent under the lock, so that `since_start` sees each event either in the past or on the channel.
        let _ = self.sender.send(event);
    }

    /// The past, and a channel with all that follows it.
    pub fn since_start(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let inner = self.lock();
        (inner.recent.events.iter().cloned().collect(), self.sender.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held leaves a list of whole events: as good as before.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn append(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Line {
            at: event.at.clone(),
            node: event.node.clone(),
            container: event.container.clone(),
            kind: event.kind.clone(),
            message: event.message.clone(),
            detail: event.detail_json.clone(),
        })?;
        line.push(b'\n');
        if self.size + line.len() as u64 > FILE_MAX {
            fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            self.size = 0;
        }
        self.file.write_all(&line)?;
        self.size += line.len() as u64;
        Ok(())
    }
}

/// Facts that are too large, which no event of ours has, are replaced by how they begin.
fn bounded(detail: serde_json::Value) -> String {
    let text = detail.to_string();
    if text.len() <= DETAIL_MAX {
        return text;
    }
    serde_json::json!({"cut": crate::cut(&text, DETAIL_MAX / 4)}).to_string()
}

fn read_back(file: File, path: &Path, recent: &mut Recent) -> io::Result<()> {
    let mut unreadable = 0;
    for line in BufReader::new(io::Read::take(file, 2 * FILE_MAX)).split(b'\n') {
        let line = line?;
        if line.is_empty() {
            continue;
        }
        match (line.len() <= LINE_MAX).then(|| serde_json::from_slice::<Line>(&line)) {
            Some(Ok(line)) => recent.push(Event {
                at: line.at,
                node: line.node,
                container: line.container,
                kind: line.kind,
                message: line.message,
                detail_json: line.detail,
            }),
            _ => unreadable += 1,
        }
    }
    if unreadable > 0 {
        tracing::warn!("{unreadable} lines of {} are no events (a power cut leaves a torn one)", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node() -> NodeName {
        "n1".parse().unwrap()
    }

    #[test]
    fn events_come_back_after_a_restart_even_behind_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::open(dir.path(), node()).unwrap();
        log.emit(Some(&"c".parse().unwrap()), "checkpoint.committed", "done", json!({"frozen_ms": 114.08599999999998}));
        drop(log);
        let mut file = OpenOptions::new().append(true).open(dir.path().join("events.jsonl")).unwrap();
        file.write_all(b"{\"at\":\"2026-").unwrap();
        let log = EventLog::open(dir.path(), node()).unwrap();
        let (past, mut live) = log.since_start();
        assert_eq!(past.len(), 1);
        assert_eq!(
            (past[0].kind.as_str(), past[0].detail_json.as_str()),
            ("checkpoint.committed", "{\"frozen_ms\":114.08599999999998}")
        );
        log.emit(None, "node.started", "again", json!({}));
        assert_eq!(live.try_recv().unwrap().kind, "node.started");
        drop(log);
        let kinds: Vec<_> =
            EventLog::open(dir.path(), node()).unwrap().since_start().0.into_iter().map(|e| e.kind).collect();
        assert_eq!(kinds, ["checkpoint.committed", "node.started"]);
    }

    #[test]
    fn an_event_that_is_too_large_is_cut_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::open(dir.path(), node()).unwrap();
        let wild = "\u{1}\"é".repeat(100_000);
        for _ in 0..1000 {
            log.emit(None, "k", &wild, json!({"output": wild}));
        }
        let bytes = |log: &EventLog| log.since_start().0.iter().map(weight).sum::<usize>();
        let kept = log.since_start().0;
        assert!(kept.iter().all(|event| weight(event) < 32 << 10), "{}", weight(&kept[0]));
        assert!(bytes(&log) <= KEPT_BYTES && kept.len() > 100, "{} in {}", bytes(&log), kept.len());
        drop(log);
        let again = EventLog::open(dir.path(), node()).unwrap().since_start().0;
        assert!(!again.is_empty() && again.last() == kept.last(), "not read back");
    }

    #[test]
    fn the_file_and_the_memory_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::open(dir.path(), node()).unwrap();
        let long = "x".repeat(1500);
        for _ in 0..KEPT + 10 {
            log.emit(None, "k", &long, json!({}));
        }
        assert_eq!(log.since_start().0.len(), KEPT);
        let total: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(total <= 2 * FILE_MAX, "{total}");
    }
}
