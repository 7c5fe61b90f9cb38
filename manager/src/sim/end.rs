//! What has to have become of the cluster when the faults are over: everything that can run runs once.

use super::{
    node::{Node, name},
    store::{Key, Prefix},
    world::State,
};

/// I4 and I5.
pub fn at_the_end(state: &mut State) {
    for container in 0..state.scenario.containers.len() {
        let runs = state.nodes.iter().filter(|node| node.runs(container)).count();
        if runs == 0
            && let Some(why) = can_run(state, container)
        {
            state.laws.broken("I4", format!("container {container} runs nowhere, although {why}"));
        }
        let begun = state.laws.begun(container);
        if begun > 1 && state.scenario.only_network() {
            let what = format!("container {container} was begun {begun} times, although only the network failed");
            state.laws.broken("I5", what);
        }
    }
    let frozen = state.nodes.iter().find(|node| is_well(node) && node.frozen && !node.copies.is_empty());
    if let Some(name) = frozen.map(|node| node.name.clone()) {
        state.laws.broken("I4", format!("{name} is well and keeps its containers frozen"));
    }
}

fn is_well(node: &Node) -> bool {
    node.power && node.manager.is_some() && !node.stopped
}

/// Why the container should run somewhere; `None` when nobody has to run it.
fn can_run(state: &State, container: usize) -> Option<String> {
    let mut owners = state.objects.listed(Prefix::OwnersOf(container));
    owners.reverse();
    let base = |epoch| state.objects.get(Key::Base(container, epoch));
    let began = owners.iter().find_map(|(key, record)| match key {
        Key::Owner(_, epoch) => base(*epoch).filter(|base| base.nonce == record.nonce).map(|_| record.node),
        _ => None,
    });
    let claimed = owners.iter().find(|(key, _)| matches!(key, Key::Owner(..))).map(|(_, record)| record.node)?;
    let holder = began.unwrap_or(claimed);
    let there = &state.nodes[holder];
    if is_well(there) {
        return Some(format!("its holder {} is well", there.name));
    }
    if there.watchdog.parked && there.power {
        return there.copies.contains_key(&container).then(|| format!("{} is parked", there.name));
    }
    // A power cut does not take the mark away: nobody knows that the containers are gone.
    let marked = |node: usize| {
        state.objects.listed(Prefix::Parked).iter().any(|(key, _)| matches!(key, Key::Parked(of, _) if *of == node))
    };
    if marked(holder) || !state.scenario.containers[container].failover {
        return None;
    }
    let met =
        |node: &&Node| [holder, claimed].iter().all(|of| node.name == name(*of) || node.disk.met.contains(&name(*of)));
    let heir = state.nodes.iter().filter(|node| is_well(node)).find(met)?;
    Some(format!("{} is gone and {} is well", there.name, heir.name))
}
