//! Layers that no container needs any more: on this node, and in the store. `docs/images.md` says why nothing goes that is in
//! use or about to be.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio::{sync::RwLock, task::JoinHandle};

use super::Node;
use crate::{
    image::{self, ImageError, KEPT_AT_LEAST},
    membership::Liveness,
    recovery::blocking,
    store::{
        Listed, Newest, Store, StoreError,
        apps::{self, App},
        keys, record,
    },
};

/// How often it is looked for what is in no use.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// What holds up a container that is to be mounted is given up after this long.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum UnusedError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("cannot read {0}")]
    Io(&'static str, #[source] std::io::Error),
    #[error("an application cannot be read, so what it needs is not known")]
    Unreadable(#[source] StoreError),
}

/// Looks from time to time, beside everything else.
pub(super) struct Unused {
    due: Instant,
    memory: Memory,
    under_way: Option<JoinHandle<(Memory, Vec<String>)>>,
}

/// What one look remembers for the next.
#[derive(Default)]
struct Memory {
    /// Layers here that nothing needed at the last look.
    idle: HashSet<String>,
    /// The layers of each generation of an application; they never change.
    layers: HashMap<String, Vec<String>>,
}

impl Unused {
    pub(super) fn new() -> Self {
        Self { due: Instant::now() + LOOK_EVERY, memory: Memory::default(), under_way: None }
    }

    /// Begins a look when one is due. `ready` is what is known to be here; what was removed is taken out of it.
    pub(super) async fn tend(&mut self, node: &Arc<Node>, ready: &mut HashSet<String>) {
        if let Some(task) = self.under_way.take_if(|task| task.is_finished()) {
            let (memory, gone) = task.await.unwrap_or_default();
            self.memory = memory;
            ready.retain(|digest| !gone.contains(digest));
        }
        if self.under_way.is_some() || Instant::now() < self.due {
            return;
        }
        self.due = Instant::now() + LOOK_EVERY;
        let (node, memory) = (Arc::clone(node), std::mem::take(&mut self.memory));
        self.under_way = Some(tokio::spawn(look(node, memory)));
    }
}

impl Drop for Unused {
    fn drop(&mut self) {
        self.under_way.iter().for_each(JoinHandle::abort);
    }
}

async fn look(node: Arc<Node>, mut memory: Memory) -> (Memory, Vec<String>) {
    let ctx = &node.ctx;
    let here = prune_here(&ctx.store, &ctx.layers_dir(), &ctx.mounting, &mut memory.idle).await;
    let gone = here.unwrap_or_else(|error| {
        tracing::warn!(error = crate::chain(&error), "unused layers on this node are not removed");
        Vec::new()
    });
    // One node is enough; two do no harm.
    let first = ctx.membership.peers().iter().all(|peer| peer.liveness != Liveness::Alive || peer.name > *node.name());
    if first {
        match prune_store(&ctx.store, &mut memory.layers).await {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::info!(?removed, "removed layers from the store that no container needs"),
            Err(error) => tracing::warn!(error = crate::chain(&error), "unused layers are not removed from the store"),
        }
    }
    if !gone.is_empty() {
        tracing::info!(?gone, "removed layers from this node that no container needs");
    }
    (memory, gone)
}

/// Removes layers on this node that were needed neither at the last look nor now.
async fn prune_here(
    store: &Store,
    layers: &Path,
    mounting: &RwLock<()>,
    idle: &mut HashSet<String>,
) -> Result<Vec<String>, UnusedError> {
    let removed = {
        // While a container is being mounted is no time for this; and whoever begins later finds the layer or fetches it.
        let Ok(_quiet) = mounting.try_write() else { return Ok(Vec::new()) };
        let Ok(apps) = tokio::time::timeout(PATIENCE, apps::all(store, &Newest::default())).await else {
            return Ok(Vec::new());
        };
        let mut needed = HashSet::new();
        for app in apps?.into_values() {
            needed.extend(digests(&app.map_err(UnusedError::Unreadable)?));
        }
        let (layers, before) = (layers.to_owned(), std::mem::take(idle));
        let (removed, still_idle) = blocking(move || {
            // A copy that is no longer described may still run.
            let mounts = fs::read_to_string("/proc/self/mountinfo");
            let mounts = mounts.map_err(|error| UnusedError::Io("/proc/self/mountinfo", error))?;
            let there = fs::read_dir(&layers).into_iter().flatten().flatten();
            let there = there.filter_map(|entry| entry.file_name().into_string().ok());
            let (idle, mut keep): (HashSet<String>, HashSet<String>) =
                there.partition(|name| !needed.contains(name) && !mounts.contains(name.as_str()));
            let new: HashSet<String> = idle.difference(&before).cloned().collect();
            keep.extend(new.iter().cloned());
            Ok::<_, UnusedError>((image::retire(&layers, &keep)?, new))
        })
        .await?;
        *idle = still_idle;
        removed
    };
    let layers = layers.to_owned();
    blocking(move || image::clear(&layers)).await?;
    Ok(removed)
}

/// Removes layers from the store that an application had once and none has now, when they are old.
async fn prune_store(store: &Store, known: &mut HashMap<String, Vec<String>>) -> Result<Vec<String>, UnusedError> {
    // First the objects, then who needs them: whoever comes to need one later has to write it anew.
    let now = store.clock().await?;
    let blobs = store.list(keys::BLOBS).await?;
    let (needed, former) = references(store, known).await?;
    let mut removed = Vec::new();
    for key in doomed(&blobs, &needed, &former, now) {
        let old = |object: Listed| now - object.modified >= KEPT_AT_LEAST;
        if store.stat(&key).await?.is_some_and(old) {
            store.delete(&key).await?;
            removed.push(key);
        }
    }
    Ok(removed)
}

/// Pure. Only what is known to have been a layer goes: agents are blobs, too.
fn doomed(blobs: &[Listed], needed: &HashSet<String>, former: &HashSet<String>, now: DateTime<Utc>) -> Vec<String> {
    let unused = |digest: &str| former.contains(digest) && !needed.contains(digest);
    let of = |blob: &&Listed| blob.key.strip_prefix(keys::BLOBS).is_some_and(unused);
    blobs.iter().filter(of).filter(|blob| now - blob.modified >= KEPT_AT_LEAST).map(|blob| blob.key.clone()).collect()
}

/// The layers of the newest generations, and those of all earlier ones.
async fn references(
    store: &Store,
    known: &mut HashMap<String, Vec<String>>,
) -> Result<(HashSet<String>, HashSet<String>), UnusedError> {
    let mut newest: HashMap<String, String> = HashMap::new();
    let listed: Vec<String> = store.list(keys::APPS).await?.into_iter().map(|object| object.key).collect();
    for key in &listed {
        if let Some((container, _)) = key.rsplit_once('/') {
            newest.insert(container.to_owned(), key.clone());
        }
    }
    let (mut needed, mut former) = (HashSet::new(), HashSet::new());
    for key in listed {
        let is_newest = newest.values().any(|newest| *newest == key);
        if !known.contains_key(&key) {
            match record::read::<App>(store, &key).await {
                Ok(app) => drop(known.insert(key.clone(), digests(&app))),
                // Of what was once needed it may be said too little.
                Err(error) if !is_newest && !error.is_retryable() => continue,
                Err(error) => return Err(UnusedError::Unreadable(error)),
            }
        }
        let layers = known.get(&key).into_iter().flatten().cloned();
        if is_newest { needed.extend(layers) } else { former.extend(layers) }
    }
    Ok((needed, former))
}

fn digests(app: &App) -> Vec<String> {
    let layers = app.content.iter().flat_map(|content| &content.image.layers);
    layers.map(|layer| layer.digest.clone()).collect()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::{
        spec::{ContainerName, ImageRecord, Layer},
        store::apps::AppContent,
    };

    fn digest(n: u8) -> String {
        format!("{n:02x}").repeat(32)
    }

    fn content(layers: &[u8]) -> AppContent {
        let layers = layers.iter().map(|n| Layer { digest: digest(*n), size_bytes: 1 }).collect();
        let image = ImageRecord { reference: "x".into(), config: Default::default(), layers };
        let compose = "services:\n  c:\n    image: /x\n    command: [x]\n";
        let file = crate::compose::parse(compose, "test.yaml", &|_| None).unwrap();
        AppContent { spec: file.containers.into_iter().next().unwrap(), image }
    }

    /// A store with applications: `a` had layers 1 and 2 and has 2 and 3; `gone` had 4 and is removed.
    async fn store(dir: &Path) -> Store {
        let store = Store::open(&format!("file://{}", dir.display())).await.unwrap();
        let [a, gone]: [ContainerName; 2] = ["a", "gone"].map(|name| name.parse().unwrap());
        for (name, expected, content) in [
            (&a, 0, Some(content(&[1, 2]))),
            (&a, 1, Some(content(&[2, 3]))),
            (&gone, 0, Some(content(&[4]))),
            (&gone, 1, None),
        ] {
            apps::put(&store, name, expected, content).await.unwrap();
        }
        store
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_old_layers_that_were_needed_once_and_are_no_more_go_from_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let old = std::time::SystemTime::now() - KEPT_AT_LEAST.to_std().unwrap() - Duration::from_secs(60);
        let mut known = HashMap::new();
        let blob = |n: u8| dir.path().join("blobs").join(digest(n));
        fs::create_dir(dir.path().join("blobs")).unwrap();
        // 5 is an agent, or an image that is just being imported.
        for n in 1..=5 {
            fs::write(blob(n), "x").unwrap();
        }
        assert_eq!(prune_store(&store, &mut known).await.unwrap(), Vec::<String>::new(), "they are young");
        for n in 1..=5 {
            fs::File::options().write(true).open(blob(n)).unwrap().set_modified(old).unwrap();
        }
        // An import finds 4: it writes it anew, and from then on it is young.
        fs::write(dir.path().join("again"), "x").unwrap();
        let key = format!("{}{}", keys::BLOBS, digest(4));
        use crate::image::BlobStore;
        assert!(store.put_if_absent(&key, &dir.path().join("again")).await.unwrap());
        assert!(!store.put_if_absent(&key, &dir.path().join("again")).await.unwrap());
        assert_eq!(prune_store(&store, &mut known).await.unwrap(), [format!("{}{}", keys::BLOBS, digest(1))]);
        assert_eq!([1, 2, 3, 4, 5].map(|n| blob(n).exists()), [false, true, true, true, true]);
        // What cannot be read may need anything.
        fs::write(dir.path().join("apps/a").join(format!("{:020}", 3)), "{").unwrap();
        fs::File::options().write(true).open(blob(4)).unwrap().set_modified(old).unwrap();
        prune_store(&store, &mut known).await.unwrap_err();
        assert!(blob(4).exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn layers_on_a_node_go_when_they_were_idle_twice() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        let store = store(&dir.path().join("store")).await;
        let layers = dir.path().join("layers");
        for n in 1..=4 {
            fs::create_dir_all(layers.join(digest(n))).unwrap();
        }
        let (mounting, mut idle) = (RwLock::new(()), HashSet::new());
        let none = Vec::<String>::new();
        assert_eq!(prune_here(&store, &layers, &mounting, &mut idle).await.unwrap(), none);
        assert_eq!(idle, HashSet::from([digest(1), digest(4)]));
        {
            let _mounts = mounting.read().await;
            assert_eq!(prune_here(&store, &layers, &mounting, &mut idle).await.unwrap(), none);
        }
        // Between the looks it came to be needed again.
        apps::put(&store, &"gone".parse().unwrap(), 2, Some(content(&[4]))).await.unwrap();
        assert_eq!(prune_here(&store, &layers, &mounting, &mut idle).await.unwrap(), [digest(1)]);
        assert_eq!([1, 2, 3, 4].map(|n| layers.join(digest(n)).exists()), [false, true, true, true]);
        assert_eq!(idle, HashSet::new());
        assert_eq!(fs::read_dir(&layers).unwrap().count(), 3, "something half-removed is left");
    }

    #[test]
    fn the_age_that_is_kept_leaves_an_import_its_time() {
        assert!(image::WRITTEN_ANEW_AFTER + TimeDelta::days(7) < KEPT_AT_LEAST);
    }
}
