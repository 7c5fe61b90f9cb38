//! What an image reference means: a path when it looks like one, a registry's image otherwise, and never a guess.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use super::ImageError;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory that is the root file system.
    RootDir(PathBuf),
    /// A directory with `oci-layout` and `index.json`.
    OciLayout(PathBuf),
    /// A tar (also gzip or zstd around it) of an OCI layout, or what `docker save` writes.
    Archive(PathBuf),
    Registry(oci_client::Reference),
}

/// What is at a path, as far as [`decide`] needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    exists: bool,
    is_dir: bool,
    is_file: bool,
    oci_layout: bool,
    index_json: bool,
    looks_like_root: bool,
    empty: bool,
    tar: bool,
}

/// Finds out what `reference` means. Paths begin with `/`, `./` or `../` (or are `.` or `..`) and relative ones count
/// from `base`. Reads the file system; does not write or connect.
pub fn classify(reference: &str, base: &Path) -> Result<Source, ImageError> {
    let err = |tried: String| ImageError::Unclassified { reference: reference.to_owned(), tried };
    if is_path(reference) {
        let path = base.join(reference);
        let found = look(&path).map_err(|e| err(format!("{} cannot be looked at: {e}", path.display())))?;
        return decide(&path, &found).map_err(err);
    }
    parse_registry(reference).map(Source::Registry).map_err(|reason| {
        let local = base.join(reference);
        let hint = match reference.is_empty() {
            false if local.exists() => format!("; to use {}, write ./{reference}", local.display()),
            _ => "; a path has to begin with / or ./".to_owned(),
        };
        err(format!("as the name of an image in a registry: {reason}{hint}"))
    })
}

fn is_path(reference: &str) -> bool {
    reference.starts_with('/')
        || reference.starts_with("./")
        || reference.starts_with("../")
        || reference == "."
        || reference == ".."
}

fn parse_registry(reference: &str) -> Result<oci_client::Reference, String> {
    if reference.contains("://") {
        return Err("it has a URL scheme; write HOST[:PORT]/NAME[:TAG]".to_owned());
    }
    reference.parse::<oci_client::Reference>().map_err(|e| e.to_string())
}

fn decide(path: &Path, found: &Found) -> Result<Source, String> {
    let name = path.display();
    match found {
        Found { exists: false, .. } => Err(format!("{name} does not exist")),
        Found { is_file: true, tar: true, .. } => Ok(Source::Archive(path.to_owned())),
        Found { is_file: true, .. } => Err(format!(
            "{name} is a file but not a tar archive (plain, gzip or zstd) of an OCI layout or `docker save`"
        )),
        Found { is_dir: false, .. } => Err(format!("{name} is neither a directory nor a file")),
        Found { empty: true, .. } => Err(format!("{name} is an empty directory")),
        Found { oci_layout: true, index_json: true, looks_like_root: true, .. } => Err(format!(
            "{name} is ambiguous: it has oci-layout and index.json like an OCI layout and directories like a root file \
             system; move one of them away"
        )),
        Found { oci_layout: true, index_json: true, .. } => Ok(Source::OciLayout(path.to_owned())),
        Found { oci_layout: true, looks_like_root: false, .. } => {
            Err(format!("{name} has oci-layout but no index.json: an incomplete OCI layout"))
        }
        Found { index_json: true, looks_like_root: false, .. } => {
            Err(format!("{name} has index.json but no oci-layout: an incomplete OCI layout"))
        }
        _ => Ok(Source::RootDir(path.to_owned())),
    }
}

fn look(path: &Path) -> std::io::Result<Found> {
    let Some(meta) = fs::metadata(path).map(Some).or_else(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Ok(None),
        _ => Err(e),
    })?
    else {
        return Ok(Found::default());
    };
    let mut found = Found { exists: true, is_dir: meta.is_dir(), is_file: meta.is_file(), ..Found::default() };
    if meta.is_file() {
        found.tar = looks_like_tar(path)?;
    } else if meta.is_dir() {
        found.empty = fs::read_dir(path)?.next().is_none();
        found.oci_layout = path.join("oci-layout").is_file();
        found.index_json = path.join("index.json").is_file();
        found.looks_like_root = ["bin", "etc", "usr", "lib", "sbin"].iter().any(|dir| path.join(dir).is_dir());
    }
    Ok(found)
}

