//! Plays one scenario to its end.

use std::{rc::Rc, sync::LazyLock, time::Instant};

use super::{
    Micros,
    end::at_the_end,
    exec::World,
    expect::Watch,
    laws::Violation,
    node::name,
    scenario::Scenario,
    store::{Call, Key, Op, Record},
    world::{Due, Note, State},
};
use crate::{membership::Rng, spec::Epoch};

/// What every simulated clock counts from. The cores take `Instant`s, and nothing depends on which.
#[expect(clippy::disallowed_methods, reason = "any instant would do; simulated time is counted from it")]
static ZERO: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What became of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub violation: Option<Violation>,
    /// What happened, in the order of time.
    pub trace: Vec<Note>,
    /// For each container the nodes that run it at the end.
    pub running: Vec<Vec<String>>,
    /// Simulated.
    pub took: Micros,
    /// Things that happened.
    pub steps: u64,
}

/// Plays it, until an invariant breaks or the end has come. The same scenario has the same outcome.
pub fn run(scenario: &Scenario) -> Outcome {
    let scenario = Rc::new(scenario.clone());
    let mut state = State::new(Rc::clone(&scenario), *ZERO);
    prepare(&mut state);
    let world = World::new(state);
    let mut watch = Watch::new(&scenario);
    let mut steps = 0;
    while world.step(scenario.end) {
        steps += 1;
        let broken = world.with(|state| {
            if std::mem::take(&mut state.laws.changed) {
                let State { laws, nodes, .. } = state;
                laws.count(nodes);
            }
            watch.look(state);
            state.laws.violation.is_some()
        });
        if broken {
            break;
        }
    }
    world.with(|state| {
        if state.laws.violation.is_none() {
            state.now = scenario.end;
            watch.look(state);
            at_the_end(state);
        }
        if let Some(violation) = state.laws.violation.clone() {
            let what = format!("{} BROKEN: {}", violation.law, violation.what);
            state.notes.push(Note { at: state.now, node: None, what });
        }
    });
    // Tasks are taken apart first: what they hold is the world.
    let Some(state) = world.end() else { unreachable!("every task has ended with the world") };
    let runs = |container: usize| state.nodes.iter().filter(move |node| node.runs(container));
    let running = (0..scenario.containers.len()).map(|c| runs(c).map(|node| node.name.to_string()).collect());
    Outcome {
        violation: state.laws.violation.clone(),
        running: running.collect(),
        trace: state.notes,
        took: state.now,
        steps,
    }
}

/// Owned and not begun yet: each container's owner begins it when it has started.
fn prepare(state: &mut State) {
    let scenario = Rc::clone(&state.scenario);
    for (container, spec) in scenario.containers.iter().enumerate() {
        let record = Record { node: spec.owner, nonce: state.unique(), base: None };
        for key in [Key::Owner(container, Epoch(1)), Key::Base(container, Epoch(1))] {
            state.objects.apply(&Call::new(spec.owner, Op::Create(key, record), false), &mut Rng::new(0));
        }
    }
    for node in 0..scenario.nodes {
        if scenario.met {
            let others = (0..scenario.nodes).filter(|other| *other != node).map(name);
            state.nodes[node].disk.known.extend(others.clone());
            state.nodes[node].disk.met.extend(others);
        }
        state.nodes[node].power = false;
        state.boot(node);
    }
    for (index, (at, _)) in scenario.timeline.iter().enumerate() {
        state.push(*at, Due::Fault(index));
    }
    state.push(scenario.quiet, Due::Quiet);
}
