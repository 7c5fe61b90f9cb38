//! The verdict over a container's state: what its client was told, against what the store held. Pure.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::{collections::HashMap, time::Duration};

use serde::Serialize;

use super::{
    copies::Life,
    history::{History, Place},
    ledger::{Account, Commit},
    record::{Entry, What},
};

/// An answer that came so shortly before a freeze may have been given after it, by the clocks' grain.
const GRAIN: Duration = Duration::from_millis(5);

/// State that was lost, or that came from where it must not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub at: Duration,
    /// The entry of the record.
    pub entry: usize,
    pub what: String,
}

/// Goes through a record. `stateful`: what was committed has to survive; else a process begins anew with a number of its own,
/// and one whose place another has taken answers no more.
pub fn judge(stateful: bool, record: &[Entry], account: &Account, lives: &[Life]) -> Vec<Finding> {
    let mut court = Court { history: History::default(), told: Vec::new(), account, lives };
    let mut findings = Vec::new();
    let mut left: HashMap<&str, History> = HashMap::new();
    let mut now: Option<&str> = None;
    for (number, entry) in record.iter().enumerate() {
        let mut find = |what| findings.push(Finding { at: entry.at, entry: number, what });
        let (state, token) = match &entry.what {
            What::Unanswered { token, .. } => {
                court.history.unanswered(*token);
                continue;
            }
            What::Counted { token, state } => (*state, Some(*token)),
            What::Connected { id, state } => {
                if let (false, Some(before)) = (stateful, now.replace(id))
                    && before != id
                {
                    let again = left.remove(id.as_str());
                    if again.is_some() {
                        find(format!("FORK: the process {id} answers again, although {before} had taken its place"));
                    }
                    left.insert(before, std::mem::replace(&mut court.history, again.unwrap_or_default()));
                    court.told.clear();
                }
                (*state, None)
            }
        };
        match court.history.answer(state, token) {
            Place::Onward => {}
            Place::Back { to, from, .. } if !stateful => {
                find(format!("FORK: went back from {} to {} within one process", from.value, to.value));
            }
            Place::Back { point, .. } => court.lost(entry, point).into_iter().for_each(find),
            Place::Fork { base, left } => find(format!(
                "FORK: {} {:016x} goes on from {}, which was given up; the line that is left was at {} {:016x}",
                state.value, state.hash, base.value, left.value, left.hash
            )),
            Place::Invented => {
                find(format!("INVENTED: {} {:016x} follows from nothing that was asked", state.value, state.hash));
            }
        }
        court.told.push((entry.at, court.history.head()));
    }
    findings
}

struct Court<'a> {
    history: History,
    /// When, and which point of the history.
    told: Vec<(Duration, usize)>,
    account: &'a Account,
    lives: &'a [Life],
}

