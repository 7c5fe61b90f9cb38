//! What a scenario's file wants to see, watched while it is played.

use std::rc::Rc;

use super::{
    Micros,
    scenario::{Expect, Scenario},
    world::State,
};

#[derive(Debug)]
pub struct Watch {
    scenario: Rc<Scenario>,
    /// For each that is not decided yet: who ran the container when it began to count.
    open: Vec<(Expect, Option<Option<usize>>)>,
}

impl Watch {
    pub fn new(scenario: &Rc<Scenario>) -> Self {
        let open = scenario.expects.iter().cloned().map(|expect| (expect, None)).collect();
        Self { scenario: Rc::clone(scenario), open }
    }

    /// After every step.
    pub fn look(&mut self, state: &mut State) {
        if self.open.is_empty() {
            return;
        }
        let name = |container: usize| self.scenario.containers[container].name.clone();
        self.open.retain_mut(|(expect, before)| {
            let decided = decide(expect, before, state);
            if let Some(Some(what)) = &decided {
                let container = match expect {
                    Expect::Runs { container, .. }
                    | Expect::FailoverWithin { container, .. }
                    | Expect::NeverReplaced { container } => *container,
                };
                state.laws.broken("expect", format!("{}: {what}", name(container)));
            }
            decided.is_none()
        });
    }
}

/// `None`: not yet; otherwise what is wrong, if anything.
fn decide(expect: &Expect, before: &mut Option<Option<usize>>, state: &State) -> Option<Option<String>> {
    let runs = |container: usize| state.nodes.iter().position(|node| node.runs(container));
    let shown = |node: Option<usize>| node.map_or("nobody".into(), |node| state.nodes[node].name.to_string());
    match *expect {
        Expect::Runs { container, at, node } => {
            if state.now < at {
                return None;
            }
            let there = runs(container);
            let wrong = format!("{} runs it at {}, not {}", shown(there), seconds(at), shown(node));
            Some((there != node).then_some(wrong))
        }
        Expect::FailoverWithin { container, after, within } => {
            if state.now < after {
                *before = Some(runs(container));
                return None;
            }
            let (old, there) = (before.unwrap_or_default(), runs(container));
            if there.is_some() && there != old {
                return Some(None);
            }
            let late = state.now > after + within;
            late.then(|| Some(format!("runs nowhere else within {} of {}", seconds(within), seconds(after))))
        }
        Expect::NeverReplaced { container } => {
            let begun = state.laws.begun(container);
            if begun > 1 {
                return Some(Some("its process was replaced".to_owned()));
            }
            None
        }
    }
}

pub fn seconds(time: Micros) -> String {
    format!("{}.{:03}s", time / 1_000_000, time % 1_000_000 / 1000)
}
