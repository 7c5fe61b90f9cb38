//! The figures of the README, measured: `target/bench/results.json`.
//!
//! Each figure is the median of its samples, with the least and the greatest. Everything is measured in one run on one
//! machine, the yardsticks (stock runc, podman) included, because figures of two machines do not compare.

mod checkpoint;
mod idle;
mod membership;
mod owned;
mod podman;
mod quiet;

use std::{fs, time::Duration};

use anyhow::ensure;
use serde::Serialize;

use crate::{
    demo::{Play, Workload, median, play},
    images,
};

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    pub name: String,
    /// The median.
    pub value: f64,
    pub unit: &'static str,
    pub samples: usize,
    pub min: f64,
    pub max: f64,
    /// What has to be known to read it: how much was simulated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Figure {
    /// From the samples; `None` when there are none.
    pub fn new(name: &str, unit: &'static str, samples: &[f64]) -> Option<Self> {
        let least = samples.iter().copied().reduce(f64::min)?;
        let greatest = samples.iter().copied().reduce(f64::max)?;
        let round = |value: f64| (value * 100.0).round() / 100.0;
        Some(Self {
            name: name.to_owned(),
            value: round(median(samples)?),
            unit,
            samples: samples.len(),
            min: round(least),
            max: round(greatest),
            note: None,
        })
    }

    fn with_note(self, note: String) -> Self {
        Self { note: Some(note), ..self }
    }
}

/// The figures that are measured on this machine.
const MEASURED: [(&str, &str); 21] = [
    ("failover_total_ms/counter", "power cut → the 4 MB counter serves at the peer, detection included"),
    ("failover_total_ms/vlc", "the same for VLC streaming over RTSP"),
    ("failover_after_detection_ms/counter", "node declared dead → the counter serves at the peer"),
    ("failover_after_detection_ms/vlc", "the same for VLC"),
    ("client_gap_ms/counter", "longest time without an answer at a client over the failover"),
    ("client_gap_ms/vlc", "longest time without a packet at a player over the failover"),
    ("detect_ms", "power cut → the peer declares the node dead, default settings"),
    ("detect_to_owned_ms", "power cut → the peer owns the container, 20 cuts"),
    ("detect_to_owned_p99_ms", "the 99th percentile of them: of twenty the greatest"),
    ("pause_ms/counter", "longest gap at a client polling every 0.3 ms, over one checkpoint"),
    (
        "connect_pause_ms/counter",
        "longest time to the first answer of a new connection, one begun every 3 ms, over one checkpoint",
    ),
    ("connect_frozen_ms/counter", "how long the container was frozen in the same checkpoints"),
    ("frozen_ms/counter", "how long the container was frozen, over one checkpoint"),
    ("checkpoint_wall_ms/counter", "start of a checkpoint → dumped, before compression and upload"),
    ("checkpoint_commit_ms/counter", "dumped → committed in the store"),
    ("stock_pause_ms/counter", "pause_ms for stock `runc pause; checkpoint; resume`"),
    ("stock_wall_ms/counter", "wall time of the same three commands"),
    ("idle_cpu_percent", "of one core, per manager: 2 nodes, 1 container every 30 s, between checkpoints"),
    ("idle_rss_mb", "resident memory per manager, the same"),
    ("podman_checkpoint_ms/counter", "`podman container checkpoint --export` of the counter"),
    ("podman_restore_ms/counter", "`podman container restore --import` of it"),
];

/// Measured only when asked for by name, for the time it takes.
const LONG: (&str, &str) = (
    "false_failovers_30min",
    "takeovers in half an hour in which nothing fails, every core is busy and checkpoints are taken",
);

/// Every figure's name and meaning, in the order they are measured.
pub fn names() -> Vec<(String, String)> {
    let measured = MEASURED.iter().map(|(name, meaning)| ((*name).to_owned(), (*meaning).to_owned()));
    let long = std::iter::once((LONG.0.to_owned(), LONG.1.to_owned() + "; only by --only"));
    measured.chain(membership::names()).chain(long).collect()
}

