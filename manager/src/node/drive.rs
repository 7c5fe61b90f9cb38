//! Carrying out what `ownership::take` asks for: the looks, the claim, the base.

use std::{sync::Arc, time::Instant};

use super::{Node, life::sentence, retiring::RETIRED};
use crate::{
    ownership::{
        self, Claim, Claimant, Owner, OwnershipError, Rest,
        silence::Life,
        take::{Do, Seen, Stop, Take},
    },
    spec::{ContainerName, Epoch, NodeName},
};

/// On what the silence of the holder rests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// What this node has seen itself.
    Own,
    /// A fencing command has switched this node off, which began then. It holds as long as nothing is seen of the node that is
    /// later: it may have been started again.
    Fenced(NodeName, Instant),
    /// The operator says that this node, whose manager was stopped or which was never met, does not run the container any more.
    Operator(NodeName),
}

/// Why it was not taken.
#[derive(Debug)]
pub(super) enum NotTaken {
    /// Its holder lives: why, in a word and in a sentence.
    Held(NodeName, &'static str, String),
    Lost(String),
    Away(String),
}

impl NotTaken {
    pub fn text(self) -> String {
        match self {
            NotTaken::Held(_, _, text) | NotTaken::Lost(text) | NotTaken::Away(text) => text,
        }
    }
}

/// What an attempt remembers from one step to the next.
struct Attempt {
    claimant: Claimant,
    owner: Option<Owner>,
    rest: Option<Rest>,
    holder: Option<NodeName>,
    error: String,
    /// The holder, when this node was never in contact with it: it does not count this one among those that could take over.
    unmet: Option<NodeName>,
}

impl Node {
    /// Becomes the owner after `newest`, once whoever may run the container is silent. From its return on nobody else begins it.
    pub(super) async fn take_from_silent(
        self: &Arc<Self>,
        name: &ContainerName,
        newest: &Owner,
        word: &Word,
    ) -> Result<(Owner, Option<Rest>), NotTaken> {
        let undecided = newest.node == *self.name();
        let me = self.name().clone();
        let take = if undecided { Take::undecided(me, newest.epoch) } else { Take::new(me, newest.epoch) };
        let attempt = Attempt {
            claimant: Claimant::new(self.name().clone()),
            owner: undecided.then(|| newest.clone()),
            rest: None,
            holder: None,
            error: String::new(),
            unmet: None,
        };
        self.drive(name, take, attempt, word).await
    }

    async fn drive(
        self: &Arc<Self>,
        name: &ContainerName,
        mut take: Take,
        mut attempt: Attempt,
        word: &Word,
    ) -> Result<(Owner, Option<Rest>), NotTaken> {
        let mut next = Do::Look;
        loop {
            next = match next {
                Do::LookAt(at) => {
                    tokio::time::sleep_until(at.into()).await;
                    if self.stopping.has_begun() {
                        return Err(NotTaken::Away("the manager of this node is being stopped".into()));
                    }
                    Do::Look
                }
                Do::Look => {
                    let seen = self.see(name, word, &mut attempt).await;
                    if let Some(holder) = attempt.unmet {
                        let text = unmet(&holder);
                        return Err(NotTaken::Held(holder, "unmet", text));
                    }
                    take.looked(seen, Instant::now())
                }
                Do::Claim(expected) => {
                    let won = self.claim(name, expected, &mut attempt).await;
                    take.claimed(won)
                }
                Do::Settle(_) => {
                    let own = self.settle(name, &mut attempt, word).await;
                    take.settled(own, Instant::now())
                }
                Do::Begin(_) => match attempt.owner {
                    Some(owner) => return Ok((owner, attempt.rest)),
                    None => return Err(NotTaken::Away("nothing was claimed".into())),
                },
                Do::Stop(stop) => return Err(not_taken(stop, attempt)),
            }
        }
    }

