//! Reading and creating records, as `store::record` and `ownership::claim` do.

use std::collections::{BTreeMap, BTreeSet};

use super::{Away, Ctx};
use crate::{
    ownership::{
        History,
        lineage::{self, Begun},
        silence::Traces,
    },
    sim::{
        node::{name, number},
        store::{Answer, Key, Op, Prefix, Record},
    },
    spec::{Epoch, SnapshotId},
};

/// What became of a creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    Won,
    Lost(Record),
}

/// The records of one container.
#[derive(Debug, Clone, Default)]
pub struct Epochs {
    pub owners: BTreeMap<Epoch, Record>,
    pub bases: BTreeMap<Epoch, Record>,
}

impl Epochs {
    fn of(listed: impl IntoIterator<Item = (Key, Record)>) -> BTreeMap<usize, Self> {
        let mut all: BTreeMap<usize, Self> = BTreeMap::new();
        for (key, record) in listed {
            match key {
                Key::Owner(container, epoch) => drop(all.entry(container).or_default().owners.insert(epoch, record)),
                Key::Base(container, epoch) => drop(all.entry(container).or_default().bases.insert(epoch, record)),
                _ => {}
            }
        }
        all
    }

    pub fn newest(&self) -> Option<(Epoch, Record)> {
        self.owners.last_key_value().map(|(epoch, record)| (*epoch, *record))
    }

    pub fn begun(&self, epoch: Epoch) -> Begun {
        match (self.owners.get(&epoch), self.bases.get(&epoch)) {
            (_, None) => Begun::NotYet,
            (Some(owner), Some(base)) if owner.nonce == base.nonce => Begun::ByOwner(name(owner.node)),
            _ => Begun::Never,
        }
    }

    /// Who may run a copy.
    pub fn holder(&self) -> Option<usize> {
        let newest_first = self.owners.keys().rev().map(|epoch| self.begun(*epoch));
        lineage::holder(newest_first).as_ref().and_then(number)
    }

    pub fn history(&self) -> History {
        let mut history = History::default();
        self.owners.keys().for_each(|epoch| history.add_epoch(*epoch));
        self.bases.iter().for_each(|(epoch, base)| history.add_base(*epoch, base.base));
        history
    }
}

pub async fn create(ctx: &Ctx, key: Key, record: Record) -> Result<Created, Away> {
    match ctx.call(Op::Create(key, record)).await {
        Ok(Answer::Created) => Ok(Created::Won),
        Ok(_) => read_back(ctx, key, record).await,
        // The answer may be all that was lost.
        Err(Away) => read_back(ctx, key, record).await,
    }
}

async fn read_back(ctx: &Ctx, key: Key, record: Record) -> Result<Created, Away> {
    match get(ctx, key).await? {
        Some(there) if there.nonce == record.nonce => Ok(Created::Won),
        Some(there) => Ok(Created::Lost(there)),
        None => Err(Away),
    }
}

pub async fn get(ctx: &Ctx, key: Key) -> Result<Option<Record>, Away> {
    match ctx.call(Op::Get(key)).await? {
        Answer::Found(found) => Ok(found),
        _ => Err(Away),
    }
}

pub async fn list(ctx: &Ctx, prefix: Prefix) -> Result<Vec<(Key, Record)>, Away> {
    match ctx.call(Op::List(prefix)).await? {
        Answer::Listed(listed) => Ok(listed),
        _ => Err(Away),
    }
}

pub async fn epochs_of(ctx: &Ctx, container: usize) -> Result<Epochs, Away> {
    let listed = list(ctx, Prefix::OwnersOf(container)).await?;
    Ok(Epochs::of(listed).remove(&container).unwrap_or_default())
}

pub async fn all_epochs(ctx: &Ctx) -> Result<BTreeMap<usize, Epochs>, Away> {
    Ok(Epochs::of(list(ctx, Prefix::Owners).await?))
}

pub async fn manifests(ctx: &Ctx, container: usize) -> Result<Vec<SnapshotId>, Away> {
    let listed = list(ctx, Prefix::ManifestsOf(container)).await?;
    Ok(listed.into_iter().filter_map(|(key, _)| if let Key::Manifest(_, id) = key { Some(id) } else { None }).collect())
}

/// Lists the marks of the nodes' lives; this node remembers what it saw.
pub async fn look_for_life(ctx: &Ctx) -> Result<Traces, Away> {
    let found = traces(ctx).await;
    ctx.manager(|manager, now| match &found {
        Ok(traces) => manager.silence.looked(now, traces.clone()),
        Err(Away) => manager.silence.failed(),
    });
    found
}

async fn traces(ctx: &Ctx) -> Result<Traces, Away> {
    let mut traces = Traces::default();
    for (key, _) in list(ctx, Prefix::Beats).await? {
        if let Key::Beat(node, beat) = key {
            traces.beats.entry(name(node)).or_default().insert(beat);
        }
    }
    let parked = list(ctx, Prefix::Parked).await?;
    let mark = |(key, _)| if let Key::Parked(node, _) = key { Some(name(node)) } else { None };
    traces.parked = parked.into_iter().filter_map(mark).collect::<BTreeSet<_>>();
    Ok(traces)
}

/// A record of this node's, with a nonce that no other has.
pub fn record(ctx: &Ctx, base: Option<SnapshotId>) -> Record {
    Record { node: ctx.node, nonce: ctx.with(|state| state.unique()), base }
}
