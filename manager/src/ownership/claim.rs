//! The store's side of ownership: reading, claiming, recording the base.

use std::collections::BTreeMap;

use chrono::{DateTime, SubsecRound, Utc};
use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::{History, Rest, rest};
use crate::{
    spec::{ContainerName, Epoch, NodeName, SnapshotId},
    store::{
        Newest, Store, StoreError, keys,
        record::{self, Created, Record},
    },
};

/// `owners/<container>/<epoch>`: who owns the container under this epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub epoch: Epoch,
    pub node: NodeName,
    pub nonce: String,
    /// The claimant's clock; for people.
    pub at: DateTime<Utc>,
    /// The container was removed: nobody owns it, and nothing from before counts.
    #[serde(default)]
    pub released: bool,
}

impl Record for Owner {
    fn nonce(&self) -> &str {
        &self.nonce
    }
}

/// `owners/<container>/<epoch>.base`: what the owner of the epoch found when it took over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BaseRecord {
    base: Option<SnapshotId>,
    nonce: String,
}

impl BaseRecord {
    /// Whether the owner of the epoch settled it itself, and not a later one in passing.
    pub(super) fn is_of(&self, owner: &Owner) -> bool {
        self.nonce == owner.nonce
    }
}

impl Record for BaseRecord {
    fn nonce(&self) -> &str {
        &self.nonce
    }
}

/// One intention of one node to own one container. After a retryable error, claim again with the *same* claimant:
/// then a claim whose answer was lost is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    pub node: NodeName,
    pub nonce: String,
}

impl Claimant {
    pub fn new(node: NodeName) -> Self {
        Self { node, nonce: record::nonce() }
    }
}

/// What became of [`claim`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Call [`take_over`] or [`take_base`] next; run nothing before.
    Won(Owner),
    /// The newest owner there is.
    Lost(Owner),
}

#[derive(Debug, thiserror::Error)]
pub enum OwnershipError {
    #[error("ownership of {container}: the store failed")]
    Store { container: ContainerName, source: Box<StoreError> },
    #[error(
        "{container} was taken over by {} under epoch {} while this node held epoch {held}; this node must not run it",
        by.node, by.epoch
    )]
    Deposed { container: ContainerName, held: Epoch, by: Box<Owner> },
    #[error(
        "the record of {container}'s epoch {epoch} does not match: expected nonce {nonce} of this node; \
         someone wrote to the store by hand"
    )]
    Foreign { container: ContainerName, epoch: Epoch, nonce: String },
}

impl OwnershipError {
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.is_retryable())
    }
}

pub(super) fn store_error(container: &ContainerName) -> impl Fn(StoreError) -> OwnershipError + '_ {
    move |source| OwnershipError::Store { container: container.clone(), source: Box::new(source) }
}

/// The newest owner, one who released it included; `None` if nobody ever claimed it.
pub async fn current(store: &Store, container: &ContainerName) -> Result<Option<Owner>, OwnershipError> {
    match epochs(store, container).await?.last_key_value() {
        Some((epoch, _)) => owner(store, container, *epoch).await.map(Some),
        None => Ok(None),
    }
}

/// Tries to become the owner after `expected` (`None`: nobody was).
///
/// Of several claimants at most one wins, whatever is lost on the way. A winner has also seen, after its claim, that no
/// later epoch exists.
///
/// # Errors
/// After a retryable error the claim may stand: repeat it with the same claimant.
pub async fn claim(
    store: &Store,
    container: &ContainerName,
    expected: Option<Epoch>,
    claimant: &Claimant,
) -> Result<Claim, OwnershipError> {
    create(store, container, expected, claimant, false).await
}

/// Removes the container: claims the next epoch as nobody's and records that nothing from before counts.
///
/// `held` is the epoch this node knows. Afterwards its snapshots may be deleted; a later owner claims the epoch after.
pub async fn release(
    store: &Store,
    container: &ContainerName,
    held: Epoch,
    claimant: &Claimant,
) -> Result<Claim, OwnershipError> {
    let outcome = create(store, container, Some(held), claimant, true).await?;
    if let Claim::Won(owner) = &outcome {
        write_base(store, container, owner, None).await?;
    }
    Ok(outcome)
}

