//! What a container's clients were told, held against what was committed: pure.
//!
//! Every answer's hash holds the whole history before it, down to the numbers that the client drew for each request. So from the
//! record alone a tree of states grows, and of each answer is known where in it its container goes on:
//!
//! ```text
//!   0 ── 1 ── 2 ── 3 ── 4 ── 5        the line up to a failure; 2 was committed
//!             └── 3'── 4'             restored from 2: the line since; 3, 4 and 5 are abandoned
//!        └── 2" …                     restored from 1: what was committed is LOST
//!                      └── … 6        goes on from 5: an abandoned line is back, a FORK
//! ```
//!
//! A request without an answer may have been carried out or not, then or later: its number is kept and tried where an answer
//! does not fit otherwise.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::HashMap;

use crate::clients::counter::Value;

/// Requests without an answer that are remembered, and how many of them may be in a state that nobody was told.
const REMEMBERED: usize = 16;
const UNTOLD: u64 = 3;

const START: Value = Value { value: 0, hash: 0 };

#[derive(Debug)]
struct Point {
    state: Value,
    parent: Option<usize>,
    /// A client was told.
    told: bool,
}

/// The tree of states, and where the container is in it.
#[derive(Debug)]
pub struct History {
    points: Vec<Point>,
    by_value: HashMap<u64, Vec<usize>>,
    head: usize,
    unanswered: Vec<u64>,
}

/// Where an answer goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// From the answer before it.
    Onward,
    /// From an earlier state.
    Back { to: Value, from: Value, point: usize },
    /// From a state that was given up when the container went back before it.
    Fork { base: Value, left: Value },
    /// From none that there ever was.
    Invented,
}

impl Default for History {
    fn default() -> Self {
        let start = Point { state: START, parent: None, told: true };
        Self { points: vec![start], by_value: HashMap::from([(0, vec![0])]), head: 0, unanswered: Vec::new() }
    }
}

impl History {
    /// The point of the newest answer.
    pub fn head(&self) -> usize {
        self.head
    }

    pub fn state(&self, point: usize) -> Value {
        self.points[point].state
    }

    /// A request with this token got no answer.
    pub fn unanswered(&mut self, token: u64) {
        self.unanswered.push(token);
        let surplus = self.unanswered.len().saturating_sub(REMEMBERED);
        self.unanswered.drain(..surplus);
    }

    /// The container told its state, after counting `token` if there is one.
    pub fn answer(&mut self, state: Value, token: Option<u64>) -> Place {
        let Some(point) = self.reach(state, token) else {
            let point = self.add(state, None);
            self.points[point].told = true;
            self.head = point;
            return Place::Invented;
        };
        let base = if token.is_some() { self.points[point].parent.unwrap_or(point) } else { point };
        let place = self.place(base);
        self.points[point].told = true;
        self.head = point;
        place
    }

    fn place(&self, base: usize) -> Place {
        let (to, from) = (self.state(base), self.state(self.head));
        let Some(common) = self.common(base, self.head) else { return Place::Invented };
        if common == self.head {
            return Place::Onward;
        }
        let mut at = base;
        while at != common {
            if self.points[at].told {
                return Place::Fork { base: to, left: from };
            }
            match self.points[at].parent {
                Some(parent) => at = parent,
                None => break,
            }
        }
        Place::Back { to, from, point: base }
    }

    /// Whether the state `earlier` is part of the history of `later`.
    pub fn leads_to(&self, earlier: usize, later: usize) -> bool {
        self.common(earlier, later) == Some(earlier)
    }

    /// The newest state that two have in common.
    fn common(&self, mut one: usize, mut two: usize) -> Option<usize> {
        while one != two {
            // A state is one step above its parent.
            if self.points[one].state.value >= self.points[two].state.value {
                one = self.points[one].parent?;
            } else {
                two = self.points[two].parent?;
            }
        }
        Some(one)
    }

    /// The state's point, made if it follows from one that is known.
    fn reach(&mut self, state: Value, token: Option<u64>) -> Option<usize> {
        if let Some(known) = self.find(state) {
            return Some(known);
        }
        let own = u64::from(token.is_some());
        for untold in 0..=UNTOLD {
            let Some(below) = state.value.checked_sub(untold + own) else { break };
            for base in self.by_value.get(&below).cloned().unwrap_or_default() {
                let mut tokens = Vec::new();
                if self.fits(self.state(base), untold, token, state, &mut tokens) {
                    return Some(self.grow(base, tokens.into_iter().chain(token)));
                }
            }
        }
        None
    }

