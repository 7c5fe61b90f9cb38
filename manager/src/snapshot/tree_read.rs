//! A tar stream back into a directory tree, trusting nothing in it.
//!
//! Every entry's directory is looked up beneath the target, never through a symbolic link (`openat2`), so a stream can
//! neither name nor link its way out. Numbers and sizes are bounded by what the manifest declared.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::{
        stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, makedev, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchownat, linkat, symlinkat},
};
use tar::{Archive, Entry, EntryType};

use super::{
    SnapshotError,
    error::io as io_error,
    held::Held,
    tar_guard::{Sparse, SparseMap, TarGuard},
    tree_write::{XATTR, XATTR_HEX},
};

const COPY: usize = 256 << 10;

/// What the manifest says the stream may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub entries: u64,
    pub logical_bytes: u64,
}

/// Unpacks `stream` into `target`, an empty directory. `object` is what to call the stream in an error.
///
/// After an error `target` holds an unfinished tree.
pub fn read_tree<R: Read>(object: &str, stream: R, target: &Path, bounds: Bounds) -> Result<(), SnapshotError> {
    read_within(object, stream, target, bounds, Held::default())
}

pub(super) fn read_within<R: Read>(
    object: &str,
    stream: R,
    target: &Path,
    bounds: Bounds,
    held: Held,
) -> Result<(), SnapshotError> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = openat(AT_FDCWD, target, flags, Mode::empty()).map_err(|e| io_error("open", target)(e.into()))?;
    let (stream, sparse) = TarGuard::new(stream);
    let mut reader = Reader {
        object,
        target,
        root,
        parent: None,
        directories: Vec::new(),
        held,
        left: bounds,
        sparse,
        buffer: vec![0; COPY],
    };
    let mut archive = Archive::new(stream);
    for entry in archive.entries().map_err(|e| reader.stream(e))? {
        let mut entry = entry.map_err(|e| reader.stream(e))?;
        reader.entry(&mut entry)?;
    }
    let mut stream = archive.into_inner();
    io::copy(&mut stream, &mut io::sink()).map_err(|e| reader.stream(e))?;
    if reader.left.entries != 0 || reader.left.logical_bytes != 0 {
        let what = format!("{} entries and {} bytes are missing", reader.left.entries, reader.left.logical_bytes);
        return Err(SnapshotError::Damaged { object: object.to_owned(), what });
    }
    reader.finish_directories()
}

