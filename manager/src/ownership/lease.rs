//! How long this node may run its containers: until somebody else could have begun a copy of one.
//!
//! An owner holds its lease on two kinds of proof. A *peer's answer* proves, against that peer alone, that it saw this node
//! after the question was sent: a taker claims nothing until it has given no answer for `short`. A *renewal in the store* (a new
//! beat, and after it the epochs of the own containers, none of them later) proves it against everybody: a taker that looks
//! sees the beat, and waits `long`.
//!
//! ```text
//!              every known node has proof            the least of the best proofs is over
//!   ┌──────┐ ◄──────────────────────────── ┌──────┐ ───────────────────────────────────► ┌────────┐
//!   │ free │                               │ held │                                      │ lapsed │  frozen, links down
//!   └──────┘ ────────────────────────────► └──────┘ ◄─────────────────────────────────── └────────┘
//!              the first node is known               a whole renewal in the store, and
//!                                                    no answer of a peer alone
//! ```
//!
//! Owners count nine tenths of what takers count. The tenth is for clocks that drift, for a timer that is late, and for the time
//! that the freeze takes. `docs/leases.md` has the argument.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::spec::NodeName;

/// The times that owners and takers of one cluster agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// What an answer is good for. A taker claims no earlier than this after its last answer to the owner.
    pub short: Duration,
    /// What a renewal in the store is good for. A taker waits this long from when it first saw a beat.
    pub long: Duration,
}

impl Terms {
    /// As a node's record in the store has them.
    pub fn in_ms(self) -> (u64, u64) {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        (ms(self.short), ms(self.long))
    }

    /// The longer of these and of those that another node goes by.
    pub fn at_least(self, (short, long): (u64, u64)) -> Self {
        let longer = |own: Duration, other: u64| own.max(Duration::from_millis(other));
        Self { short: longer(self.short, short), long: longer(self.long, long) }
    }

    fn of_answer(self) -> Duration {
        self.short / 10 * 9
    }

    fn of_renewal(self) -> Duration {
        self.long / 10 * 9
    }

    /// An answer older than this is one that is missing: the store is asked.
    fn fresh(self) -> Duration {
        self.short / 3
    }
}

/// When the right to run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nobody could take anything over.
    Never,
    At(Instant),
    Lapsed,
}

impl End {
    pub fn may_run(self) -> bool {
        self != End::Lapsed
    }
}

/// What a manager finds when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// No proof of any kind.
    Nothing,
    /// The proofs of the manager before hold until then.
    Inherited(Instant),
    /// The node is parked: its own mark in the store keeps everybody from its containers, until it is taken away.
    Parked,
}

/// One node's lease.
#[derive(Debug)]
pub struct Lease {
    terms: Terms,
    /// Whoever may have met this node, with when the newest question that it answered was sent.
    known: BTreeMap<NodeName, Option<Instant>>,
    /// Since when the newest complete renewal counts.
    renewed: Option<Instant>,
    inherited: Option<Instant>,
    parked: bool,
    lapsed: bool,
}

impl Lease {
    pub fn new(terms: Terms, known: impl IntoIterator<Item = NodeName>, beginning: Beginning, now: Instant) -> Self {
        let known = known.into_iter().map(|node| (node, None)).collect();
        let inherited = if let Beginning::Inherited(until) = beginning { Some(until) } else { None };
        let parked = beginning == Beginning::Parked;
        let mut lease = Self { terms, known, renewed: None, inherited, parked, lapsed: false };
        lease.notice(now);
        lease
    }

    /// A node that may take over from now on. `first`: when this one sent it something for the first time of all: it cannot
    /// have met this node earlier, and waits from then.
    pub fn know(&mut self, node: &NodeName, first: Option<Instant>, now: Instant) {
        self.notice(now);
        self.known.entry(node.clone()).or_insert(first);
    }

    /// A node that can take nothing over any more: it was retired, or a fencing command has powered it off.
    pub fn forget(&mut self, node: &NodeName, now: Instant) {
        self.notice(now);
        self.known.remove(node);
    }

    /// `node` has answered a question that was sent at `sent`. Does not revive a lapsed lease: it may have claimed before.
    pub fn answered(&mut self, node: &NodeName, sent: Instant, now: Instant) {
        self.notice(now);
        if let Some(newest) = self.known.get_mut(node) {
            *newest = (*newest).max(Some(sent));
        }
    }

