//! The contacts on the disk: `STATE/peers.json`.
//!
//! Every node that could take this node's containers over is in this file, so a file that cannot be read stops the start: a
//! node that is missing would not be counted, and a second copy could begin there while ours runs.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{contacts::Contacts, message::Touch};
use crate::spec::NodeName;

const VERSION: u32 = 1;
/// More than twice what the names of the largest `max_peers` take up.
const MAX_BYTES: u64 = 32 << 20;

/// Why the contacts could not be read or remembered.
#[derive(Debug, thiserror::Error)]
pub enum AcquaintancesError {
    #[error(
        "{path:?} cannot be used: {what}. It names the nodes that may take this node's containers over, and without it a \
         container could run twice. Restore it or make it readable; moving it away is safe only when every container of this \
         node is stopped"
    )]
    Unusable { path: PathBuf, what: String },
    #[error("{path:?} is of version {found}, this manager reads {VERSION}: upgrade ha-manager on this node")]
    TooNew { path: PathBuf, found: u64 },
    #[error("{path:?} cannot be written; no node is spoken to for the first time until it can")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path:?} has {limit} nodes already: {node} is not spoken to. Forget nodes that are gone for good")]
    Full { path: PathBuf, limit: usize, node: NodeName },
}

/// What is in the file is in memory, and the other way round: a name counts when it is on the disk.
#[derive(Debug)]
pub struct Acquaintances {
    path: PathBuf,
    contacts: Contacts,
    limit: usize,
    /// There is no file yet.
    new: bool,
}

/// Names are written sorted, each once.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u64,
    known: Vec<NodeName>,
    met: Vec<NodeName>,
}

impl Acquaintances {
    /// Reads `path`; a file that is not there has no names. At most `limit` names of either kind are kept. Blocking.
    ///
    /// # Errors
    /// The file is damaged, of a later version, or cannot be read: see the module.
    pub fn open(path: PathBuf, limit: usize) -> Result<Self, AcquaintancesError> {
        let found = load(&path)?;
        let new = found.is_none();
        Ok(Self { path, contacts: found.unwrap_or_default(), limit, new })
    }

    /// On the first start: `nodes` count as known. They may have met an earlier node of this name, whose file is gone. With a
    /// file, nothing is changed. Blocking.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin_with(&mut self, nodes: impl IntoIterator<Item = NodeName>) -> Result<(), AcquaintancesError> {
        if !self.new {
            return Ok(());
        }
        let mut contacts = self.contacts.clone();
        contacts.known.extend(nodes);
        self.replace(contacts)
    }

    pub fn contacts(&self) -> &Contacts {
        &self.contacts
    }

    /// Remembers a contact, durably; at once when it is remembered already. Blocking.
    ///
    /// # Errors
    /// It is not remembered: the file cannot be written, or has as many names as it may.
    pub fn touch(&mut self, node: &NodeName, kind: Touch) -> Result<(), AcquaintancesError> {
        let set = self.contacts.of(kind);
        if set.contains(node) {
            return Ok(());
        }
        if set.len() >= self.limit {
            return Err(AcquaintancesError::Full { path: self.path.clone(), limit: self.limit, node: node.clone() });
        }
        let mut contacts = self.contacts.clone();
        contacts.of_mut(kind).insert(node.clone());
        self.replace(contacts)
    }

    /// Forgets a node, durably. Blocking.
    ///
    /// # Errors
    /// It is still remembered: the file cannot be written.
    pub fn forget(&mut self, node: &NodeName) -> Result<(), AcquaintancesError> {
        let mut contacts = self.contacts.clone();
        let removed = [Touch::Known, Touch::Met].map(|kind| contacts.of_mut(kind).remove(node));
        if removed.contains(&true) { self.replace(contacts) } else { Ok(()) }
    }

    /// Forgets that any node was ever met, durably: nothing is taken over from any until it is met again. Blocking.
    ///
    /// # Errors
    /// As [`Acquaintances::forget`].
    pub fn forget_met(&mut self) -> Result<(), AcquaintancesError> {
        if self.contacts.met.is_empty() {
            return Ok(());
        }
        let known = self.contacts.known.clone();
        self.replace(Contacts { known, met: BTreeSet::new() })
    }

    fn replace(&mut self, contacts: Contacts) -> Result<(), AcquaintancesError> {
        save(&self.path, &contacts).map_err(|source| AcquaintancesError::Write { path: self.path.clone(), source })?;
        self.contacts = contacts;
        self.new = false;
        Ok(())
    }
}

fn load(path: &Path) -> Result<Option<Contacts>, AcquaintancesError> {
    let unusable = |what: String| AcquaintancesError::Unusable { path: path.to_owned(), what };
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() as u64 > MAX_BYTES => return Err(unusable(format!("it has more than {MAX_BYTES} bytes"))),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(error.to_string())),
    }
    // The version first: a later one may have other fields.
    #[derive(Deserialize)]
    struct Version {
        version: u64,
    }
    let damaged = |error: serde_json::Error| unusable(format!("it is damaged: {error}"));
    let Version { version: found } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if found > VERSION.into() {
        return Err(AcquaintancesError::TooNew { path: path.to_owned(), found });
    }
    let content: Content = serde_json::from_slice(&bytes).map_err(damaged)?;
    let sorted = |names: Vec<NodeName>| -> Result<BTreeSet<NodeName>, AcquaintancesError> {
        if names.is_sorted_by(|a, b| a < b) {
            Ok(names.into_iter().collect())
        } else {
            Err(unusable("it is damaged: its names are not in order".to_owned()))
        }
    };
    Ok(Some(Contacts { known: sorted(content.known)?, met: sorted(content.met)? }))
}

