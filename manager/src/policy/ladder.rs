//! The recovery ladder: what failed and what is known in, the attempts to make out, in order.
//!
//! ```text
//!   scope      first                    then                     then              last
//!   process    restart here, newest     fail over to a peer      older snapshots   cold start
//!   container  (healthy) snapshot       (newest snapshot)        here              (only if allowed)
//!   node       –                        here (we are the peer)   older, here       another peer, cold start
//! ```
//!
//! The order and the limits are the container's `recovery` policy; this is what its steps mean in each situation. An
//! attempt that fails is followed by the next; when none is left the container is failed and waits for its operator.
//! A peer that is to take a container over needs something to begin from: [`newest`]. A taker of a lost node that cannot
//! bring the container up itself offers it to the other peers, before a cold start.
//! A peer that was handed a container tries older snapshots, too ([`handed`]), before it says that it cannot.
//! (Recovery by scope: Li, Kanso and Gherbi 2015, Fig. 6.)

use crate::spec::{NodeName, RecoveryPolicy, RecoveryStep, SnapshotId};

/// What was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A process inside, or the healthcheck: the container itself is there.
    Process,
    /// The container.
    Container,
    /// The node it ran on; this node has just become the owner.
    Node,
}

/// A committed snapshot that may be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownSnapshot {
    pub id: SnapshotId,
    /// False when the healthcheck failed while it was taken, or when it cannot be read.
    pub healthy: bool,
    /// False when its manifest is damaged or of a newer release. It is not restored, but it is state: where there is nothing
    /// else, beginning anew would throw it away.
    pub readable: bool,
}

/// Where a container's state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Snapshot(SnapshotId),
    /// The image: processes begin anew.
    Image,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    Here {
        from: Source,
        step: RecoveryStep,
    },
    /// A peer becomes the owner and restores the newest healthy snapshot.
    Peer {
        node: NodeName,
    },
}

#[derive(Debug, Clone)]
pub struct Situation {
    pub scope: Scope,
    pub stateful: bool,
    /// Newest first.
    pub snapshots: Vec<KnownSnapshot>,
    /// Restarts on this node in the last ten minutes.
    pub recent_restarts: u32,
    /// Restores from an older snapshot on this node in the last ten minutes: a state that ends whatever is made of it is not
    /// tried for ever.
    pub recent_older: u32,
    /// Snapshots restored on this node in the last ten minutes, by whatever step. None of them is an older state worth going
    /// back to once more; newer ones that were never tried are.
    pub tried: Vec<SnapshotId>,
    /// Cold starts on this node in the last ten minutes.
    pub recent_cold_starts: u32,
    /// Changes of owner in the last ten minutes. They bound how often two nodes hand a broken container back and forth.
    pub recent_failovers: u32,
    /// Peers that are alive, best first.
    pub peers: Vec<NodeName>,
}

/// The newest state that may be gone on from; `snapshots` are newest first.
///
/// A stateless container has nothing to restore. A stateful one without any snapshot has committed nothing that could be
/// lost: its image is its newest state. One that has only unhealthy snapshots has none, unless a cold start is allowed.
pub fn newest(stateful: bool, snapshots: &[KnownSnapshot]) -> Option<Source> {
    match snapshots.iter().find(|snapshot| snapshot.healthy) {
        Some(snapshot) if stateful => Some(Source::Snapshot(snapshot.id)),
        None if stateful && !snapshots.is_empty() => None,
        _ => Some(Source::Image),
    }
}

/// Whom the container may be offered to; nobody when there is nothing to begin from, or it has changed hands too often.
fn takers(situation: &Situation) -> impl Iterator<Item = Attempt> {
    let may = newest(situation.stateful, &situation.snapshots).is_some()
        && situation.recent_failovers as usize <= situation.peers.len();
    situation.peers.iter().filter(move |_| may).map(|node| Attempt::Peer { node: node.clone() })
}

/// States before the newest, as far as the step goes.
fn older(situation: &Situation, max: u32) -> impl Iterator<Item = Source> {
    let healthy = situation.snapshots.iter().filter(|snapshot| snapshot.healthy && situation.stateful);
    let untried = healthy.skip(1).filter(|snapshot| !situation.tried.contains(&snapshot.id));
    untried.take(max.saturating_sub(situation.recent_older) as usize).map(|snapshot| Source::Snapshot(snapshot.id))
}

/// What a peer tries of a container that its owner hands over: its newest state, then older ones as far as its policy goes.
/// Never without its state, and no further peer: its owner takes it back and goes on.
pub fn handed(policy: &RecoveryPolicy, situation: &Situation) -> Vec<Attempt> {
    let newest = newest(situation.stateful, &situation.snapshots);
    let mut attempts: Vec<Attempt> =
        newest.into_iter().map(|from| Attempt::Here { from, step: RecoveryStep::Failover }).collect();
    for &step in &policy.steps {
        if let RecoveryStep::OlderSnapshot { max } = step {
            attempts.extend(older(situation, max).map(|from| Attempt::Here { from, step }));
        }
    }
    attempts
}