/// Owner, mode, times and attributes of an entry.
struct Metadata {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: TimeSpec,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

struct Reader<'a> {
    object: &'a str,
    target: &'a Path,
    root: OwnedFd,
    /// The directory of the last entry, which is mostly that of the next.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Their mode and time are set when nothing is written to them any more.
    directories: Vec<(PathBuf, Metadata)>,
    /// What `directories` may still take.
    held: Held,
    left: Bounds,
    /// The holes of the current entry.
    sparse: Sparse,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), SnapshotError> {
        let path = entry.path_bytes().into_owned();
        let path = relative(&path).ok_or_else(|| self.hostile(&path, "names a place outside"))?;
        let kind = entry.header().entry_type();
        let sparse = self.sparse.borrow_mut().take();
        let bytes = match (&sparse, kind) {
            (Some(map), _) => map.size,
            (None, EntryType::Regular | EntryType::Continuous) => entry.size(),
            _ => 0,
        };
        self.left.entries = self
            .left
            .entries
            .checked_sub(1)
            .ok_or_else(|| self.hostile(path.as_os_str().as_bytes(), "is one too many"))?;
        self.left.logical_bytes = self
            .left
            .logical_bytes
            .checked_sub(bytes)
            .ok_or_else(|| self.hostile(path.as_os_str().as_bytes(), "is larger than declared"))?;
        if path.as_os_str().is_empty() {
            if !kind.is_dir() {
                return Err(self.hostile(b".", "is not a directory"));
            }
            let metadata = self.metadata(entry)?;
            return self.hold(path, metadata);
        }
        if kind.is_hard_link() {
            return self.hard_link(entry, &path);
        }
        let metadata = self.metadata(entry)?;
        let (parent, name) = self.place(&path)?;
        let io = |op: &'static str| {
            let path = self.target.join(&path);
            move |e: Errno| io_error(op, path)(e.into())
        };
        let private = Mode::S_IRUSR | Mode::S_IWUSR;
        match kind {
            EntryType::Directory => {
                mkdirat(parent.as_fd(), name, Mode::S_IRWXU).map_err(io("create"))?;
                return self.hold(path, metadata);
            }
            EntryType::Regular | EntryType::Continuous => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = File::from(openat(parent.as_fd(), name, flags, private).map_err(io("create"))?);
                match sparse {
                    Some(map) => self.pieces(entry, file, &path, &map)?,
                    None => self.content(entry, file, &path, bytes)?,
                }
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes();
                let target = target.ok_or_else(|| self.hostile(path.as_os_str().as_bytes(), "links to nothing"))?;
                symlinkat(target.as_ref(), parent.as_fd(), name).map_err(io("create"))?;
            }
            EntryType::Fifo => {
                mknodat(parent.as_fd(), name, SFlag::S_IFIFO, private, 0).map_err(io("create"))?;
            }
            EntryType::Char | EntryType::Block => {
                let number = |n: io::Result<Option<u32>>| n.map(Option::unwrap_or_default);
                let major = number(entry.header().device_major()).map_err(|e| self.stream(e))?;
                let minor = number(entry.header().device_minor()).map_err(|e| self.stream(e))?;
                let kind = if kind.is_character_special() { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
                mknodat(parent.as_fd(), name, kind, private, makedev(major.into(), minor.into()))
                    .map_err(io("create"))?;
            }
            _ => return Err(self.hostile(path.as_os_str().as_bytes(), "is of a kind that snapshots do not have")),
        }
        self.apply(&parent, name, &path, &metadata)
    }

    /// The directory of `path`, found without leaving the target or following a link, and the last component.
    fn place<'p>(&mut self, path: &'p Path) -> Result<(OwnedFd, &'p Path), SnapshotError> {
        let directory = path.parent().unwrap_or(Path::new(""));
        let name =
            path.file_name().map(Path::new).ok_or_else(|| self.hostile(path.as_os_str().as_bytes(), "has no name"))?;
        let known = self.parent.as_ref().is_some_and(|(p, _)| p == directory);
        if !known {
            let fd = self.beneath(directory)?;
            self.parent = Some((directory.to_owned(), fd));
        }
        let fd = match &self.parent {
            Some((_, fd)) => fd.try_clone(),
            None => self.root.try_clone(),
        };
        Ok((fd.map_err(io_error("open", self.target))?, name))
    }

    fn beneath(&self, directory: &Path) -> Result<OwnedFd, SnapshotError> {
        if directory.as_os_str().is_empty() {
            return self.root.try_clone().map_err(io_error("open", self.target));
        }
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
        openat2(self.root.as_fd(), directory, how).map_err(|e| match e {
            Errno::ELOOP | Errno::EXDEV => {
                self.hostile(directory.as_os_str().as_bytes(), "leads through a symbolic link")
            }
            Errno::ENOENT | Errno::ENOTDIR => {
                self.hostile(directory.as_os_str().as_bytes(), "is used as a directory but is none")
            }
            other => io_error("open", self.target.join(directory))(other.into()),
        })
    }

    fn hard_link<R: Read>(&mut self, entry: &Entry<'_, R>, path: &Path) -> Result<(), SnapshotError> {
        let first = entry.link_name_bytes().unwrap_or_default().into_owned();
        let first = relative(&first).filter(|p| !p.as_os_str().is_empty());
        let first = first.ok_or_else(|| self.hostile(path.as_os_str().as_bytes(), "links to a place outside"))?;
        let old_parent = self.beneath(first.parent().unwrap_or(Path::new("")))?;
        let old_name = first.file_name().map(Path::new).unwrap_or(Path::new(""));
        let (parent, name) = self.place(path)?;
        linkat(old_parent.as_fd(), old_name, parent.as_fd(), name, AtFlags::empty())
            .map_err(|e| io_error("link", self.target.join(path))(e.into()))
    }

    fn content<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        mut file: File,
        path: &Path,
        size: u64,
    ) -> Result<(), SnapshotError> {
        let mut offset = 0_u64;
        loop {
            let read = entry.read(&mut self.buffer).map_err(|e| self.stream(e))?;
            if read == 0 {
                break;
            }
            file.write_all(&self.buffer[..read]).map_err(io_error("write", self.target.join(path)))?;
            offset += read as u64;
        }
        if offset != size {
            return Err(self.hostile(path.as_os_str().as_bytes(), "ends early"));
        }
        Ok(())
    }

    /// The data of a sparse file to where it belongs; what is between is never touched.
    fn pieces<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        file: File,
        path: &Path,
        map: &SparseMap,
    ) -> Result<(), SnapshotError> {
        let local = || io_error("write", self.target.join(path));
        file.set_len(map.size).map_err(local())?;
        for &(mut offset, mut left) in &map.pieces {
            while left > 0 {
                let most = usize::try_from(left).map_or(COPY, |left| left.min(COPY));
                let read = entry.read(&mut self.buffer[..most]).map_err(|e| self.stream(e))?;
                if read == 0 {
                    return Err(self.hostile(path.as_os_str().as_bytes(), "ends early"));
                }
                file.write_all_at(&self.buffer[..read], offset).map_err(local())?;
                (offset, left) = (offset + read as u64, left - read as u64);
            }
        }
        Ok(())
    }

    fn hold(&mut self, path: PathBuf, metadata: Metadata) -> Result<(), SnapshotError> {
        let xattrs = metadata.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
        if self.held.directory(&path, xattrs).is_err() {
            return Err(self.hostile(path.as_os_str().as_bytes(), "is one of too many directories and attributes"));
        }
        self.directories.push((path, metadata));
        Ok(())
    }

    fn metadata<R: Read>(&self, entry: &mut Entry<'_, R>) -> Result<Metadata, SnapshotError> {
        let header = entry.header();
        let id = |n: io::Result<u64>| n.and_then(|n| u32::try_from(n).map_err(io::Error::other));
        let uid = id(header.uid()).map_err(|e| self.stream(e))?;
        let gid = id(header.gid()).map_err(|e| self.stream(e))?;
        let mode = header.mode().map_err(|e| self.stream(e))? & 0o7777;
        let seconds = header.mtime().map_err(|e| self.stream(e))?;
        let mut mtime = TimeSpec::new(i64::try_from(seconds).unwrap_or(i64::MAX), 0);
        let mut xattrs = Vec::new();
        if let Some(extensions) = entry.pax_extensions().map_err(|e| self.stream(e))? {
            for extension in extensions {
                let extension = extension.map_err(|e| self.stream(e))?;
                let (key, value) = (extension.key_bytes(), extension.value_bytes());
                let malformed = || self.stream(io::Error::other("malformed pax extension"));
                if key == b"mtime" {
                    mtime = parse_time(value).ok_or_else(malformed)?;
                } else if let Some(name) = key.strip_prefix(XATTR.as_bytes()) {
                    xattrs.push((name.to_owned(), value.to_owned()));
                } else if let Some(name) = key.strip_prefix(XATTR_HEX.as_bytes()) {
                    let name = hex::decode(name).map_err(|_| malformed())?;
                    xattrs.push((name, hex::decode(value).map_err(|_| malformed())?));
                }
            }
        }
        Ok(Metadata { uid, gid, mode, mtime, xattrs })
    }

    /// Owner first: changing it clears set-user-ID bits and capabilities.
    fn apply(&self, parent: &OwnedFd, name: &Path, path: &Path, m: &Metadata) -> Result<(), SnapshotError> {
        let full = self.target.join(path);
        let io = |op: &'static str| {
            let full = full.clone();
            move |e: Errno| io_error(op, full)(e.into())
        };
        let owner = (Some(Uid::from_raw(m.uid)), Some(Gid::from_raw(m.gid)));
        fchownat(parent.as_fd(), name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(io("set the owner of"))?;
        // Not through the target's path, which somebody could have replaced.
        let handle = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
        for (key, value) in &m.xattrs {
            let key = std::ffi::OsStr::from_bytes(key);
            xattr::set(&handle, key, value).map_err(io_error("set the attributes of", &full))?;
        }
        let is_link = std::fs::symlink_metadata(&handle).map_err(io_error("read", &full))?.is_symlink();
        if !is_link {
            let mode = Mode::from_bits_truncate(m.mode);
            fchmodat(AT_FDCWD, &handle, mode, FchmodatFlags::FollowSymlink).map_err(io("set the mode of"))?;
        }
        utimensat(AT_FDCWD, &handle, &m.mtime, &m.mtime, UtimensatFlags::NoFollowSymlink).map_err(io("set the time of"))
    }

    /// Deepest first, so that setting one does not change the time of another.
    fn finish_directories(&mut self) -> Result<(), SnapshotError> {
        while let Some((path, metadata)) = self.directories.pop() {
            if path.as_os_str().is_empty() {
                // The handle `/proc/self/fd/N/.` names the directory itself.
                self.apply(&self.root, Path::new("."), &path, &metadata)?;
            } else {
                let (parent, name) = self.place(&path)?;
                self.apply(&parent, name, &path, &metadata)?;
            }
        }
        Ok(())
    }

    fn hostile(&self, entry: &[u8], what: &'static str) -> SnapshotError {
        let entry: String = String::from_utf8_lossy(entry).chars().take(200).collect();
        SnapshotError::Hostile { object: self.object.to_owned(), entry, what }
    }

    /// An error of the stream: the fetcher's own, if it ended the stream, or a malformed one.
    fn stream(&self, error: io::Error) -> SnapshotError {
        SnapshotError::Damaged { object: self.object.to_owned(), what: format!("its file list is malformed: {error}") }
    }
}

/// A path of plain components; `.` and empty ones are left out. `None` for anything that could lead elsewhere.
fn relative(bytes: &[u8]) -> Option<PathBuf> {
    if bytes.contains(&0) || bytes.len() > 4096 {
        return None;
    }
    let mut path = PathBuf::new();
    for component in Path::new(std::ffi::OsStr::from_bytes(bytes)).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(path)
}

/// `seconds.nanoseconds`, the seconds possibly negative.
fn parse_time(value: &[u8]) -> Option<TimeSpec> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = if fraction.is_empty() { 0 } else { format!("{fraction:0<9}").parse().ok()? };
    Some(TimeSpec::new(seconds.parse().ok()?, nanos))
}