async fn create(
    store: &Store,
    container: &ContainerName,
    expected: Option<Epoch>,
    claimant: &Claimant,
    released: bool,
) -> Result<Claim, OwnershipError> {
    let epoch = expected.map_or(Epoch(1), Epoch::next);
    let owner = Owner {
        epoch,
        node: claimant.node.clone(),
        nonce: claimant.nonce.clone(),
        at: Utc::now().trunc_subsecs(3),
        released,
    };
    let created = record::create(store, &keys::owner(container, epoch), &owner).await;
    let created = created.map_err(store_error(container))?;
    // Also a winner looks: an epoch claimed on stale knowledge is no ownership if later ones exist.
    let newest = current(store, container).await?;
    Ok(match (created, newest) {
        (Created::Won, Some(newest)) if newest.epoch > epoch => Claim::Lost(newest),
        (Created::Won, Some(there)) => Claim::Won(there),
        (Created::Won, None) => Claim::Won(owner),
        (Created::Lost(other), newest) => Claim::Lost(newest.unwrap_or(other)),
    })
}

/// What the owner of an epoch found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// What to restore from.
    pub base: Option<SnapshotId>,
    /// The container is at rest: nothing of it is begun.
    pub rest: Option<Rest>,
}

/// Finds what to go on from and settles it: nothing a predecessor commits from now on counts, and a container that was at rest
/// stays so.
///
/// Called after [`claim`] was won and before anything runs. Repeating it gives the same answer.
///
/// # Errors
/// [`OwnershipError::Deposed`] if a later owner exists by now.
pub async fn take_over(store: &Store, container: &ContainerName, owner: &Owner) -> Result<Taken, OwnershipError> {
    let epochs = settle_before(store, container, owner.epoch).await?;
    let rest = match epochs.get(&owner.epoch) {
        // Settled by an earlier call, or at rest since.
        Some(Recorded { rest: true, .. }) => rest::at_rest(store, container, owner.epoch).await?,
        Some(Recorded { base: true, .. }) => None,
        // Before the base: an epoch that has a base and no rest may have begun the container.
        _ => rest::carry(store, container, &epochs, owner.epoch, &owner.nonce).await?,
    };
    Ok(Taken { base: settle_base(store, container, owner, epochs).await?, rest })
}

/// As [`take_over`], by an order to begin the container, whether it was at rest or not: from here on it is not.
///
/// # Errors
/// As [`take_over`].
pub async fn take_base(
    store: &Store,
    container: &ContainerName,
    owner: &Owner,
) -> Result<Option<SnapshotId>, OwnershipError> {
    let epochs = settle_before(store, container, owner.epoch).await?;
    settle_base(store, container, owner, epochs).await
}

async fn settle_base(
    store: &Store,
    container: &ContainerName,
    owner: &Owner,
    epochs: Epochs,
) -> Result<Option<SnapshotId>, OwnershipError> {
    let history = history_of(store, container, &epochs).await?;
    // Listed after the claim: the argument in docs/ownership.md rests on this order.
    let committed = committed(store, container).await?;
    let base = history.base_for(owner.epoch, committed);
    let base = write_base(store, container, owner, base).await?;
    ensure_current(store, container, owner).await?;
    Ok(base)
}

