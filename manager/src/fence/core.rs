//! The watchdog's decisions.
//!
//! ```text
//!                     Hold(later or earlier)
//!                        ┌───┐
//!                        │   ▼      due is past, FenceNow
//!      ─── start ──────► Holding ──────────────────────────► Fenced ──┐ every RECHECK: fence again what
//!          nothing       │   ▲                               │ ▲  ▲   │ came since, or what failed before
//!          is frozen     │   │   Release(still ahead), done  │ │  └───┘ (Hold and Quit change nothing)
//!                   Quit │   └───────────────────────────────┘ │
//!       and due is Never ▼                                     │
//!                       end                 start, the containers are found frozen
//! ```
//!
//! A connection that ends is not in the drawing: it changes nothing.

// Pure: time comes in as an argument.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use super::protocol::{Due, Order};

/// How often, while fenced, new containers and links are looked for (nanoseconds).
pub(super) const RECHECK: u64 = 250_000_000;

/// What the shell is told to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Freeze, take the links down; the outcome comes back as [`Event::Fenced`].
    Fence,
    /// Links up, thaw; the outcome comes back as [`Event::Released`].
    Release,
    /// Tell the manager the state.
    Say,
    Ack {
        number: u64,
        done: bool,
        problem: String,
    },
    End,
}

/// What became of an attempt to fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fencing {
    /// No process of a container runs any more.
    pub stopped: bool,
    /// What is not as it should be; empty when all is.
    pub problem: String,
}

#[derive(Debug)]
pub(super) enum Event {
    Told(Order),
    /// The moment of [`Core::wake`] may have come.
    Timer,
    Fenced(Fencing),
    Released(Result<(), String>),
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Holding,
    Fenced {
        /// No process of a container runs.
        stopped: bool,
        /// When it was last seen to.
        checked: u64,
        /// The release under way: its number, and what holds after it.
        release: Option<(u64, Due)>,
    },
}

/// `(state, event, now) → actions`; times in nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug)]
pub(super) struct Core {
    due: Due,
    phase: Phase,
    problem: String,
}

impl Core {
    /// `frozen`: the containers were found frozen, by a watchdog before this one.
    pub fn new(frozen: bool) -> Self {
        let fenced = Phase::Fenced { stopped: true, checked: 0, release: None };
        Self { due: Due::Never, phase: if frozen { fenced } else { Phase::Holding }, problem: String::new() }
    }

    pub fn due(&self) -> Due {
        self.due
    }

    pub fn fired(&self) -> bool {
        self.phase != Phase::Holding
    }

    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// False when the node was to be fenced and is not: then the hardware watchdog has to do it.
    pub fn well(&self) -> bool {
        !matches!(self.phase, Phase::Fenced { stopped: false, .. })
    }

    /// When the next [`Event::Timer`] is wanted.
    pub fn wake(&self) -> Due {
        match self.phase {
            Phase::Holding => self.due,
            Phase::Fenced { checked, .. } => Due::At(checked.saturating_add(RECHECK)),
        }
    }

    pub fn handle(&mut self, event: Event, now: u64) -> Vec<Action> {
        match event {
            Event::Told(Order::Hello) => vec![Action::Say],
            Event::Told(Order::Hold(due)) => self.hold(due, now),
            Event::Told(Order::Release { number, due }) => self.release(number, due, now),
            Event::Told(Order::FenceNow) => self.fire(now),
            Event::Told(Order::Quit) => {
                let may = self.phase == Phase::Holding && self.due == Due::Never;
                vec![if may { Action::End } else { Action::Say }]
            }
            Event::Timer => self.timer(now),
            Event::Fenced(outcome) => self.fenced(outcome, now),
            Event::Released(outcome) => self.released(outcome, now),
        }
    }

    fn hold(&mut self, due: Due, now: u64) -> Vec<Action> {
        // A lease that has lapsed is revived by a release only: this may have been sent before it lapsed.
        if self.phase != Phase::Holding {
            return Vec::new();
        }
        self.due = due;
        if is_past(due, now) { self.fire(now) } else { Vec::new() }
    }

    fn release(&mut self, number: u64, due: Due, now: u64) -> Vec<Action> {
        if is_past(due, now) {
            let problem = "the new deadline is past already".to_owned();
            let mut actions = vec![Action::Ack { number, done: false, problem }];
            actions.extend(self.hold(due, now));
            return actions;
        }
        match &mut self.phase {
            Phase::Holding => {
                self.due = due;
                vec![Action::Ack { number, done: true, problem: String::new() }]
            }
            Phase::Fenced { release, .. } => {
                *release = Some((number, due));
                vec![Action::Release]
            }
        }
    }

    fn fire(&mut self, now: u64) -> Vec<Action> {
        if self.phase != Phase::Holding {
            return Vec::new();
        }
        self.phase = Phase::Fenced { stopped: false, checked: now, release: None };
        vec![Action::Fence]
    }

