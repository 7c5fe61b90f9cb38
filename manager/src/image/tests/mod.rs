//! The room as a whole: what goes in by one end has to come out by the other.

mod hostile;
mod node;
mod oci;
mod registry;
mod roundtrip;
mod whiteouts;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};

use super::{
    blob::testing::DirStore,
    manifest::host_architecture,
    tar::{Entry, Kind, Meta, Mtime},
    *,
};
use crate::spec::ImageRecord;

/// A scratch directory, a store and a node's layers, all in one temporary directory.
struct Lab {
    dir: tempfile::TempDir,
    store: DirStore,
    layers: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ha-image-test-").tempdir().unwrap();
        let store = DirStore::new(&dir.path().join("store"));
        let layers = dir.path().join("layers");
        Self { dir, store, layers }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn options(&self) -> ImportOptions {
        // A configuration file that is not there: the tests must not use the credentials of who runs them.
        let docker_config = Some(self.path("no-docker-config.json"));
        ImportOptions { docker_config, ..ImportOptions::new(self.path("scratch")) }
    }

    async fn import(&self, reference: &str) -> Result<ImageRecord, ImageError> {
        let source = classify(reference, self.dir.path())?;
        let result = import(&source, reference, &self.store, &self.options(), &silent()).await;
        assert_eq!(fs::read_dir(self.path("scratch")).unwrap().count(), 0, "scratch is empty after an import");
        result
    }

    async fn ensure(&self, record: &ImageRecord) -> Result<Vec<PathBuf>, ImageError> {
        let result = ensure(record, &self.store, &self.layers, &Limits::default(), &silent()).await;
        let hidden = |name: &str| name.starts_with('.');
        let left: Vec<_> = names(&self.layers).into_iter().filter(|name| hidden(name)).collect();
        assert_eq!(left, Vec::<String>::new(), "nothing half-made is left");
        result
    }

