//! The main job, shown: a container is checkpointed on one node, the node loses its power, and the container goes on at
//! the other while its client watches.

mod report;
mod workload;

use std::{
    fs,
    io::Write,
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, ensure};
pub use report::{Failover, Report, median};
pub use workload::{ADDRESS, Client, Verdict, Workload, gap_over};

use crate::{cluster::Cluster, images};

/// How the demo is played.
#[derive(Debug, Clone)]
pub struct Play {
    pub workload: Workload,
    /// The state sensitivity given to the manager; a duration as in Compose files.
    pub sensitivity: String,
    /// Checkpoints that have to be committed, with the client connected, before the cut.
    pub checkpoints: usize,
    /// From the last of them to the cut.
    pub then: Duration,
}

impl Play {
    /// As the demo plays it: a checkpoint every 5 s.
    pub fn new(workload: Workload) -> Self {
        Self { workload, sensitivity: "5s".to_owned(), checkpoints: 2, then: Duration::from_millis(1500) }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub report: Report,
    pub timeline: Vec<String>,
    pub findings: Vec<String>,
}

/// Plays it once on two fresh nodes. `tell` hears of each step as it begins.
///
/// # Errors
/// With the step that failed and the managers' logs; logs are kept in `logs` too.
pub fn play(play: &Play, logs: &Path, mut tell: impl FnMut(&str)) -> anyhow::Result<Outcome> {
    let name = play.workload.name();
    tell("building the container's image from what is installed here");
    let compose = play.workload.compose(&play.sensitivity)?;
    tell("switching two nodes on, n1 and n2, each with its manager; the store is a directory");
    let mut cluster = Cluster::start(2, "")?;
    let result = act(play, &mut cluster, &compose, &mut tell);
    fs::create_dir_all(logs)?;
    for member in &cluster.members {
        member.keep_log(&logs.join(format!("{name}-{}.log", member.node.name())))?;
    }
    let events: Vec<String> = cluster.events().iter().filter_map(|event| serde_json::to_string(event).ok()).collect();
    fs::write(logs.join(format!("{name}-events.jsonl")), events.join("\n") + "\n")?;
    result.with_context(|| format!("logs and events are in {}", logs.display()))
}

fn act(play: &Play, cluster: &mut Cluster, compose: &str, tell: &mut impl FnMut(&str)) -> anyhow::Result<Outcome> {
    let name = play.workload.name();
    tell(&format!("starting {name} on n1 at {ADDRESS}"));
    cluster.members[0].apply(compose)?;
    tell("connecting its client");
    let mut client = play.workload.client(&cluster.lab)?;
    let connected = SystemTime::now();
    tell(&format!("waiting for {} committed checkpoints, one every {}", play.checkpoints, play.sensitivity));
    let patience = Duration::from_secs(60);
    // At least two, because the first may have been frozen before the client was connected.
    cluster.wait_for_event("checkpoint.committed", connected, play.checkpoints, patience)?;
    thread::sleep(play.then);
    tell("cutting n1's power");
    let cut = cluster.members[0].power_cut()?;
    cluster.wait_for_event("recovery.serving", cut.at, 1, Duration::from_secs(30))?;
    client.wait_until_back(&cut)?;

    let events = cluster.events();
    let failover = Failover::new(&events, cut.at);
    let verdict = client.verdict(&cut, failover.frozen_at()?.into())?;
    let report = failover.report(name, &verdict)?;
    Ok(Outcome { report, timeline: failover.timeline(&verdict), findings: verdict.findings })
}

/// `ha-lab demo`: plays it, prints it, and writes `target/demo/report.json`.
///
/// # Errors
/// With what failed, a lost session included.
pub fn run(workload: Workload) -> anyhow::Result<()> {
    let dir = images::target_dir()?.join("demo");
    let start = Instant::now();
    let tell = |step: &str| println!("{:>6.1} s  {step}", start.elapsed().as_secs_f64());
    let outcome = play(&Play::new(workload), &dir, tell)?;
    let out = std::io::stdout();
    let mut out = out.lock();
    writeln!(out, "\nTimeline, from the power cut:\n{}\n", outcome.timeline.join("\n"))?;
    writeln!(out, "At the client:\n  {}\n", outcome.findings.join("\n  "))?;
    let json = serde_json::to_string_pretty(&outcome.report)?;
    let path = dir.join("report.json");
    fs::write(&path, format!("{json}\n"))?;
    writeln!(out, "{json}\nwritten to {}", path.display())?;
    ensure!(outcome.report.session_kept, "the client's session was lost");
    writeln!(out, "The client's session survived.")?;
    Ok(())
}
