//! Walking a directory and its copy side by side.
//!
//! The source belongs to a container that may rearrange it at any moment: every step is relative to an open directory and
//! follows no symlink, so no name leads out of the source.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, OsStr, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat},
    sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat},
    unistd::{LinkatFlags, UnlinkatFlags, linkat, unlinkat},
};

use super::{CaptureError, copy, hot::Hot};

/// Two descriptors are held per level.
const MAX_DEPTH: usize = 256;
const MAX_ENTRIES: usize = 4_000_000;

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_NOATIME);

/// What an entry looked like when it was copied, and what was below it.
pub(super) struct Node {
    look: Look,
    children: HashMap<OsString, Node>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Look {
    device: u64,
    inode: u64,
    mode: u32,
    links: u64,
    size: i64,
    mtime: i128,
    ctime: i128,
}

impl Look {
    fn of(stat: &FileStat) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            mode: stat.st_mode,
            links: stat.st_nlink,
            size: stat.st_size,
            mtime: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            ctime: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// One walk over one source.
pub(super) struct Walk<'a> {
    stop: &'a AtomicBool,
    /// In the freeze: stamps from which on nothing is taken for unchanged, and the files that never are.
    frozen: Option<(i128, &'a Hot)>,
    /// Where a file with several names was put, by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
    staged_root: PathBuf,
    reflink: copy::Reflink,
    /// Bytes that may still be copied.
    pub room: u64,
    pub entries: usize,
    pub bytes: u64,
    pub copied_entries: u64,
    pub copied_bytes: u64,
    pub sockets: u64,
}

/// A pair of open directories and their path below the root.
struct Pair<'p> {
    from: BorrowedFd<'p>,
    to: BorrowedFd<'p>,
    below: &'p Path,
}

impl<'a> Walk<'a> {
    pub fn running(stop: &'a AtomicBool, room: u64) -> Self {
        Self {
            stop,
            frozen: None,
            linked: HashMap::new(),
            staged_root: PathBuf::new(),
            reflink: copy::Reflink::default(),
            room,
            entries: 0,
            bytes: 0,
            copied_entries: 0,
            copied_bytes: 0,
            sockets: 0,
        }
    }

    pub fn frozen(stop: &'a AtomicBool, racy_from: i128, hot: &'a Hot) -> Self {
        Self { frozen: Some((racy_from, hot)), ..Self::running(stop, u64::MAX) }
    }

    /// Makes `to` equal to `from`, given what an earlier walk put there.
    pub fn run(&mut self, from: &Path, to: &Path, before: Option<Node>) -> Result<Node, CaptureError> {
        let error = |operation, path: &Path| {
            let path = path.to_owned();
            move |errno: Errno| CaptureError::Io { operation, path, source: errno.into() }
        };
        if before.is_none() {
            nix::unistd::mkdir(to, Mode::S_IRWXU).map_err(error("create", to))?;
        }
        self.staged_root = to.to_owned();
        let source = open(from, DIRECTORY, Mode::empty()).map_err(error("open", from))?;
        let target = open(to, DIRECTORY, Mode::empty()).map_err(error("open", to))?;
        let stat = fstat(&source).map_err(error("look at", from))?;
        let pair = Pair { from: source.as_fd(), to: target.as_fd(), below: Path::new("") };
        let (children, _) = self.directory(&pair, before, 0)?;
        copy::attributes(copy::Place::Itself(source.as_fd()), copy::Place::Itself(target.as_fd()), &stat).map_err(
            |source| CaptureError::Io { operation: "copy the attributes of", path: from.to_owned(), source },
        )?;
        Ok(Node { look: Look::of(&stat), children })
    }

    /// Returns the children, and whether the copy was touched.
    fn directory(
        &mut self,
        pair: &Pair<'_>,
        before: Option<Node>,
        depth: usize,
    ) -> Result<(HashMap<OsString, Node>, bool), CaptureError> {
        if depth >= MAX_DEPTH {
            return Err(CaptureError::TooDeep { path: pair.below.to_owned(), limit: MAX_DEPTH });
        }
        let names = list(pair.from).map_err(|source| self.error("list", pair.below, source))?;
        let mut old = before.map(|node| node.children).unwrap_or_default();
        let mut children = HashMap::with_capacity(names.len());
        let mut touched = false;
        for name in names {
            if self.stop.load(Ordering::Relaxed) {
                return Err(CaptureError::Cancelled);
            }
            let key = OsString::from_vec(name.as_bytes().to_vec());
            let path = pair.below.join(&key);
            match self.entry(pair, &name, &path, old.remove(&key), depth, &mut touched) {
                Ok(Some(node)) => {
                    self.entries += 1;
                    if self.entries > MAX_ENTRIES {
                        return Err(CaptureError::TooMany { path: self.staged_root.clone(), limit: MAX_ENTRIES });
                    }
                    children.insert(key, node);
                }
                Ok(None) => {}
                // The container goes on while the first walk runs: what it has removed by now need not be copied.
                Err(CaptureError::Io { source, .. }) if self.frozen.is_none() && has_vanished(&source) => {
                    remove(pair.to, &name).map_err(|source| self.error("remove the copy of", &path, source))?;
                }
                Err(error) => return Err(error),
            }
        }
        for gone in old.into_keys() {
            let name = CString::new(gone.as_bytes()).unwrap_or_default();
            remove(pair.to, &name)
                .map_err(|source| self.error("remove the copy of", &pair.below.join(&gone), source))?;
            touched = true;
        }
        Ok((children, touched))
    }