/// Settles the base of every earlier epoch that has none: its owner stalled or died between its claim and its base. Settled
/// later, it could take away what this owner is about to go on from. Returns the epochs as they are then.
pub(super) async fn settle_before(
    store: &Store,
    container: &ContainerName,
    epoch: Epoch,
) -> Result<Epochs, OwnershipError> {
    let mut last = None;
    loop {
        let listed = epochs(store, container).await?;
        let history = history_of(store, container, &listed).await?;
        let Some(gap) = history.without_base(epoch).filter(|gap| Some(*gap) > last) else { return Ok(listed) };
        let there = owner(store, container, gap).await?;
        let nonce = Claimant::new(there.node).nonce;
        let base = if there.released {
            None
        } else {
            rest::carry(store, container, &listed, gap, &nonce).await?;
            history.base_for(gap, committed(store, container).await?)
        };
        let record = BaseRecord { base, nonce };
        // Whoever wrote it: it is settled.
        record::create(store, &keys::base(container, gap), &record).await.map_err(store_error(container))?;
        last = Some(gap);
    }
}

async fn write_base(
    store: &Store,
    container: &ContainerName,
    owner: &Owner,
    base: Option<SnapshotId>,
) -> Result<Option<SnapshotId>, OwnershipError> {
    let record = BaseRecord { base, nonce: owner.nonce.clone() };
    let created = record::create(store, &keys::base(container, owner.epoch), &record).await;
    match created.map_err(store_error(container))? {
        // Ours; perhaps of an earlier attempt, whose answer then stands.
        Created::Won => {
            let there: BaseRecord =
                record::read(store, &keys::base(container, owner.epoch)).await.map_err(store_error(container))?;
            Ok(there.base)
        }
        Created::Lost(_) => {
            // A later owner settled it in passing.
            ensure_current(store, container, owner).await?;
            Err(OwnershipError::Foreign {
                container: container.clone(),
                epoch: owner.epoch,
                nonce: owner.nonce.clone(),
            })
        }
    }
}

/// One read: whether `held` is still the newest epoch. Epochs are claimed without gaps, so the next one tells.
pub async fn ensure_current(store: &Store, container: &ContainerName, held: &Owner) -> Result<(), OwnershipError> {
    check_epoch(store, container, held.epoch).await
}

/// As [`ensure_current`], for callers that know the epoch only.
pub async fn check_epoch(store: &Store, container: &ContainerName, held: Epoch) -> Result<(), OwnershipError> {
    let next: Option<Owner> =
        record::read_opt(store, &keys::owner(container, held.next())).await.map_err(store_error(container))?;
    match next {
        None => Ok(()),
        Some(next) => {
            let by = current(store, container).await?.unwrap_or(next);
            Err(OwnershipError::Deposed { container: container.clone(), held, by: Box::new(by) })
        }
    }
}

/// All epochs and bases of a container.
pub async fn history(store: &Store, container: &ContainerName) -> Result<History, OwnershipError> {
    history_of(store, container, &epochs(store, container).await?).await
}

async fn history_of(store: &Store, container: &ContainerName, epochs: &Epochs) -> Result<History, OwnershipError> {
    let mut history = History::default();
    epochs.keys().for_each(|epoch| history.add_epoch(*epoch));
    let bases: Vec<Epoch> = epochs.iter().filter(|(_, recorded)| recorded.base).map(|(epoch, _)| *epoch).collect();
    let reads = bases.into_iter().map(|epoch| async move {
        let base: BaseRecord = record::read(store, &keys::base(container, epoch)).await?;
        Ok((epoch, base.base))
    });
    let read: Vec<_> =
        futures_util::stream::iter(reads).buffer_unordered(16).try_collect().await.map_err(store_error(container))?;
    read.into_iter().for_each(|(epoch, base)| history.add_base(epoch, base));
    Ok(history)
}

/// How many times another node than the owner before claimed the container since `since`, by the claimants' clocks. What a node claims
/// after itself, for an order, is no such; nor is the first claim of all or after a removal. Looks at the last 32 claims only.
pub async fn moves_since(
    store: &Store,
    container: &ContainerName,
    since: DateTime<Utc>,
) -> Result<u32, OwnershipError> {
    let mut count = 0;
    let mut later: Option<Owner> = None;
    for epoch in epochs(store, container).await?.into_keys().rev().take(33) {
        let before = owner(store, container, epoch).await?;
        let moved =
            |later: &Owner| later.at >= since && later.node != before.node && !later.released && !before.released;
        count += u32::from(later.as_ref().is_some_and(moved));
        later = Some(before);
    }
    Ok(count)
}

