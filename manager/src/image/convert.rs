//! An OCI layer into the stored form.
//!
//! Two passes over the (compressed) layer, so that memory holds names and never content: the first finds what is left of
//! each path at the end of the layer, which deletions it makes, and checks the digests; the second copies the survivors.
//!
//! ```text
//! stored layer = directories, sorted (so a parent always comes before what is in it)
//!              + deletions, sorted   (.wh.x → character device 0:0 at x)
//!              + everything else, in the layer's own order (so a hard link comes after its file)
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    path::Path,
};

use super::{
    ImageError, Limits,
    stream::{LayerBlob, LayerStream},
    tar::{Entry, EntryFault, Kind, LayerWriter, Meta, Mtime, ReadError, Reader, join, parent, show},
};
use crate::spec::Layer;

/// The overlay's mark on a directory that hides everything below it.
pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const METADATA: &str = "bytes of names and attributes";
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";

/// A directory that nothing says anything about.
const PLAIN_DIR: Meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: Mtime { sec: 0, nsec: 0 }, xattrs: BTreeMap::new() };

/// The directories of the layers converted so far, as a container would see them. A layer may hold `a/b` without saying
/// what `a` is; it is then what it was below, not a new directory owned by root.
#[derive(Debug, Default)]
pub struct Below {
    dirs: BTreeMap<Vec<u8>, Meta>,
}

impl Below {
    /// All layers' directories together may cost what one layer's names may.
    fn check(&self, what: &str, limits: &Limits) -> Result<(), ImageError> {
        let bytes: u64 = self.dirs.iter().map(|(path, meta)| path_cost(path) + meta_cost(meta)).sum();
        if bytes > limits.metadata_bytes {
            let (what, limit) = (format!("{what}, with those below it"), limits.metadata_bytes);
            return Err(ImageError::Limit { what, limit, unit: METADATA });
        }
        Ok(())
    }
}

#[derive(Debug)]
pub struct Converted {
    pub layer: Layer,
    /// The layer deletes everything below it: the layers converted before are not part of the image.
    pub hides_all: bool,
    /// It changes nothing.
    pub empty: bool,
    pub notes: Vec<String>,
}

/// Converts the layer to `out`, which is created. Blocking.
pub fn convert(blob: &LayerBlob, below: &mut Below, limits: &Limits, out: &Path) -> Result<Converted, ImageError> {
    let read = |error| match error {
        ReadError::Io(error) => LayerStream::explain(&blob.what, limits, error),
        ReadError::Entry { path, fault } => ImageError::Entry { what: blob.what.clone(), path, fault },
    };
    let mut plan = Plan::new(&blob.what, limits);
    let mut reader = Reader::lenient(LayerStream::open(blob, limits)?);
    while let Some(entry) = reader.next().map_err(read)? {
        plan.add(entry)?;
    }
    reader.into_inner().verify()?;
    plan.complete(below)?;

    let write = || ImageError::io::<std::io::Error>("write", out);
    let mut writer = LayerWriter::create(out).map_err(write())?;
    plan.write_directories(&mut writer).map_err(write())?;
    let mut reader = Reader::lenient(LayerStream::open(blob, limits)?);
    let mut index = 0;
    while let Some(entry) = reader.next().map_err(read)? {
        if plan.keeps(&entry, index) {
            writer.append(&entry, &mut reader).map_err(write())?;
        }
        index += 1;
    }
    reader.into_inner().verify()?;
    let layer = writer.finish().map_err(write())?;
    let root = plan.entries.get(&b""[..]).map(|planned| &planned.kind);
    let same_root =
        matches!(root, Some(PlannedKind::Dir(meta)) if below.dirs.get(&b""[..]).unwrap_or(&PLAIN_DIR) == meta);
    let empty = same_root && plan.entries.len() == 1 && plan.whiteouts.is_empty();
    plan.apply_to(below);
    below.check(&blob.what, limits)?;
    Ok(Converted { layer, hides_all: plan.opaque.contains(&b""[..]), empty, notes: plan.notes })
}

/// What is left of a layer at its end.
struct Plan<'a> {
    what: &'a str,
    limits: &'a Limits,
    entries: BTreeMap<Vec<u8>, Planned>,
    whiteouts: BTreeSet<Vec<u8>>,
    opaque: BTreeSet<Vec<u8>>,
    notes: Vec<String>,
    count: u64,
    bytes: u64,
}

struct Planned {
    /// Which entry of the stream it is.
    index: u64,
    kind: PlannedKind,
}