/// The attempts to make, in order; empty when the policy has nothing (more) to offer.
pub fn plan(policy: &RecoveryPolicy, situation: &Situation) -> Vec<Attempt> {
    let newest = newest(situation.stateful, &situation.snapshots);
    let mut attempts = Vec::new();
    for &step in &policy.steps {
        match step {
            RecoveryStep::Restart { max } if situation.scope != Scope::Node => {
                let left = max.saturating_sub(situation.recent_restarts);
                if let Some(from) = newest {
                    attempts.extend((0..left).map(|_| Attempt::Here { from, step }));
                }
            }
            RecoveryStep::Restart { .. } => {}
            RecoveryStep::Failover if situation.scope == Scope::Node => {
                attempts.extend(newest.map(|from| Attempt::Here { from, step }));
            }
            RecoveryStep::Failover => attempts.extend(takers(situation)),
            RecoveryStep::OlderSnapshot { max } => {
                attempts.extend(older(situation, max).map(|from| Attempt::Here { from, step }));
            }
            // What has no state loses nothing by beginning again and again; the agent's back-off paces it.
            RecoveryStep::ColdStart if situation.stateful && situation.recent_cold_starts > 0 => {}
            RecoveryStep::ColdStart => attempts.push(Attempt::Here { from: Source::Image, step }),
        }
    }
    if situation.scope == Scope::Node && policy.steps.contains(&RecoveryStep::Failover) {
        let cold = |attempt: &Attempt| matches!(attempt, Attempt::Here { step: RecoveryStep::ColdStart, .. });
        let at = attempts.iter().position(cold).unwrap_or(attempts.len());
        attempts.splice(at..at, takers(situation));
    }
    attempts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::Epoch;

    fn snap(seq: u64, healthy: bool) -> KnownSnapshot {
        KnownSnapshot { id: SnapshotId { epoch: Epoch(1), seq }, healthy, readable: true }
    }

    fn situation(scope: Scope) -> Situation {
        Situation {
            scope,
            stateful: true,
            snapshots: vec![snap(3, false), snap(2, true), snap(1, true)],
            recent_restarts: 0,
            recent_older: 0,
            tried: Vec::new(),
            recent_cold_starts: 0,
            recent_failovers: 0,
            peers: vec!["b".parse().unwrap()],
        }
    }

    fn sources(attempts: &[Attempt]) -> Vec<String> {
        attempts
            .iter()
            .map(|attempt| match attempt {
                Attempt::Here { from: Source::Snapshot(id), .. } => id.to_string(),
                Attempt::Here { from: Source::Image, .. } => "image".into(),
                Attempt::Peer { node } => node.to_string(),
            })
            .collect()
    }

    #[test]
    fn a_lost_container_is_restarted_here_then_on_a_peer_then_from_older_state() {
        let got = plan(&RecoveryPolicy::stateful_default(), &situation(Scope::Container));
        assert_eq!(sources(&got), ["e1-2", "e1-2", "e1-2", "b", "e1-1"]);
    }

    #[test]
    fn the_taker_of_a_lost_node_restores_here_and_never_from_an_unhealthy_snapshot() {
        let got = plan(&RecoveryPolicy::stateful_default(), &situation(Scope::Node));
        assert_eq!(sources(&got), ["e1-2", "e1-1", "b"]);
    }

    #[test]
    fn a_taker_that_cannot_offers_it_to_others_before_it_loses_the_state_and_not_for_ever() {
        let mut policy = RecoveryPolicy::stateful_default();
        policy.steps.push(RecoveryStep::ColdStart);
        let mut taken = situation(Scope::Node);
        taken.recent_failovers = 1;
        assert_eq!(sources(&plan(&policy, &taken)), ["e1-2", "e1-1", "b", "image"]);
        taken.recent_failovers = 2;
        assert_eq!(sources(&plan(&policy, &taken)), ["e1-2", "e1-1", "image"]);
    }

    #[test]
    fn who_is_handed_a_container_climbs_older_states_and_neither_hands_it_on_nor_loses_the_state() {
        let mut policy = RecoveryPolicy::stateful_default();
        policy.steps.push(RecoveryStep::ColdStart);
        let mut given = situation(Scope::Node);
        assert_eq!(sources(&handed(&policy, &given)), ["e1-2", "e1-1"]);
        policy.steps.retain(|step| !matches!(step, RecoveryStep::OlderSnapshot { .. }));
        assert_eq!(sources(&handed(&policy, &given)), ["e1-2"]);
        given.snapshots = vec![snap(2, false)];
        assert_eq!(handed(&policy, &given), []);
        (given.stateful, given.snapshots) = (false, Vec::new());
        assert_eq!(sources(&handed(&policy, &given)), ["image"]);
    }

    #[test]
    fn what_has_only_unhealthy_snapshots_is_handed_to_nobody() {
        for scope in [Scope::Process, Scope::Container, Scope::Node] {
            let mut sick = situation(scope);
            sick.snapshots = vec![snap(2, false), snap(1, false)];
            assert_eq!(newest(true, &sick.snapshots), None);
            assert_eq!(plan(&RecoveryPolicy::stateful_default(), &sick), [], "{scope:?}");
        }
        assert_eq!(newest(false, &[]), Some(Source::Image));
        assert_eq!(newest(true, &[]), Some(Source::Image));
    }

    #[test]
    fn a_cold_start_loses_state_and_so_is_only_made_when_the_policy_says_so() {
        let mut policy = RecoveryPolicy::stateful_default();
        let mut only_unhealthy = situation(Scope::Container);
        only_unhealthy.snapshots = vec![snap(1, false)];
        assert_eq!(plan(&policy, &only_unhealthy), []);
        policy.steps.push(RecoveryStep::ColdStart);
        assert_eq!(sources(&plan(&policy, &only_unhealthy)), ["image"]);
    }

    #[test]
    fn before_the_first_snapshot_the_image_is_the_newest_state() {
        let mut fresh = situation(Scope::Container);
        fresh.snapshots.clear();
        assert_eq!(sources(&plan(&RecoveryPolicy::stateful_default(), &fresh)), ["image", "image", "image", "b"]);
    }

    #[test]
    fn two_nodes_do_not_hand_a_broken_container_back_and_forth_for_ever() {
        let mut bounced = situation(Scope::Container);
        bounced.recent_restarts = 3;
        bounced.recent_failovers = 2;
        assert_eq!(sources(&plan(&RecoveryPolicy::stateful_default(), &bounced)), ["e1-1"]);
    }

    #[test]
    fn older_states_and_cold_starts_run_out_too() {
        let mut broken = situation(Scope::Process);
        broken.snapshots = (1..=4).rev().map(|seq| snap(seq, true)).collect();
        (broken.recent_restarts, broken.recent_failovers) = (3, 2);
        let mut policy = RecoveryPolicy::stateful_default();
        policy.steps.push(RecoveryStep::ColdStart);
        let mut next = |older, cold| {
            (broken.recent_older, broken.recent_cold_starts) = (older, cold);
            // The newest by a restart, then one further back each time.
            broken.tried = broken.snapshots.iter().take(1 + older as usize).map(|snapshot| snapshot.id).collect();
            sources(&plan(&policy, &broken))
        };
        assert_eq!(next(0, 0), ["e1-3", "e1-2", "image"]);
        assert_eq!(next(1, 0), ["e1-2", "image"]);
        assert_eq!(next(2, 0), ["image"]);
        assert_eq!(next(2, 1), Vec::<String>::new());
    }

    #[test]
    fn a_good_snapshot_taken_after_an_older_state_was_restored_is_not_passed_over() {
        let mut again = situation(Scope::Process);
        again.snapshots = (1..=5).rev().map(|seq| snap(seq, true)).collect();
        (again.recent_restarts, again.recent_failovers, again.recent_older) = (3, 2, 1);
        // e1-2 was gone back to; e1-3 to e1-5 were taken since, and e1-5 is damaged or fails.
        again.tried = vec![snap(2, true).id, snap(5, true).id];
        assert_eq!(sources(&plan(&RecoveryPolicy::stateful_default(), &again)), ["e1-4"]);
    }

    proptest! {
        #[test]
        fn no_plan_restores_an_unhealthy_snapshot_or_exceeds_its_limits(
            healthy in prop::collection::vec(any::<bool>(), 0..8), restarts in 0u32..10, failovers in 0u32..10,
            max in 0u32..6, older in 0u32..6, olders in 0u32..6, node in any::<bool>(), stateful in any::<bool>(),
            peers in prop::collection::vec("[a-z]{1,3}", 0..3),
        ) {
            let count = healthy.len() as u64;
            let snapshots: Vec<_> = healthy.iter().zip(0..).map(|(h, i)| snap(count - i, *h)).collect();
            let policy = RecoveryPolicy { steps: vec![
                RecoveryStep::Restart { max }, RecoveryStep::Failover, RecoveryStep::OlderSnapshot { max: older },
            ] };
            let got = plan(&policy, &Situation {
                scope: if node { Scope::Node } else { Scope::Container }, stateful, snapshots: snapshots.clone(),
                recent_restarts: restarts, recent_older: olders, tried: vec![], recent_cold_starts: 0, recent_failovers: failovers,
                peers: peers.iter().map(|peer| peer.parse().unwrap()).collect(),
            });
            let mut by_restart = 0;
            let mut by_older = 0;
            for attempt in &got {
                let Attempt::Here { from, step } = attempt else {
                    prop_assert!(!stateful || snapshots.is_empty() || healthy.contains(&true), "nothing to hand over");
                    prop_assert!(failovers as usize <= peers.len());
                    continue;
                };
                match step {
                    RecoveryStep::Restart { .. } => by_restart += 1,
                    RecoveryStep::OlderSnapshot { .. } => by_older += 1,
                    _ => {}
                }
                match from {
                    Source::Snapshot(id) => prop_assert!(stateful && snapshots.iter().any(|s| s.id == *id && s.healthy)),
                    Source::Image => prop_assert!(!stateful || snapshots.is_empty(), "state thrown away: {got:?}"),
                }
            }
            prop_assert!(by_restart <= max.saturating_sub(restarts) && by_older <= older.saturating_sub(olders));
        }
    }
}
