//! Layers on a node: fetched, verified, unpacked once, and removed when nothing needs them.
//!
//! ```text
//! layers/<digest>/        whole: the rename to this name is the last step
//! layers/.new-<digest>/   being unpacked, or left by a crash
//! layers/.get-<digest>    being fetched, or left by a crash
//! layers/.lock-<digest>   whoever has it locked may touch the three above
//! ```

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{fs::FlockOperation, io::Errno};

use super::{
    ImageError, Limits,
    blob::{BlobError, BlobStore},
    blob_key, blocking,
    progress::{Event, Progress},
    unpack::unpack,
};
use crate::spec::{ImageRecord, Layer};

/// Another task or process that unpacks the same layer is looked after this often.
const LOCK_POLL: Duration = Duration::from_millis(25);

/// Brings every layer of the image to `layers_dir` and returns their directories, bottom first. What is there already is
/// not touched. Safe against a crash at any moment and against others doing the same.
pub async fn ensure<S: BlobStore>(
    record: &ImageRecord,
    store: &S,
    layers_dir: &Path,
    limits: &Limits,
    progress: &Progress,
) -> Result<Vec<PathBuf>, ImageError> {
    if record.layers.len() > limits.layers {
        let limit = limits.layers as u64;
        return Err(ImageError::Limit { what: record.reference.clone(), limit, unit: "layers" });
    }
    // Only for root: there are set-user-ID files in it, and those are for containers.
    fs::create_dir_all(layers_dir).map_err(ImageError::io("create", layers_dir))?;
    fs::set_permissions(layers_dir, fs::Permissions::from_mode(0o700)).map_err(ImageError::io("close", layers_dir))?;
    let layers = record.layers.len();
    let mut dirs = Vec::with_capacity(layers);
    for (index, layer) in record.layers.iter().enumerate() {
        check_digest(&layer.digest)?;
        let at = Position { layer: index + 1, layers };
        let fetched = ensure_layer(layer, at, store, layers_dir, limits, progress).await?;
        progress(Event::Ready { layer: at.layer, layers, fetched });
        dirs.push(layers_dir.join(&layer.digest));
    }
    Ok(dirs)
}

/// For tests: which of the record's layers are on this node already: what a take-over would not have to wait for.
#[cfg(test)]
pub fn missing<'r>(record: &'r ImageRecord, layers_dir: &Path) -> Result<Vec<&'r Layer>, ImageError> {
    record.layers.iter().try_for_each(|layer| check_digest(&layer.digest))?;
    Ok(record.layers.iter().filter(|layer| !layers_dir.join(&layer.digest).is_dir()).collect())
}

#[derive(Clone, Copy)]
struct Position {
    layer: usize,
    layers: usize,
}

async fn ensure_layer<S: BlobStore>(
    layer: &Layer,
    Position { layer: number, layers }: Position,
    store: &S,
    layers_dir: &Path,
    limits: &Limits,
    progress: &Progress,
) -> Result<bool, ImageError> {
    let paths = Paths::new(layers_dir, &layer.digest);
    if paths.done.is_dir() {
        return Ok(false);
    }
    let lock = loop {
        match try_lock(&paths.lock)? {
            Some(lock) => break lock,
            None => tokio::time::sleep(LOCK_POLL).await,
        }
    };
    if paths.done.is_dir() {
        return Ok(false);
    }
    progress(Event::Fetching { layer: number, layers, size_bytes: layer.size_bytes });
    let key = blob_key(&layer.digest);
    // Whoever fetched it before was killed: nobody else has the lock.
    remove_file(&paths.get)?;
    let found = store.get_to_file(&key, &paths.get, layer.size_bytes).await.map_err(|source| match source {
        BlobError::TooLarge { max } => too_large(&key, max),
        source => ImageError::Store { op: "fetch", key: key.clone(), source },
    });
    if let Err(error) = found {
        remove_file(&paths.get)?;
        return Err(error);
    }
    progress(Event::Unpacking { layer: number, layers });
    let (layer, limits) = (layer.clone(), limits.clone());
    // The lock goes along: if the caller gives up, it stays until this work has ended.
    blocking(move || {
        let unpacked = verify(&layer, &paths.get).and_then(|()| {
            remove_tree(&paths.new)?;
            unpack(&format!("layer {}", layer.digest), &paths.get, &paths.new, &limits)?;
            fs::rename(&paths.new, &paths.done).map_err(ImageError::io("rename", &paths.new))?;
            sync_dir(&paths.dir)
        });
        let cleared = remove_file(&paths.get).and(remove_tree(&paths.new));
        drop(lock);
        unpacked.and(cleared)
    })
    .await?;
    Ok(true)
}

fn too_large(key: &str, expected: u64) -> ImageError {
    ImageError::Malformed {
        what: key.to_owned(),
        reason: format!("it is larger than the {expected} bytes it was stored with"),
    }
}

fn check_digest(digest: &str) -> Result<(), ImageError> {
    match super::manifest::check_sha256(digest) {
        Some(_) => Ok(()),
        None => Err(ImageError::LayerDigest { digest: digest.chars().take(80).collect() }),
    }
}

