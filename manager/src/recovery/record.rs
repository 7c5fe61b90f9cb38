//! What this node remembers about its copy of a container, so that a restarted manager adopts it.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::place::Place;
use crate::{
    ownership::{Owner, Rest},
    snapshot::NetworkIdentity,
    spec::{ContainerName, SnapshotId},
};

/// `local.json`. Only a copy that reached `Up` is adopted; anything else is cleared away and recovered anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalRecord {
    pub version: u32,
    pub container: ContainerName,
    pub owner: Owner,
    pub phase: LocalPhase,
    /// Of `apps/<container>/`.
    pub generation: u64,
    pub network: NetworkIdentity,
    /// The agent's, in hex: a different one is a container with its state gone.
    pub incarnation: String,
    /// The number of the next snapshot of this epoch.
    pub next_seq: u64,
    pub last_committed: Option<SnapshotId>,
    /// How it came to rest, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<Rest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocalPhase {
    /// Being started or restored: unusable if the manager ends now.
    Launching,
    Up,
    /// At rest.
    Stopped,
}

pub const RECORD_VERSION: u32 = 1;
const RECORD_MAX: u64 = 64 << 10;

impl LocalRecord {
    /// `None` when there is no copy. A record that cannot be read is an error naming it.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        let text = match File::open(path) {
            Ok(file) => io::read_to_string(io::Read::take(file, RECORD_MAX))?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(err),
        };
        let record: Self = serde_json::from_str(&text)
            .map_err(|err| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {err}", path.display())))?;
        if record.version != RECORD_VERSION {
            let text =
                format!("{} is of version {}, this manager reads {RECORD_VERSION}", path.display(), record.version);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Some(record))
    }

    /// Written whole or not at all.
    pub fn save(&self, place: &Place) -> io::Result<()> {
        fs::create_dir_all(&place.dir)?;
        let temporary = place.dir.join("local.json.tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&temporary, place.record())?;
        File::open(&place.dir)?.sync_all()
    }
}