    fn timer(&mut self, now: u64) -> Vec<Action> {
        if !is_past(self.wake(), now) {
            return Vec::new();
        }
        match self.phase {
            Phase::Holding => self.fire(now),
            Phase::Fenced { .. } => vec![Action::Fence],
        }
    }

    fn fenced(&mut self, outcome: Fencing, now: u64) -> Vec<Action> {
        let Phase::Fenced { stopped, checked, .. } = &mut self.phase else { return Vec::new() };
        // The first attempt was begun with `stopped` false, so it is always said.
        let news = *stopped != outcome.stopped || self.problem != outcome.problem;
        (*stopped, *checked) = (outcome.stopped, now);
        self.problem = outcome.problem;
        if news { vec![Action::Say] } else { Vec::new() }
    }

    fn released(&mut self, outcome: Result<(), String>, now: u64) -> Vec<Action> {
        let Phase::Fenced { release, checked, .. } = &mut self.phase else { return Vec::new() };
        let Some((number, due)) = release.take() else { return Vec::new() };
        match outcome {
            Ok(()) => {
                (self.phase, self.due) = (Phase::Holding, due);
                self.problem.clear();
                let mut actions = vec![Action::Ack { number, done: true, problem: String::new() }, Action::Say];
                if is_past(due, now) {
                    actions.extend(self.fire(now));
                }
                actions
            }
            Err(problem) => {
                // Half released is not fenced: the next look is at once.
                *checked = now.saturating_sub(RECHECK);
                self.problem.clone_from(&problem);
                vec![Action::Ack { number, done: false, problem }, Action::Say]
            }
        }
    }
}