/// By content, not by name. What a compressed file holds is found out when it is read.
fn looks_like_tar(path: &Path) -> std::io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(512).read_to_end(&mut start)?;
    let compressed = start.starts_with(&[0x1f, 0x8b]) || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    Ok(compressed || start.get(257..262) == Some(b"ustar"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide_kind(found: Found) -> Result<&'static str, String> {
        decide(Path::new("/x"), &found).map(|source| match source {
            Source::RootDir(_) => "root",
            Source::OciLayout(_) => "layout",
            Source::Archive(_) => "archive",
            Source::Registry(_) => "registry",
        })
    }

    #[test]
    fn directories_and_files_are_told_apart() {
        let dir = Found { exists: true, is_dir: true, ..Found::default() };
        assert_eq!(decide_kind(dir.clone()), Ok("root"));
        assert_eq!(decide_kind(Found { oci_layout: true, index_json: true, ..dir.clone() }), Ok("layout"));
        assert_eq!(decide_kind(Found { index_json: true, looks_like_root: true, ..dir.clone() }), Ok("root"));
        assert_eq!(decide_kind(Found { exists: true, is_file: true, tar: true, ..Found::default() }), Ok("archive"));
        for (found, word) in [
            (Found::default(), "does not exist"),
            (Found { exists: true, is_file: true, ..Found::default() }, "not a tar"),
            (Found { exists: true, ..Found::default() }, "neither"),
            (Found { empty: true, ..dir.clone() }, "empty"),
            (Found { oci_layout: true, ..dir.clone() }, "no index.json"),
            (Found { index_json: true, ..dir.clone() }, "no oci-layout"),
            (Found { oci_layout: true, index_json: true, looks_like_root: true, ..dir }, "ambiguous"),
        ] {
            let error = decide_kind(found).unwrap_err();
            assert!(error.contains(word) && error.contains("/x"), "{error}");
        }
    }

    #[test]
    fn names_are_registry_references_unless_they_look_like_paths() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("redis/usr")).unwrap();
        fs::create_dir_all(base.path().join("Upper")).unwrap();
        let registry = |text: &str| match classify(text, base.path()) {
            Ok(Source::Registry(reference)) => reference.whole(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(registry("redis"), "docker.io/library/redis:latest");
        assert_eq!(registry("127.0.0.1:5000/a/b:1"), "127.0.0.1:5000/a/b:1");
        assert_eq!(classify("./redis", base.path()).unwrap(), Source::RootDir(base.path().join("./redis")));
        let absolute = base.path().join("redis");
        assert_eq!(classify(absolute.to_str().unwrap(), Path::new("/")).unwrap(), Source::RootDir(absolute));
        for (bad, word) in [
            ("Upper", "write ./Upper"),
            ("", "begin with /"),
            ("https://example.org/x", "scheme"),
            ("./missing", "does not exist"),
        ] {
            let error = classify(bad, base.path()).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(bad), "{error}");
        }
    }

    #[test]
    fn archives_are_known_by_their_content() {
        let base = tempfile::tempdir().unwrap();
        let mut tar = ::tar::Builder::new(Vec::new());
        let mut header = ::tar::Header::new_gnu();
        header.set_size(0);
        header.set_cksum();
        tar.append_data(&mut header, "oci-layout", &[][..]).unwrap();
        fs::write(base.path().join("image"), tar.into_inner().unwrap()).unwrap();
        assert!(matches!(classify("./image", base.path()), Ok(Source::Archive(_))));
        fs::write(base.path().join("image.tar"), "no tar").unwrap();
        assert!(classify("./image.tar", base.path()).is_err());
    }
}
