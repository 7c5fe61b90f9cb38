//! A session from the first node's power to the last: the cluster comes up, the faults come and go, all calms down, and
//! what was seen is handed over.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context;
use nix::sys::signal::Signal;

use super::{
    containers::{self, Container},
    copies::Copies,
    fault::{Fault, Place, Step},
    hands::{Hand, Load},
    ledger::{Account, Ledger},
    leftovers::{self, Before},
    look::Eyes,
    observer::Observer,
    record::{Entry, Recorder},
    schedule::NODES,
    switch::Switch,
    timeline::Timeline,
};
use crate::cluster::{Cluster, Member};

/// From the end of the last fault until every container has to serve.
const SETTLE: Duration = Duration::from_secs(60);
/// Answers without a break for so long are called serving.
const STEADY: Duration = Duration::from_secs(3);

/// Everything that was seen.
#[derive(Debug)]
pub struct Evidence {
    pub copies: BTreeMap<String, Copies>,
    pub accounts: BTreeMap<String, Account>,
    pub records: BTreeMap<String, Vec<Entry>>,
    /// The containers that did not serve again in time, and the nodes whose managers did not see all.
    pub stuck: Vec<String>,
    pub leftovers: Vec<String>,
    /// What the laboratory itself could not do.
    pub troubles: Vec<String>,
    /// When the first fault's times were counted from.
    pub began: Duration,
    /// From then to the end of the quiet time.
    pub lasted: Duration,
}

/// Plays the faults on a fresh cluster. Events and logs of all nodes are kept in `dir`.
///
/// # Errors
/// When the cluster does not come up, or the laboratory fails.
pub fn play(faults: &[Fault], timeline: &Arc<Timeline>, dir: &Path) -> anyhow::Result<Evidence> {
    let mut cluster = Cluster::start(NODES as u8, "")?;
    let lab = cluster.lab.id().to_owned();
    let before = Before::of(&cluster)?;
    for (member, container) in cluster.members.iter().zip(&containers::ALL) {
        begin(member, container, timeline)?;
    }
    let mut evidence = watched(&mut cluster, faults, timeline)?;
    keep(&cluster, dir)?;
    timeline.say("session", "the containers are removed");
    evidence.leftovers.extend(before.after_removal(&cluster));
    for member in &mut cluster.members {
        if let Err(err) = member.stop_manager(Signal::SIGTERM) {
            evidence.troubles.push(format!("{err:#}"));
        }
    }
    keep(&cluster, dir)?;
    drop(cluster);
    evidence.leftovers.extend(leftovers::on_the_machine(&lab));
    Ok(evidence)
}