    /// A renewal that began at `began` is complete: its beat is written, and after that none of the own containers had a later
    /// epoch. False when it took so long that it proves nothing any more.
    pub fn renewed(&mut self, began: Instant, now: Instant) -> bool {
        self.notice(now);
        if began + self.terms.of_renewal() <= now {
            return false;
        }
        self.renewed = self.renewed.max(Some(began));
        self.lapsed = false;
        true
    }

    /// The mark of the parked node is about to be taken away. False while the lease would not hold without it.
    pub fn unpark(&mut self, now: Instant) -> bool {
        self.notice(now);
        if self.parked && self.lasts(now) != Lasts::Over {
            self.parked = false;
        }
        !self.parked
    }

    /// From here on nothing rests on a renewal, so the beat may be removed. False when something would.
    pub fn rest_on_answers(&mut self, now: Instant) -> bool {
        self.notice(now);
        if self.lapsed || self.wants_renewal(now) {
            return false;
        }
        (self.renewed, self.inherited) = (None, None);
        true
    }

    /// Whether the lease may rest on a renewal, or on what an earlier manager proved.
    pub fn rests_on_renewal(&self) -> bool {
        self.renewed.is_some() || self.inherited.is_some()
    }

    /// The containers are frozen, whatever this node knows of its lease.
    pub fn lapse(&mut self) {
        self.lapsed = true;
    }

    /// Somebody has not answered lately: the store has to be asked, before the answers are over.
    pub fn wants_renewal(&self, now: Instant) -> bool {
        self.lapsed || self.parked || self.known.values().any(|sent| !self.is_fresh(*sent, now))
    }

    /// When it will want one, unless an answer comes before: the oldest answer is then one that is missing. `None`: it does already,
    /// or never will.
    pub fn will_want_renewal(&self, now: Instant) -> Option<Instant> {
        if self.wants_renewal(now) {
            return None;
        }
        self.known.values().flatten().min().map(|oldest| *oldest + self.terms.fresh())
    }

    pub fn end(&mut self, now: Instant) -> End {
        self.notice(now);
        if self.lapsed {
            return End::Lapsed;
        }
        if self.parked {
            return End::Never;
        }
        if let Lasts::Until(end) = self.lasts(now) { End::At(end) } else { End::Never }
    }

    fn is_fresh(&self, sent: Option<Instant>, now: Instant) -> bool {
        sent.is_some_and(|sent| now.saturating_duration_since(sent) < self.terms.fresh())
    }

    /// What is over stays over until it is renewed, whenever it is looked at.
    fn notice(&mut self, now: Instant) {
        if !self.parked && self.lasts(now) == Lasts::Over {
            self.lapsed = true;
        }
    }