/// Whole or not at all, and on the disk when it returns.
fn save(path: &Path, contacts: &Contacts) -> io::Result<()> {
    let names = |set: &BTreeSet<NodeName>| set.iter().cloned().collect();
    let content = Content { version: VERSION.into(), known: names(&contacts.known), met: names(&contacts.met) };
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(&content)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    #[test]
    fn contacts_are_on_the_disk_when_touch_returns_and_gone_when_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.json");
        let open = || Acquaintances::open(path.clone(), 3).unwrap();
        let mut book = open();
        assert_eq!(*book.contacts(), Contacts::default());
        for (node, kind) in [("n3", Touch::Known), ("n2", Touch::Known), ("n2", Touch::Met), ("n2", Touch::Met)] {
            book.touch(&name(node), kind).unwrap();
            assert_eq!(open().contacts(), book.contacts(), "after {node} {kind:?}");
        }
        let names = |set: &BTreeSet<NodeName>| set.iter().map(NodeName::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!((names(&book.contacts().known), names(&book.contacts().met)), ("n2 n3".into(), "n2".into()));
        book.forget(&name("n2")).unwrap();
        book.forget(&name("n9")).unwrap();
        assert_eq!(open().contacts(), &Contacts { known: [name("n3")].into(), met: BTreeSet::new() });
        book.touch(&name("n3"), Touch::Met).unwrap();
        book.forget_met().unwrap();
        assert_eq!(open().contacts(), &Contacts { known: [name("n3")].into(), met: BTreeSet::new() });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the file is left");
    }

    #[test]
    fn a_first_start_counts_whom_the_store_names_and_a_later_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.json");
        let open = || Acquaintances::open(path.clone(), 3).unwrap();
        let known = |book: &Acquaintances| book.contacts().known.iter().cloned().collect::<Vec<_>>();
        open().begin_with([name("n2"), name("n1")]).unwrap();
        let mut later = open();
        assert_eq!(known(&later), [name("n1"), name("n2")]);
        assert!(later.contacts().met.is_empty());
        later.begin_with([name("n3")]).unwrap();
        assert_eq!(known(&later).len(), 2);
        fs::remove_file(&path).unwrap();
        open().begin_with([]).unwrap();
        open().begin_with([name("n1")]).unwrap();
        assert!(known(&open()).is_empty(), "a start without other nodes is a first one, too");
    }

    #[test]
    fn a_file_that_is_not_sound_is_refused_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.json");
        for bad in [
            "",
            "{\"version\":1,\"known\":[\"n1\"",
            "{\"known\":[],\"met\":[]}",
            "{\"version\":1,\"known\":[]}",
            "{\"version\":1,\"known\":[\"../x\"],\"met\":[]}",
            "{\"version\":1,\"known\":[\"n2\",\"n1\"],\"met\":[]}",
            "{\"version\":1,\"known\":[\"n1\",\"n1\"],\"met\":[]}",
        ] {
            fs::write(&path, bad).unwrap();
            let said = Acquaintances::open(path.clone(), 3).unwrap_err().to_string();
            assert!(said.contains("peers.json") && said.contains("every container of this node is stopped"), "{said}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(Acquaintances::open(path.clone(), 3), Err(AcquaintancesError::Unusable { .. })));
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "{\"version\":2,\"nodes\":{}}").unwrap();
        let said = Acquaintances::open(path, 3).unwrap_err().to_string();
        assert!(said.contains("version 2") && said.contains("upgrade"), "{said}");
    }

    #[test]
    fn what_cannot_be_written_or_is_too_much_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.json");
        let mut book = Acquaintances::open(path.clone(), 2).unwrap();
        book.touch(&name("n1"), Touch::Known).unwrap();
        // A directory in the place of the temporary file: nobody can write it, not even root.
        let blocked = dir.path().join("peers.json.new");
        fs::create_dir(&blocked).unwrap();
        assert!(matches!(book.touch(&name("n2"), Touch::Known), Err(AcquaintancesError::Write { .. })));
        assert!(matches!(book.forget(&name("n1")), Err(AcquaintancesError::Write { .. })));
        book.touch(&name("n1"), Touch::Known).unwrap();
        assert_eq!(book.contacts().known.len(), 1);
        fs::remove_dir(&blocked).unwrap();
        book.touch(&name("n2"), Touch::Known).unwrap();
        assert!(matches!(book.touch(&name("n3"), Touch::Known), Err(AcquaintancesError::Full { limit: 2, .. })));
        book.touch(&name("n3"), Touch::Met).unwrap();
    }
}