/// The file has to be the object that was stored.
fn verify(layer: &Layer, file: &Path) -> Result<(), ImageError> {
    let what = blob_key(&layer.digest);
    let mut hasher = blake3::Hasher::new();
    let mut open = File::open(file).map_err(ImageError::io("open", file))?;
    let mut buffer = vec![0; 1 << 17];
    let mut found = 0;
    loop {
        match open.read(&mut buffer).map_err(ImageError::io("read", file))? {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                found += n as u64;
            }
        }
    }
    if found != layer.size_bytes {
        return Err(ImageError::Size { what, expected: layer.size_bytes, found });
    }
    let digest = hasher.finalize().to_hex().to_string();
    if digest != layer.digest {
        return Err(ImageError::Digest { what, expected: layer.digest.clone(), found: digest });
    }
    Ok(())
}

struct Paths {
    dir: PathBuf,
    done: PathBuf,
    new: PathBuf,
    get: PathBuf,
    lock: PathBuf,
}

impl Paths {
    fn new(dir: &Path, digest: &str) -> Self {
        let hidden = |kind: &str| dir.join(format!(".{kind}-{digest}"));
        Self {
            dir: dir.to_owned(),
            done: dir.join(digest),
            new: hidden("new"),
            get: hidden("get"),
            lock: hidden("lock"),
        }
    }
}

/// An exclusive lock on one layer. The kernel gives it up when its holder dies.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Drop for Lock {
    /// Removes the file while still holding it: whoever opened it before sees that it is not the one at the path. One that
    /// cannot be removed locks nobody out and goes with the next `prune`.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn try_lock(path: &Path) -> Result<Option<Lock>, ImageError> {
    let file = File::options().create(true).append(true).open(path).map_err(ImageError::io("open", path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(ImageError::io("lock", path)(errno)),
    }
    let mine = file.metadata().map_err(ImageError::io("read", path))?;
    match fs::symlink_metadata(path) {
        Ok(at_path) if at_path.ino() == mine.ino() && at_path.dev() == mine.dev() => {
            Ok(Some(Lock { path: path.to_owned(), _file: file }))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ImageError::io("read", path)(error)),
    }
}

/// Takes every layer that is not in `in_use` away, and removes it, and what crashes left behind; layers that someone is just
/// unpacking stay. Returns the digests that were removed. The caller has to name every layer of an image that is mounted or
/// about to be. Blocking.
pub fn prune(layers_dir: &Path, in_use: &HashSet<String>) -> Result<Vec<String>, ImageError> {
    let removed = retire(layers_dir, in_use)?;
    clear(layers_dir)?;
    Ok(removed)
}

/// The first half of [`prune`], and quick: the layers are no longer there for anybody, their files still are.
pub fn retire(layers_dir: &Path, in_use: &HashSet<String>) -> Result<Vec<String>, ImageError> {
    let mut removed = Vec::new();
    for (digest, hidden) in found(layers_dir)? {
        let paths = Paths::new(layers_dir, &digest);
        if hidden || in_use.contains(&digest) {
            continue;
        }
        let Some(_lock) = try_lock(&paths.lock)? else { continue };
        // What a crash left under the name that it gets. Mostly nothing.
        remove_tree(&paths.new)?;
        // Another may have been here since the list was made.
        if paths.done.is_dir() {
            // Under a name that no one takes for a whole layer, before the first file of it goes.
            fs::rename(&paths.done, &paths.new).map_err(ImageError::io("rename", &paths.done))?;
            removed.push(digest);
        }
    }
    removed.sort();
    Ok(removed)
}

/// The second half: removes what is no layer, or none any more. Blocking.
pub fn clear(layers_dir: &Path) -> Result<(), ImageError> {
    let hidden: HashSet<String> =
        found(layers_dir)?.into_iter().filter(|(_, hidden)| *hidden).map(|(digest, _)| digest).collect();
    for digest in hidden {
        let paths = Paths::new(layers_dir, &digest);
        let Some(_lock) = try_lock(&paths.lock)? else { continue };
        remove_tree(&paths.new)?;
        remove_file(&paths.get)?;
    }
    Ok(())
}

/// The digests in the directory's names, and whether the name is that of something unfinished.
fn found(layers_dir: &Path) -> Result<Vec<(String, bool)>, ImageError> {
    let list = match fs::read_dir(layers_dir) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ImageError::io("list", layers_dir)(error)),
    };
    let mut found = Vec::new();
    for item in list {
        let item = item.map_err(ImageError::io("list", layers_dir))?;
        let Ok(name) = item.file_name().into_string() else { continue };
        let hidden = [".new-", ".get-", ".lock-"].iter().find_map(|kind| name.strip_prefix(kind));
        let digest = hidden.unwrap_or(&name);
        if check_digest(digest).is_ok() {
            found.push((digest.to_owned(), hidden.is_some()));
        }
    }
    Ok(found)
}

fn remove_tree(path: &Path) -> Result<(), ImageError> {
    absent_is_fine(fs::remove_dir_all(path)).map_err(ImageError::io("remove", path))
}

fn remove_file(path: &Path) -> Result<(), ImageError> {
    absent_is_fine(fs::remove_file(path)).map_err(ImageError::io("remove", path))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn sync_dir(dir: &Path) -> Result<(), ImageError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(ImageError::io("write to the disk", dir))
}
