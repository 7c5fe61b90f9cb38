//! The recording clients: outside of the nodes, one for each container, every answer written down.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde::Serialize;

use super::{observer::Sight, timeline::Timeline};
use crate::{
    clients::counter::{Counter, Value},
    lab::Lab,
};

const EVERY: Duration = Duration::from_millis(20);
/// Short, and tried again: a connection asked for while nobody is there is not noticed when somebody comes.
const CONNECT: Duration = Duration::from_millis(50);
/// A checkpoint keeps a client waiting for less.
const ANSWER: Duration = Duration::from_millis(400);
/// A silence that is worth a line.
const SILENCE: Duration = Duration::from_millis(1500);

/// What a client did and saw. Times are since the beginning of the session.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    pub at: Duration,
    /// The copies that ran when the answer came, by the look-out.
    pub copies: Vec<usize>,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A new connection: the process's own number and the state.
    Connected { id: String, state: Value },
    /// A request with this token was answered.
    Counted { token: u64, state: Value },
    /// A request with this token was not.
    Unanswered { token: u64, why: String },
}

impl Entry {
    /// The state that the client was told.
    pub fn told(&self) -> Option<Value> {
        match &self.what {
            What::Connected { state, .. } | What::Counted { state, .. } => Some(*state),
            What::Unanswered { .. } => None,
        }
    }
}

/// A running client.
#[derive(Debug)]
pub struct Recorder {
    record: Arc<Mutex<Vec<Entry>>>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<anyhow::Result<()>>,
}

impl Recorder {
    /// Starts the client of the container `name` in the clients' namespace.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        lab: &Lab,
        name: &str,
        address: SocketAddr,
        sight: Sight,
        timeline: Arc<Timeline>,
    ) -> anyhow::Result<Self> {
        let (record, stop): (Arc<Mutex<Vec<Entry>>>, Arc<AtomicBool>) = Default::default();
        let mut client = Client {
            name: name.to_owned(),
            address,
            sight,
            timeline,
            record: Arc::clone(&record),
            stop: Arc::clone(&stop),
            token: 0,
            last: None,
        };
        let run = move || {
            while !client.stop.load(Ordering::Relaxed) {
                // What went wrong is in the record.
                if client.session().is_err() {
                    thread::sleep(Duration::from_millis(2));
                }
            }
            Ok(())
        };
        Ok(Self { record, stop, thread: lab.on_client(run)? })
    }

    /// Whether answers have come for `patience` without a break, up to now.
    pub fn is_served(&self, now: Duration, patience: Duration) -> bool {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.saturating_sub(patience);
        let recent = || record.iter().rev().take_while(|entry| entry.at >= since);
        let steps = u32::try_from(recent().count()).unwrap_or(u32::MAX);
        recent().all(|entry| entry.told().is_some()) && steps * EVERY >= patience / 4
    }

    /// Ends the client and returns its record.
    ///
    /// # Errors
    /// When the client has panicked.
    pub fn finish(self) -> anyhow::Result<Vec<Entry>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| anyhow::bail!("a recording client panicked"))?;
        Ok(std::mem::take(&mut *self.record.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

struct Client {
    name: String,
    address: SocketAddr,
    sight: Sight,
    timeline: Arc<Timeline>,
    record: Arc<Mutex<Vec<Entry>>>,
    stop: Arc<AtomicBool>,
    token: u64,
    /// The newest answer.
    last: Option<(Duration, Value)>,
}

impl Client {
    /// One connection, from beginning to end.
    fn session(&mut self) -> io::Result<()> {
        let mut counter = Counter::connect(self.address, CONNECT)?;
        counter.set_timeout(ANSWER)?;
        let (id, state) = (counter.id()?, counter.get()?);
        self.note(What::Connected { id, state });
        while !self.stop.load(Ordering::Relaxed) {
            self.token += 1;
            let token = self.token;
            match counter.incr_with(token) {
                Ok(state) => self.note(What::Counted { token, state }),
                Err(err) => {
                    self.note(What::Unanswered { token, why: err.to_string() });
                    return Err(err);
                }
            }
            thread::sleep(EVERY);
        }
        Ok(())
    }

    fn note(&mut self, what: What) {
        let at = self.timeline.now();
        let sight = self.sight.lock().unwrap_or_else(PoisonError::into_inner);
        let copies = sight.get(&self.name).map(super::copies::Copies::running).unwrap_or_default();
        drop(sight);
        let entry = Entry { at, copies, what };
        if let Some(state) = entry.told() {
            self.tell(at, state, &entry.copies);
        }
        self.record.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    fn tell(&mut self, at: Duration, state: Value, copies: &[usize]) {
        if let Some((before, told)) = self.last {
            let silence = at - before;
            if silence > SILENCE || state.value < told.value {
                let text = format!(
                    "answers after {:.2} s: {} (it was {}), from copy {copies:?}",
                    silence.as_secs_f64(),
                    state.value,
                    told.value
                );
                self.timeline.say(&self.name, &text);
            }
        }
        self.last = Some((at, state));
    }
}
