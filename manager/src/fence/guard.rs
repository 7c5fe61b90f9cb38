//! The manager's end: tells the watchdog the deadline, hears what it did, and starts another one when it dies.
//!
//! ```text
//!   hold ──► wanted ── sent at once, or by the task when there is room ──► watchdog
//!   task:    reports ──► state;  the connection ends ──► a new watchdog, told `wanted`
//! ```

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{
    FenceError, Setting,
    clock::Pair,
    connection::Connection,
    protocol::{Due, Report, Standing},
    told::Told,
};

/// How long a release may take.
const RELEASE: Duration = Duration::from_secs(5);
/// How often what could not be sent is tried again.
const AGAIN: Duration = Duration::from_millis(10);
/// One that has not read for so long is stopped, or worse: whether it answers a new connection is looked at, and said.
const STUCK: Duration = Duration::from_secs(2);
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// Between attempts to start a watchdog, from the second one on.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// Until when this node may run containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    Never,
    At(Instant),
}

/// What the manager found when it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inherited {
    pub deadline: Deadline,
    /// The containers were frozen.
    pub fired: bool,
}

/// What is known of the watchdog now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The containers are frozen and their links down; only a release ends this.
    pub fired: bool,
    /// What is not as it should be: of the fencing, or of the watchdog itself.
    pub problem: Option<String>,
    /// How often a watchdog was lost and another one had to be found or started.
    pub restarts: u64,
}

/// The connection to the node's watchdog. Dropping it changes nothing: the deadline stands.
#[derive(Debug)]
pub struct Guard {
    shared: Arc<Shared>,
    state: watch::Receiver<State>,
    inherited: Inherited,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    pair: Pair,
    told: Mutex<Told>,
    /// Something in `told` waits to be sent.
    unsent: Notify,
}

impl Guard {
    /// Connects to the node's watchdog, or starts it. Needs the runtime it is called in from then on.
    ///
    /// # Errors
    /// None can be started, or the one that is there does not answer or is of another version.
    pub async fn start(setting: Setting) -> Result<Self, FenceError> {
        let (connection, standing) = Connection::make(&setting).await?;
        let connection = Arc::new(connection);
        let pair = Pair::take();
        let deadline = match standing.due {
            Due::Never => Deadline::Never,
            // Too far for a clock to show is never.
            Due::At(at) => pair.instant(at).map_or(Deadline::Never, Deadline::At),
        };
        let inherited = Inherited { deadline, fired: standing.fired };
        let told = Told::new(Arc::clone(&connection), standing.due);
        let shared = Arc::new(Shared { pair, told: Mutex::new(told), unsent: Notify::new() });
        let other = other_setting(&standing, &setting);
        let first = State { fired: standing.fired, problem: problem_of(standing).or(other), restarts: 0 };
        let (publish, state) = watch::channel(first);
        let keeper = Keeper { shared: Arc::clone(&shared), setting, publish };
        let task = tokio::spawn(keeper.run(connection));
        Ok(Self { shared, state, inherited, task })
    }

    /// What the watchdog knew when this began.
    pub fn inherited(&self) -> Inherited {
        self.inherited
    }

    /// The new deadline, later or earlier than the last. Cheap, waits for nothing, and has been sent on return unless the
    /// watchdog is behind. While the node is fenced it changes nothing.
    /// True when it has been sent.
    pub fn hold(&self, deadline: Deadline) -> bool {
        let mut told = self.shared.lock();
        told.want(self.due(deadline));
        let sent = told.flush();
        if !sent {
            self.shared.unsent.notify_one();
        }
        sent
    }

    /// Fences at once. Waits for nothing; [`Guard::state`] says when it is done.
    pub fn fence_now(&self) {
        let mut told = self.shared.lock();
        told.fence_now();
        if !told.flush() {
            self.shared.unsent.notify_one();
        }
    }

