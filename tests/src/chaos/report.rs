//! The verdict: counted, and for people everything around what is wrong.

use std::{collections::BTreeMap, fs, io::Write, path::Path, time::Duration};

use serde::Serialize;

use super::{
    containers,
    copies::Double,
    fault::Fault,
    judge::{Finding, judge},
    record::{Entry, What},
    session::Evidence,
};

/// Entries of the record that are shown before and after what is wrong, and how often for one container.
const BEFORE: usize = 8;
const AFTER: usize = 4;
const SHOWN: usize = 10;

/// The last line of output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    pub faults: usize,
    pub failovers: usize,
    pub double_owner: usize,
    pub state_lost: usize,
    pub stuck: usize,
    pub leftovers: usize,
    pub seed: u64,
    pub minutes: f64,
}

impl Figures {
    /// Nothing of what must not be was seen.
    pub fn are_good(&self) -> bool {
        [self.double_owner, self.state_lost, self.stuck, self.leftovers] == [0; 4]
    }
}

/// A session's evidence and what it says.
#[derive(Debug)]
pub struct Report {
    figures: Figures,
    faults: Vec<String>,
    evidence: Evidence,
    findings: BTreeMap<String, Vec<Finding>>,
}

impl Report {
    pub fn new(seed: u64, faults: &[Fault], evidence: Evidence) -> Self {
        let mut findings = BTreeMap::new();
        for container in containers::ALL {
            let name = container.name;
            let record = evidence.records.get(name).map(Vec::as_slice).unwrap_or_default();
            let account = evidence.accounts.get(name).cloned().unwrap_or_default();
            let lives = evidence.copies.get(name).map(|copies| copies.lives.clone()).unwrap_or_default();
            findings.insert(name.to_owned(), judge(container.is_stateful(), record, &account, &lives));
        }
        let copies = || evidence.copies.values();
        let figures = Figures {
            faults: faults.len(),
            failovers: copies().map(super::copies::Copies::failovers).sum(),
            double_owner: copies().map(|copies| copies.doubles.len()).sum(),
            state_lost: findings.values().map(Vec::len).sum(),
            stuck: evidence.stuck.len(),
            leftovers: evidence.leftovers.len(),
            seed,
            minutes: (evidence.lasted.as_secs_f64() / 6.0).round() / 10.0,
        };
        // By the clock of the record.
        let began = u64::try_from(evidence.began.as_millis()).unwrap_or_default();
        let faults = faults.iter().map(|fault| {
            let fault = Fault { at: fault.at + began, until: fault.until + began, ..fault.clone() };
            fault.to_string()
        });
        Self { figures, faults: faults.collect(), evidence, findings }
    }

    /// Writes down everything: the faults, the records, the copies and what the store held.
    ///
    /// # Errors
    /// From the file system.
    pub fn keep(&self, dir: &Path) -> anyhow::Result<()> {
        fs::write(dir.join("faults.txt"), self.faults.join("\n") + "\n")?;
        for (name, record) in &self.evidence.records {
            let lines: Vec<String> = record.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
            fs::write(dir.join(format!("{name}-record.jsonl")), lines.join("\n") + "\n")?;
        }
        fs::write(dir.join("copies.json"), serde_json::to_vec_pretty(&self.evidence.copies)?)?;
        fs::write(dir.join("store.json"), serde_json::to_vec_pretty(&self.evidence.accounts)?)?;
        fs::write(dir.join("figures.json"), serde_json::to_vec_pretty(&self.figures)?)?;
        Ok(())
    }

    /// Prints what is wrong, and the figures. Returns whether all went well.
    ///
    /// # Errors
    /// From standard output, and when a fault could not be carried out: then the figures say less than they seem to.
    pub fn print(&self, dir: &Path) -> anyhow::Result<bool> {
        let mut out = std::io::stdout().lock();
        if !self.figures.are_good() {
            writeln!(out, "The faults:\n{}", self.faults.join("\n"))?;
        }
        for (name, copies) in &self.evidence.copies {
            let shown = copies.doubles.iter().take(SHOWN);
            shown.map(|double| self.double(name, double)).try_for_each(|text| writeln!(out, "{text}"))?;
        }
        for (name, findings) in &self.findings {
            for finding in findings.iter().take(SHOWN) {
                writeln!(out, "\nSTATE {name} at {:.3} s: {}", finding.at.as_secs_f64(), finding.what)?;
                writeln!(out, "{}", self.around(name, finding.entry))?;
            }
            if let Some(more) = findings.len().checked_sub(SHOWN + 1) {
                writeln!(out, "… and {} more of {name}", more + 1)?;
            }
        }
        for name in &self.evidence.stuck {
            writeln!(out, "\nSTUCK {name}: it does not serve, or see all nodes, a minute after the last fault")?;
            writeln!(out, "{}", self.around(name, usize::MAX))?;
        }
        self.evidence.leftovers.iter().try_for_each(|line| writeln!(out, "LEFT BEHIND {line}"))?;
        self.evidence.troubles.iter().try_for_each(|line| writeln!(out, "TROUBLE {line}"))?;
        if !self.figures.are_good() {
            writeln!(out, "\nEvents and logs of all nodes, records and timeline: {}", dir.display())?;
        }
        writeln!(out, "{}", serde_json::to_string(&self.figures)?)?;
        let troubles = self.evidence.troubles.len();
        anyhow::ensure!(troubles == 0, "{troubles} thing(s) could not be done as planned: see TROUBLE above");
        Ok(self.figures.are_good())
    }

    fn double(&self, name: &str, double: &Double) -> String {
        let lasted = match double.until {
            Some(until) => format!("for {:.3} s", (until - double.from).as_secs_f64()),
            None => "to the end".to_owned(),
        };
        let [(one, here), (two, there)] = [0, 1].map(|side| (double.lives[side], &double.nodes[side]));
        let record = self.evidence.records.get(name).map(Vec::as_slice).unwrap_or_default();
        let entry = record.partition_point(|entry| entry.at < double.from);
        format!(
            "\nDOUBLE {name} at {:.3} s: copy {one} on {here} and copy {two} on {there} both ran, {lasted}\n{}",
            double.from.as_secs_f64(),
            self.around(name, entry)
        )
    }

    /// The record around an entry.
    fn around(&self, name: &str, entry: usize) -> String {
        let record = self.evidence.records.get(name).map(Vec::as_slice).unwrap_or_default();
        let entry = entry.min(record.len());
        let range = entry.saturating_sub(BEFORE)..(entry + AFTER + 1).min(record.len());
        let lines: Vec<String> = record[range].iter().map(|entry| self.line(name, entry)).collect();
        lines.join("\n")
    }

    fn line(&self, name: &str, entry: &Entry) -> String {
        let lives = self.evidence.copies.get(name).map(|copies| copies.lives.as_slice()).unwrap_or_default();
        let copy = |number: &usize| {
            let node = lives.iter().find(|life| life.number == *number).map_or("?", |life| &life.node);
            format!("copy {number} on {node}")
        };
        let copies: Vec<String> = entry.copies.iter().map(copy).collect();
        let what = match &entry.what {
            What::Connected { id, state } => format!("connected to {id}: {} {:016x}", state.value, state.hash),
            What::Counted { token, state } => format!("request {token}: {} {:016x}", state.value, state.hash),
            What::Unanswered { token, why } => format!("request {token}: no answer: {why}"),
        };
        format!("  {:>9.3} s  {what}  [{}]", seconds(entry.at), copies.join(", "))
    }
}

fn seconds(at: Duration) -> f64 {
    at.as_secs_f64()
}
