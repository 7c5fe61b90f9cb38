//! The demo's figures and its timeline, from the managers' events and the client's own clock.

use std::time::SystemTime;

use anyhow::Context;
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::workload::Verdict;
use crate::cluster::Event;

/// `target/demo/report.json`. Times in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub workload: String,
    /// Power cut → the peer declares the node dead.
    pub detect_ms: f64,
    /// Declared dead → the container's ownership is the peer's.
    pub own_ms: f64,
    /// Making the container's network on the peer.
    pub network_ms: f64,
    /// Restoring its processes.
    pub restore_ms: f64,
    /// Power cut → the container serves at the peer.
    pub total_ms: f64,
    /// Longest time without a packet or an answer at the client over the failover.
    pub client_gap_ms: f64,
    /// The client's session is the one it had before.
    pub session_kept: bool,
    /// How old the restored state was when the power was cut.
    pub state_age_ms: f64,
    /// Bytes of the restored snapshot in the store.
    pub snapshot_bytes: u64,
    /// Median over the checkpoints before the cut.
    pub frozen_ms: f64,
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// The events of one failover, found in all events.
#[derive(Debug)]
pub struct Failover<'a> {
    events: &'a [Event],
    cut: DateTime<Utc>,
}

impl<'a> Failover<'a> {
    /// `events` by time, of all nodes; `cut`: when the power was cut.
    pub fn new(events: &'a [Event], cut: SystemTime) -> Self {
        Self { events, cut: cut.into() }
    }

    fn first(&self, kind: &str) -> anyhow::Result<&'a Event> {
        let found = self.events.iter().find(|event| event.kind == kind && event.at >= self.cut);
        found.with_context(|| format!("no event {kind} after the power cut"))
    }

    /// The recovery that was carried through.
    ///
    /// # Errors
    /// When nothing was restored.
    pub fn restored(&self) -> anyhow::Result<&'a Event> {
        let found = self.events.iter().rev().find(|event| event.kind == "recovery.restored" && event.at >= self.cut);
        found.context("no event recovery.restored after the power cut")
    }

    fn commits(&self) -> impl Iterator<Item = &'a Event> {
        self.events.iter().filter(|event| event.kind == "checkpoint.committed" && event.at <= self.cut)
    }

    /// When the restored state was frozen: what its commit took, back from the commit.
    ///
    /// # Errors
    /// When the restored snapshot's commit was not seen.
    pub fn frozen_at(&self) -> anyhow::Result<DateTime<Utc>> {
        let commit = self.commit()?;
        let back = commit.number("wall_ms").unwrap_or(0.0) + commit.number("commit_ms").unwrap_or(0.0);
        Ok(commit.at - chrono::TimeDelta::microseconds((back * 1000.0) as i64))
    }

    fn commit(&self) -> anyhow::Result<&'a Event> {
        let snapshot = self.restored()?.text("snapshot").context("recovery.restored names no snapshot")?;
        let found = self.commits().find(|event| event.text("snapshot") == Some(snapshot));
        found.with_context(|| format!("no event checkpoint.committed for the restored snapshot {snapshot}"))
    }

    /// The figures.
    ///
    /// # Errors
    /// With the event that is missing.
    pub fn report(&self, workload: &str, verdict: &Verdict) -> anyhow::Result<Report> {
        let since_cut = |event: &Event| ms(event.at - self.cut);
        let detect_ms = since_cut(self.first("peer.dead")?);
        let restored = self.restored()?;
        let took = |event: &Event| event.number("ms").with_context(|| format!("{} has no ms", event.kind));
        let frozen: Vec<f64> = self.commits().filter_map(|event| event.number("frozen_ms")).collect();
        let stored = self.commit()?.number("stored_bytes").context("checkpoint.committed has no stored_bytes")?;
        Ok(Report {
            workload: workload.to_owned(),
            detect_ms,
            own_ms: since_cut(self.first("ownership.claimed")?) - detect_ms,
            network_ms: took(self.first("network.ready")?)?,
            restore_ms: took(restored)?,
            total_ms: since_cut(self.first("recovery.serving")?),
            client_gap_ms: verdict.gap.as_secs_f64() * 1000.0,
            session_kept: verdict.session_kept,
            state_age_ms: ms(self.cut - self.frozen_at()?),
            snapshot_bytes: stored as u64,
            frozen_ms: median(&frozen).context("no checkpoint was committed before the cut")?,
        })
    }

    /// What happened around the cut, a line each, with milliseconds from it.
    pub fn timeline(&self, verdict: &Verdict) -> Vec<String> {
        let mut lines: Vec<(DateTime<Utc>, String, String)> = vec![(self.cut, "lab".into(), "POWER CUT".into())];
        if let Some(first) = verdict.first {
            lines.push((first.into(), "client".into(), "first packet or answer from the restored container".into()));
        }
        let last_commit = self.commits().last().map(|event| event.at);
        let told = ["peer.", "ownership.", "recovery.", "network.", "snapshot.fetched", "image.ready"];
        for event in self.events {
            let around = event.at >= self.cut && told.iter().any(|kind| event.kind.starts_with(kind));
            if around || last_commit == Some(event.at) && event.kind == "checkpoint.committed" {
                lines.push((event.at, event.node.clone(), format!("{}: {}", event.kind, event.message)));
            }
        }
        lines.sort_by_key(|(at, _, _)| *at);
        lines.iter().map(|(at, who, what)| format!("{:>+10.0} ms  {who:<7} {what}", ms(*at - self.cut))).collect()
    }
}

