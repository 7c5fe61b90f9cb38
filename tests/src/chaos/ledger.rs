//! What the store holds as time goes by: who claimed a container, and which snapshots are committed for certain.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use chrono::{DateTime, Utc};
use ha_manager::snapshot::{Manifest, SnapshotHealth};
use serde::{Deserialize, Serialize};

use super::timeline::Timeline;

const EVERY: Duration = Duration::from_millis(50);

/// A snapshot whose manifest was there when no later epoch was: from here on every owner has to find it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Commit {
    pub epoch: u64,
    pub number: u64,
    pub frozen_at: Duration,
    /// When this was seen; the commit itself was earlier.
    pub seen_at: Duration,
}

/// An epoch of a container.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Claim {
    pub epoch: u64,
    pub node: String,
    /// By the claimant's clock, which is the machine's.
    pub at: Duration,
}

/// What is known of one container, in the order in which it was seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Account {
    pub claims: Vec<Claim>,
    pub commits: Vec<Commit>,
}

/// Reads the store again and again until it is stopped.
#[derive(Debug)]
pub struct Ledger {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<anyhow::Result<BTreeMap<String, Account>>>,
}

impl Ledger {
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(store: PathBuf, containers: &[String], timeline: Arc<Timeline>) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let names = containers.to_vec();
        let thread = thread::Builder::new().name("ledger".to_owned()).spawn(move || {
            let mut reader = Reader { store, timeline, judged: BTreeSet::new(), accounts: BTreeMap::new() };
            while !stopped.load(Ordering::Relaxed) {
                for name in &names {
                    reader.read(name)?;
                }
                thread::sleep(EVERY);
            }
            Ok(reader.accounts)
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends the reading and returns what was found.
    ///
    /// # Errors
    /// When something in the store could not be read.
    pub fn finish(self) -> anyhow::Result<BTreeMap<String, Account>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| anyhow::bail!("the store's reader panicked"))
    }
}

struct Reader {
    store: PathBuf,
    timeline: Arc<Timeline>,
    /// Snapshots that were looked at, counted or not.
    judged: BTreeSet<(String, u64, u64)>,
    accounts: BTreeMap<String, Account>,
}

impl Reader {
    fn read(&mut self, name: &str) -> anyhow::Result<()> {
        let owners = self.store.join("owners").join(name);
        let account = self.accounts.entry(name.to_owned()).or_default();
        let next = account.claims.last().map_or(1, |claim| claim.epoch + 1);
        if let Some((node, at)) = owner(&owners, next)? {
            let claim = Claim { epoch: next, node, at: self.timeline.of_wall(at) };
            self.timeline.say(name, &format!("{} claims it under epoch {next}", claim.node));
            account.claims.push(claim);
        }
        let snapshots = self.store.join("snapshots").join(name);
        for entry in fs::read_dir(&snapshots).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let id = file.to_str().and_then(|id| id.split_once('-'));
            let Some((epoch, number)) = id.and_then(|(e, n)| Some((e.parse().ok()?, n.parse().ok()?))) else {
                continue;
            };
            let key = (name.to_owned(), epoch, number);
            if self.judged.contains(&key) {
                continue;
            }
            // Not there yet, or pruned already.
            let path = entry.path().join("manifest");
            let Ok(bytes) = fs::read(&path) else { continue };
            self.judged.insert(key);
            let manifest = Manifest::decode(&path.display().to_string(), &bytes)?;
            // The order matters: the manifest was there before this look found no later owner.
            let counts = manifest.meta.health != SnapshotHealth::Unhealthy && owner(&owners, epoch + 1)?.is_none();
            if counts {
                let frozen_at = self.timeline.of_wall(manifest.meta.frozen_at.into());
                account.commits.push(Commit { epoch, number, frozen_at, seen_at: self.timeline.now() });
            }
        }
        Ok(())
    }
}

/// The node that claimed an epoch, if anybody has, and when.
fn owner(owners: &Path, epoch: u64) -> anyhow::Result<Option<(String, SystemTime)>> {
    let path = owners.join(format!("{epoch:020}"));
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err).with_context(|| format!("cannot read {}", path.display())),
    };
    let record: Record =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is no owner's record", path.display()))?;
    Ok(Some((record.node, record.at.into())))
}

#[derive(Deserialize)]
struct Record {
    node: String,
    at: DateTime<Utc>,
}
