//! What the records say of a container, and claiming back what a taker has not begun.

use super::{
    claim::{
        self, BaseRecord, Claim, Claimant, Owner, OwnershipError, Recorded, epochs, owner, settle_before, store_error,
    },
    lineage::{self, Begun},
};
use crate::{
    spec::{ContainerName, Epoch, NodeName},
    store::{Store, keys, record},
};

/// Who owns a container, and who may run a copy of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub newest: Owner,
    /// By the newest epoch that its own owner has begun; `None`: nobody. Another node than the owner while a claim is undecided.
    pub holder: Option<NodeName>,
    /// The newest epoch under which somebody else than the holder began, or that ended in a removal; 0: none. What the holder has
    /// begun since is its own, whatever was claimed in between.
    pub since: Epoch,
}

impl Standing {
    /// Whether a copy that `node` began under `epoch` is still the one that may run.
    pub fn may_go_on(&self, node: &NodeName, epoch: Epoch) -> bool {
        self.holder.as_ref() == Some(node) && epoch > self.since && !self.newest.released
    }
}

/// `None` if nobody ever claimed it.
pub async fn standing(store: &Store, container: &ContainerName) -> Result<Option<Standing>, OwnershipError> {
    let mut newest = None;
    let mut begun = Vec::new();
    let mut since = Epoch(0);
    for (epoch, recorded) in epochs(store, container).await?.into_iter().rev() {
        let (owner, this) = read(store, container, epoch, recorded).await?;
        newest.get_or_insert(owner);
        let holder = lineage::holder(begun.iter().cloned());
        let ends = match &this {
            Begun::ByOwner(node) => holder.is_some_and(|holder| holder != *node),
            Begun::Released => true,
            Begun::NotYet | Begun::Never => false,
        };
        begun.push(this);
        if ends {
            since = epoch;
            break;
        }
    }
    Ok(newest.map(|newest| Standing { newest, holder: lineage::holder(begun), since }))
}

async fn read(
    store: &Store,
    container: &ContainerName,
    epoch: Epoch,
    recorded: Recorded,
) -> Result<(Owner, Begun), OwnershipError> {
    let base = async {
        if !recorded.base {
            return Ok(None);
        }
        let base: BaseRecord =
            record::read(store, &keys::base(container, epoch)).await.map_err(store_error(container))?;
        Ok(Some(base))
    };
    let (owner, base) = tokio::try_join!(owner(store, container, epoch), base)?;
    let begun = match base {
        _ if owner.released => Begun::Released,
        None => Begun::NotYet,
        Some(base) if base.is_of(&owner) => Begun::ByOwner(owner.node.clone()),
        Some(_) => Begun::Never,
    };
    Ok((owner, begun))
}

/// What became of [`claim_back`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Back {
    /// It goes on under this epoch: nobody has begun another copy, and nobody before it can.
    Mine(Owner),
    /// Somebody else owns it, or may have begun it before this claim: the copy here is out of date.
    Gone(Owner),
}

/// Claims the epoch after an undecided one, for the node whose copy may still run. To be called when [`standing`] has just said that
/// this node is the holder.
///
/// # Errors
/// After a retryable error the claim may stand: repeat it with the same claimant.
pub async fn claim_back(
    store: &Store,
    container: &ContainerName,
    undecided: &Owner,
    claimant: &Claimant,
) -> Result<Back, OwnershipError> {
    let owner = match claim::claim(store, container, Some(undecided.epoch), claimant).await? {
        Claim::Won(owner) => owner,
        Claim::Lost(other) => return Ok(Back::Gone(other)),
    };
    // From here on who claimed before cannot begin any more; it may have before.
    settle_before(store, container, owner.epoch).await?;
    let standing = standing(store, container).await?;
    if standing.and_then(|standing| standing.holder).is_none_or(|holder| holder != claimant.node) {
        return Ok(Back::Gone(owner));
    }
    // One at rest stays so.
    claim::take_over(store, container, &owner).await?;
    Ok(Back::Mine(owner))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{take_base, take_over},
        *,
    };
    use crate::ownership::release;

    fn container() -> ContainerName {
        "redis".parse().unwrap()
    }

    async fn store(dir: &tempfile::TempDir) -> Store {
        let store = Store::open(&format!("file://{}", dir.path().display())).await.unwrap();
        store.init_or_join("test").await.unwrap();
        store
    }

    async fn won(store: &Store, expected: u64, node: &str) -> Owner {
        let expected = (expected > 0).then_some(Epoch(expected));
        match claim::claim(store, &container(), expected, &claimant(node)).await.unwrap() {
            Claim::Won(owner) => owner,
            Claim::Lost(other) => panic!("lost to {other:?}"),
        }
    }

    fn claimant(node: &str) -> Claimant {
        Claimant::new(node.parse().unwrap())
    }

    async fn holder(store: &Store) -> Option<String> {
        standing(store, &container()).await.unwrap().and_then(|there| there.holder).map(|node| node.to_string())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_undecided_claim_is_taken_back_and_its_owner_can_begin_nothing_after() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        assert_eq!(standing(&store, &container()).await.unwrap(), None);
        let first = won(&store, 0, "n1").await;
        assert_eq!(holder(&store).await, None, "nothing has begun");
        take_over(&store, &container(), &first).await.unwrap();
        let taker = won(&store, 1, "n2").await;
        let there = standing(&store, &container()).await.unwrap().unwrap();
        assert_eq!((there.newest, there.holder), (taker.clone(), Some(first.node.clone())));
        let Back::Mine(back) = claim_back(&store, &container(), &taker, &claimant("n1")).await.unwrap() else {
            panic!("not taken back")
        };
        assert_eq!((back.epoch, holder(&store).await.as_deref()), (Epoch(3), Some("n1")));
        let there = standing(&store, &container()).await.unwrap().unwrap();
        assert!(there.may_go_on(&first.node, first.epoch), "its copy is the one that was begun under the first epoch");
        let late = take_base(&store, &container(), &taker).await.unwrap_err();
        assert!(matches!(&late, OwnershipError::Deposed { by, .. } if by.epoch == Epoch(3)), "{late}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_taker_has_begun_is_not_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        let first = won(&store, 0, "n1").await;
        take_over(&store, &container(), &first).await.unwrap();
        let taker = won(&store, 1, "n2").await;
        take_over(&store, &container(), &taker).await.unwrap();
        let back = claim_back(&store, &container(), &taker, &claimant("n1")).await.unwrap();
        assert!(matches!(back, Back::Gone(Owner { epoch: Epoch(3), .. })), "{back:?}");
        assert_eq!(holder(&store).await.as_deref(), Some("n2"), "it may run there still");
        let there = standing(&store, &container()).await.unwrap().unwrap();
        assert!(!there.may_go_on(&first.node, first.epoch) && there.may_go_on(&taker.node, taker.epoch));
        let beaten = claim_back(&store, &container(), &taker, &claimant("n1")).await.unwrap();
        assert!(matches!(beaten, Back::Gone(_)), "{beaten:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_removed_container_is_held_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        let first = won(&store, 0, "n1").await;
        take_over(&store, &container(), &first).await.unwrap();
        release(&store, &container(), Epoch(1), &claimant("n1")).await.unwrap();
        assert_eq!(holder(&store).await, None);
        won(&store, 2, "n2").await;
        assert_eq!(holder(&store).await, None);
    }
}