impl Court<'_> {
    /// What is lost by going on from `point`, if anything.
    fn lost(&self, entry: &Entry, point: usize) -> Option<String> {
        let commit = self.owed(entry)?;
        let until = self.told.partition_point(|(at, _)| *at + GRAIN <= commit.frozen_at);
        let (at, owed) = *self.told.get(until.checked_sub(1)?)?;
        if self.history.leads_to(owed, point) {
            return None;
        }
        let (owed, to) = (self.history.state(owed), self.history.state(point));
        Some(format!(
            "LOST: goes on from {} {:016x}, but {} {:016x} (told at {:.3} s) is in the snapshot e{}-{}, frozen at {:.3} s and \
             committed before {:.3} s",
            to.value,
            to.hash,
            owed.value,
            owed.hash,
            at.as_secs_f64(),
            commit.epoch,
            commit.number,
            commit.frozen_at.as_secs_f64(),
            commit.seen_at.as_secs_f64()
        ))
    }

    /// The newest snapshot that whoever answers had to begin with: one that was committed while the copy before it still
    /// answered, or under an epoch before its own.
    fn owed(&self, entry: &Entry) -> Option<&Commit> {
        let before = self.told.last().map_or(Duration::ZERO, |(at, _)| *at);
        let epoch = self.epoch_of(entry);
        let counts = |commit: &&Commit| commit.seen_at <= before || epoch.is_some_and(|epoch| commit.epoch < epoch);
        self.account.commits.iter().filter(counts).max_by_key(|commit| (commit.epoch, commit.number))
    }

    /// The epoch under which the copy that answers came up; not known when none or several ran.
    fn epoch_of(&self, entry: &Entry) -> Option<u64> {
        let [copy] = entry.copies[..] else { return None };
        let life = self.lives.iter().find(|life| life.number == copy)?;
        let own = self.account.claims.iter().filter(|claim| claim.node == life.node && claim.at <= life.born);
        own.map(|claim| claim.epoch).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chaos::{fault, ledger::Claim, look::Copy},
        clients::counter::Value,
    };

    const START: Value = Value { value: 0, hash: 0 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn told(at: u64, token: u64, from: Value) -> Entry {
        Entry { at: ms(at), copies: vec![1], what: What::Counted { token, state: from.next_with(token) } }
    }

    /// A line from a state, one answer every 100 ms.
    fn line(at: u64, count: u64, mut from: Value) -> (Vec<Entry>, Vec<Value>) {
        let mut entries = Vec::new();
        let mut states = Vec::new();
        for step in 0..count {
            entries.push(told(at + step * 100, at + step, from));
            from = from.next_with(at + step);
            states.push(from);
        }
        (entries, states)
    }

    fn life(number: usize, node: usize, born: u64) -> Life {
        let copy = Copy { node: fault::Place(node), pid: 10, started: 1 };
        Life { number, copy, node: copy.node.to_string(), born: ms(born), gone: None }
    }

    fn commit(epoch: u64, number: u64, frozen: u64, seen: u64) -> Commit {
        Commit { epoch, number, frozen_at: ms(frozen), seen_at: ms(seen) }
    }

    fn claim(epoch: u64, node: usize, at: u64) -> Claim {
        Claim { epoch, node: fault::Place(node).to_string(), at: ms(at) }
    }

    /// Ten answers from the first copy, the commit of what the fifth told, then a second copy.
    fn failover(restored: usize, commits: Vec<Commit>) -> Vec<Finding> {
        let (mut record, states) = line(0, 10, START);
        let (mut later, _) = line(3000, 5, states[restored]);
        later.iter_mut().for_each(|entry| entry.copies = vec![2]);
        record.extend(later);
        let account = Account { claims: vec![claim(1, 0, 0), claim(2, 1, 2000)], commits };
        judge(true, &record, &account, &[life(1, 0, 0), life(2, 1, 2500)])
    }

    #[test]
    fn what_was_not_committed_may_be_lost_and_what_was_may_not() {
        // Frozen at 450 ms: the answers at 0, 100, … 400 are in it.
        assert_eq!(failover(4, vec![commit(1, 1, 450, 600)]), []);
        assert_eq!(failover(7, vec![commit(1, 1, 450, 600)]), []);
        let lost = failover(3, vec![commit(1, 1, 450, 600)]);
        assert_eq!(lost.len(), 1);
        assert!(lost[0].what.starts_with("LOST: goes on from 4 "), "{lost:?}");
    }

    #[test]
    fn a_commit_after_the_last_answer_counts_against_a_later_epoch() {
        let late = |epoch| vec![commit(1, 1, 450, 600), commit(epoch, 2, 850, 1500)];
        assert_eq!(failover(4, late(1)).len(), 1);
        // Of the new owner itself: nobody says that it was there before it restored.
        assert_eq!(failover(4, late(2)), []);
    }

    #[test]
    fn an_old_copy_that_answers_again_is_a_fork() {
        let (mut record, states) = line(0, 10, START);
        record.extend(line(3000, 3, states[4]).0);
        record.extend(line(5000, 1, states[9]).0);
        let account = Account { claims: vec![claim(1, 0, 0)], commits: vec![commit(1, 1, 450, 600)] };
        let findings = judge(true, &record, &account, &[life(1, 0, 0)]);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].what.starts_with("FORK"), "{findings:?}");
        assert_eq!(findings[0].entry, 13);
    }

    #[test]
    fn a_stateless_container_begins_anew_with_another_process_only() {
        let begun = |at, id: &str, state| Entry {
            at: ms(at),
            copies: vec![1],
            what: What::Connected { id: id.to_owned(), state },
        };
        let (answers, states) = line(100, 3, START);
        let mut record = vec![begun(0, "a", START)];
        record.extend(answers);
        record.push(begun(1000, "b", START));
        assert_eq!(judge(false, &record, &Account::default(), &[]), []);
        // The first process was not gone.
        record.push(begun(2000, "a", states[2]));
        let findings = judge(false, &record, &Account::default(), &[]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].what.starts_with("FORK: the process a"), "{findings:?}");
    }
}