fn ms(delta: chrono::TimeDelta) -> f64 {
    delta.num_microseconds().unwrap_or(i64::MAX) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn event(ms: i64, kind: &str, detail: Value) -> Event {
        let at = DateTime::UNIX_EPOCH + chrono::TimeDelta::milliseconds(ms);
        let text = |word: &str| word.to_owned();
        Event { at, node: text("n2"), container: text("c"), kind: text(kind), message: text("said"), detail }
    }

    fn commit(ms: i64, snapshot: &str, frozen: f64) -> Event {
        let detail = json!({"snapshot": snapshot, "frozen_ms": frozen, "wall_ms": 60.0, "commit_ms": 40.0, "stored_bytes": 1000});
        event(ms, "checkpoint.committed", detail)
    }

    fn story() -> Vec<Event> {
        vec![
            commit(1000, "e1-1", 10.0),
            commit(6000, "e1-2", 30.0),
            event(8500, "peer.suspected", json!({})),
            event(9000, "peer.dead", json!({})),
            event(9020, "ownership.claimed", json!({"epoch": 2})),
            event(9050, "network.ready", json!({"ms": 25.0})),
            event(9150, "recovery.restored", json!({"snapshot": "e1-2", "ms": 90.0})),
            event(9160, "recovery.serving", json!({"ms": 160.0})),
        ]
    }

    #[test]
    fn figures_are_taken_from_the_events_after_the_cut_and_the_snapshot_that_was_restored() {
        let events = story();
        let cut = SystemTime::UNIX_EPOCH + Duration::from_millis(8000);
        let verdict = Verdict { gap: Duration::from_millis(1200), session_kept: true, ..Verdict::default() };
        let report = Failover::new(&events, cut).report("counter", &verdict).unwrap();
        let expected = Report {
            workload: "counter".to_owned(),
            detect_ms: 1000.0,
            own_ms: 20.0,
            network_ms: 25.0,
            restore_ms: 90.0,
            total_ms: 1160.0,
            client_gap_ms: 1200.0,
            session_kept: true,
            state_age_ms: 2100.0,
            snapshot_bytes: 1000,
            frozen_ms: 20.0,
        };
        assert_eq!(report, expected);
    }

    #[test]
    fn a_missing_event_is_named() {
        let events: Vec<Event> = story().into_iter().filter(|event| event.kind != "network.ready").collect();
        let cut = SystemTime::UNIX_EPOCH + Duration::from_millis(8000);
        let err = Failover::new(&events, cut).report("counter", &Verdict::default()).unwrap_err();
        assert!(err.to_string().contains("network.ready"), "{err}");
    }

    #[test]
    fn the_timeline_is_in_order_and_relative_to_the_cut() {
        let events = story();
        let cut = SystemTime::UNIX_EPOCH + Duration::from_millis(8000);
        let lines = Failover::new(&events, cut).timeline(&Verdict::default());
        assert!(lines[0].contains("-2000 ms") && lines[0].contains("checkpoint.committed"), "{lines:?}");
        assert!(lines[1].contains("POWER CUT"), "{lines:?}");
        assert_eq!(lines.len(), 8);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
