//! A stored layer into a directory of this node.
//!
//! The digest says that the bytes are those that were imported, not that whoever imported them meant well: the directory is
//! treated as if the layer were hostile. Every parent is opened beneath the target with the kernel refusing symbolic
//! links on the way, every name is created and never opened if there, and unknown things are refused by name.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::{
    ImageError, Limits,
    convert::{OPAQUE, cost},
    tar::{Entry, EntryFault, Kind, Meta, ReadError, Reader, show, split},
};

/// The window that decompression may need; what the stored form uses is far below.
const WINDOW_LOG_MAX: u32 = 27;

/// Unpacks the stored layer in `blob` into the new directory `target`. Blocking; needs root.
pub fn unpack(what: &str, blob: &Path, target: &Path, limits: &Limits) -> Result<(), ImageError> {
    let file = File::open(blob).map_err(ImageError::io("open", blob))?;
    let mut zstd = zstd::stream::read::Decoder::new(file).map_err(ImageError::io("decompress", blob))?;
    zstd.window_log_max(WINDOW_LOG_MAX).map_err(ImageError::io("decompress", blob))?;
    std::fs::create_dir(target).map_err(ImageError::io("create", target))?;
    let root = fs::open(target, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(ImageError::io("open", target))?;
    let mut unpacker = Unpacker { what, target, root, parent: None, dirs: Vec::new() };
    let mut reader = Reader::strict(Bounded { inner: zstd, left: limits.layer_bytes });
    let read = |error| match error {
        ReadError::Io(source) => ImageError::Archive { what: what.to_owned(), source },
        ReadError::Entry { path, fault } => ImageError::Entry { what: what.to_owned(), path, fault },
    };
    let (mut entries, mut bytes) = (0, 0);
    while let Some(entry) = reader.next().map_err(read)? {
        entries += 1;
        bytes += cost(&entry);
        for (over, limit, unit) in [
            (entries > limits.entries, limits.entries, "entries"),
            (bytes > limits.metadata_bytes, limits.metadata_bytes, "bytes of names and attributes"),
        ] {
            if over {
                return Err(ImageError::Limit { what: what.to_owned(), limit, unit });
            }
        }
        unpacker.entry(entry, &mut reader)?;
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    what: &'a str,
    target: &'a Path,
    root: OwnedFd,
    /// The directory opened last: neighbours come together.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// What directories get at the end: their times change with every name made in them.
    dirs: Vec<(Vec<u8>, Meta)>,
}

impl Unpacker<'_> {
    fn fault(&self, path: &[u8], fault: EntryFault) -> ImageError {
        ImageError::Entry { what: self.what.to_owned(), path: show(path), fault }
    }

    fn os(&self, op: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> ImageError + use<> {
        use std::os::unix::ffi::OsStrExt;
        ImageError::io(op, self.target.join(std::ffi::OsStr::from_bytes(path)))
    }

    fn entry(&mut self, entry: Entry, content: &mut impl Read) -> Result<(), ImageError> {
        let Entry { path, kind, meta } = entry;
        if let Some(name) = meta.xattrs.iter().find(|(name, value)| {
            name.starts_with(b"trusted.overlay.") && !(name[..] == *OPAQUE && value[..] == *b"y" && kind == Kind::Dir)
        }) {
            return Err(self.fault(&path, EntryFault::OverlayXattr(show(name.0))));
        }
        let Some((dir, name)) = split(&path) else {
            self.dirs.push((path, meta));
            return Ok(());
        };
        self.open_parent(&path, dir)?;
        let parent = self.parent.as_ref().map_or(&self.root, |(_, fd)| fd);
        let made = |errno| match errno {
            Errno::EXIST => self.fault(&path, EntryFault::Duplicate),
            errno => self.os("create", &path)(errno),
        };
        match kind {
            Kind::Dir => {
                fs::mkdirat(parent, name, Mode::RWXU).map_err(made)?;
                self.dirs.push((path, meta));
                return Ok(());
            }
            Kind::Hardlink(target) => {
                let link_fault = || self.fault(&path, EntryFault::HardlinkTarget(show(&target)));
                let (target_dir, target_name) = split(&target).ok_or_else(link_fault)?;
                let target_parent = open_beneath(&self.root, target_dir).map_err(|_| link_fault())?;
                fs::linkat(&target_parent, target_name, parent, name, AtFlags::empty()).map_err(
                    |errno| match errno {
                        Errno::NOENT | Errno::PERM => link_fault(),
                        errno => made(errno),
                    },
                )?;
                return Ok(());
            }
            Kind::File { size } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file: File = fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(made)?.into();
                let copied =
                    io::copy(&mut content.take(size), &mut file).map_err(|error| match error.raw_os_error() {
                        // The stream's own errors have no number; the disk's have.
                        Some(_) => ImageError::io("write", self.target)(error),
                        None => ImageError::Archive { what: self.what.to_owned(), source: error },
                    })?;
                if copied != size {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(ImageError::Archive { what: self.what.to_owned(), source });
                }
                return set_open(&file, &meta).map_err(self.os("set the attributes of", &path));
            }
            Kind::Symlink(target) => fs::symlinkat(&target[..], parent, name).map_err(made)?,
            Kind::Char { major, minor } => {
                mknod(parent, name, FileType::CharacterDevice, major, minor).map_err(made)?
            }
            Kind::Block { major, minor } => mknod(parent, name, FileType::BlockDevice, major, minor).map_err(made)?,
            Kind::Fifo => mknod(parent, name, FileType::Fifo, 0, 0).map_err(made)?,
        }
        let is_link = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
            .map_err(self.os("read", &path))?;
        set_named(parent, name, &meta, is_link).map_err(self.os("set the attributes of", &path))
    }

    fn open_parent(&mut self, path: &[u8], dir: &[u8]) -> Result<(), ImageError> {
        if self.parent.as_ref().is_some_and(|(opened, _)| opened == dir) {
            return Ok(());
        }
        let fd = open_beneath(&self.root, dir).map_err(|errno| match errno {
            Errno::LOOP | Errno::NOTDIR => self.fault(path, EntryFault::ThroughNonDirectory(show(dir))),
            Errno::NOENT => self.fault(path, EntryFault::MissingParent),
            errno => self.os("open", dir)(errno),
        })?;
        self.parent = Some((dir.to_vec(), fd));
        Ok(())
    }

    /// Sets what directories get, the deepest first, and writes everything to the disk.
    fn finish(self) -> Result<(), ImageError> {
        for (path, meta) in self.dirs.iter().rev() {
            let fd = open_beneath(&self.root, path).map_err(self.os("open", path))?;
            let fd = fs::openat(&fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(self.os("open", path))?;
            set_open(&fd, meta).map_err(self.os("set the attributes of", path))?;
        }
        let root = fs::openat(&self.root, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(self.os("open", b""))?;
        // The directory gets its final name only after this: a name that is there after a power cut is whole.
        fs::syncfs(root).map_err(self.os("write to the disk", b""))
    }
}

fn open_beneath(root: &OwnedFd, dir: &[u8]) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat2(root, if dir.is_empty() { b"." } else { dir }, flags, Mode::empty(), resolve)
}

fn mknod(parent: &OwnedFd, name: &[u8], kind: FileType, major: u32, minor: u32) -> Result<(), Errno> {
    fs::mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, fs::makedev(major, minor))
}

fn times(meta: &Meta) -> Timestamps {
    let at = Timespec { tv_sec: meta.mtime.sec, tv_nsec: meta.mtime.nsec.into() };
    Timestamps { last_access: at, last_modification: at }
}

fn ids(meta: &Meta) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
}

/// In this order: a change of owner clears set-user-ID bits and capabilities, and everything before changes the times.
fn set_open(fd: &impl std::os::fd::AsFd, meta: &Meta) -> Result<(), Errno> {
    let (uid, gid) = ids(meta);
    fs::fchown(fd, uid, gid)?;
    fs::fchmod(fd, Mode::from_raw_mode(meta.mode))?;
    for (name, value) in &meta.xattrs {
        fs::fsetxattr(fd, &name[..], value, XattrFlags::empty())?;
    }
    fs::futimens(fd, &times(meta))
}

/// The same for what must not be opened: links, devices, pipes. The name was made by this unpacker, in a directory that
/// nobody else can enter.
fn set_named(parent: &OwnedFd, name: &[u8], meta: &Meta, is_link: bool) -> Result<(), Errno> {
    let (uid, gid) = ids(meta);
    fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if !is_link {
        fs::chmodat(parent, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
    }
    let path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat();
    for (attribute, value) in &meta.xattrs {
        fs::lsetxattr(&path[..], &attribute[..], value, XattrFlags::empty())?;
    }
    fs::utimensat(parent, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)
}

/// Ends with an error where more comes than may.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left =
            self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other("more data than a layer may have"))?;
        Ok(n)
    }
}
