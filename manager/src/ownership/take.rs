//! Taking a container from a node that is not heard: what is asked of the store, in which order, and what the answers mean.
//!
//! ```text
//!            silent              won                    silent                   settled
//!   Before ─────────► Claiming ───────► Undecided ─────────────────► Settling ───────────► begun
//!   │ ▲  │                │             │ ▲    │                        │
//!   │ └──┘ wait, look     │ lost        │ └────┘ wait, look             │ somebody settled it in passing
//!   │ it lives: held      ▼             ▼ a later epoch                 ▼
//!   └────────────────► stopped ◄────────┴───────────────────────────────┘
//! ```
//!
//! The look *after* the claim is what makes it safe. An owner renews by writing a beat and then reading the epochs; a taker claims
//! an epoch and then looks for beats. Whoever comes second sees the other: the owner finds the claim and its renewal does not
//! count, or the taker finds the beat and waits. An owner that finds a claim without a base claims the epoch after it and goes on:
//! then the taker finds that, and nothing has happened to the container.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::{Duration, Instant};

use super::silence::Life;
use crate::spec::{Epoch, NodeName};

/// Between two looks while the former owner may come back to an undecided epoch.
const AGAIN: Duration = Duration::from_millis(250);
/// Looks in a row that fail, or say nothing, before it is left to a later occasion. Nothing is claimed by then.
const PATIENCE: u32 = 3;

/// What a look found about the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub newest: Epoch,
    /// Who may run a copy by the records; `None`: nobody.
    pub holder: Option<NodeName>,
    /// Why the holder may still run it; `None`: it is silent, or was powered off by a fencing command.
    pub life: Option<Life>,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Do {
    /// Look through the store; tell [`Take::looked`].
    Look,
    /// As `Look`, but not before.
    LookAt(Instant),
    /// Create the epoch after this one; tell [`Take::claimed`].
    Claim(Epoch),
    /// Settle the base of this epoch, with the nonce of its owner; tell [`Take::settled`].
    Settle(Epoch),
    /// The container is this node's under this epoch, and nobody else runs it.
    Begin(Epoch),
    Stop(Stop),
}

/// Why it is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// Its holder lives, by this.
    Held(Life),
    /// Another epoch is the newest one.
    Lost,
    /// The store does not answer. An epoch that may have been claimed has begun nothing.
    Away,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Before,
    Claiming,
    Undecided(Epoch),
    Settling(Epoch),
}

/// One attempt to take one container.
#[derive(Debug)]
pub struct Take {
    me: NodeName,
    expected: Epoch,
    phase: Phase,
    vain: u32,
    /// The end of its last answer has been waited for once: one that is answered again lives.
    waited: bool,
}

impl Take {
    /// `expected`: the newest epoch that is known. Begins with a look.
    pub fn new(me: NodeName, expected: Epoch) -> Self {
        Self { me, expected, phase: Phase::Before, vain: 0, waited: false }
    }

    /// Goes on with an epoch that is this node's already and has no base: an earlier attempt was broken off.
    pub fn undecided(me: NodeName, epoch: Epoch) -> Self {
        Self { me, expected: epoch, phase: Phase::Undecided(epoch), vain: 0, waited: false }
    }

    /// A look has ended. `None`: it failed.
    pub fn looked(&mut self, seen: Option<Seen>, now: Instant) -> Do {
        let Some(seen) = seen else { return self.in_vain(now) };
        let owned = match self.phase {
            Phase::Before => None,
            Phase::Undecided(epoch) => Some(epoch),
            // Nothing of these was asked for.
            Phase::Claiming | Phase::Settling(_) => return Do::Look,
        };
        if seen.newest != owned.unwrap_or(self.expected) {
            return Do::Stop(Stop::Lost);
        }
        let life = seen.life.filter(|_| seen.holder.as_ref().is_some_and(|holder| *holder != self.me));
        match (life, owned) {
            (None, None) => {
                self.phase = Phase::Claiming;
                Do::Claim(self.expected)
            }
            (None, Some(epoch)) => {
                self.phase = Phase::Settling(epoch);
                Do::Settle(epoch)
            }
            (Some(Life::Unknown), _) => self.in_vain(now),
            (Some(Life::Answered { until }), None) if !self.waited => {
                self.waited = true;
                Do::LookAt(until)
            }
            // One that is parked neither comes back to it nor falls silent: a later occasion may find it otherwise.
            (Some(life), None) | (Some(life @ Life::Parked), Some(_)) => Do::Stop(Stop::Held(life)),
            (Some(_), Some(_)) => {
                self.vain = 0;
                Do::LookAt(now + AGAIN)
            }
        }
    }