    /// One look. The life is asked for last: an answer that was given during the look counts.
    async fn see(&self, name: &ContainerName, word: &Word, attempt: &mut Attempt) -> Option<Seen> {
        let looked = tokio::join!(self.look_for_life(), ownership::standing(&self.ctx.store, name));
        let there = match looked {
            (Ok(()), Ok(there)) => there?,
            (lives, owners) => {
                let error = lives.err().map(|error| crate::chain(&error));
                attempt.error = error.or(owners.err().map(|error| crate::chain(&error))).unwrap_or_default();
                return None;
            }
        };
        if self.lives.is_retired() {
            attempt.error = RETIRED.into();
            return None;
        }
        let mine = attempt.owner.as_ref().is_some_and(|owner| owner.epoch == there.newest.epoch);
        if !mine && there.newest.node != *self.name() {
            attempt.error = format!("node {} owns it under epoch {}", there.newest.node, there.newest.epoch);
        }
        let record = match &there.holder {
            Some(holder) => match self.ctx.store.node_record(holder).await {
                Ok(record) => record,
                Err(error) => {
                    attempt.error = crate::chain(&error);
                    return None;
                }
            },
            None => None,
        };
        let holder = there.holder.as_ref().filter(|holder| *holder != self.name());
        // The word is of one node; the holder may be another.
        let spoken_for = match word {
            Word::Own => false,
            Word::Fenced(node, began) => Some(node) == holder && !self.is_back(node, *began),
            Word::Operator(node) => Some(node) == holder,
        };
        if let Some(holder) = holder.filter(|holder| !spoken_for && !self.ctx.membership.met().contains(*holder)) {
            attempt.unmet = Some(holder.clone());
            return None;
        }
        let life = holder.and_then(|holder| self.life(holder, record.as_ref())).filter(|life| match word {
            Word::Fenced(..) => !spoken_for,
            Word::Operator(_) => !spoken_for || *life != Life::Parked,
            Word::Own => true,
        });
        attempt.holder.clone_from(&there.holder);
        Some(Seen { newest: there.newest.epoch, holder: there.holder, life })
    }

    async fn claim(&self, name: &ContainerName, expected: Epoch, attempt: &mut Attempt) -> Option<bool> {
        match self.claim_again(name, expected, &attempt.claimant).await {
            Ok(Claim::Won(owner)) => {
                attempt.owner = Some(owner);
                Some(true)
            }
            Ok(Claim::Lost(other)) => {
                attempt.error = format!("node {} was first (epoch {})", other.node, other.epoch);
                Some(false)
            }
            Err(error) => {
                attempt.error = crate::chain(&error);
                None
            }
        }
    }

    async fn settle(&self, name: &ContainerName, attempt: &mut Attempt, word: &Word) -> Option<bool> {
        let owner = attempt.owner.as_ref()?;
        let taken = match word {
            // Whether it was at rest or not: its operator wants it begun.
            Word::Operator(_) => ownership::take_base(&self.ctx.store, name, owner)
                .await
                .map(|base| ownership::Taken { base, rest: None }),
            Word::Own | Word::Fenced(..) => ownership::take_over(&self.ctx.store, name, owner).await,
        };
        match taken {
            Ok(taken) => {
                attempt.rest = taken.rest;
                Some(true)
            }
            Err(OwnershipError::Deposed { by, .. }) => {
                attempt.error = format!("node {} has it under epoch {}", by.node, by.epoch);
                Some(false)
            }
            Err(error) => {
                attempt.error = crate::chain(&error);
                matches!(error, OwnershipError::Foreign { .. }).then_some(false)
            }
        }
    }
}

/// Why nothing is taken from a node that this one was never in contact with.
pub(super) fn unmet(holder: &NodeName) -> String {
    format!(
        "this node has never been in contact with {holder}, which may run on without knowing of it; if {holder} is off for good, \
         `ha-manager restore NAME --force` claims it"
    )
}

fn not_taken(stop: Stop, attempt: Attempt) -> NotTaken {
    match (stop, attempt.holder) {
        (Stop::Held(life), Some(holder)) => {
            let (why, text) = sentence(&holder, life);
            NotTaken::Held(holder, why, text)
        }
        (Stop::Lost | Stop::Held(_), _) => NotTaken::Lost(attempt.error),
        (Stop::Away, _) => NotTaken::Away(attempt.error),
    }
}
