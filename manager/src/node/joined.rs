//! Which store this node is in, remembered in its state directory.
//!
//! The store says who owns the containers whose copies are on this node. A directory where the store is not mounted, or
//! another store, says that nobody does; so once a node has joined a store, its manager starts with that one only.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use anyhow::Context;

use crate::{
    config::NodeConfig,
    store::{ClusterInfo, Expected, Store, StoreError},
};

const FILE: &str = "store-id";

/// Joins the store that the configuration names.
pub(super) async fn join(store: &Store, config: &NodeConfig) -> anyhow::Result<ClusterInfo> {
    let path = config.state_dir.join(FILE);
    let expected = expected(&config.state_dir).with_context(|| format!("cannot read {}", path.display()))?;
    let info = store.join(&config.cluster, &expected).await.with_context(|| match expected {
        Expected::AnyStore => "cannot join the store".to_owned(),
        Expected::UsedStore | Expected::Id(_) => format!(
            "cannot join the store (to take this node to another store on purpose, remove its containers first, stop the \
             manager, and delete {0} and {1})",
            path.display(),
            config.state_dir.join("containers").display()
        ),
    })?;
    if expected != Expected::Id(info.id.clone()) {
        remember(&config.state_dir, &info.id).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(info)
}

/// Whether the store is the one that this node is in, or may join. Changes nothing.
///
/// # Errors
/// Why a manager would not start with it.
pub async fn examine(store: &Store, config: &NodeConfig) -> Result<(), StoreError> {
    // A state directory that cannot be read is a matter of its own.
    let expected = expected(&config.state_dir).unwrap_or(Expected::AnyStore);
    store.examine(&config.cluster, &expected).await.map(drop)
}

fn expected(state_dir: &Path) -> io::Result<Expected> {
    match fs::read_to_string(state_dir.join(FILE)) {
        Ok(id) if !id.trim().is_empty() => Ok(Expected::Id(id.trim().to_owned())),
        Ok(_) => Ok(Expected::UsedStore),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Without the file, but with containers: it was lost, or an earlier manager did not write it.
            let mut containers = fs::read_dir(state_dir.join("containers")).into_iter().flatten();
            Ok(if containers.next().is_some() { Expected::UsedStore } else { Expected::AnyStore })
        }
        Err(error) => Err(error),
    }
}

/// Whole or not at all, and on the disk before anything of the store is used.
fn remember(state_dir: &Path, id: &str) -> io::Result<()> {
    let new = state_dir.join(".store-id.new");
    let mut file = File::create(&new)?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    fs::rename(&new, state_dir.join(FILE))?;
    File::open(state_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_state_directory_says_of_its_store() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(expected(dir.path()).unwrap(), Expected::AnyStore);
        fs::create_dir(dir.path().join("containers")).unwrap();
        assert_eq!(expected(dir.path()).unwrap(), Expected::AnyStore);
        fs::create_dir(dir.path().join("containers/redis")).unwrap();
        assert_eq!(expected(dir.path()).unwrap(), Expected::UsedStore);
        remember(dir.path(), "abc").unwrap();
        assert_eq!(expected(dir.path()).unwrap(), Expected::Id("abc".into()));
        fs::write(dir.path().join(FILE), "").unwrap();
        assert_eq!(expected(dir.path()).unwrap(), Expected::UsedStore);
    }
}
