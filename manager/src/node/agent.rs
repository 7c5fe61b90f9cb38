//! The agent's program. A restored agent needs the very file it ran from, so each version has a directory of its own and is
//! in the store under its digest.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    doctor,
    store::{Store, StoreError, keys},
};

/// No agent is larger, in bytes.
const MAX: u64 = 64 << 20;
/// How the names of unfinished copies begin.
const TEMPORARY: &str = ".ha-agent.";

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
        agent.clear_leftovers();
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
            // This node's trouble, not the object's.
            let local = |source| StoreError::LocalFile { op: "keep the agent", path: dir.clone(), source };
            self.write(&hash, &bytes).map_err(local)?;
        }
        Ok(dir)
    }

    /// Whole or not at all: a torn agent would be bound into containers. Several may do it at once, each with a temporary file
    /// of its own.
    fn write(&self, hash: &blake3::Hash, bytes: &[u8]) -> io::Result<()> {
        let dir = self.root.join(hash.to_hex().as_str());
        let path = dir.join("ha-agent");
        if fs::metadata(&path).is_ok_and(|meta| meta.len() == bytes.len() as u64) {
            return Ok(());
        }
        fs::create_dir_all(&dir)?;
        let mut temporary = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&dir)?;
        temporary.write_all(bytes)?;
        temporary.as_file().set_permissions(fs::Permissions::from_mode(0o555))?;
        temporary.as_file().sync_all()?;
        // Closed before the file is there to be run: one that is open for writing is not.
        temporary.into_temp_path().persist(path).map_err(|err| err.error)
    }

    /// What a manager that was killed has left. Nobody else writes there: the state directory is locked.
    fn clear_leftovers(&self) {
        let dirs = fs::read_dir(&self.root).into_iter().flatten().flatten();
        for file in dirs.flat_map(|dir| fs::read_dir(dir.path()).into_iter().flatten().flatten()) {
            if file.file_name().to_string_lossy().starts_with(TEMPORARY) {
                // It is in nobody's way; the next start tries again.
                let _ = fs::remove_file(file.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_restores_may_need_the_same_agent_at_once() {
        let state = tempfile::tempdir().unwrap();
        let bytes = vec![7; 1 << 20];
        for round in 0..20 {
            let root = state.path().join(round.to_string());
            let agent = AgentBinary { root: root.clone(), digest: blake3::hash(&bytes) };
            let path = agent.dir().join("ha-agent");
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        agent.write(&agent.digest, &bytes).unwrap();
                        assert_eq!(fs::read(&path).unwrap().len(), bytes.len(), "it was torn");
                    });
                }
            });
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o555);
            fs::write(agent.dir().join(".ha-agent.left"), "x").unwrap();
            agent.clear_leftovers();
            assert_eq!(fs::read_dir(agent.dir()).unwrap().count(), 1, "something was left");
        }
    }

    #[tokio::test]
    async fn a_disk_that_takes_no_agent_is_not_a_damaged_object() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}", dir.path().display())).await.unwrap();
        let (bytes, root) = (b"agent", dir.path().join("agents"));
        let hash = blake3::hash(bytes);
        store.put_new(&keys::blob(&hash), bytes.as_slice().into()).await.unwrap();
        fs::write(&root, "in the way").unwrap();
        let agent = AgentBinary { root: root.clone(), digest: hash };
        let error = agent.dir_of(&agent.digest(), &store).await.unwrap_err();
        assert!(matches!(error, StoreError::LocalFile { .. }), "{error}");
        fs::remove_file(&root).unwrap();
        assert!(agent.dir_of(&agent.digest(), &store).await.unwrap().join("ha-agent").exists());
    }
}
