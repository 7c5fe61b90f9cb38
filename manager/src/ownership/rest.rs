//! A container that has come to rest: its program ended as it may, or all that its policy has was tried in vain. The store
//! knows it, so that no later owner begins it again by itself. `docs/ownership.md` has the argument.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    Owner, OwnershipError,
    claim::{Epochs, Recorded, ensure_current, store_error},
};
use crate::{
    spec::{ContainerName, Epoch},
    store::{
        Store, keys,
        record::{self, Created, Record},
    },
};

/// How it came to rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    pub outcome: Outcome,
    /// A sentence.
    pub why: String,
    /// The main process's exit code, where its end is the reason.
    #[serde(default)]
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    #[serde(default)]
    pub signal: Option<String>,
    /// The epoch under which it came to rest; its later owners found it so.
    pub since: Epoch,
    /// By its node's clock; for people.
    pub at: DateTime<Utc>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The main process ended, and its restart policy leaves it so.
    Finished,
    /// Its recovery policy has nothing more to try.
    Failed,
}

/// `owners/<container>/<epoch>.rest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RestRecord {
    #[serde(flatten)]
    rest: Rest,
    nonce: String,
}

impl Record for RestRecord {
    fn nonce(&self) -> &str {
        &self.nonce
    }
}

/// Writes down that the container has come to rest under `owner`'s epoch. Once it returns `Ok`, every later owner finds it so,
/// until an order begins the container under an epoch of its own.
///
/// From the first call on nothing may be begun under this epoch any more, whatever became of the call: the record may still
/// appear. Repeating it is no error.
///
/// # Errors
/// [`OwnershipError::Deposed`] if a later owner exists by now: then it may count or not.
pub async fn rest(store: &Store, container: &ContainerName, owner: &Owner, rest: &Rest) -> Result<(), OwnershipError> {
    let there = write(store, container, owner.epoch, rest, &owner.nonce).await?;
    ensure_current(store, container, owner).await?;
    match there {
        Created::Won => Ok(()),
        Created::Lost(_) => Err(OwnershipError::Foreign {
            container: container.clone(),
            epoch: owner.epoch,
            nonce: owner.nonce.clone(),
        }),
    }
}

/// Whether the container rests under `epoch`, whose base is settled.
pub async fn at_rest(store: &Store, container: &ContainerName, epoch: Epoch) -> Result<Option<Rest>, OwnershipError> {
    let there: Option<RestRecord> =
        record::read_opt(store, &keys::rest(container, epoch)).await.map_err(store_error(container))?;
    Ok(there.map(|there| there.rest))
}

/// Lets `epoch`, which has no base yet, begin as the one before it ended: at rest if that was at rest.
pub(super) async fn carry(
    store: &Store,
    container: &ContainerName,
    epochs: &Epochs,
    epoch: Epoch,
    nonce: &str,
) -> Result<Option<Rest>, OwnershipError> {
    let before = epochs.range(..epoch).next_back();
    let Some((before, Recorded { rest: true, .. })) = before else { return Ok(None) };
    let Some(rest) = at_rest(store, container, *before).await? else { return Ok(None) };
    // Whoever wrote it: it is the same.
    write(store, container, epoch, &rest, nonce).await?;
    Ok(Some(rest))
}

async fn write(
    store: &Store,
    container: &ContainerName,
    epoch: Epoch,
    rest: &Rest,
    nonce: &str,
) -> Result<Created<()>, OwnershipError> {
    let record = RestRecord { rest: rest.clone(), nonce: nonce.to_owned() };
    let created =
        record::create(store, &keys::rest(container, epoch), &record).await.map_err(store_error(container))?;
    Ok(match created {
        Created::Won => Created::Won,
        Created::Lost(_) => Created::Lost(()),
    })
}
