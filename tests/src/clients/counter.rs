//! The counter's client: it recomputes the server's chain, so a lost, repeated or invented state is seen.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use serde::Serialize;

#[path = "../workloads/counter.rs"]
#[allow(dead_code)]
mod server;

/// One connection to a counter.
#[derive(Debug)]
pub struct Counter {
    reader: BufReader<TcpStream>,
}

/// A state of the counter: a number and the hash of all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Value {
    pub value: u64,
    pub hash: u64,
}

impl Value {
    /// The state that follows. A counter starts at 0 with the hash 0.
    #[must_use]
    pub fn next(self) -> Self {
        Self { value: self.value + 1, hash: server::chain(self.hash, self.value + 1) }
    }

    /// The state that follows a count with a token.
    #[must_use]
    pub fn next_with(self, token: u64) -> Self {
        Self { value: self.value + 1, hash: server::chain_with(self.hash, self.value + 1, token) }
    }

    /// True when the hash is the one that `value` steps from the start give.
    pub fn is_genuine(self) -> bool {
        let start = Self { value: 0, hash: 0 };
        (0..self.value).fold(start, |state, _| state.next()) == self
    }
}

impl Counter {
    /// Connects; connecting and every answer may take `timeout`.
    ///
    /// # Errors
    /// From the socket.
    pub fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// From now on an answer may take `timeout`.
    ///
    /// # Errors
    /// From the socket.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.reader.get_ref().set_read_timeout(Some(timeout))
    }

    fn ask(&mut self, request: &str) -> io::Result<String> {
        self.reader.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(answer) => Ok(answer.to_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn value(&mut self, request: &str) -> io::Result<Value> {
        let answer = self.ask(request)?;
        let parsed = answer.split_once(' ').and_then(|(value, hash)| {
            Some(Value { value: value.parse().ok()?, hash: u64::from_str_radix(hash, 16).ok()? })
        });
        parsed.ok_or_else(|| io::Error::other(format!("not a counter's answer: {answer:?}")))
    }

    /// The next state.
    ///
    /// # Errors
    /// From the socket: a timeout, a reset, an end.
    pub fn incr(&mut self) -> io::Result<Value> {
        self.value("incr\n")
    }

    /// The next state, with the token in its hash.
    ///
    /// # Errors
    /// As `incr`.
    pub fn incr_with(&mut self, token: u64) -> io::Result<Value> {
        self.value(&format!("incr {token}\n"))
    }

    /// The current state.
    ///
    /// # Errors
    /// As `incr`.
    pub fn get(&mut self) -> io::Result<Value> {
        self.value("get\n")
    }

    /// The number the server's process drew when it started.
    ///
    /// # Errors
    /// As `incr`.
    pub fn id(&mut self) -> io::Result<String> {
        self.ask("id\n")
    }

    /// Sends `sicken`, `arm` or `exit CODE` and returns the answer: an end of the connection after the last.
    ///
    /// # Errors
    /// As `incr`.
    pub fn tell(&mut self, request: &str) -> io::Result<String> {
        self.ask(&format!("{request}\n"))
    }

    /// Whether every byte of the server's ballast is right.
    ///
    /// # Errors
    /// As `incr`, and with the page that has changed.
    pub fn check(&mut self) -> io::Result<()> {
        let answer = self.ask("check\n")?;
        if answer.starts_with("ok ") { Ok(()) } else { Err(io::Error::other(format!("the memory changed: {answer}"))) }
    }
}

/// Connects again and again until the server answers a `get`.
///
/// # Errors
/// With the last error when `patience` has run out.
pub fn connect_patiently(address: SocketAddr, patience: Duration) -> anyhow::Result<Counter> {
    let start = Instant::now();
    loop {
        let attempt = Counter::connect(address, Duration::from_millis(250)).and_then(|mut counter| {
            counter.get()?;
            Ok(counter)
        });
        match attempt {
            Ok(counter) => return Ok(counter),
            Err(err) if start.elapsed() > patience => return Err(err).context(format!("no counter at {address}")),
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// An answer, when it came.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub at: SystemTime,
    pub instant: Instant,
    pub state: Value,
}

/// What a poller has seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Every answer's time and state, in order.
    pub answers: Vec<Answer>,
    /// Resets, ends and timeouts, each followed by a new connection.
    pub errors: Vec<(Instant, String)>,
    /// Answers that do not follow from the one before on the same connection. Always empty unless state was corrupted.
    pub wrong: Vec<String>,
}

impl Seen {
    /// The longest time between two answers, and when it began, among answers after `since`.
    pub fn longest_gap(&self, since: Instant) -> Option<(Duration, Instant)> {
        let later = self.answers.iter().map(|answer| answer.instant).skip_while(|at| *at < since);
        let times: Vec<Instant> = later.collect();
        times.windows(2).map(|pair| (pair[1] - pair[0], pair[0])).max()
    }

    /// The first answer after `instant`.
    pub fn first_after(&self, instant: Instant) -> Option<&Answer> {
        let at = self.answers.partition_point(|answer| answer.instant <= instant);
        self.answers.get(at)
    }

    /// The last answer at or before `at` on the wall clock.
    pub fn last_before(&self, at: SystemTime) -> Option<&Answer> {
        self.answers.iter().rev().find(|answer| answer.at <= at)
    }
}

/// A client that sends `incr` at an interval, reconnects when it has to, and writes down everything.
#[derive(Debug)]
pub struct Poller {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
}

impl Poller {
    /// The recorder and the loop to be run on a thread in the clients' namespace. An answer may take `timeout` before
    /// the connection counts as lost.
    pub fn new(
        address: SocketAddr,
        every: Duration,
        timeout: Duration,
    ) -> (Self, impl FnOnce() -> anyhow::Result<()> + Send + 'static) {
        let poller = Self { seen: Arc::default(), stop: Arc::default() };
        let (seen, stop) = (Arc::clone(&poller.seen), Arc::clone(&poller.stop));
        let run = move || {
            while !stop.load(Ordering::Relaxed) {
                if let Err(err) = poll_once(address, every, timeout, &seen, &stop) {
                    note(&seen, |seen| seen.errors.push((Instant::now(), err.to_string())));
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(())
        };
        (poller, run)
    }

    /// What was seen up to now.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many answers there were, and the last of them.
    pub fn last(&self) -> Option<Answer> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).answers.last().copied()
    }

    /// Ends the loop after its current request.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.stop();
    }
}

fn note(seen: &Mutex<Seen>, change: impl FnOnce(&mut Seen)) {
    change(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
}

fn poll_once(
    address: SocketAddr,
    every: Duration,
    timeout: Duration,
    seen: &Mutex<Seen>,
    stop: &AtomicBool,
) -> io::Result<()> {
    // Short, and tried again: a connection asked for while nobody is there is not noticed when somebody comes.
    let mut counter = Counter::connect(address, timeout.min(Duration::from_millis(50)))?;
    counter.set_timeout(timeout)?;
    let mut before: Option<Value> = None;
    while !stop.load(Ordering::Relaxed) {
        let state = counter.incr()?;
        let answer = Answer { at: SystemTime::now(), instant: Instant::now(), state };
        note(seen, |seen| {
            if before.is_some_and(|before| before.next() != state) {
                seen.wrong.push(format!("{before:?} was followed by {state:?}"));
            }
            seen.answers.push(answer);
        });
        before = Some(state);
        thread::sleep(every);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_true_history_is_genuine() {
        let third = Value { value: 0, hash: 0 }.next().next().next();
        assert!(third.is_genuine());
        assert!(!Value { value: 2, ..third }.is_genuine());
        assert!(!Value { hash: third.hash ^ 1, ..third }.is_genuine());
        let second = Value { value: 0, hash: 0 }.next().next();
        assert_ne!(second.next_with(1), second.next_with(2));
        assert_ne!(second.next_with(1).hash, third.hash);
    }
}
