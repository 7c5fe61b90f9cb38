//! Which connections of a snapshot are still the ones their peers have.
//!
//! A restored connection is where it was at the checkpoint. If nothing went over it since, it goes on. If something did,
//! the two sides disagree about the stream: at best both wait for ever, at worst the restored program's new bytes are
//! taken for the continuation of the old ones. Such a connection is reset at once, on both sides.
//!
//! To find out, the peer is asked *while the container is being restored and not yet in the bridge*: a keepalive probe in
//! the container's name goes out of the bridge, and the peer's answer says where it stands ([`decide`]).
//!
//! ```text
//!   start ──► probing ──────────────► settle ─────────────► attach ─────► late verdicts ──► finish
//!             peers that moved on     restored sockets of    by the       of peers that are
//!             get their reset here    moved-on peers end     caller       ahead or silent
//! ```

mod decide;
mod images;
mod job;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

pub use self::images::ImagesError;
use self::job::{Job, Peer};
use super::{NetIdentity, NetworkError, kill::kill_tcp};

const SILENT: &str = "the peer has not answered";
const AHEAD: &str = "the peer has sent more than the checkpoint knows; it may send it again";

#[derive(Debug, Clone, Copy)]
pub struct SurvivorLimits {
    /// How long after the start [`Survivors::settle`] still waits for answers. Default 150 ms: no longer than a restore.
    pub answer: Duration,
    /// How long a peer that is ahead of us gets to send again what nobody acknowledged. Default 3 s: a peer that has been
    /// without an answer for 3 s sends again every 1.6 s or less.
    pub patience: Duration,
    /// After this time the peers that never answered are left to their own. Default 5 s.
    pub watch: Duration,
}

impl Default for SurvivorLimits {
    fn default() -> Self {
        Self { answer: Duration::from_millis(150), patience: Duration::from_secs(3), watch: Duration::from_secs(5) }
    }
}

/// What became of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Kept,
    /// It had moved on since the checkpoint, or the peer does not have it any more: ended on both sides.
    Reset,
    /// Nothing could be found out. It is left as restored.
    Unknown(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionFate {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub fate: Fate,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SurvivorReport {
    pub connections: Vec<ConnectionFate>,
    /// What kept the job from doing all of it, in words.
    pub errors: Vec<String>,
}

impl SurvivorReport {
    pub fn kept(&self) -> usize {
        self.count(|fate| fate == Fate::Kept)
    }

    pub fn reset(&self) -> usize {
        self.count(|fate| fate == Fate::Reset)
    }

    pub fn unknown(&self) -> usize {
        self.count(|fate| matches!(fate, Fate::Unknown(_)))
    }

    fn count(&self, which: impl Fn(Fate) -> bool) -> usize {
        self.connections.iter().filter(|connection| which(connection.fate)).count()
    }
}

/// The job for one restore. Dropping it ends it: nothing more is sent or reset.
pub struct Survivors {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    answers_until: Instant,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    report: SurvivorReport,
    /// Peers that have not answered yet.
    silent: usize,
    cancelled: bool,
    /// Set by `settle`: from then on the restored sockets exist.
    netns: Option<PathBuf>,
}

impl Survivors {
    /// Reads the connections in the CRIU images directory `images` and begins asking their peers, out of the link `on`
    /// (the bridge) of the calling thread's network namespace.
    ///
    /// Call it when the container is owned and its address is known to be free, and before it is attached.
    ///
    /// # Errors
    /// The images are broken, or frames cannot be sent. Without images or connections there is nothing to do.
    pub fn start(
        on: &str,
        identity: &NetIdentity,
        images: &Path,
        limits: SurvivorLimits,
    ) -> Result<Self, NetworkError> {
        let start = Instant::now();
        let connections = images::read(images).map_err(NetworkError::Images)?;
        let mut state = State::default();
        let mut peers = Vec::new();
        for connection in connections {
            let fate = match Peer::of(&connection, identity) {
                Ok(peer) => {
                    peers.push((state.report.connections.len(), peer));
                    Fate::Unknown(SILENT)
                }
                Err(why) => Fate::Unknown(why),
            };
            state.report.connections.push(ConnectionFate { local: connection.local, peer: connection.peer, fate });
        }
        state.silent = peers.len();
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut thread = None;
        if !peers.is_empty() {
            let failed =
                |source| NetworkError::Kernel { doing: format!("asking the container's peers on {on}"), source };
            let socket = job::open(on)?;
            let job = Job::new(shared.clone(), socket, identity.clone(), peers, limits, start);
            let run = move || job.run();
            thread = Some(thread::Builder::new().name("ha-survivors".into()).spawn(run).map_err(failed)?);
        }
        Ok(Self { shared, thread, answers_until: start + limits.answer })
    }

    /// After the restore and before `attach`: waits for the answers that are still due, at most until the limit counted
    /// from the start, and ends the restored sockets whose peers have moved on. Later verdicts are carried out by the job.
    pub fn settle(&self, netns: &Path) -> SurvivorReport {
        let mut state = self.shared.lock();
        while state.silent > 0 {
            let left = self.answers_until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let ended: HashSet<_> = state
            .report
            .connections
            .iter()
            .filter(|connection| connection.fate == Fate::Reset)
            .map(|connection| (connection.local, connection.peer))
            .collect();
        // Under the lock, so that each verdict is carried out by exactly one of this and the job.
        if !ended.is_empty()
            && let Err(error) = kill_tcp(netns, |socket| ended.contains(&(socket.local, socket.peer)))
        {
            state.report.errors.push(describe(&error));
        }
        state.netns = Some(netns.to_owned());
        state.report.clone()
    }

    /// What is known so far.
    pub fn report(&self) -> SurvivorReport {
        self.shared.lock().report.clone()
    }

    /// Waits for the last verdict, at most [`SurvivorLimits::watch`] from the start.
    pub fn finish(mut self) -> SurvivorReport {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.shared.lock().report.errors.push("the job panicked".to_owned());
        }
        self.report()
    }
}

impl Drop for Survivors {
    fn drop(&mut self) {
        self.shared.lock().cancelled = true;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