    /// Mounts the layers; the result unmounts itself.
    fn mount(&self, lower: &[PathBuf]) -> testing::Mounted {
        let [upper, work, merged] = ["upper", "work", "merged"].map(|name| self.path(name));
        for dir in [&upper, &work, &merged] {
            let _ = fs::remove_dir_all(dir);
            fs::create_dir(dir).unwrap();
        }
        mount_overlay(lower, &upper, &work, &merged).unwrap();
        testing::Mounted(merged)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(list) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = list.map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Everything about a tree that an image has to keep, as text: one line per path, which a failed comparison shows.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut lines = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    walk(root, root, &mut inodes, &mut lines);
    lines
}

fn walk(root: &Path, path: &Path, inodes: &mut BTreeMap<u64, PathBuf>, lines: &mut BTreeMap<PathBuf, String>) {
    let meta = fs::symlink_metadata(path).unwrap();
    let name = path.strip_prefix(root).unwrap().to_owned();
    let kind = meta.file_type();
    let content = if kind.is_symlink() {
        format!("link to {:?}", fs::read_link(path).unwrap())
    } else if kind.is_file() {
        format!("file {} {}", meta.len(), blake3::hash(&fs::read(path).unwrap()).to_hex())
    } else if kind.is_char_device() || kind.is_block_device() {
        format!("device {:x} {}", meta.rdev(), kind.is_char_device())
    } else {
        format!("dir {} fifo {} socket {}", kind.is_dir(), kind.is_fifo(), kind.is_socket())
    };
    let mut xattrs: Vec<_> = xattr::list(path)
        .unwrap()
        .map(|name| (name.clone(), hex::encode(xattr::get(path, &name).unwrap().unwrap_or_default())))
        .collect();
    xattrs.sort();
    let same_as = if kind.is_dir() { None } else { inodes.get(&meta.ino()).cloned() };
    inodes.entry(meta.ino()).or_insert_with(|| name.clone());
    let (mode, uid, gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
    let mtime = (meta.mtime(), meta.mtime_nsec());
    lines.insert(name, format!("{content} {mode:o} {uid}:{gid} {mtime:?} {xattrs:?} same as {same_as:?}"));
    if kind.is_dir() {
        for name in fs::read_dir(path).unwrap() {
            walk(root, &name.unwrap().path(), inodes, lines);
        }
    }
}

/// An entry of a hand-made tar: its name as it shall be in the header, unchecked.
fn entry(path: &str, kind: Kind) -> Entry {
    let mtime = Mtime { sec: 1_700_000_000, nsec: 0 };
    Entry { path: path.as_bytes().to_vec(), kind, meta: Meta { mode: 0o755, mtime, ..Meta::default() } }
}

/// An uncompressed tar of entries, each with its content, written without any of the checks that the room makes.
fn tar_of(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = tar::LayerWriter::create(file.path()).unwrap();
    for (entry, content) in entries {
        writer.append(entry, &mut &content[..]).unwrap();
    }
    writer.finish().unwrap();
    zstd::decode_all(fs::File::open(file.path()).unwrap()).unwrap()
}

fn file(path: &str, content: &'static str) -> (Entry, &'static [u8]) {
    (entry(path, Kind::File { size: content.len() as u64 }), content.as_bytes())
}

fn dir(path: &str) -> (Entry, &'static [u8]) {
    (entry(path, Kind::Dir), b"")
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// An image as it lies in a layout or a registry.
struct Image {
    config: Vec<u8>,
    /// As transferred, with the media type.
    layers: Vec<(Vec<u8>, &'static str)>,
    diff_ids: Vec<String>,
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

impl Image {
    /// From uncompressed tars, bottom first; they are compressed in different ways in turn.
    fn new(tars: &[Vec<u8>]) -> Self {
        let diff_ids: Vec<String> = tars.iter().map(|tar| sha256(tar)).collect();
        let config = serde_json::json!({
            "os": "linux", "architecture": host_architecture(),
            "config": {"Cmd": ["/bin/serve", "-x"], "Env": ["A=b"], "User": "web", "WorkingDir": "/srv"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids.iter().map(|d| format!("sha256:{d}")).collect::<Vec<_>>()},
        });
        let layers = tars.iter().enumerate().map(|(n, tar)| match n % 3 {
            0 => (gzip(tar), GZIP),
            1 => (zstd::encode_all(&tar[..], 1).unwrap(), ZSTD),
            _ => (tar.clone(), PLAIN),
        });
        Self { config: config.to_string().into_bytes(), layers: layers.collect(), diff_ids }
    }

    fn manifest(&self) -> Vec<u8> {
        let layers: Vec<_> = self.layers.iter().map(|(bytes, kind)| descriptor(kind, bytes)).collect();
        serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &self.config), "layers": layers,
        })
        .to_string()
        .into_bytes()
    }

    /// Writes an OCI layout.
    fn write_layout(&self, to: &Path) {
        fs::create_dir_all(to.join("blobs/sha256")).unwrap();
        let put = |bytes: &[u8]| fs::write(to.join("blobs/sha256").join(sha256(bytes)), bytes).unwrap();
        let manifest = self.manifest();
        put(&manifest);
        put(&self.config);
        self.layers.iter().for_each(|(bytes, _)| put(bytes));
        fs::write(to.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let manifest = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(to.join("index.json"), index.to_string()).unwrap();
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len()})
}

/// Three layers: a base, one that changes and deletes, one that adds.
fn three_layers() -> Vec<Vec<u8>> {
    let base = tar_of(&[
        dir("etc"),
        file("etc/passwd", "root:x:0:0::/:\nweb:x:33:33::/:\n"),
        file("etc/old", "old"),
        dir("srv"),
        file("srv/a", "a"),
    ]);
    let change = tar_of(&[file("etc/.wh.old", ""), dir("srv"), file("srv/a", "changed")]);
    let add = tar_of(&[dir("bin"), file("bin/serve", "#!/bin/sh\n")]);
    vec![base, change, add]
}

fn check_three_layers(merged: &Path) {
    assert_eq!(names(merged), ["bin", "etc", "srv"]);
    assert_eq!(names(&merged.join("etc")), ["passwd"]);
    assert_eq!(fs::read_to_string(merged.join("srv/a")).unwrap(), "changed");
    assert_eq!(fs::read_to_string(merged.join("bin/serve")).unwrap(), "#!/bin/sh\n");
}