enum PlannedKind {
    Dir(Meta),
    Link { target: Vec<u8>, index: u64 },
    Other,
}

impl<'a> Plan<'a> {
    fn new(what: &'a str, limits: &'a Limits) -> Self {
        Self {
            what,
            limits,
            entries: BTreeMap::new(),
            whiteouts: BTreeSet::new(),
            opaque: BTreeSet::new(),
            notes: Vec::new(),
            count: 0,
            bytes: 0,
        }
    }

    fn fault(&self, path: &[u8], fault: EntryFault) -> ImageError {
        ImageError::Entry { what: self.what.to_owned(), path: show(path), fault }
    }

    fn add(&mut self, entry: Entry) -> Result<(), ImageError> {
        let index = self.count;
        let mut spent = Spent { count: self.count, bytes: self.bytes };
        spent.add(cost(&entry), self.what, self.limits)?;
        (self.count, self.bytes) = (spent.count, spent.bytes);
        if self.take_whiteout(&entry.path)? {
            return Ok(());
        }
        check_storable(&entry).map_err(|fault| self.fault(&entry.path, fault))?;
        if let Some(above) = self.non_directory_above(&entry.path) {
            return Err(self.fault(&entry.path, EntryFault::ThroughNonDirectory(show(above))));
        }
        let kind = match entry.kind {
            Kind::Dir => PlannedKind::Dir(entry.meta),
            Kind::Hardlink(target) => match self.entries.get(&target) {
                Some(Planned { index, kind: PlannedKind::Link { .. } | PlannedKind::Other }) => {
                    PlannedKind::Link { index: *index, target }
                }
                _ => return Err(self.fault(&entry.path, EntryFault::HardlinkTarget(show(&target)))),
            },
            _ => PlannedKind::Other,
        };
        if !matches!(kind, PlannedKind::Dir(_)) {
            remove_below(&mut self.entries, &entry.path);
        }
        self.entries.insert(entry.path, Planned { index, kind });
        Ok(())
    }

    /// Takes the entry if its name is a deletion mark. Marks are about the layers below, whatever the order here.
    fn take_whiteout(&mut self, path: &[u8]) -> Result<bool, ImageError> {
        let dir = parent(path).unwrap_or_default();
        let name = &path[if dir.is_empty() { 0 } else { dir.len() + 1 }..];
        let Some(hidden) = name.strip_prefix(b".wh.") else { return Ok(false) };
        if name == b".wh..wh..opq" {
            self.opaque.insert(dir.to_vec());
        } else if hidden.starts_with(b".wh.") {
            self.notes.push(format!("{}: {:?} is aufs's own file and was left out", self.what, show(path)));
        } else if matches!(hidden, b"" | b"." | b"..") {
            return Err(self.fault(path, EntryFault::Whiteout));
        } else {
            self.whiteouts.insert(join(dir, hidden));
        }
        Ok(true)
    }