    fn entry(
        &mut self,
        pair: &Pair<'_>,
        name: &CStr,
        path: &Path,
        old: Option<Node>,
        depth: usize,
        touched: &mut bool,
    ) -> Result<Option<Node>, CaptureError> {
        let stat = fstatat(pair.from, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| self.error("look at", path, errno.into()))?;
        let look = Look::of(&stat);
        let kind = stat.st_mode & libc::S_IFMT;
        let was_kind = old.as_ref().map(|node| node.look.mode & libc::S_IFMT);
        let clear =
            |walk: &Self| remove(pair.to, name).map_err(|source| walk.error("remove the copy of", path, source));
        match kind {
            libc::S_IFSOCK => {
                self.sockets += 1;
                if old.is_some() {
                    clear(self)?;
                    *touched = true;
                }
                return Ok(None);
            }
            libc::S_IFDIR => {
                let keep = if was_kind == Some(libc::S_IFDIR) { old } else { None };
                let fresh = keep.is_none();
                if fresh {
                    clear(self)?;
                    mkdirat(pair.to, name, Mode::S_IRWXU)
                        .map_err(|errno| self.error("create the copy of", path, errno.into()))?;
                }
                let unchanged = keep.as_ref().is_some_and(|node| self.is_unchanged(&node.look, &look));
                let below = self.descend(pair, name, path, &stat, keep, unchanged, depth)?;
                *touched |= fresh;
                return Ok(Some(Node { look, children: below }));
            }
            libc::S_IFREG => self.bytes += stat.st_size as u64,
            _ => {}
        }
        let identity = (stat.st_dev, stat.st_ino);
        if old.as_ref().is_some_and(|node| self.is_unchanged(&node.look, &look)) {
            if stat.st_nlink > 1 {
                self.linked.entry(identity).or_insert_with(|| path.to_owned());
            }
            return Ok(Some(Node { look, children: HashMap::new() }));
        }
        *touched = true;
        if old.is_some() {
            clear(self)?;
        }
        self.copied_entries += 1;
        if let Some(first) = self.linked.get(&identity).filter(|_| stat.st_nlink > 1) {
            let first = self.staged_root.join(first);
            linkat(nix::fcntl::AT_FDCWD, &first, pair.to, name, LinkatFlags::empty())
                .map_err(|errno| self.error("link the copy of", path, errno.into()))?;
            return Ok(Some(Node { look, children: HashMap::new() }));
        }
        let occupies = stat.st_blocks.unsigned_abs().saturating_mul(512);
        let short = || CaptureError::NoRoom { room: self.room, path: self.staged_root.clone() };
        self.room = self.room.checked_sub(occupies).ok_or_else(short)?;
        let copied = copy::entry(pair.from, pair.to, name, &stat, &mut self.reflink, self.stop)
            .map_err(|source| self.error("copy", path, source))?;
        self.copied_bytes += copied;
        if stat.st_nlink > 1 {
            self.linked.insert(identity, path.to_owned());
        }
        Ok(Some(Node { look, children: HashMap::new() }))
    }

    #[allow(clippy::too_many_arguments)]
    fn descend(
        &mut self,
        pair: &Pair<'_>,
        name: &CStr,
        path: &Path,
        stat: &FileStat,
        before: Option<Node>,
        unchanged: bool,
        depth: usize,
    ) -> Result<HashMap<OsString, Node>, CaptureError> {
        let open = |dir: BorrowedFd<'_>| -> Result<OwnedFd, io::Error> {
            openat(dir, name, DIRECTORY, Mode::empty()).map_err(io::Error::from)
        };
        let from = open(pair.from).map_err(|source| self.error("open", path, source))?;
        let to = open(pair.to).map_err(|source| self.error("open the copy of", path, source))?;
        let inner = Pair { from: from.as_fd(), to: to.as_fd(), below: path };
        let (children, touched) = self.directory(&inner, before, depth + 1)?;
        // Last, because filling a directory moves its times.
        if touched || !unchanged {
            copy::attributes(copy::Place::Itself(from.as_fd()), copy::Place::Itself(to.as_fd()), stat)
                .map_err(|source| self.error("copy the attributes of", path, source))?;
        }
        Ok(children)
    }

    fn is_unchanged(&self, old: &Look, new: &Look) -> bool {
        let Some((racy_from, hot)) = self.frozen else { return false };
        old == new && new.mtime < racy_from && new.ctime < racy_from && !hot.contains(new.device, new.inode)
    }

    fn error(&self, operation: &'static str, path: &Path, source: io::Error) -> CaptureError {
        if self.stop.load(Ordering::Relaxed) {
            return CaptureError::Cancelled;
        }
        CaptureError::Io {
            operation,
            path: Path::new(self.staged_root.file_name().unwrap_or(OsStr::new("?"))).join(path),
            source,
        }
    }
}

fn has_vanished(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ESTALE))
}

fn list(dir: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut dir = Dir::openat(dir, c".", DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Removes a copy, whatever it is; one that is not there is no error. The copy is ours alone: nobody races here.
fn remove(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let inner = openat(dir, name, DIRECTORY, Mode::empty())?;
    for child in list(inner.as_fd())? {
        remove(inner.as_fd(), &child)?;
    }
    unlinkat(dir, name, UnlinkatFlags::RemoveDir)?;
    Ok(())
}