fn is_past(due: Due, now: u64) -> bool {
    matches!(due, Due::At(at) if at <= now)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STOPPED: Fencing = Fencing { stopped: true, problem: String::new() };

    fn told(core: &mut Core, order: Order, now: u64) -> Vec<Action> {
        core.handle(Event::Told(order), now)
    }

    /// Fenced at 100.
    fn fenced() -> Core {
        let mut core = Core::new(false);
        assert!(told(&mut core, Order::Hold(Due::At(100)), 10).is_empty());
        assert_eq!(core.handle(Event::Timer, 100), [Action::Fence]);
        assert_eq!(core.handle(Event::Fenced(STOPPED), 110), [Action::Say]);
        core
    }

    #[test]
    fn the_deadline_fences_and_not_before() {
        let mut core = Core::new(false);
        assert_eq!(core.wake(), Due::Never);
        told(&mut core, Order::Hold(Due::At(100)), 10);
        assert_eq!(core.wake(), Due::At(100));
        assert!(core.handle(Event::Timer, 99).is_empty() && !core.fired());
        told(&mut core, Order::Hold(Due::At(200)), 99);
        assert!(core.handle(Event::Timer, 100).is_empty(), "it was put off");
        assert_eq!(core.handle(Event::Timer, 200), [Action::Fence]);
        assert!(core.fired() && !core.well(), "nothing is known to be stopped yet");
    }

    #[test]
    fn an_earlier_deadline_counts_too_and_a_past_one_at_once() {
        let mut core = Core::new(false);
        told(&mut core, Order::Hold(Due::At(200)), 10);
        told(&mut core, Order::Hold(Due::At(50)), 11);
        assert_eq!(core.wake(), Due::At(50));
        assert_eq!(told(&mut core, Order::Hold(Due::At(40)), 41), [Action::Fence]);
    }

    #[test]
    fn a_hold_does_not_revive() {
        let mut core = fenced();
        assert!(told(&mut core, Order::Hold(Due::At(1000)), 120).is_empty());
        assert!(told(&mut core, Order::Hold(Due::Never), 120).is_empty());
        assert!(core.fired());
    }

    #[test]
    fn a_release_revives_and_says_so() {
        let mut core = fenced();
        assert_eq!(told(&mut core, Order::Release { number: 3, due: Due::At(500) }, 200), [Action::Release]);
        assert!(core.fired(), "not before it is done");
        let done = Action::Ack { number: 3, done: true, problem: String::new() };
        assert_eq!(core.handle(Event::Released(Ok(())), 210), [done, Action::Say]);
        assert_eq!((core.fired(), core.due(), core.wake()), (false, Due::At(500), Due::At(500)));
    }

    #[test]
    fn a_release_that_came_too_late_does_not_thaw() {
        let mut core = fenced();
        let actions = told(&mut core, Order::Release { number: 3, due: Due::At(200) }, 200);
        assert!(matches!(&actions[..], [Action::Ack { done: false, .. }]), "{actions:?}");
        let mut holding = Core::new(false);
        let actions = told(&mut holding, Order::Release { number: 3, due: Due::At(200) }, 200);
        assert!(matches!(&actions[..], [Action::Ack { done: false, .. }, Action::Fence]), "{actions:?}");
        // One that lasted until its own deadline fences again.
        told(&mut core, Order::Release { number: 4, due: Due::At(300) }, 250);
        let actions = core.handle(Event::Released(Ok(())), 300);
        assert!(matches!(&actions[..], [Action::Ack { done: true, .. }, Action::Say, Action::Fence]), "{actions:?}");
    }

    #[test]
    fn a_release_that_failed_stays_fenced_and_is_seen_to_at_once() {
        let mut core = fenced();
        told(&mut core, Order::Release { number: 3, due: Due::Never }, RECHECK);
        let failed = Action::Ack { number: 3, done: false, problem: "no".into() };
        assert_eq!(core.handle(Event::Released(Err("no".into())), RECHECK), [failed, Action::Say]);
        assert_eq!((core.fired(), core.problem()), (true, "no"));
        assert_eq!(core.handle(Event::Timer, RECHECK), [Action::Fence]);
        assert_eq!(core.handle(Event::Fenced(STOPPED), RECHECK + 1), [Action::Say]);
        assert_eq!(core.problem(), "");
    }

    #[test]
    fn while_fenced_it_looks_again_and_says_only_news() {
        let mut core = fenced();
        assert_eq!(core.wake(), Due::At(110 + RECHECK));
        assert_eq!(core.handle(Event::Timer, 110 + RECHECK), [Action::Fence]);
        assert!(core.handle(Event::Fenced(STOPPED), 120 + RECHECK).is_empty());
        assert!(told(&mut core, Order::FenceNow, 130 + RECHECK).is_empty(), "it is fenced already");
    }

    #[test]
    fn what_cannot_be_stopped_is_not_well_until_it_is() {
        let mut core = Core::new(false);
        assert_eq!(told(&mut core, Order::FenceNow, 5), [Action::Fence]);
        let running = Fencing { stopped: false, problem: "pid 7 runs".into() };
        assert_eq!(core.handle(Event::Fenced(running), 6), [Action::Say]);
        assert!(!core.well());
        assert_eq!(core.handle(Event::Timer, 6 + RECHECK), [Action::Fence]);
        assert_eq!(core.handle(Event::Fenced(STOPPED), 7 + RECHECK), [Action::Say]);
        assert!(core.well());
    }

    #[test]
    fn it_ends_only_when_nothing_depends_on_it() {
        let mut core = Core::new(false);
        told(&mut core, Order::Hold(Due::At(100)), 1);
        assert_eq!(told(&mut core, Order::Quit, 2), [Action::Say]);
        told(&mut core, Order::Hold(Due::Never), 3);
        assert_eq!(told(&mut core, Order::Quit, 4), [Action::End]);
        assert_eq!(told(&mut fenced(), Order::Quit, 200), [Action::Say]);
        assert_eq!(told(&mut Core::new(true), Order::Quit, 1), [Action::Say]);
    }

    #[test]
    fn one_that_finds_the_containers_frozen_is_fenced() {
        let mut core = Core::new(true);
        assert!(core.fired() && core.well());
        assert_eq!(core.handle(Event::Timer, RECHECK), [Action::Fence], "what came since is looked for");
    }

    proptest! {
        /// Whatever is said in whatever order: nothing is thawed but by a release that was still ahead, and a deadline that
        /// has passed is never without a fence.
        #[test]
        fn no_way_leads_past_the_deadline(steps in proptest::collection::vec((0u8..7, 0u64..60, 0u64..120), 1..80)) {
            let mut core = Core::new(false);
            let (mut now, mut running) = (0u64, true);
            for (what, pass, ahead) in steps {
                now += pass;
                let due = Due::At(now + ahead);
                let event = match what {
                    0 => Event::Told(Order::Hold(due)),
                    1 => Event::Told(Order::Release { number: 1, due }),
                    2 => Event::Told(Order::Hello),
                    3 => Event::Told(Order::Quit),
                    4 => Event::Told(Order::Hold(Due::Never)),
                    5 => Event::Told(Order::FenceNow),
                    _ => Event::Timer,
                };
                let mut todo = vec![Event::Timer, event];
                while !todo.is_empty() {
                    for action in core.handle(todo.remove(0), now) {
                        match action {
                            Action::Fence => {
                                running = false;
                                todo.push(Event::Fenced(STOPPED));
                            }
                            Action::Release => {
                                prop_assert!(what == 1 && ahead > 0 && !running);
                                running = true;
                                todo.push(Event::Released(Ok(())));
                            }
                            Action::End => prop_assert!(running && core.due() == Due::Never),
                            Action::Say | Action::Ack { .. } => {}
                        }
                    }
                }
                prop_assert_eq!(core.fired(), !running);
                prop_assert!(!running || !is_past(core.due(), now));
            }
        }
    }
}