    /// Brings the links up and lets the containers go on, until `deadline`.
    ///
    /// # Errors
    /// It could not be done, the deadline is past, or there is no answer within 5 s. What holds then is in [`Guard::state`].
    pub async fn release(&self, deadline: Deadline) -> Result<(), FenceError> {
        let due = self.due(deadline);
        let answered = async {
            let answer = loop {
                let sent = self.shared.lock().send_release(due);
                match sent {
                    Some(answer) => break answer,
                    None => tokio::time::sleep(AGAIN).await,
                }
            };
            answer.await.unwrap_or(Err(FenceError::Lost))
        };
        timeout(RELEASE, answered).await.unwrap_or(Err(FenceError::Late { after: RELEASE }))
    }

    /// What is known of the watchdog, and when it changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    fn due(&self, deadline: Deadline) -> Due {
        match deadline {
            Deadline::Never => Due::Never,
            Deadline::At(at) => self.shared.pair.due(at),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Told> {
        // Every field is valid by itself whatever panicked in between.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task behind a guard.
struct Keeper {
    shared: Arc<Shared>,
    setting: Setting,
    publish: watch::Sender<State>,
}

impl Keeper {
    async fn run(self, mut connection: Arc<Connection>) {
        loop {
            let begun = Instant::now();
            self.serve(&connection).await;
            drop(connection);
            self.shared.lock().lost();
            self.publish.send_modify(|state| state.problem = Some("the watchdog went away".into()));
            // At once, unless it dies again and again.
            if begun.elapsed() < SHORT_LIFE {
                tokio::time::sleep(RESTART_PAUSE).await;
            }
            connection = self.renew().await;
        }
    }

    /// Until the connection ends, or the watchdog reads nothing any more.
    async fn serve(&self, connection: &Connection) {
        let mut behind: Option<Instant> = None;
        loop {
            let flushed = self.shared.lock().flush();
            behind = if flushed { None } else { behind.or_else(|| Some(Instant::now())) };
            if behind.is_some_and(|since| since.elapsed() > STUCK) {
                return;
            }
            tokio::select! {
                report = connection.receive() => match report {
                    Ok(Ok(report)) => self.heard(report),
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "the watchdog said what cannot be understood");
                        return;
                    }
                    Err(_) => return,
                },
                () = self.shared.unsent.notified() => {}
                () = tokio::time::sleep(AGAIN), if !flushed => {}
            }
        }
    }

    fn heard(&self, report: Report) {
        match report {
            Report::State(standing) => {
                let other = other_setting(&standing, &self.setting);
                self.publish.send_modify(|state| {
                    state.fired = standing.fired;
                    state.problem = problem_of(standing).or(other);
                });
            }
            Report::Ack { number, done, problem } => {
                let answer = if done { Ok(()) } else { Err(FenceError::NotReleased { problem }) };
                self.shared.lock().answered(number, answer);
            }
        }
    }

    /// Again and again: without a watchdog nothing ends what this node runs.
    async fn renew(&self) -> Arc<Connection> {
        loop {
            match Connection::make(&self.setting).await {
                Ok((connection, standing)) => {
                    let connection = Arc::new(connection);
                    self.shared.lock().found(Arc::clone(&connection));
                    tracing::warn!(pid = standing.pid, "the watchdog was lost; another one has the deadline now");
                    self.publish.send_modify(|state| state.restarts += 1);
                    self.heard(Report::State(standing));
                    return connection;
                }
                Err(error) => {
                    let problem = format!("there is no watchdog: {}", crate::chain(&error));
                    tracing::error!("{problem}");
                    self.publish.send_modify(|state| state.problem = Some(problem));
                    tokio::time::sleep(RESTART_PAUSE).await;
                }
            }
        }
    }
}

fn problem_of(standing: Standing) -> Option<String> {
    (!standing.problem.is_empty()).then_some(standing.problem)
}

fn other_setting(standing: &Standing, setting: &Setting) -> Option<String> {
    (standing.setting != setting.digest()).then(|| {
        format!(
            "the watchdog (pid {}) is of another version or has other options than the configuration now; it is replaced by the \
             next start of the manager that finds it without a deadline",
            standing.pid
        )
    })
}
