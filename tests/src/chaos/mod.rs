//! Random faults against a real cluster, and the verdict over what its containers did meanwhile.
//!
//! ```text
//!   seed ─► schedule ─► fault ─► hands, switch ► nodes, managers, wires, store
//!                                                │
//!            look-out (look ─► copies) ◄─────────┤ control groups and processes, from outside
//!            ledger ◄────────────────────────────┤ the store's directory
//!            record ◄────────────────────────────┘ the containers' answers
//!               │
//!               └─► judge (history), report
//! ```
//!
//! What decides (schedule, copies, history, judge) is pure; no manager is asked how its containers did.

mod containers;
mod copies;
mod fault;
mod hands;
mod history;
mod judge;
mod ledger;
mod leftovers;
mod look;
mod observer;
mod record;
mod report;
mod schedule;
mod session;
mod switch;
mod timeline;

use std::{fs, sync::Arc};

use anyhow::Context;
use fault::Fault;
use report::Report;
use schedule::Schedule;
use timeline::Timeline;

use crate::images;

/// How long a session is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// So many faults.
    Faults(usize),
    /// Faults that begin within so many minutes.
    Minutes(f64),
}

/// The faults of a seed: the same ones whenever they are asked for.
pub fn plan(seed: u64, length: Length) -> Vec<Fault> {
    let schedule = Schedule::new(seed);
    match length {
        Length::Faults(count) => schedule.take(count).collect(),
        Length::Minutes(minutes) => schedule.take_while(|fault| fault.at as f64 <= minutes * 60_000.0).collect(),
    }
}

/// `ha-lab chaos --plan`: prints the faults and does nothing.
pub fn print_plan(seed: u64, length: Length) {
    plan(seed, length).iter().for_each(|fault| println!("{fault}"));
}

/// `ha-lab chaos`: plays a session, prints the verdict, its last line as JSON, and keeps everything below `target/chaos`.
/// Returns whether all went well.
///
/// # Errors
/// When the laboratory failed: then there is no verdict.
pub fn run(seed: u64, length: Length) -> anyhow::Result<bool> {
    let faults = plan(seed, length);
    anyhow::ensure!(!faults.is_empty(), "no fault begins in so short a time: the first comes after 2 to 6 s");
    let dir = images::target_dir()?.join("chaos").join(format!("seed-{seed}"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    eprintln!("seed {seed}: {} faults; their times count from when every container serves", faults.len());
    faults.iter().for_each(|fault| eprintln!("{fault}"));
    let timeline = Arc::new(Timeline::new());
    let played = session::play(&faults, &timeline, &dir);
    fs::write(dir.join("timeline.txt"), timeline.text())?;
    let report = Report::new(seed, &faults, played?);
    report.keep(&dir)?;
    report.print(&dir)
}
