//! Small JSON records that are created once and say who created them.
//!
//! The answer to a successful write can be lost, and a client library may repeat a request by itself: then "already
//! exists" is the answer to the winner. So every record carries a nonce of its writer, and "already exists" is read
//! back and compared.

use serde::{Serialize, de::DeserializeOwned};

use super::{PutNew, Store, StoreError};

/// Records larger than this are not read.
pub const MAX_RECORD: u64 = 1 << 20;

/// A random text that tells one writer from all others.
pub fn nonce() -> String {
    uuid::Uuid::from_bytes(rand::random()).to_string()
}

pub trait Record: Serialize + DeserializeOwned {
    fn nonce(&self) -> &str;
}

/// What became of [`create`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created<T> {
    /// Ours, now or by an earlier attempt with the same nonce.
    Won,
    /// Another writer's, as it stands in the store.
    Lost(T),
}

/// Creates `key` with `record` unless it exists.
///
/// # Errors
/// After a retryable error the record may exist or may yet appear: call again with the *same* record to learn it.
pub async fn create<T: Record>(store: &Store, key: &str, record: &T) -> Result<Created<T>, StoreError> {
    match store.put_new(key, encode(key, record)?.into()).await {
        Ok(PutNew::Created) => Ok(Created::Won),
        Ok(PutNew::AlreadyExists) => {
            let there: T = read(store, key).await?;
            if there.nonce() == record.nonce() { Ok(Created::Won) } else { Ok(Created::Lost(there)) }
        }
        Err(error) if error.is_retryable() => match read_opt::<T>(store, key).await {
            Ok(Some(there)) if there.nonce() == record.nonce() => Ok(Created::Won),
            Ok(Some(there)) => Ok(Created::Lost(there)),
            _ => Err(error),
        },
        Err(error) => Err(error),
    }
}

pub async fn read<T: DeserializeOwned>(store: &Store, key: &str) -> Result<T, StoreError> {
    decode(key, &store.get(key, MAX_RECORD).await?)
}

pub async fn read_opt<T: DeserializeOwned>(store: &Store, key: &str) -> Result<Option<T>, StoreError> {
    match store.get_opt(key, MAX_RECORD).await? {
        Some(bytes) => decode(key, &bytes).map(Some),
        None => Ok(None),
    }
}

fn encode<T: Serialize>(key: &str, record: &T) -> Result<Vec<u8>, StoreError> {
    let internal = |source| StoreError::Internal { op: "encode", key: key.to_owned(), source };
    let bytes = serde_json::to_vec(record).map_err(|e| internal(e.into()))?;
    if bytes.len() as u64 > MAX_RECORD {
        return Err(StoreError::TooLarge { key: key.to_owned(), size: bytes.len() as u64, max: MAX_RECORD });
    }
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|e| StoreError::Corrupt { key: key.to_owned(), what: e.to_string() })
}
