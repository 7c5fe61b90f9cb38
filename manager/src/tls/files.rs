//! The files of certificates and keys: read with a cap, written once.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::ca::Pair;

/// The authority's certificate, on every node and beside its key.
pub const CA_CERT: &str = "ca.crt";
pub const CA_KEY: &str = "ca.key";
pub const NODE_CERT: &str = "node.crt";
pub const NODE_KEY: &str = "node.key";

/// Some dozen certificates.
const MAX_BYTES: u64 = 256 << 10;
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {path:?}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path:?} is larger than {MAX_BYTES} bytes: it is no certificate and no key")]
    TooLarge { path: PathBuf },
    #[error(
        "the private key {path:?} is open to others (mode {mode:03o}): chmod 600 it, or make a new one if somebody may have read it"
    )]
    Open { path: PathBuf, mode: u32 },
    #[error(
        "the private key {path:?} is of user {uid}, who may read it: chown it to root, or make a new one if somebody may have read it"
    )]
    Owner { path: PathBuf, uid: u32 },
    #[error("{path:?} is there already; --force replaces it")]
    There { path: PathBuf },
    #[error("cannot write {path:?}")]
    Write { path: PathBuf, source: io::Error },
}

/// A certificate's file.
pub fn certificates(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    capped(path, file)
}

/// A key's file; refused where others than its owner may read it, or where that is neither root nor this process's user.
pub fn key(path: &Path) -> Result<Vec<u8>, FileError> {
    let read = |source| FileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    let (mode, uid) = (metadata.mode() & 0o777, metadata.uid());
    if mode & 0o077 != 0 {
        return Err(FileError::Open { path: path.to_owned(), mode });
    }
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return Err(FileError::Owner { path: path.to_owned(), uid });
    }
    capped(path, file)
}

fn capped(path: &Path, file: File) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// An authority read back, to sign with it.
pub fn authority(dir: &Path) -> Result<Pair, FileError> {
    let text = |path: PathBuf, bytes| {
        String::from_utf8(bytes).map_err(|error| FileError::Read {
            path,
            source: io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()),
        })
    };
    let (certificate, secret) = (dir.join(CA_CERT), dir.join(CA_KEY));
    Ok(Pair {
        certificate: text(certificate.clone(), certificates(&certificate)?)?,
        key: text(secret.clone(), key(&secret)?)?,
    })
}

pub fn write_authority(dir: &Path, pair: &Pair, force: bool) -> Result<(), FileError> {
    write(dir, &[(CA_KEY, &pair.key, PRIVATE), (CA_CERT, &pair.certificate, PUBLIC)], force)
}

/// Without `ca` the authorities that are there stay.
pub fn write_node(dir: &Path, ca: Option<&str>, pair: &Pair, force: bool) -> Result<(), FileError> {
    let mut files = vec![(NODE_KEY, pair.key.as_str(), PRIVATE), (NODE_CERT, &pair.certificate, PUBLIC)];
    files.extend(ca.map(|ca| (CA_CERT, ca, PUBLIC)));
    write(dir, &files, force)
}

/// Whether the authorities of a node have this one among them.
pub fn believes(dir: &Path, authority: &CertificateDer<'_>) -> bool {
    certificates(&dir.join(CA_CERT))
        .is_ok_and(|bytes| CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok).any(|der| der == *authority))
}

/// Each file whole or not at all; none when one of them is there and is not to be replaced.
fn write(dir: &Path, files: &[(&str, &str, u32)], force: bool) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| FileError::Write { path: dir.to_owned(), source })?;
    if !force && let Some((name, ..)) = files.iter().find(|(name, ..)| dir.join(name).symlink_metadata().is_ok()) {
        return Err(FileError::There { path: dir.join(name) });
    }
    for (name, text, mode) in files {
        let path = dir.join(name);
        put(dir, &path, text, *mode).map_err(|source| FileError::Write { path, source })?;
    }
    Ok(())
}

fn put(dir: &Path, path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_for_their_owner_and_nothing_is_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("new/ca");
        let pair = |text: &str| Pair { certificate: format!("{text} certificate"), key: format!("{text} key") };
        write_authority(&ca, &pair("first"), false).unwrap();
        let mode = |name| fs::metadata(ca.join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode(CA_KEY), mode(CA_CERT)), (0o600, 0o644));
        assert_eq!(fs::metadata(&ca).unwrap().mode() & 0o777, 0o700);
        let refused = write_authority(&ca, &pair("second"), false).unwrap_err().to_string();
        assert!(refused.contains("ca.key") && refused.contains("--force"), "{refused}");
        assert_eq!(authority(&ca).unwrap().key, "first key");
        write_authority(&ca, &pair("second"), true).unwrap();
        assert_eq!(authority(&ca).unwrap().key, "second key");
        assert_eq!(mode(CA_KEY), 0o600);
        assert_eq!(fs::read_dir(&ca).unwrap().count(), 2);
    }

    #[test]
    fn an_open_key_and_a_huge_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NODE_KEY);
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let said = key(&path).unwrap_err().to_string();
        assert!(said.contains("mode 640") && said.contains("chmod 600"), "{said}");
        if nix::unistd::geteuid().is_root() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
            let said = key(&path).unwrap_err().to_string();
            assert!(said.contains("of user 1000") && said.contains("chown"), "{said}");
        }
        fs::write(&path, vec![b'x'; usize::try_from(MAX_BYTES).unwrap() + 1]).unwrap();
        assert!(matches!(certificates(&path), Err(FileError::TooLarge { .. })));
    }
}