    fn non_directory_above<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        ancestors(path).find(|above| self.entries.get(*above).is_some_and(|p| !matches!(p.kind, PlannedKind::Dir(_))))
    }

    /// Settles deletions against entries, and adds the directories that paths imply.
    fn complete(&mut self, below: &Below) -> Result<(), ImageError> {
        for (path, planned) in &self.entries {
            if let PlannedKind::Link { target, index } = &planned.kind
                && self.entries.get(target).is_none_or(|t| t.index != *index)
            {
                return Err(self.fault(path, EntryFault::HardlinkTarget(show(target))));
            }
        }
        let whiteouts = std::mem::take(&mut self.whiteouts);
        for path in whiteouts {
            match self.entries.get(&path).map(|planned| &planned.kind) {
                // Deleted and made anew: nothing of the old directory shows.
                Some(PlannedKind::Dir(_)) => drop(self.opaque.insert(path)),
                Some(_) => {}
                None if self.non_directory_above(&path).is_some() => {}
                None => drop(self.whiteouts.insert(path)),
            }
        }
        let opaque = std::mem::take(&mut self.opaque);
        for path in opaque {
            let is_other = self.entries.get(&path).is_some_and(|p| !matches!(p.kind, PlannedKind::Dir(_)));
            if !is_other && self.non_directory_above(&path).is_none() {
                self.opaque.insert(path);
            }
        }
        let mut implied: BTreeSet<Vec<u8>> = self.opaque.clone();
        implied.insert(Vec::new());
        let mut spent = Spent { count: self.count, bytes: self.bytes };
        for path in self.entries.keys().chain(&self.whiteouts).chain(&self.opaque) {
            // From the nearest upwards, until one is known: what is above that is known too.
            for above in ancestors(path) {
                if self.entries.contains_key(above) || implied.contains(above) {
                    break;
                }
                // Here and below: a path of some thousand bytes can imply some thousand directories.
                let attributes = below.dirs.get(above).map_or(0, meta_cost);
                spent.add(2 * path_cost(above) + attributes, self.what, self.limits)?;
                implied.insert(above.to_vec());
            }
        }
        for path in implied {
            let kind = PlannedKind::Dir(below.dirs.get(&path).cloned().unwrap_or(PLAIN_DIR));
            self.entries.entry(path).or_insert(Planned { index: u64::MAX, kind });
        }
        Ok(())
    }

    fn write_directories(&self, writer: &mut LayerWriter) -> std::io::Result<()> {
        for (path, planned) in &self.entries {
            if let PlannedKind::Dir(meta) = &planned.kind {
                let mut meta = meta.clone();
                // The overlay ignores the mark on a root; `hides_all` does its work.
                if self.opaque.contains(path) && !path.is_empty() {
                    meta.xattrs.insert(OPAQUE.to_vec(), b"y".to_vec());
                }
                writer.append_bare(path, Kind::Dir, meta)?;
            }
        }
        for path in &self.whiteouts {
            writer.append_bare(path, Kind::Char { major: 0, minor: 0 }, Meta::default())?;
        }
        Ok(())
    }

    /// Whether this entry of the second pass is to be copied.
    fn keeps(&self, entry: &Entry, index: u64) -> bool {
        entry.kind != Kind::Dir && self.entries.get(&entry.path).is_some_and(|planned| planned.index == index)
    }

    fn apply_to(&self, below: &mut Below) {
        for path in &self.whiteouts {
            below.dirs.remove(path);
            remove_below(&mut below.dirs, path);
        }
        for path in &self.opaque {
            remove_below(&mut below.dirs, path);
        }
        for (path, planned) in &self.entries {
            if let PlannedKind::Dir(meta) = &planned.kind {
                below.dirs.insert(path.clone(), meta.clone());
            } else if below.dirs.remove(path).is_some() {
                remove_below(&mut below.dirs, path);
            }
        }
    }
}

/// What a layer has cost up to now.
struct Spent {
    count: u64,
    bytes: u64,
}

impl Spent {
    fn add(&mut self, bytes: u64, what: &str, limits: &Limits) -> Result<(), ImageError> {
        self.count += 1;
        self.bytes += bytes;
        for (over, limit, unit) in [
            (self.count > limits.entries, limits.entries, "entries"),
            (self.bytes > limits.metadata_bytes, limits.metadata_bytes, METADATA),
        ] {
            if over {
                return Err(ImageError::Limit { what: what.to_owned(), limit, unit });
            }
        }
        Ok(())
    }
}

/// What a layer from outside may not carry because an overlay would take it for its own.
pub fn check_storable(entry: &Entry) -> Result<(), EntryFault> {
    if let Some(name) = entry.meta.xattrs.keys().find(|name| name.starts_with(OVERLAY_XATTRS)) {
        return Err(EntryFault::OverlayXattr(show(name)));
    }
    if entry.kind == (Kind::Char { major: 0, minor: 0 }) {
        return Err(EntryFault::ZeroDevice);
    }
    Ok(())
}

/// What an entry costs in memory, roughly.
pub fn cost(entry: &Entry) -> u64 {
    let link = if let Kind::Hardlink(target) | Kind::Symlink(target) = &entry.kind { target.len() } else { 0 };
    path_cost(&entry.path) + meta_cost(&entry.meta) + link as u64
}

fn path_cost(path: &[u8]) -> u64 {
    path.len() as u64 + 64
}

fn meta_cost(meta: &Meta) -> u64 {
    meta.xattrs.iter().map(|(name, value)| (name.len() + value.len() + 64) as u64).sum()
}

/// The directories above a path, nearest first, the root last.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(parent(path), |path| parent(path))
}

fn remove_below<V>(map: &mut BTreeMap<Vec<u8>, V>, dir: &[u8]) {
    if dir.is_empty() {
        let root = map.remove(dir);
        map.clear();
        map.extend(root.map(|root| (Vec::new(), root)));
        return;
    }
    let from = [dir, b"/"].concat();
    let doomed: Vec<Vec<u8>> = map
        .range::<Vec<u8>, _>((Bound::Included(&from), Bound::Unbounded))
        .map(|(path, _)| path)
        .take_while(|path| path.starts_with(&from))
        .cloned()
        .collect();
    for path in doomed {
        map.remove(&path);
    }
}
