//! Copying one entry with all that belongs to it.

use std::{
    ffi::{CStr, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, copy_file_range, openat, readlinkat},
    sys::{
        stat::{FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, Whence, fchownat, ftruncate, lseek, symlinkat},
};

/// At most this is copied between two looks at the stop flag.
const PIECE: usize = 8 << 20;

/// Names an inode of this node's lower layers; anywhere else it is wrong.
const OVERLAY_ORIGIN: &str = "trusted.overlay.origin";

/// Whether reflinks are worth trying: not again once the file systems said no.
#[derive(Default)]
pub(super) struct Reflink {
    refused: bool,
}

/// An object to read or set attributes of.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    Itself(BorrowedFd<'a>),
    Entry(BorrowedFd<'a>, &'a CStr),
}

impl Place<'_> {
    /// A path that leads to exactly this object: through a descriptor, and for an entry not through its own symlink.
    fn path(&self) -> PathBuf {
        match self {
            Place::Itself(fd) => PathBuf::from(format!("/proc/self/fd/{}/.", fd.as_raw_fd())),
            Place::Entry(dir, name) => {
                PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(OsStr::from_bytes(name.to_bytes()))
            }
        }
    }
}

/// Copies an entry that is no directory and no socket. Returns the bytes read.
pub(super) fn entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    stat: &FileStat,
    reflink: &mut Reflink,
    stop: &AtomicBool,
) -> io::Result<u64> {
    let mut copied = 0;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => {
            // O_NONBLOCK: should it have become a fifo by now, opening it must not wait for a writer.
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOATIME;
            let source = File::from(openat(from, name, flags, Mode::empty())?);
            let now = fstat(source.as_fd())?;
            if (now.st_dev, now.st_ino) != (stat.st_dev, stat.st_ino) {
                return Err(Errno::ENOENT.into());
            }
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let target = File::from(openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
            copied = contents(&source, &target, now.st_size, reflink, stop)?;
        }
        libc::S_IFLNK => symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?,
        kind => mknodat(to, name, SFlag::from_bits_truncate(kind), Mode::S_IRUSR, stat.st_rdev)?,
    }
    attributes(Place::Entry(from, name), Place::Entry(to, name), stat)?;
    Ok(copied)
}

fn contents(source: &File, target: &File, size: i64, reflink: &mut Reflink, stop: &AtomicBool) -> io::Result<u64> {
    if size == 0 {
        return Ok(0);
    }
    if !reflink.refused {
        // SAFETY: both descriptors are open for the call; FICLONE takes a descriptor by value.
        #[allow(unsafe_code)]
        let rc = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) };
        if rc == 0 {
            return Ok(0);
        }
        reflink.refused = true;
    }
    let mut copied = 0;
    let mut at = 0;
    while at < size {
        let start = match lseek(source, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = match lseek(source, start, Whence::SeekHole) {
            Ok(end) => end.min(size),
            // Truncated meanwhile.
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        range(source, target, start, end, stop)?;
        copied += (end - start).max(0) as u64;
        at = end.max(start + 1);
    }
    ftruncate(target, size)?;
    Ok(copied)
}

fn range(source: &File, target: &File, start: i64, end: i64, stop: &AtomicBool) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = ((end - read_at) as usize).min(PIECE);
        match copy_file_range(source, Some(&mut read_at), target, Some(&mut write_at), length) {
            // Shorter than it was: the container truncated it meanwhile, and it will be copied again.
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                return by_hand(source, target, read_at as u64, end as u64, stop);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn by_hand(source: &File, target: &File, mut at: u64, end: u64, stop: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while at < end {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = buffer.len().min((end - at) as usize);
        match source.read_at(&mut buffer[..length], at)? {
            0 => return Ok(()),
            read => {
                target.write_all_at(&buffer[..read], at)?;
                at += read as u64;
            }
        }
    }
    Ok(())
}

/// Owner, then mode and extended attributes (changing the owner clears some of both), then times.
pub(super) fn attributes(from: Place<'_>, to: Place<'_>, stat: &FileStat) -> io::Result<()> {
    let (dir, name) = match to {
        Place::Itself(fd) => (fd, c"."),
        Place::Entry(dir, name) => (dir, name),
    };
    fchownat(
        dir,
        name,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    extended(&from, &to)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFLNK {
        fchmodat(dir, name, Mode::from_bits_truncate(stat.st_mode & 0o7777), FchmodatFlags::FollowSymlink)?;
    }
    let time = |seconds, nanoseconds| TimeSpec::new(seconds, nanoseconds);
    let accessed = time(stat.st_atime, stat.st_atime_nsec);
    let modified = time(stat.st_mtime, stat.st_mtime_nsec);
    utimensat(dir, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

fn extended(from: &Place<'_>, to: &Place<'_>) -> io::Result<()> {
    let source = from.path();
    let target = to.path();
    let wanted: Vec<std::ffi::OsString> = match xattr::list(&source) {
        Ok(names) => names.filter(|name| name != OVERLAY_ORIGIN).collect(),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error),
    };
    if let Ok(present) = xattr::list(&target) {
        for name in present.filter(|name| !wanted.contains(name)) {
            // What the file system adds itself (a security label) cannot always be removed, and is not the container's.
            let _ = xattr::remove(&target, &name);
        }
    }
    for name in wanted {
        if let Some(value) = xattr::get(&source, &name)? {
            xattr::set(&target, &name, &value)?;
        }
    }
    Ok(())
}