/// Starts a container and waits until it is protected. What the cluster does not allow yet is asked for again.
fn begin(member: &Member, container: &Container, timeline: &Timeline) -> anyhow::Result<()> {
    timeline.say("session", &format!("{} begins on {}", container.name, member.node.name()));
    let file = member.node.disk().join("app.yaml");
    fs::write(&file, container.compose()?)?;
    let start = timeline.now();
    while let Err(err) = member.cli(&["apply", "-f", &file.display().to_string(), "--wait"]) {
        anyhow::ensure!(timeline.now() - start < SETTLE, "{err:#}\n{}", member.log_end());
        timeline.say("session", &format!("{err:#}"));
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

fn watched(cluster: &mut Cluster, faults: &[Fault], timeline: &Arc<Timeline>) -> anyhow::Result<Evidence> {
    let names: Vec<String> = containers::ALL.iter().map(|container| container.name.to_owned()).collect();
    let observer = Observer::start(Eyes::on(cluster)?, &names, Arc::clone(timeline))?;
    let ledger = Ledger::start(cluster.lab.store(), &names, Arc::clone(timeline))?;
    let record = |container: &Container| {
        let (sight, timeline) = (Arc::clone(&observer.sight), Arc::clone(timeline));
        Recorder::start(&cluster.lab, container.name, container.address()?, sight, timeline)
    };
    let recorders = containers::ALL.iter().map(record).collect::<anyhow::Result<Vec<_>>>()?;
    cluster.wait("the first answers", SETTLE, |_| recorders.iter().all(|r| r.is_served(timeline.now(), STEADY)))?;

    let mut switch = Switch::new(cluster.members[0].node.switch_pid());
    let members = std::mem::take(&mut cluster.members).into_iter();
    let hands = members
        .map(|member| Hand::take(member, &cluster.lab, Arc::clone(timeline)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let began = timeline.now();
    timeline.say("session", "every container serves; the faults begin");
    let settled = carry_out(faults, timeline, &hands, &mut switch).map(|()| {
        timeline.say("session", "the last fault has ended");
        settle(timeline, &recorders, &observer, &hands)
    });
    let lasted = timeline.now() - began;

    let mut troubles = Vec::new();
    for hand in hands {
        let (member, more) = hand.give_back()?;
        cluster.members.push(member);
        troubles.extend(more);
    }
    let (stuck, leftovers) = settled?;
    let mut records = BTreeMap::new();
    for (name, recorder) in names.iter().zip(recorders) {
        records.insert(name.clone(), recorder.finish()?);
    }
    Ok(Evidence {
        copies: observer.finish()?,
        accounts: ledger.finish()?,
        records,
        stuck,
        leftovers,
        troubles,
        began,
        lasted,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Begins,
    Within,
    Ends,
}

fn carry_out(faults: &[Fault], timeline: &Timeline, hands: &[Hand], switch: &mut Switch) -> anyhow::Result<()> {
    let mut moments = Vec::new();
    for fault in faults {
        moments.extend([(fault.at, Moment::Begins, fault, None), (fault.until, Moment::Ends, fault, None)]);
        let steps = fault.steps(NODES).into_iter();
        moments.extend(steps.map(|(at, step)| (at, Moment::Within, fault, Some(step))));
    }
    moments.sort_by_key(|(at, moment, ..)| (*at, *moment));
    let start = timeline.now();
    let mut load = None;
    for (at, moment, fault, step) in moments {
        thread::sleep((start + Duration::from_millis(at)).saturating_sub(timeline.now()));
        match (moment, step) {
            (Moment::Begins, _) => timeline.say("FAULT", &format!("{}: {}", fault.number, fault.kind)),
            (Moment::Ends, _) => timeline.say("fault", &format!("{} ends: {}", fault.number, fault.kind)),
            (_, Some(Step::Block(block))) => switch.block(block)?,
            (_, Some(Step::Unblock(block))) => switch.unblock(block)?,
            (_, Some(Step::Node(place, op))) => hands[place.0].order(op),
            (_, Some(Step::LoadBegins)) => load = Some(Load::begin()),
            (_, Some(Step::LoadEnds)) => drop(load.take()),
            (Moment::Within, None) => {}
        }
    }
    Ok(())
}

/// Waits until every container serves from one copy and every manager sees all nodes: the containers and nodes of which that does
/// not come true in time, and the copies that are too many.
fn settle(
    timeline: &Timeline,
    recorders: &[Recorder],
    observer: &Observer,
    hands: &[Hand],
) -> (Vec<String>, Vec<String>) {
    let start = timeline.now();
    loop {
        let now = timeline.now();
        let served = |recorder: &Recorder| recorder.is_served(now, STEADY);
        let stuck = containers::ALL.iter().zip(recorders).filter(|(_, recorder)| !served(recorder));
        let mut stuck: Vec<String> = stuck.map(|(container, _)| container.name.to_owned()).collect();
        let lonely = hands.iter().enumerate().filter(|(_, hand)| hand.sees_alive() < NODES);
        stuck.extend(lonely.map(|(node, _)| Place(node).to_string()));
        let sight = observer.sight.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let surplus: Vec<String> = sight.iter().flat_map(|(name, copies)| surplus(name, copies)).collect();
        let over = now - start > SETTLE;
        if over || stuck.is_empty() && surplus.is_empty() {
            let took = (now - start).as_secs_f64();
            timeline.say(
                "session",
                &format!("quiet {took:.1} s after the last fault; stuck: {stuck:?}, too many: {surplus:?}"),
            );
            return (stuck, surplus);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn surplus(name: &str, copies: &Copies) -> Vec<String> {
    let all = copies.now();
    if all.len() < 2 {
        return Vec::new();
    }
    all.iter()
        .map(|seen| format!("{name}: process {} on {}, one of {}", seen.copy.pid, seen.copy.node, all.len()))
        .collect()
}

/// Copies every node's events and log out of the laboratory.
fn keep(cluster: &Cluster, dir: &Path) -> anyhow::Result<()> {
    for member in &cluster.members {
        let name = member.node.name();
        member.keep_log(&dir.join(format!("{name}.log")))?;
        for file in ["events.jsonl.1", "events.jsonl"] {
            let (from, to) = (member.node.disk().join("state").join(file), dir.join(format!("{name}-{file}")));
            if from.exists() {
                fs::copy(&from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
            }
        }
    }
    Ok(())
}
