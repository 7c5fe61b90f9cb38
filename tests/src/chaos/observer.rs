//! The look-out: outside of the nodes, every few milliseconds, at the containers of all of them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    copies::{Change, Copies},
    look::{Copy, Eyes},
    timeline::Timeline,
};

const EVERY: Duration = Duration::from_millis(5);
/// Between the looks that confirm that two copies run.
const AGAIN: Duration = Duration::from_millis(2);
/// A checkpoint freezes for less; longer is worth a line.
const LONG_FREEZE: Duration = Duration::from_secs(1);

/// What is known of each container's copies.
pub type Sight = Arc<Mutex<BTreeMap<String, Copies>>>;

/// Looks until it is stopped.
#[derive(Debug)]
pub struct Observer {
    pub sight: Sight,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Observer {
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(eyes: Eyes, containers: &[String], timeline: Arc<Timeline>) -> anyhow::Result<Self> {
        let sight: Sight =
            Arc::new(Mutex::new(containers.iter().map(|name| (name.clone(), Copies::default())).collect()));
        let stop = Arc::new(AtomicBool::new(false));
        let names = containers.to_vec();
        let mut watch = Watch { eyes, timeline, sight: Arc::clone(&sight), long: BTreeMap::new() };
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("observer".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                names.iter().for_each(|name| watch.look(name));
                thread::sleep(EVERY);
            }
        })?;
        Ok(Self { sight, stop, thread: Some(thread) })
    }

    /// Ends the looking and returns what was seen.
    ///
    /// # Errors
    /// When the thread has panicked.
    pub fn finish(mut self) -> anyhow::Result<BTreeMap<String, Copies>> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("the observer panicked"))?;
        }
        Ok(self.sight.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Watch {
    eyes: Eyes,
    timeline: Arc<Timeline>,
    sight: Sight,
    /// Since when a copy is frozen, and whether that has been said.
    long: BTreeMap<(String, Copy), (Duration, bool)>,
}

impl Watch {
    fn look(&mut self, name: &str) {
        let seen = self.eyes.look(name);
        let at = self.timeline.now();
        let changes = self.with(name, |copies| copies.look(at, &seen));
        for change in changes {
            match change {
                Change::Born(number) => self.say(name, number, "comes up"),
                Change::Gone(number) => self.say(name, number, "is gone"),
                Change::NoLongerDouble => self.timeline.say(name, "only one copy runs again"),
                Change::Suspicious([one, two]) => {
                    let runs = |copy| {
                        thread::sleep(AGAIN);
                        self.eyes.runs(name, copy)
                    };
                    if [one, two, one, two].into_iter().all(runs) {
                        self.with(name, |copies| copies.confirm(at, [one, two]));
                        let text = format!(
                            "DOUBLE OWNER: process {} on {} and process {} on {} both run",
                            one.pid, one.node, two.pid, two.node
                        );
                        self.timeline.say(name, &text);
                    }
                }
            }
        }
        self.note_freezes(name, at);
    }

    fn note_freezes(&mut self, name: &str, at: Duration) {
        let now = self.with(name, |copies| copies.now().to_vec());
        for seen in &now {
            let key = (name.to_owned(), seen.copy);
            if !seen.frozen {
                if let Some((since, true)) = self.long.remove(&key) {
                    let lasted = (at - since).as_secs_f64();
                    self.timeline.say(name, &format!("the copy on {} is thawed after {lasted:.2} s", seen.copy.node));
                }
                continue;
            }
            let (since, said) = self.long.entry(key).or_insert((at, false));
            if !*said && at - *since > LONG_FREEZE {
                *said = true;
                let since = since.as_secs_f64();
                self.timeline.say(name, &format!("the copy on {} is frozen since {since:.2} s", seen.copy.node));
            }
        }
        self.long.retain(|(of, copy), _| of != name || now.iter().any(|seen| seen.copy == *copy));
    }

    fn say(&self, name: &str, number: usize, what: &str) {
        let text = self.with(name, |copies| {
            let life = &copies.lives[number - 1];
            format!("copy {number} on {} {what} (process {})", life.node, life.copy.pid)
        });
        self.timeline.say(name, &text);
    }

    fn with<T>(&self, name: &str, work: impl FnOnce(&mut Copies) -> T) -> T {
        let mut sight = self.sight.lock().unwrap_or_else(PoisonError::into_inner);
        work(sight.entry(name.to_owned()).or_default())
    }
}
