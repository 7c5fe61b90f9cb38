//! The agent's program. A restored agent needs the very file it ran from, so each version has a directory of its own and is
//! in the store under its digest.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    doctor,
    store::{Store, StoreError, keys},
};

/// No agent is larger, in bytes.
const MAX: u64 = 64 << 20;

#[derive(Debug)]
pub struct AgentBinary {
    root: PathBuf,
    digest: blake3::Hash,
}

#[derive(Debug, thiserror::Error)]
#[error("the agent {path} cannot be used; build it with scripts/build, or name it with `agent` in the configuration")]
pub struct AgentError {
    path: String,
    source: io::Error,
}

impl AgentBinary {
    /// Copies the program to `<state_dir>/agents/<digest>/ha-agent`.
    pub fn install(program: &Path, state_dir: &Path) -> Result<Self, AgentError> {
        let fail = |source| AgentError { path: program.display().to_string(), source };
        let check = doctor::agent(program);
        if check.verdict == doctor::Verdict::Fail {
            return Err(fail(io::Error::new(io::ErrorKind::InvalidData, check.found)));
        }
        let bytes = fs::read(program).map_err(fail)?;
        if bytes.len() as u64 > MAX {
            return Err(fail(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 64 MiB")));
        }
        let agent = Self { root: state_dir.join("agents"), digest: blake3::hash(&bytes) };
        agent.write(&agent.digest, &bytes).map_err(fail)?;
        Ok(agent)
    }

    pub fn digest(&self) -> String {
        self.digest.to_hex().to_string()
    }

    /// The directory that has this node's own agent, for a new container.
    pub fn dir(&self) -> PathBuf {
        self.root.join(self.digest.to_hex().as_str())
    }

    /// Puts this node's agent into the store, so that peers can restore what runs under it.
    pub async fn publish(&self, store: &Store) -> Result<(), StoreError> {
        store.put_file(&keys::blob(&self.digest), &self.dir().join("ha-agent")).await.map(drop)
    }

    /// The directory of the agent a snapshot was taken with, fetched when this node has another one.
    pub async fn dir_of(&self, digest: &str, store: &Store) -> Result<PathBuf, StoreError> {
        let corrupt = |what: String| StoreError::Corrupt { key: format!("blobs/{digest}"), what };
        let hash = blake3::Hash::from_hex(digest).map_err(|err| corrupt(err.to_string()))?;
        let dir = self.root.join(hash.to_hex().as_str());
        if !dir.join("ha-agent").exists() {
            let bytes = store.get(&keys::blob(&hash), MAX).await?;
            if blake3::hash(&bytes) != hash {
                return Err(corrupt("its content does not match its name".into()));
            }
            self.write(&hash, &bytes).map_err(|err| corrupt(format!("it cannot be kept here: {err}")))?;
        }
        Ok(dir)
    }

    /// Whole or not at all: a torn agent would be bound into containers.
    fn write(&self, hash: &blake3::Hash, bytes: &[u8]) -> io::Result<()> {
        let dir = self.root.join(hash.to_hex().as_str());
        let path = dir.join("ha-agent");
        if fs::metadata(&path).is_ok_and(|meta| meta.len() == bytes.len() as u64) {
            return Ok(());
        }
        fs::create_dir_all(&dir)?;
        let temporary = dir.join(".ha-agent.new");
        fs::write(&temporary, bytes)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o555))?;
        fs::File::open(&temporary)?.sync_all()?;
        fs::rename(temporary, path)
    }
}