/// The newest owner of every container that ever had one.
///
/// An unreadable record is reported beside the others, so that one damaged object does not stop a node. What is in `known` is not
/// read again.
pub async fn all(
    store: &Store,
    known: &Newest<Owner>,
) -> Result<BTreeMap<ContainerName, Result<Owner, OwnershipError>>, StoreError> {
    // Records of owners are never deleted: in a long time there are more than a listing may have.
    let newest = store.fold(keys::OWNERS, BTreeMap::new(), |newest: &mut BTreeMap<ContainerName, u64>, key| {
        let Some((name, file)) = key.strip_prefix(keys::OWNERS).and_then(|key| key.split_once('/')) else { return };
        if let (Ok(container), Some(epoch)) = (name.parse(), keys::number(file)) {
            let known = newest.entry(container).or_insert(epoch);
            *known = (*known).max(epoch);
        }
    });
    let read = |container: ContainerName, epoch| async move {
        match owner(store, &container, Epoch(epoch)).await {
            Err(OwnershipError::Store { source, .. }) if source.is_away() => Err(*source),
            other => Ok(other),
        }
    };
    known.of(newest.await?, read).await
}

/// The snapshots with a manifest, whether they count or not; in order.
pub async fn committed(store: &Store, container: &ContainerName) -> Result<Vec<SnapshotId>, OwnershipError> {
    let listed = store.list(&keys::snapshots(container)).await.map_err(store_error(container))?;
    Ok(listed
        .iter()
        .filter_map(|o| keys::parse_snapshot_object(container, &o.key))
        .filter_map(|(id, file)| (file == keys::MANIFEST).then_some(id))
        .collect())
}

/// The number of the next snapshot under `epoch` when nobody remembers the last one: after every one of which anything is in the
/// store, half an upload too.
pub async fn next_seq(store: &Store, container: &ContainerName, epoch: Epoch) -> Result<u64, OwnershipError> {
    let listed = store.list(&keys::snapshots(container)).await.map_err(store_error(container))?;
    let ids = listed.iter().filter_map(|object| keys::parse_snapshot_object(container, &object.key)).map(|(id, _)| id);
    Ok(ids.filter(|id| id.epoch == epoch).map(|id| id.seq).max().unwrap_or(0) + 1)
}

pub(super) async fn owner(store: &Store, container: &ContainerName, epoch: Epoch) -> Result<Owner, OwnershipError> {
    let key = keys::owner(container, epoch);
    let owner: Owner = record::read(store, &key).await.map_err(store_error(container))?;
    if owner.epoch != epoch {
        let what = format!("it says epoch {}", owner.epoch);
        return Err(store_error(container)(StoreError::Corrupt { key, what }));
    }
    Ok(owner)
}

/// What is recorded beside an epoch's owner.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Recorded {
    pub base: bool,
    pub rest: bool,
}

pub(super) type Epochs = BTreeMap<Epoch, Recorded>;

pub(super) async fn epochs(store: &Store, container: &ContainerName) -> Result<Epochs, OwnershipError> {
    let prefix = keys::owners(container);
    let listed = store.list(&prefix).await.map_err(store_error(container))?;
    let mut epochs = Epochs::new();
    for object in &listed {
        let Some(file) = object.key.strip_prefix(&prefix) else { continue };
        let (number, beside) = file.split_once('.').map_or((file, None), |(number, beside)| (number, Some(beside)));
        let Some(epoch) = keys::number(number).map(Epoch) else { continue };
        match beside {
            None => drop(epochs.entry(epoch).or_default()),
            Some("base") => epochs.entry(epoch).or_default().base = true,
            Some("rest") => epochs.entry(epoch).or_default().rest = true,
            Some(_) => {}
        }
    }
    Ok(epochs)
}
