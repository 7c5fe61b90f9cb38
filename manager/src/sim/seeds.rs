//! Many seeds, on every processor.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use super::{Outcome, Scenario, run};

/// What became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub seeds: u64,
    /// In the order of the seeds.
    pub bad: Vec<u64>,
}

/// Plays the scenarios of `seeds` seeds from `from` on, on `threads` threads; `progress` is told how many are done, now and then.
pub fn play(from: u64, seeds: u64, threads: usize, progress: impl Fn(u64, usize) + Sync) -> Tally {
    let next = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let worker = || {
        let mut bad = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= seeds {
                return bad;
            }
            let seed = from.wrapping_add(index);
            if run(&Scenario::random(seed)).violation.is_some() {
                bad.push(seed);
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(250) {
                progress(done, bad.len());
            }
        }
    };
    let mut bad: Vec<u64> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(worker)).collect();
        // A worker that panicked has said why; its panic goes on here.
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_else(|why| std::panic::resume_unwind(why)))
            .collect()
    });
    bad.sort_unstable();
    Tally { seeds, bad }
}

impl Outcome {
    /// A line for each thing that happened: time, node, what.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for note in &self.trace {
            let node = note.node.map_or_else(|| "-".to_owned(), |node| format!("n{}", node + 1));
            text.push_str(&format!("{:>10}  {node:<4}{}\n", super::expect::seconds(note.at), note.what));
        }
        text
    }
}