    /// Whether `untold` requests without answer, and `token` after them, lead from one state to the other.
    fn fits(&self, from: Value, untold: u64, token: Option<u64>, to: Value, tokens: &mut Vec<u64>) -> bool {
        if untold == 0 {
            return token.map_or(from, |token| from.next_with(token)) == to;
        }
        for lost in &self.unanswered {
            if !tokens.contains(lost) {
                tokens.push(*lost);
                if self.fits(from.next_with(*lost), untold - 1, token, to, tokens) {
                    return true;
                }
                tokens.pop();
            }
        }
        false
    }

    fn grow(&mut self, base: usize, tokens: impl Iterator<Item = u64>) -> usize {
        tokens.fold(base, |at, token| {
            let state = self.state(at).next_with(token);
            self.find(state).unwrap_or_else(|| self.add(state, Some(at)))
        })
    }

    fn find(&self, state: Value) -> Option<usize> {
        self.by_value.get(&state.value)?.iter().copied().find(|point| self.state(*point) == state)
    }

    fn add(&mut self, state: Value, parent: Option<usize>) -> usize {
        let point = self.points.len();
        self.points.push(Point { state, parent, told: false });
        self.by_value.entry(state.value).or_default().push(point);
        point
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The server: counts, and is taken back.
    struct Server(Value);

    impl Server {
        fn incr(&mut self, token: u64) -> Value {
            self.0 = self.0.next_with(token);
            self.0
        }
    }

    fn count(history: &mut History, server: &mut Server, tokens: std::ops::Range<u64>) -> Value {
        for token in tokens {
            assert_eq!(history.answer(server.incr(token), Some(token)), Place::Onward);
        }
        server.0
    }

    #[test]
    fn going_on_is_going_on() {
        let (mut history, mut server) = (History::default(), Server(START));
        count(&mut history, &mut server, 0..5);
        assert_eq!(history.answer(server.0, None), Place::Onward);
        count(&mut history, &mut server, 5..10);
    }

    #[test]
    fn a_request_without_answer_may_have_been_carried_out_or_not_or_later() {
        let (mut history, mut server) = (History::default(), Server(START));
        count(&mut history, &mut server, 0..3);
        history.unanswered(3);
        count(&mut history, &mut server, 4..6);
        history.unanswered(6);
        server.incr(6);
        assert_eq!(history.answer(server.0, None), Place::Onward);
        history.unanswered(7);
        history.unanswered(8);
        server.incr(8);
        server.incr(3);
        count(&mut history, &mut server, 9..12);
    }

    #[test]
    fn a_restored_state_is_going_back_and_the_line_goes_on_from_there() {
        let (mut history, mut server) = (History::default(), Server(START));
        let saved = count(&mut history, &mut server, 0..5);
        let saved_at = history.head();
        let told = count(&mut history, &mut server, 5..9);
        server.0 = saved;
        let back = history.answer(server.incr(20), Some(20));
        assert_eq!(back, Place::Back { to: saved, from: told, point: saved_at });
        count(&mut history, &mut server, 21..25);
        // Once more, before the next snapshot.
        server.0 = saved;
        assert!(matches!(history.answer(saved, None), Place::Back { to, .. } if to == saved));
        count(&mut history, &mut server, 30..35);
        assert!(history.leads_to(saved_at, history.head()));
    }

    #[test]
    fn a_snapshot_may_hold_a_request_that_was_not_answered() {
        let (mut history, mut server) = (History::default(), Server(START));
        count(&mut history, &mut server, 0..5);
        let saved = Server(server.0).incr(50);
        history.unanswered(50);
        count(&mut history, &mut server, 5..9);
        server.0 = saved;
        assert!(matches!(history.answer(server.incr(60), Some(60)), Place::Back { to, .. } if to == saved));
    }

    #[test]
    fn an_abandoned_line_that_answers_is_a_fork() {
        let (mut history, mut old) = (History::default(), Server(START));
        let saved = count(&mut history, &mut old, 0..5);
        count(&mut history, &mut old, 5..9);
        let mut new = Server(saved);
        assert!(matches!(history.answer(new.incr(20), Some(20)), Place::Back { .. }));
        let left = count(&mut history, &mut new, 21..23);
        let base = old.0;
        assert_eq!(history.answer(old.incr(30), Some(30)), Place::Fork { base, left });
    }

    #[test]
    fn a_state_from_nowhere_is_invented() {
        let (mut history, mut server) = (History::default(), Server(START));
        let state = count(&mut history, &mut server, 0..5);
        let wrong = Value { hash: state.hash ^ 1, value: state.value + 1 };
        assert_eq!(history.answer(wrong, Some(5)), Place::Invented);
        assert_eq!(history.answer(Value { value: 100, hash: 7 }, None), Place::Invented);
    }
}
