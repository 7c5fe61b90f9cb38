//! What carries the faults out: a thread for each node, so that a slow boot keeps no other node's fault waiting, and the
//! load on the machine.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{fault::NodeOp, timeline::Timeline};
use crate::{
    cluster::{Member, manager_program},
    lab::Lab,
};

/// How often a node's manager is looked at, and how soon one that ended by itself is started again.
const SUPERVISE: Duration = Duration::from_millis(100);
const RESTART: Duration = Duration::from_millis(500);

/// Runs `ha-manager ARGS` in the node, for at most half a minute: a manager may be hung.
///
/// # Errors
/// With its standard error when it fails.
pub fn ask(member: &Member, args: &[&str]) -> anyhow::Result<String> {
    let mut command = member.node.command("timeout")?;
    crate::run(command.arg("30").arg(manager_program()?).args(args))
}

/// A node's thread. It is given orders, and gives the node back at its end.
#[derive(Debug)]
pub struct Hand {
    orders: mpsc::Sender<NodeOp>,
    /// Once true, it asks the manager how many nodes it sees.
    curious: Arc<AtomicBool>,
    sees: Arc<AtomicUsize>,
    thread: thread::JoinHandle<(Member, Vec<String>)>,
}

impl Hand {
    /// Takes a node whose manager runs.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn take(member: Member, lab: &Lab, timeline: Arc<Timeline>) -> anyhow::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let store = lab.store().display().to_string();
        let (curious, sees): (Arc<AtomicBool>, Arc<AtomicUsize>) = Default::default();
        let mut keeper = Keeper {
            member,
            store,
            timeline,
            wanted: true,
            without_store: false,
            started: None,
            curious: Arc::clone(&curious),
            sees: Arc::clone(&sees),
            troubles: Vec::new(),
        };
        let thread = thread::Builder::new().name("hand".to_owned()).spawn(move || {
            loop {
                match inbox.recv_timeout(SUPERVISE) {
                    Ok(op) => keeper.obey(op),
                    Err(RecvTimeoutError::Timeout) => keeper.supervise(),
                    Err(RecvTimeoutError::Disconnected) => break (keeper.member, keeper.troubles),
                }
            }
        })?;
        Ok(Self { orders, curious, sees, thread })
    }

    /// Has it done, after all that was ordered before.
    pub fn order(&self, op: NodeOp) {
        // The thread ends with this handle only.
        let _ = self.orders.send(op);
    }

    /// How many nodes its manager holds alive, itself included, as it was asked some moments ago.
    pub fn sees_alive(&self) -> usize {
        self.curious.store(true, Ordering::Relaxed);
        self.sees.load(Ordering::Relaxed)
    }

    /// Waits until all is done; returns the node, and what could not be done to it.
    ///
    /// # Errors
    /// When the thread has panicked.
    pub fn give_back(self) -> anyhow::Result<(Member, Vec<String>)> {
        drop(self.orders);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread of a node panicked"))
    }
}

struct Keeper {
    member: Member,
    store: String,
    timeline: Arc<Timeline>,
    /// The manager is to run.
    wanted: bool,
    without_store: bool,
    started: Option<Instant>,
    curious: Arc<AtomicBool>,
    sees: Arc<AtomicUsize>,
    troubles: Vec<String>,
}

impl Keeper {
    fn obey(&mut self, op: NodeOp) {
        if let Err(err) = self.carry_out(op) {
            self.trouble(&format!("{op:?} could not be carried out: {err:#}"));
        }
    }

    fn trouble(&mut self, what: &str) {
        self.timeline.say(self.member.node.name(), what);
        self.troubles.push(format!("{}: {what}", self.member.node.name()));
    }

    fn carry_out(&mut self, op: NodeOp) -> anyhow::Result<()> {
        match op {
            NodeOp::LinkDown => self.member.node.link_down(),
            NodeOp::LinkUp => self.member.node.link_up(),
            NodeOp::StoreAway => {
                self.without_store = true;
                self.cover_store()
            }
            NodeOp::StoreBack => {
                self.without_store = false;
                // Lazily: the manager may be reading beneath at this moment.
                self.member.node.exec(&format!("umount -l {}", self.store)).map(drop)
            }
            NodeOp::Kill => self.end_manager(Signal::SIGKILL),
            NodeOp::Terminate => self.end_manager(Signal::SIGTERM),
            NodeOp::Stop => self.signal_manager(Signal::SIGSTOP),
            NodeOp::Continue => self.signal_manager(Signal::SIGCONT),
            NodeOp::Start => {
                self.wanted = true;
                self.launch()
            }
            NodeOp::PowerCut => {
                self.wanted = false;
                self.member.power_cut().map(drop)
            }
            NodeOp::Boot => {
                self.member.node.power_on()?;
                self.wanted = true;
                if self.without_store {
                    self.cover_store()?;
                }
                self.launch()
            }
        }
    }

    /// Another directory covers the store in this node, as when its mount has gone.
    fn cover_store(&self) -> anyhow::Result<()> {
        self.member.node.exec(&format!("mount -t tmpfs cover {}", self.store)).map(drop)
    }

    fn end_manager(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.wanted = false;
        match self.member.manager_ended() {
            // What a supervisor would start again is as good as killed.
            Some(_) => Ok(()),
            None if self.member.manager_pid().is_err() => Ok(()),
            None => self.member.stop_manager(signal),
        }
    }

    fn signal_manager(&mut self, signal: Signal) -> anyhow::Result<()> {
        match self.member.manager_pid() {
            Ok(pid) => Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?),
            Err(_) => {
                self.timeline.say(self.member.node.name(), &format!("no manager runs that {signal} could be sent to"));
                Ok(())
            }
        }
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        self.started = Some(Instant::now());
        self.member.launch_manager()
    }

    /// As a service manager would, a manager that ended by itself is started again: without the store it does not start.
    fn supervise(&mut self) {
        if !self.wanted || !self.member.node.is_on() {
            return;
        }
        if let Some(status) = self.member.manager_ended() {
            self.timeline.say(self.member.node.name(), &format!("the manager ended by itself: {status}"));
        }
        let patient = self.started.is_some_and(|started| started.elapsed() < RESTART);
        if !patient
            && self.member.manager_pid().is_err()
            && let Err(err) = self.launch()
        {
            self.trouble(&format!("the manager cannot be started: {err:#}"));
        }
        if self.curious.load(Ordering::Relaxed) {
            self.sees.store(self.count_alive().unwrap_or_default(), Ordering::Relaxed);
        }
    }

    fn count_alive(&self) -> anyhow::Result<usize> {
        let status: serde_json::Value = serde_json::from_str(&ask(&self.member, &["status", "--json"])?)?;
        let nodes = status.get("nodes").and_then(serde_json::Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let alive = |node: &&serde_json::Value| {
            matches!(node.get("liveness").and_then(serde_json::Value::as_str), Some("alive" | "self"))
        };
        Ok(nodes.iter().filter(alive).count())
    }
}

/// Threads that keep every processor of the machine busy until this is dropped.
#[derive(Debug, Default)]
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Load {
    pub fn begin() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let busy = |_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..thread::available_parallelism().map_or(2, usize::from)).map(busy).collect();
        Self { stop, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It has nothing to panic about.
            let _ = thread.join();
        }
    }
}
