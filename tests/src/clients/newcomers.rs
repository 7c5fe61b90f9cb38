//! Clients that come anew all the time: one connection after the other, whatever becomes of those before.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;

use super::counter::Counter;
use crate::lab::Lab;

/// So many may be under way at once; more than begin while a container is frozen.
const WORKERS: u32 = 64;
/// Longer than any retry of TCP that is of interest.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct Seen {
    /// When each began, and how long it took until it had its first answer.
    answered: Vec<(Instant, Duration)>,
    under_way: Vec<Instant>,
    errors: Vec<String>,
}

/// Connections to a counter that begin at a steady pace, each to ask for the state once.
#[derive(Debug)]
pub struct Newcomers {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<anyhow::Result<()>>>,
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Newcomers {
    /// Begins one `every` so often, from the laboratory's clients.
    ///
    /// # Errors
    /// When the clients' namespace is gone.
    pub fn start(lab: &Lab, address: SocketAddr, every: Duration) -> anyhow::Result<Self> {
        let mut newcomers = Self { seen: Arc::default(), stop: Arc::default(), workers: Vec::new() };
        let start = Instant::now();
        for worker in 0..WORKERS {
            let (seen, stop) = (Arc::clone(&newcomers.seen), Arc::clone(&newcomers.stop));
            let run = move || {
                let mut turn = start + every * worker;
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(turn.saturating_duration_since(Instant::now()));
                    come(address, &seen);
                    // What was missed while waiting for an answer is not made up for.
                    while turn <= Instant::now() {
                        turn += every * WORKERS;
                    }
                }
                Ok(())
            };
            newcomers.workers.push(lab.on_client(run)?);
        }
        Ok(newcomers)
    }

    /// The longest time that one which began between the two moments took, once all of them have their answers.
    ///
    /// # Errors
    /// When one has none after a long time, or none began.
    pub fn longest(&self, since: Instant, until: Instant) -> anyhow::Result<Duration> {
        let waiting = Instant::now();
        while lock(&self.seen).under_way.iter().any(|begun| *begun <= until) {
            anyhow::ensure!(waiting.elapsed() < PATIENCE * 2, "a new connection is never answered");
            thread::sleep(Duration::from_millis(5));
        }
        let seen = lock(&self.seen);
        let within = seen.answered.iter().filter(|(begun, _)| (since..=until).contains(begun));
        within.map(|(_, took)| *took).max().context("no new connection was begun")
    }

    /// Ends them: how many were answered, and what went wrong with the others.
    ///
    /// # Errors
    /// When a thread failed.
    pub fn finish(mut self) -> anyhow::Result<(usize, Vec<String>)> {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            worker.join().unwrap_or_else(|_| anyhow::bail!("a client panicked"))?;
        }
        let mut seen = lock(&self.seen);
        Ok((seen.answered.len(), std::mem::take(&mut seen.errors)))
    }
}

impl Drop for Newcomers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn come(address: SocketAddr, seen: &Mutex<Seen>) {
    let begun = Instant::now();
    lock(seen).under_way.push(begun);
    let outcome = Counter::connect(address, PATIENCE).and_then(|mut counter| counter.get());
    let took = begun.elapsed();
    let mut seen = lock(seen);
    if let Some(at) = seen.under_way.iter().position(|other| *other == begun) {
        seen.under_way.swap_remove(at);
    }
    match outcome {
        Ok(_) => seen.answered.push((begun, took)),
        Err(error) => seen.errors.push(format!("after {took:?}: {error}")),
    }
}

/// How many SYNs the clients' kernel has had to send again.
///
/// # Errors
/// When its counters cannot be read.
pub fn repeated_syns(lab: &Lab) -> anyhow::Result<u64> {
    let counters = crate::run(lab.client_command("cat").arg("/proc/self/net/netstat"))?;
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().context("no TcpExt")?, lines.next().context("no TcpExt values")?);
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "TCPSynRetrans");
    Ok(found.context("no TCPSynRetrans")?.1.parse()?)
}
