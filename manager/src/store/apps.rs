//! `apps/<container>/<generation>`: what should run. A generation is created once; the newest wins; a removed
//! container leaves a generation that says so.

use std::collections::BTreeMap;

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

use super::{
    Newest, Store, StoreError, keys,
    record::{self, Created, Record},
};
use crate::spec::{ContainerName, ContainerSpec, ImageRecord};

/// One generation of a container's application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct App {
    pub generation: u64,
    /// `None`: removed.
    pub content: Option<AppContent>,
    pub nonce: String,
    /// The writer's clock; for people.
    pub at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppContent {
    pub spec: ContainerSpec,
    pub image: ImageRecord,
}

impl Record for App {
    fn nonce(&self) -> &str {
        &self.nonce
    }
}

/// What became of [`put`].
#[derive(Debug, Clone, PartialEq)]
pub enum PutApp {
    Stored(u64),
    /// Somebody applied in between; nothing was changed.
    Conflict(Box<App>),
}

/// Stores the next generation after `expected` (0: none is there yet). `None` as content removes the container.
pub async fn put(
    store: &Store,
    container: &ContainerName,
    expected: u64,
    content: Option<AppContent>,
) -> Result<PutApp, StoreError> {
    if let Some(newest) = newest(store, container).await?.filter(|n| n.generation != expected) {
        return Ok(PutApp::Conflict(Box::new(newest)));
    }
    let generation = expected + 1;
    let app = App { generation, content, nonce: record::nonce(), at: Utc::now().trunc_subsecs(3) };
    match record::create(store, &keys::app(container, generation), &app).await? {
        Created::Won => Ok(PutApp::Stored(generation)),
        Created::Lost(other) => Ok(PutApp::Conflict(Box::new(other))),
    }
}

/// The newest generation, a removal included.
pub async fn newest(store: &Store, container: &ContainerName) -> Result<Option<App>, StoreError> {
    let prefix = keys::apps(container);
    let listed = store.list(&prefix).await?;
    let newest = listed.iter().rev().find_map(|o| keys::number(o.key.strip_prefix(&prefix)?));
    match newest {
        Some(generation) => record::read(store, &keys::app(container, generation)).await.map(Some),
        None => Ok(None),
    }
}

/// The newest generation of every container that has one, removals included.
///
/// An unreadable one is reported beside the others, so that one damaged object does not stop a node. What is in `known` is not read
/// again.
pub async fn all(
    store: &Store,
    known: &Newest<App>,
) -> Result<BTreeMap<ContainerName, Result<App, StoreError>>, StoreError> {
    let mut newest = BTreeMap::new();
    for object in store.list(keys::APPS).await? {
        let Some((name, generation)) = object.key.strip_prefix(keys::APPS).and_then(|k| k.split_once('/')) else {
            continue;
        };
        if let (Ok(container), Some(generation)) = (name.parse::<ContainerName>(), keys::number(generation)) {
            newest.insert(container, generation);
        }
    }
    let read = |container: ContainerName, generation| async move {
        match record::read(store, &keys::app(&container, generation)).await {
            Err(e) if e.is_away() => Err(e),
            other => Ok(other),
        }
    };
    known.of(newest, read).await
}