    /// The claim has ended: won, lost, or (`None`) its answer is not known; then it may stand.
    pub fn claimed(&mut self, won: Option<bool>) -> Do {
        match won {
            Some(true) => {
                self.phase = Phase::Undecided(self.expected.next());
                self.vain = 0;
                Do::Look
            }
            Some(false) => Do::Stop(Stop::Lost),
            None => Do::Stop(Stop::Away),
        }
    }

    /// The base is this node's own (`true`), somebody else's, or (`None`) it is not known; then it may yet become this node's, and
    /// it is settled again after another look.
    pub fn settled(&mut self, own: Option<bool>, now: Instant) -> Do {
        match (self.phase, own) {
            (Phase::Settling(epoch), Some(true)) => Do::Begin(epoch),
            (Phase::Settling(epoch), None) => {
                self.phase = Phase::Undecided(epoch);
                Do::LookAt(now + AGAIN)
            }
            _ => Do::Stop(Stop::Lost),
        }
    }

    fn in_vain(&mut self, now: Instant) -> Do {
        self.vain += 1;
        match self.phase {
            // Whatever becomes of it, an epoch of this node's must not be left undecided.
            Phase::Undecided(_) => Do::LookAt(now + AGAIN),
            _ if self.vain < PATIENCE => Do::Look,
            _ => Do::Stop(Stop::Away),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take() -> (Take, Instant) {
        (Take::new("n2".parse().unwrap(), Epoch(3)), Instant::now())
    }

    fn seen(newest: u64, life: Option<Life>) -> Option<Seen> {
        Some(Seen { newest: Epoch(newest), holder: Some("n1".parse().unwrap()), life })
    }

    #[test]
    fn a_dead_node_costs_two_looks_a_claim_and_a_base() {
        let (mut take, now) = take();
        assert_eq!(take.looked(seen(3, None), now), Do::Claim(Epoch(3)));
        assert_eq!(take.claimed(Some(true)), Do::Look);
        assert_eq!(take.looked(seen(4, None), now), Do::Settle(Epoch(4)));
        assert_eq!(take.settled(Some(true), now), Do::Begin(Epoch(4)));
    }

    #[test]
    fn what_lives_is_left_alone_and_what_was_answered_just_now_is_waited_for() {
        let (mut take, now) = take();
        let until = now + Duration::from_millis(80);
        assert_eq!(take.looked(seen(3, Some(Life::Answered { until })), now), Do::LookAt(until));
        let again = Life::Answered { until: until + AGAIN };
        assert_eq!(take.looked(seen(3, Some(again)), until), Do::Stop(Stop::Held(again)), "it is heard again");
        let (mut take, now) = self::take();
        let writes = Life::Writes { until };
        assert_eq!(take.looked(seen(3, Some(writes)), now), Do::Stop(Stop::Held(writes)));
    }

    #[test]
    fn a_sign_of_life_after_the_claim_leaves_it_undecided_until_the_owner_is_back_or_silent() {
        let (mut take, now) = take();
        take.looked(seen(3, None), now);
        take.claimed(Some(true));
        let writes = Some(Life::Writes { until: now + Duration::from_secs(15) });
        for _ in 0..10 {
            assert_eq!(take.looked(seen(4, writes), now), Do::LookAt(now + AGAIN));
            assert_eq!(take.looked(None, now), Do::LookAt(now + AGAIN));
        }
        assert_eq!(take.looked(seen(5, writes), now), Do::Stop(Stop::Lost));
    }

    #[test]
    fn a_base_that_its_owner_settled_in_passing_ends_it() {
        let (mut take, now) = take();
        take.looked(seen(3, None), now);
        take.claimed(Some(true));
        take.looked(seen(4, None), now);
        assert_eq!(take.settled(Some(false), now), Do::Stop(Stop::Lost));
    }

    #[test]
    fn without_the_store_nothing_is_claimed() {
        let (mut take, now) = take();
        assert_eq!(take.looked(None, now), Do::Look);
        assert_eq!(take.looked(seen(3, Some(Life::Unknown)), now), Do::Look);
        assert_eq!(take.looked(None, now), Do::Stop(Stop::Away));
    }

    #[test]
    fn what_was_this_nodes_own_needs_nobodys_silence() {
        let (mut take, now) = take();
        let mine = Seen { newest: Epoch(3), holder: Some("n2".parse().unwrap()), life: Some(Life::Unknown) };
        assert_eq!(take.looked(Some(mine), now), Do::Claim(Epoch(3)));
        let nobodys = Seen { newest: Epoch(4), holder: None, life: Some(Life::Unknown) };
        assert_eq!(take.claimed(Some(true)), Do::Look);
        assert_eq!(take.looked(Some(nobodys), now), Do::Settle(Epoch(4)));
    }
}
