//! What is played: a cluster, its times, and what befalls it when.

use std::time::Duration;

use super::{Micros, mutation::Mutation, store::Quality};
use crate::ownership::lease::Terms;

/// One thing that befalls the cluster. Nodes by their number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Messages from the first to the second vanish.
    CutOneWay(usize, usize),
    /// All that was cut is joined again.
    Heal,
    PowerCut(usize),
    /// The power is back; the manager starts.
    Boot(usize),
    /// SIGKILL. The containers run on, the watchdog lives.
    KillManager(usize),
    /// SIGSTOP.
    StopManager(usize),
    /// SIGCONT.
    Continue(usize),
    /// The manager is not run for this long.
    Slow(usize, Micros),
    /// SIGTERM.
    Terminate(usize),
    Start(usize),
    StoreDown(Option<usize>),
    StoreUp(Option<usize>),
    StoreQuality(Quality),
    /// Least and most, one way.
    Delay(Micros, Micros),
    /// In thousandths.
    Loss(usize),
    /// In millionths, at most 10,000 either way.
    ClockDrift(usize, i64),
    /// Of the wall clock; nothing may depend on it.
    ClockJump(usize, i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    pub owner: usize,
    pub failover: bool,
    /// Between two checkpoints.
    pub every: Micros,
    /// From the settled base to the running copy.
    pub restore: (Micros, Micros),
}

/// What a scenario's file wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// At that time, `node` is the only one that runs the container (`None`: nobody does).
    Runs { container: usize, at: Micros, node: Option<usize> },
    /// From `after` on, it runs elsewhere within `within`.
    FailoverWithin { container: usize, after: Micros, within: Micros },
    /// No copy is ever begun beside the first one.
    NeverReplaced { container: usize },
}

#[derive(Debug, Clone)]
pub struct Scenario {
    pub seed: u64,
    pub nodes: usize,
    pub containers: Vec<Container>,
    pub terms: Terms,
    /// One way, least and most.
    pub delay: (Micros, Micros),
    /// In thousandths.
    pub loss: usize,
    pub duplicates: usize,
    pub store: Quality,
    /// The nodes have met before.
    pub met: bool,
    /// A dead holder's container is claimed over another living claimant, too.
    pub eager: bool,
    pub drifts: Vec<i64>,
    /// In the order of their times.
    pub timeline: Vec<(Micros, Fault)>,
    /// From here on all is well again: what has to become of it is checked at the end.
    pub quiet: Micros,
    pub end: Micros,
    pub expects: Vec<Expect>,
    pub(super) mutation: Option<Mutation>,
}

impl Scenario {
    /// How long after the faults everything has to run again: a taker may have to wait out one renewal after another look, and a
    /// call without answer, several times.
    pub fn patience(terms: Terms) -> Micros {
        micros(terms.long * 3) + 30_000_000
    }

    /// Nothing but the network between nodes is disturbed: then a suspicion, however wrong, costs the containers nothing.
    pub fn only_network(&self) -> bool {
        let slow = self.store.latency.1 + self.store.listing.1 > 100_000;
        let lost = self.store.unanswered + self.store.repeated + self.store.late > 0;
        let network = |fault: &Fault| {
            use Fault::{ClockDrift, ClockJump, CutOneWay, Delay, Heal, Loss};
            matches!(fault, CutOneWay(..) | Heal | Delay(..) | Loss(_) | ClockDrift(..) | ClockJump(..))
        };
        !slow && !lost && self.timeline.iter().all(|(_, fault)| network(fault))
    }

    pub(super) fn is(&self, mutation: Mutation) -> bool {
        cfg!(test) && self.mutation == Some(mutation)
    }
}

pub fn micros(time: Duration) -> Micros {
    Micros::try_from(time.as_micros()).unwrap_or(Micros::MAX)
}
