//! The words of a scenario file's timeline.

use serde::Deserialize;

use super::{
    file::{Time, node},
    scenario::Fault,
};
use crate::spec::NodeName;

/// One `[[at]]`: a time, and what befalls whom then.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct At {
    pub t: Time,
    /// Each of these from each other.
    cut: Option<Vec<NodeName>>,
    /// Messages of the first to the second vanish.
    cut_one_way: Option<[NodeName; 2]>,
    /// From every other node; not from the store.
    isolate: Option<NodeName>,
    heal: Option<bool>,
    power_cut: Option<NodeName>,
    boot: Option<NodeName>,
    kill_manager: Option<NodeName>,
    stop_manager: Option<NodeName>,
    cont: Option<NodeName>,
    terminate: Option<NodeName>,
    start: Option<NodeName>,
    /// `for` says how long.
    slow: Option<NodeName>,
    #[serde(rename = "for")]
    lasts: Option<Time>,
    store_down: Option<Which>,
    store_up: Option<Which>,
    /// Least and most, one way.
    delay: Option<[Time; 2]>,
    /// In percent.
    loss: Option<f64>,
    clock_drift: Option<Drift>,
    clock_jump: Option<Jump>,
}

/// `"all"`, or some nodes.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected \"all\" or a list of nodes")]
enum Which {
    Word(All),
    Nodes(Vec<NodeName>),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum All {
    All,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Drift {
    node: NodeName,
    /// Fast when positive, at most 1 either way.
    percent: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Jump {
    node: NodeName,
    /// Of the wall clock, ahead when positive.
    seconds: i32,
}

/// What befalls one node.
type Single = fn(usize) -> Fault;

impl At {
    pub fn faults(&self, nodes: usize) -> Result<Vec<Fault>, String> {
        let mut faults = Vec::new();
        self.network(nodes, &mut faults)?;
        let singles: [(_, Single); 7] = [
            (&self.power_cut, Fault::PowerCut),
            (&self.boot, Fault::Boot),
            (&self.kill_manager, Fault::KillManager),
            (&self.stop_manager, Fault::StopManager),
            (&self.cont, Fault::Continue),
            (&self.terminate, Fault::Terminate),
            (&self.start, Fault::Start),
        ];
        for (named, fault) in singles {
            if let Some(named) = named {
                faults.push(fault(node(named, nodes)?));
            }
        }
        match (&self.slow, self.lasts) {
            (Some(named), Some(time)) => faults.push(Fault::Slow(node(named, nodes)?, time.micros())),
            (None, None) => {}
            _ => return Err("`slow` and `for` belong together".to_owned()),
        }
        which(&self.store_down, nodes, Fault::StoreDown, &mut faults)?;
        which(&self.store_up, nodes, Fault::StoreUp, &mut faults)?;
        if let Some(Drift { node: named, percent }) = &self.clock_drift {
            if !(-1.0..=1.0).contains(percent) {
                return Err(format!("clock_drift is {percent} percent; it has to be between -1 and 1"));
            }
            faults.push(Fault::ClockDrift(node(named, nodes)?, (percent * 10_000.0) as i64));
        }
        if let Some(Jump { node: named, seconds }) = &self.clock_jump {
            faults.push(Fault::ClockJump(node(named, nodes)?, i64::from(*seconds) * 1_000_000));
        }
        if faults.is_empty() { Err("an [[at]] without anything that happens".to_owned()) } else { Ok(faults) }
    }

    fn network(&self, nodes: usize, faults: &mut Vec<Fault>) -> Result<(), String> {
        let cut = self.cut.iter().flatten().map(|named| node(named, nodes)).collect::<Result<Vec<_>, _>>()?;
        let pairs = |some: &[usize], others: &[usize], faults: &mut Vec<Fault>| {
            for a in some {
                let apart = others.iter().filter(|b| *b != a);
                faults.extend(apart.flat_map(|b| [Fault::CutOneWay(*a, *b), Fault::CutOneWay(*b, *a)]));
            }
        };
        pairs(&cut, &cut, faults);
        if let Some([from, to]) = &self.cut_one_way {
            faults.push(Fault::CutOneWay(node(from, nodes)?, node(to, nodes)?));
        }
        if let Some(named) = &self.isolate {
            pairs(&[node(named, nodes)?], &(0..nodes).collect::<Vec<_>>(), faults);
        }
        if self.heal == Some(true) {
            faults.push(Fault::Heal);
        }
        if let Some([least, most]) = self.delay {
            if least.0 > most.0 {
                return Err("delay: the least is more than the most".to_owned());
            }
            faults.push(Fault::Delay(least.micros(), most.micros()));
        }
        if let Some(percent) = self.loss {
            if !(0.0..=100.0).contains(&percent) {
                return Err(format!("loss is {percent} percent; it has to be between 0 and 100"));
            }
            faults.push(Fault::Loss((percent * 10.0) as usize));
        }
        Ok(())
    }
}

fn which(
    which: &Option<Which>,
    nodes: usize,
    fault: fn(Option<usize>) -> Fault,
    faults: &mut Vec<Fault>,
) -> Result<(), String> {
    match which {
        None => {}
        Some(Which::Word(All::All)) => faults.push(fault(None)),
        Some(Which::Nodes(named)) => {
            for named in named {
                faults.push(fault(Some(node(named, nodes)?)));
            }
        }
    }
    Ok(())
}
