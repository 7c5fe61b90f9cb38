//! `ha-manager simulate`: one scenario's table, or the tally of many seeds.

use std::{io::Write, path::Path};

use super::{Scenario, play, run};

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    #[error("{0}")]
    Scenario(#[from] super::ScenarioError),
    #[error("an invariant broke, or an expectation of the file; the table above says which and when")]
    Broken,
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
}

/// Plays the scenario of a file, or of a seed, and prints what happened.
///
/// # Errors
/// [`SimulateError::Broken`] when something did not hold; the file's own faults.
pub fn one(scenario: &Scenario, out: &mut impl Write) -> Result<(), SimulateError> {
    let outcome = run(scenario);
    out.write_all(outcome.table().as_bytes())?;
    writeln!(out, "at the end ({}):", super::expect::seconds(outcome.took))?;
    for (container, nodes) in scenario.containers.iter().zip(&outcome.running) {
        let nodes = if nodes.is_empty() { "nowhere".to_owned() } else { format!("on {}", nodes.join(" and ")) };
        writeln!(out, "{:>10}  runs {nodes}", container.name)?;
    }
    if outcome.violation.is_some() { Err(SimulateError::Broken) } else { Ok(()) }
}

/// Reads a scenario's file and plays it.
///
/// # Errors
/// As [`one`].
pub fn file(path: &Path, out: &mut impl Write) -> Result<(), SimulateError> {
    one(&Scenario::load(path)?, out)
}

/// Plays `seeds` random scenarios from `from` on; the last line is JSON. A bad seed's table comes before it.
///
/// # Errors
/// [`SimulateError::Broken`] when an invariant broke under one of them.
pub fn many(from: u64, seeds: u64, out: &mut impl Write) -> Result<(), SimulateError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let tally = play(from, seeds, threads, |done, bad| eprintln!("simulate: {done} of {seeds}, {bad} bad"));
    if let Some(seed) = tally.bad.first() {
        out.write_all(run(&Scenario::random(*seed)).table().as_bytes())?;
        writeln!(out, "replay it: ha-manager simulate --seed {seed}")?;
    }
    let first = tally.bad.first();
    let line = serde_json::json!({ "seeds": tally.seeds, "violations": tally.bad.len(), "first_bad_seed": first });
    writeln!(out, "{line}")?;
    if first.is_some() { Err(SimulateError::Broken) } else { Ok(()) }
}
