//! Holding this node's lease: what proves it, and telling the watchdog when it ends.
//!
//! ```text
//!   membership: answers ──┐                        ┌──► watchdog: the deadline, again and again
//!   store: renewals ──────┼──► Lease (pure) ───────┤
//!   watchdog: has fired ──┘                        └──► may_run: launches, checkpoints and pings wait for it
//! ```
//!
//! One task looks at the answers as they come, and renews in the store as soon as one is missing. It is the watchdog that
//! freezes; this task only has it let go, after a renewal in which every copy on this node has been found to be the newest.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::sync::Notify;

use super::{Node, renewal::Renewed};
use crate::{
    fence::{Deadline, FenceError, Guard},
    membership::{AcquaintancesError, ForgetError, Liveness, Membership},
    ownership::lease::{Beginning, End, Lease, Terms},
    spec::NodeName,
};

/// Between renewals while everything hangs on them: a peer is suspected, or the lease has lapsed.
const SOON: Duration = Duration::from_millis(250);
/// Between renewals while a node does not answer for longer.
const PAUSE: Duration = Duration::from_secs(2);

/// How often a watchdog, when it dies meanwhile, is told that there is no deadline any more.
const PARK_TRIES: u32 = 3;
/// How long after its answer to a release the watchdog may report that it is done.
const REPORT: Duration = Duration::from_secs(1);

/// What the rest of the manager asks of the lease.
pub struct Keeper {
    lease: Mutex<Lease>,
    guard: Guard,
    /// Between two looks at most.
    tick: Duration,
    /// This node's marks as a parked one that may be in the store.
    marks: Mutex<Vec<String>>,
    /// One renewal at a time, and no beat goes beside one.
    renewing: tokio::sync::Mutex<()>,
    /// Goes up with each time that the containers were let go on, or may have been.
    releases: AtomicU64,
    /// The lease is renewed and the watchdog has not said yet that everything goes on: that it has fired is old news.
    releasing: AtomicBool,
    /// The manager ends: the watchdog is told nothing more.
    parking: AtomicBool,
    /// It was said, or may have been by an earlier manager, that containers here are frozen.
    told: AtomicBool,
    /// Renew now.
    kick: Notify,
}

impl Keeper {
    pub fn new(terms: Terms, known: impl IntoIterator<Item = NodeName>, guard: Guard, marks: Vec<String>) -> Self {
        let (now, parked) = (Instant::now(), !marks.is_empty());
        let told = AtomicBool::new(guard.inherited().fired);
        let beginning = match guard.inherited() {
            inherited if inherited.fired => Beginning::Nothing,
            // The removal of a mark that is still there may be on its way: a deadline says that nothing rests on it.
            inherited => match inherited.deadline {
                Deadline::At(end) => Beginning::Inherited(end),
                Deadline::Never if parked => Beginning::Parked,
                Deadline::Never => Beginning::Nothing,
            },
        };
        let lease = Lease::new(terms, known, beginning, now);
        Self {
            lease: Mutex::new(lease),
            guard,
            tick: terms.short / 4,
            marks: Mutex::new(marks),
            renewing: tokio::sync::Mutex::default(),
            releases: AtomicU64::new(0),
            releasing: AtomicBool::new(false),
            parking: AtomicBool::new(false),
            told,
            kick: Notify::new(),
        }
    }

    /// Whether containers may run on this node now: it can prove that nobody has begun them elsewhere.
    pub fn may_run(&self) -> bool {
        !self.guard.state().borrow().fired && self.lease().end(Instant::now()).may_run()
    }

    /// Whether the watchdog has frozen the containers of this node and has not let them go on yet.
    pub fn is_frozen(&self) -> bool {
        self.guard.state().borrow().fired
    }

    /// To be taken before something that a freeze would break, and shown to [`Self::undisturbed_since`] afterwards.
    pub fn moment(&self) -> u64 {
        self.releases.load(Ordering::SeqCst)
    }