/// `ha-lab bench`.
///
/// # Errors
/// When `only` is no figure's name, or with the measurement that failed; what was measured before is written all the same.
pub fn run(only: Option<&str>, samples: usize) -> anyhow::Result<()> {
    if let Some(only) = only {
        ensure!(names().iter().any(|(name, _)| *name == only), "no figure {only:?}; `bench --list` lists them");
    }
    let wanted = |names: &[&str]| only.is_none_or(|only| names.contains(&only));
    let dir = images::target_dir()?.join("bench");
    fs::create_dir_all(&dir)?;
    let mut figures: Vec<Figure> = Vec::new();
    let mut failed = Vec::new();
    let mut measure = |names: &[&str], work: &mut dyn FnMut() -> anyhow::Result<Vec<Option<Figure>>>| {
        if !wanted(names) {
            return;
        }
        println!("measuring {}", names.join(", "));
        match work() {
            Ok(found) => {
                for figure in found.into_iter().flatten().filter(|figure| only.is_none_or(|only| only == figure.name)) {
                    println!(
                        "  {} {} {} ({}–{}, n = {}){}",
                        figure.name,
                        figure.value,
                        figure.unit,
                        figure.min,
                        figure.max,
                        figure.samples,
                        figure.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default()
                    );
                    figures.push(figure);
                }
            }
            Err(err) => {
                eprintln!("  failed: {err:#}");
                failed.push(names.join(", "));
            }
        }
    };

    let mut detect = Vec::new();
    for workload in [Workload::Counter, Workload::Vlc] {
        let name = workload.name();
        let names =
            ["failover_total_ms", "failover_after_detection_ms", "client_gap_ms"].map(|f| format!("{f}/{name}"));
        let names: Vec<&str> = names.iter().map(String::as_str).chain(["detect_ms"]).collect();
        // Detection does not depend on the program.
        if only == Some("detect_ms") && workload == Workload::Vlc {
            continue;
        }
        measure(&names, &mut || failover(workload, samples, &mut detect, &dir));
    }
    measure(&["detect_ms"], &mut || Ok(vec![Figure::new("detect_ms", "ms", &detect)]));
    measure(&["detect_to_owned_ms", "detect_to_owned_p99_ms"], &mut || owned::measure(&dir));
    let names = ["pause_ms/counter", "frozen_ms/counter", "checkpoint_wall_ms/counter", "checkpoint_commit_ms/counter"];
    measure(&names, &mut || checkpoint::managed(samples * 4));
    measure(&["connect_pause_ms/counter", "connect_frozen_ms/counter"], &mut || checkpoint::newcomers(samples * 4));
    measure(&["stock_pause_ms/counter", "stock_wall_ms/counter"], &mut || checkpoint::stock(samples * 4));
    measure(&["idle_cpu_percent", "idle_rss_mb"], &mut idle::measure);
    measure(&["podman_checkpoint_ms/counter", "podman_restore_ms/counter"], &mut || podman::measure(samples));
    for (protocol, scale) in membership::all() {
        let names = membership::names_of(protocol, scale);
        measure(&names.each_ref().map(String::as_str), &mut || Ok(membership::measure(protocol, scale)));
    }
    if only == Some(LONG.0) {
        measure(&[LONG.0], &mut quiet::measure);
    }

    let path = dir.join("results.json");
    fs::write(&path, serde_json::to_string_pretty(&figures)? + "\n")?;
    println!("written to {}", path.display());
    ensure!(failed.is_empty(), "not measured: {}", failed.join("; "));
    Ok(())
}

fn failover(
    workload: Workload,
    samples: usize,
    detect: &mut Vec<f64>,
    dir: &std::path::Path,
) -> anyhow::Result<Vec<Option<Figure>>> {
    let (mut total, mut after, mut gap) = (Vec::new(), Vec::new(), Vec::new());
    let play_of = Play { sensitivity: "2s".to_owned(), then: Duration::from_millis(500), ..Play::new(workload) };
    for _ in 0..samples {
        let report = play(&play_of, dir, |_| ())?.report;
        total.push(report.total_ms);
        after.push(report.total_ms - report.detect_ms);
        gap.push(report.client_gap_ms);
        detect.push(report.detect_ms);
    }
    let name = workload.name();
    let figure = |what: &str, samples: &[f64]| Figure::new(&format!("{what}/{name}"), "ms", samples);
    Ok(vec![
        figure("failover_total_ms", &total),
        figure("failover_after_detection_ms", &after),
        figure("client_gap_ms", &gap),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_a_median_with_its_extremes() {
        let figure = Figure::new("x", "ms", &[3.0, 1.0, 2.004]).unwrap();
        assert_eq!((figure.value, figure.min, figure.max, figure.samples), (2.0, 1.0, 3.0, 3));
        assert!(Figure::new("x", "ms", &[]).is_none());
    }
}