    fn lasts(&self, now: Instant) -> Lasts {
        let against_all = self.renewed.map(|began| began + self.terms.of_renewal()).max(self.inherited);
        let against = |sent: &Option<Instant>| sent.map(|sent| sent + self.terms.of_answer()).max(against_all);
        match self.known.values().map(against).min() {
            None => Lasts::ForEver,
            Some(Some(end)) if end > now => Lasts::Until(end),
            Some(_) => Lasts::Over,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasts {
    ForEver,
    Until(Instant),
    Over,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { short: Duration::from_secs(1), long: Duration::from_secs(15) };

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn ms(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn held(start: Instant) -> Lease {
        let mut lease = Lease::new(TERMS, [node("n2"), node("n3")], Beginning::Nothing, start);
        assert_eq!(lease.end(start), End::Lapsed, "nothing is proved yet");
        assert!(lease.renewed(start, start));
        lease
    }

    #[test]
    fn whom_nobody_knows_nobody_can_take_from() {
        let start = Instant::now();
        let mut lease = Lease::new(TERMS, [], Beginning::Nothing, start);
        assert_eq!(lease.end(ms(start, 1_000_000)), End::Never);
        assert!(!lease.wants_renewal(start));
        lease.know(&node("n3"), Some(start), start);
        assert_eq!(lease.end(start), End::At(ms(start, 900)), "it has just been met");
        lease.know(&node("n2"), None, start);
        assert_eq!(lease.end(start), End::Lapsed, "it was met before");
        lease.forget(&node("n3"), start);
        lease.forget(&node("n2"), start);
        assert_eq!(lease.end(start), End::Lapsed, "it may have claimed meanwhile");
        lease.renewed(start, start);
        assert_eq!(lease.end(start), End::Never);
    }

    #[test]
    fn the_worst_of_the_best_proofs_counts() {
        let start = Instant::now();
        let mut lease = held(start);
        assert_eq!(lease.end(start), End::At(ms(start, 13_500)));
        lease.answered(&node("n2"), ms(start, 13_000), ms(start, 13_010));
        assert_eq!(lease.end(ms(start, 13_010)), End::At(ms(start, 13_500)), "n3 said nothing");
        lease.answered(&node("n3"), ms(start, 12_900), ms(start, 13_020));
        assert_eq!(lease.end(ms(start, 13_020)), End::At(ms(start, 13_800)));
        // An answer that was on its way for long counts from its question, and an older one takes nothing away.
        lease.answered(&node("n3"), ms(start, 12_000), ms(start, 13_030));
        assert_eq!(lease.end(ms(start, 13_030)), End::At(ms(start, 13_800)));
    }

    #[test]
    fn a_lapsed_lease_is_revived_by_the_store_alone() {
        let start = Instant::now();
        let mut lease = held(start);
        let late = ms(start, 14_000);
        for name in ["n2", "n3"] {
            lease.answered(&node(name), ms(start, 13_990), late);
        }
        assert_eq!(lease.end(late), End::Lapsed, "one of them may have claimed between");
        // A renewal that took longer than it is good for.
        assert!(!lease.renewed(start, late));
        assert_eq!(lease.end(late), End::Lapsed);
        assert!(lease.renewed(ms(start, 13_000), late), "its epochs were read, only late");
        assert_eq!(lease.end(late), End::At(ms(start, 26_500)));
    }

    #[test]
    fn the_store_is_asked_before_the_answers_are_over_and_let_go_after() {
        let start = Instant::now();
        let mut lease = held(start);
        assert!(lease.wants_renewal(start) && !lease.rest_on_answers(start));
        for name in ["n2", "n3"] {
            lease.answered(&node(name), ms(start, 100), ms(start, 110));
        }
        assert!(!lease.wants_renewal(ms(start, 200)) && lease.rest_on_answers(ms(start, 200)));
        assert_eq!(lease.end(ms(start, 200)), End::At(ms(start, 1000)));
        lease.answered(&node("n3"), ms(start, 200), ms(start, 210));
        let missing = lease.will_want_renewal(ms(start, 210)).unwrap();
        assert!(!lease.wants_renewal(missing - Duration::from_nanos(1)) && lease.wants_renewal(missing));
        assert_eq!(missing, ms(start, 100) + TERMS.short / 3, "n2 has answered longest ago");
        assert!(!lease.rest_on_answers(missing) && lease.will_want_renewal(missing).is_none());
    }

    #[test]
    fn what_was_proved_before_a_restart_holds_and_a_parked_node_needs_no_proof() {
        let start = Instant::now();
        let mut lease = Lease::new(TERMS, [node("n2")], Beginning::Inherited(ms(start, 700)), start);
        assert_eq!(lease.end(start), End::At(ms(start, 700)));
        assert_eq!(lease.end(ms(start, 700)), End::Lapsed);

        let mut lease = Lease::new(TERMS, [node("n2")], Beginning::Parked, start);
        assert_eq!(lease.end(ms(start, 60_000)), End::Never);
        assert!(!lease.unpark(ms(start, 60_000)), "nothing would hold without the mark");
        assert!(lease.renewed(ms(start, 60_000), ms(start, 60_010)) && lease.unpark(ms(start, 60_010)));
        assert_eq!(lease.end(ms(start, 60_010)), End::At(ms(start, 73_500)));
    }

    #[test]
    fn a_freeze_is_a_lapse_whatever_the_proofs_say() {
        let start = Instant::now();
        let mut lease = held(start);
        lease.lapse();
        assert_eq!(lease.end(start), End::Lapsed);
        assert!(lease.renewed(ms(start, 1), ms(start, 2)));
        assert!(lease.end(ms(start, 2)).may_run());
    }
}