    pub(super) fn marks(&self) -> Vec<String> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn forget_marks(&self) {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether the containers have not been frozen since, and are not now.
    pub fn undisturbed_since(&self, moment: u64) -> bool {
        self.may_run() && self.moment() == moment
    }

    /// From now on there is no deadline, and what was frozen goes on: this node's mark in the store keeps everybody from its
    /// containers, and their epochs have been read after it was there.
    ///
    /// # Errors
    /// [`FenceError::NotReleased`]: they are frozen and stay so. Any other: it is not known whether they are, or have a deadline.
    pub async fn park(&self) -> Result<(), FenceError> {
        // One that is under way may be telling another deadline.
        let _one = self.renewing.lock().await;
        {
            // Under the lock, so that nobody who looks just now tells another deadline afterwards.
            let _lease = self.lease();
            self.parking.store(true, Ordering::SeqCst);
        }
        let mut tries = 1;
        loop {
            match self.let_go_on(Deadline::Never).await {
                Err(FenceError::Lost) if tries < PARK_TRIES => tries += 1,
                other => return other,
            }
        }
    }

    /// Has the watchdog let go on what it has frozen, if it has.
    async fn let_go_on(&self, deadline: Deadline) -> Result<(), FenceError> {
        // Before, for it may come to pass without an answer; and after, for what begins in between begins frozen.
        self.releases.fetch_add(1, Ordering::SeqCst);
        let outcome = self.guard.release(deadline).await;
        self.releases.fetch_add(1, Ordering::SeqCst);
        outcome
    }

    /// What is wrong with the watchdog, or the lease. Without a `carrier` the lease is not renewed (`Node::is_of_use`).
    pub fn problem(&self, carrier: bool) -> Option<String> {
        let state = self.guard.state().borrow().clone();
        let until = if carrier { "it reaches the store" } else { "its uplink has a carrier and it reaches the store" };
        let fired = state.fired.then(|| {
            format!(
                "this node cannot prove that its containers have not been taken over: they are frozen, and cut off from the \
                 network, until {until}"
            )
        });
        state.problem.map(|problem| format!("the watchdog of this node: {problem}")).or(fired)
    }

    /// Has the lease renewed in the store at once, if it is to be renewed there.
    pub fn renew_now(&self) {
        self.kick.notify_one();
    }

    /// A node is about to be sent something for the first time. Called with the membership locked.
    pub(super) fn know(&self, node: &NodeName, now: Instant) {
        self.lease().know(node, Some(now), now);
        self.look(now);
    }

    /// Does without proof against a node that can take nothing over any more: it is retired, and a renewal since then has found
    /// nothing of it. Blocking, for as long as a file takes to be written.
    ///
    /// # Errors
    /// It lives, or is still remembered; then nothing is changed.
    pub(super) fn forget(&self, membership: &Membership, node: &NodeName) -> Result<(), ForgetError> {
        // Not with the lease locked, as in `listen`.
        membership.forget(node)?;
        self.forgotten(node, || membership.known().contains(node));
        Ok(())
    }

    /// `known`: whether the membership knows it again.
    fn forgotten(&self, node: &NodeName, known: impl FnOnce() -> bool) {
        self.lease().forget(node, Instant::now());
        // What was announced between the two found the entry that has gone just now, and is not announced again.
        if known() {
            self.lease().know(node, None, Instant::now());
        }
    }

    /// Counts it again, also after a restart. Blocking, for as long as a file takes to be written.
    ///
    /// # Errors
    /// It cannot be written down: it counts until this manager ends.
    pub(super) fn remember(&self, membership: &Membership, node: &NodeName) -> Result<(), AcquaintancesError> {
        self.lease().know(node, None, Instant::now());
        membership.remember(node)
    }

    /// Takes in the answers that came since the last look.
    fn listen(&self, membership: &Membership, now: Instant) {
        // Not with the lease locked: who is asked here may be telling of a new node just now.
        let peers = membership.peers();
        let mut lease = self.lease();
        for peer in peers {
            if let Some(sent) = peer.saw_us {
                lease.answered(&peer.name, sent, now);
            }
        }
    }

    /// Passes the end of the lease on to the watchdog. True when it knows.
    fn look(&self, now: Instant) -> bool {
        if self.releasing.load(Ordering::SeqCst) {
            return false;
        }
        let mut lease = self.lease();
        if self.parking.load(Ordering::SeqCst) {
            return false;
        }
        let fired = self.guard.state().borrow().fired;
        if fired {
            lease.lapse();
        }
        match lease.end(now) {
            End::Never => self.guard.hold(Deadline::Never),
            End::At(at) => self.guard.hold(Deadline::At(at)),
            End::Lapsed if fired => true,
            End::Lapsed => {
                self.guard.fence_now();
                false
            }
        }
    }

    /// After a renewal: passes its end on. True when the mark of a parked node may go, since the watchdog goes by this end, whatever
    /// becomes of this manager.
    fn replaces_mark(&self, unparked: bool) -> bool {
        let told = self.look(Instant::now());
        told && unparked
    }

    fn wants_renewal(&self) -> bool {
        // What is frozen is let go on after a renewal only.
        self.guard.state().borrow().fired || self.lease().wants_renewal(Instant::now())
    }

    /// When to look again, whatever comes: `due` is when a renewal may begin.
    fn next_look(&self, now: Instant, due: Instant) -> Instant {
        let missing = self.lease().will_want_renewal(now);
        let due = Some(due).filter(|due| *due > now);
        [missing, due].into_iter().flatten().fold(now + self.tick, Instant::min)
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        // Its fields are valid by themselves whatever panicked in between.
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it is there the watchdog's having fired does not end the lease.
struct Releasing<'a>(&'a AtomicBool);

impl<'a> Releasing<'a> {
    fn begin(keeper: &'a Keeper) -> Self {
        keeper.releasing.store(true, Ordering::SeqCst);
        Self(&keeper.releasing)
    }
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Node {
    /// One attempt to renew the lease in the store, and what follows when it succeeds. True when it did.
    pub(super) async fn renew_lease(self: &Arc<Self>) -> bool {
        let keeper = &self.ctx.lease;
        let _one = keeper.renewing.lock().await;
        if keeper.parking.load(Ordering::SeqCst) {
            return false;
        }
        let began = Instant::now();
        let beat = match self.renew().await {
            Ok(Renewed::Clean { beat }) => beat,
            Ok(Renewed::Contested) => return false,
            Err(error) => {
                // `store.away` says it for the whole node.
                tracing::debug!(error = crate::chain(&error), "the lease could not be renewed in the store");
                return false;
            }
        };
        let releasing = Releasing::begin(keeper);
        let now = Instant::now();
        let (renewed, unparked) = {
            let mut lease = keeper.lease();
            let renewed = lease.renewed(began, now);
            (renewed, renewed && lease.unpark(now))
        };
        if !renewed {
            return false;
        }
        self.release().await;
        drop(releasing);
        if keeper.replaces_mark(unparked) {
            self.unpark().await;
        }
        self.settle_beats(beat).await;
        true
    }

    /// Has the watchdog let the containers go on, if it has frozen them.
    async fn release(&self) {
        let keeper = &self.ctx.lease;
        if keeper.guard.state().borrow().fired {
            let end = keeper.lease().end(Instant::now());
            let deadline = match end {
                End::Never => Deadline::Never,
                End::At(at) => Deadline::At(at),
                End::Lapsed => return,
            };
            match keeper.let_go_on(deadline).await {
                Ok(()) => {
                    // Its report comes after its answer. One that never comes is a firing.
                    let mut state = keeper.guard.state();
                    let _ = tokio::time::timeout(REPORT, state.wait_for(|state| !state.fired)).await;
                    if !keeper.told.swap(false, Ordering::SeqCst) {
                        return;
                    }
                    let text = if self.has_copies() {
                        "the lease is renewed: the containers go on where they were, on the network again"
                    } else {
                        "the lease is renewed: this node may run containers again"
                    };
                    self.events().emit(None, "lease.renewed", text, json!({}));
                }
                Err(error) => tracing::warn!(error = crate::chain(&error), "the containers could not be let go on"),
            }
        }
    }

    /// Has the lease rest on answers alone, if they suffice. True when the beats in the store may go.
    fn rests_on_answers(&self) -> bool {
        let (keeper, now) = (&self.ctx.lease, Instant::now());
        // A renewal under way rests on a beat.
        let Ok(_one) = keeper.renewing.try_lock() else { return false };
        let rests = keeper.lease().rest_on_answers(now);
        // The watchdog goes by the new, earlier end before a beat is gone, whatever becomes of this manager in between.
        rests && keeper.look(now)
    }

    /// Takes the beats away, unless the lease has come to rest on one again.
    async fn clear_beats(&self) {
        let _one = self.ctx.lease.renewing.lock().await;
        if !self.ctx.lease.lease().rests_on_renewal() {
            self.end_beats().await;
        }
    }
}

/// Keeps the lease until the manager ends.
pub(super) async fn keep(node: Arc<Node>) {
    let keeper = Arc::clone(&node.ctx.lease);
    let mut fired = keeper.guard.state();
    // A renewal, or the removal of beats; at the end of either, when the next renewal is due.
    let mut renewal: Option<tokio::task::JoinHandle<Instant>> = None;
    let mut was_fired = false;
    let mut due = Instant::now();
    // Before the watchdog is told anything: a manager that starts has no proof yet, and mostly gets one at once.
    keeper.listen(&node.ctx.membership, due);
    if keeper.wants_renewal() && node.is_of_use() {
        let first = Arc::clone(&node);
        let first = tokio::spawn(async move { first.renew_lease().await });
        // Not for long: what runs here without a proof is frozen below.
        let _ = tokio::time::timeout(keeper.tick * 4, first).await;
    }
    loop {
        let now = Instant::now();
        keeper.listen(&node.ctx.membership, now);
        keeper.look(now);
        if renewal.is_none() {
            let node = Arc::clone(&node);
            // A mark goes with a renewal.
            let wanted = keeper.wants_renewal() || !keeper.marks().is_empty();
            if !wanted {
                // Not while the next renewal may not begin yet: without proof in the store it has to begin as soon as an answer
                // is missing.
                if now >= due && node.has_beats() && node.rests_on_answers() {
                    renewal = Some(tokio::spawn(async move {
                        node.clear_beats().await;
                        Instant::now()
                    }));
                }
            } else if now >= due && node.is_of_use() {
                renewal = Some(tokio::spawn(async move {
                    let renewed = node.renew_lease().await;
                    Instant::now() + if renewed && !node.is_pressed() { PAUSE } else { SOON }
                }));
            }
        }
        let ended = async {
            match &mut renewal {
                // One that panicked has renewed nothing.
                Some(task) => task.await.unwrap_or_else(|_| Instant::now() + SOON),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // All the answers of a round at once.
            () = node.ctx.membership.settled() => {}
            () = tokio::time::sleep_until(keeper.next_look(now, due).into()) => {}
            () = keeper.kick.notified() => due = Instant::now(),
            changed = fired.changed() => {
                let now = changed.is_ok() && fired.borrow_and_update().fired;
                let first = now && !was_fired;
                was_fired = now;
                if first {
                    due = Instant::now();
                }
                // Without a container there is nothing to tell: so it is whenever a manager starts.
                if first && node.has_copies() {
                    keeper.told.store(true, Ordering::SeqCst);
                    let text = "this node could not prove in time that its containers are still its own: they are frozen and \
                                their links are down";
                    node.events().emit(None, "lease.lapsed", text, json!({}));
                }
            }
            next = ended => {
                renewal = None;
                due = next;
            }
        }
    }
}

impl Node {
    /// Everything hangs on the next renewal.
    fn is_pressed(&self) -> bool {
        let suspected = |liveness| liveness == Liveness::Suspect;
        !self.ctx.lease.may_run() || self.ctx.membership.peers().iter().any(|peer| suspected(peer.liveness))
    }

    /// A node that lives, but whose containers nobody reaches, does not keep others from taking them over.
    fn is_of_use(&self) -> bool {
        self.uplink.has_carrier()
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
pub(super) mod tests;
