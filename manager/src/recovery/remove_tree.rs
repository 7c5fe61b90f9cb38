//! Removing what a container wrote, however it is nested.
//!
//! A container decides how deep its directories go, and `std`'s removal takes stack and a descriptor for each level. Here a
//! directory that is not empty is emptied into the top one and removed, so that no more than two are open at a time:
//!
//! ```text
//!   top/a/b/…  ── unlink what is in a, move b up ──►  top/fresh0/…  ── the same again ──►  top/
//! ```
//! Where moving is refused (no room left, another project's quota, another subvolume) the work goes on further down instead,
//! and begins at the top again afterwards: slow, but with as little.
//!
//! No link is followed, and no listing is held in memory.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    thread,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, unlinkat},
    io::Errno,
};

/// How often, and with what pauses, a directory is tried again into which somebody put one more file meanwhile.
const AGAIN: (u32, Duration) = (20, Duration::from_millis(5));

/// Removes whatever is at `path`; a link there goes itself. Nothing there is no error. Blocks, as long as it takes.
///
/// # Errors
/// What the kernel refuses; `DirectoryNotEmpty` when files keep appearing.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    remove_by(path, |from, name, top, fresh| renameat(from, name, top, fresh))
}

/// Moves a directory: out of one, by its name there, into another under a fresh name.
type Move = fn(BorrowedFd<'_>, &CStr, BorrowedFd<'_>, &CStr) -> rustix::io::Result<()>;

fn remove_by(path: &Path, rename: Move) -> io::Result<()> {
    let (mut tries, pause) = AGAIN;
    loop {
        let removed = match unlink(CWD, path)? {
            Left::Nothing => return Ok(()),
            Left::Full => open(CWD, path).and_then(|top| empty(&top, rename)).and_then(|()| remove_dir(CWD, path)),
        };
        match removed {
            Ok(Left::Nothing) => return Ok(()),
            // Somebody puts something there, or removes it, too.
            Ok(Left::Full) | Err(Errno::NOTEMPTY | Errno::NOENT) if tries > 0 => tries -= 1,
            Ok(Left::Full) => return Err(Errno::NOTEMPTY.into()),
            Err(error) => return Err(error.into()),
        }
        thread::sleep(pause);
    }
}

/// What an attempt to remove something has left of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    /// A directory with something in it.
    Full,
}

/// Removes all that is in `top`.
fn empty(top: &OwnedFd, rename: Move) -> rustix::io::Result<()> {
    loop {
        let mut sweep = Sweep { top: Dir::read_from(top)?, rename, moved: 0, removed: false };
        let Some(name) = next(&mut sweep.top)? else { return Ok(()) };
        let mut further = sweep.entry(name)?;
        loop {
            while further.is_none() {
                let Some(name) = next(&mut sweep.top)? else { break };
                further = sweep.entry(name)?;
            }
            let Some(mut down) = further.take() else { break };
            down.rewind();
            sweep.top = down;
        }
        if !sweep.removed {
            return Err(Errno::NOTEMPTY);
        }
    }
}

/// One reading of a directory that others are emptied into.
struct Sweep {
    top: Dir,
    rename: Move,
    /// How many fresh names were used, or skipped because they were taken.
    moved: u64,
    removed: bool,
}

impl Sweep {
    /// Removes an entry of `top` and whatever had to be moved up for it. Returns the directory to go on in when something could
    /// not be moved up from there.
    fn entry(&mut self, mut name: CString) -> rustix::io::Result<Option<Dir>> {
        let mut done = self.moved;
        loop {
            if let Some(further) = self.one(&name)? {
                return Ok(Some(further));
            }
            // Counted, so that nothing has to be remembered of what was moved up, nor read again. A fresh name that was taken is
            // the container's own, and goes as well.
            if done == self.moved {
                return Ok(None);
            }
            name = fresh(done);
            done += 1;
        }
    }

    /// The same without what was moved up.
    fn one(&mut self, name: &CStr) -> rustix::io::Result<Option<Dir>> {
        if unlink(self.top.fd()?, name)? == Left::Nothing {
            self.removed = true;
            return Ok(None);
        }
        let mut dir = match open(self.top.fd()?, name) {
            Err(Errno::NOENT) => return Ok(None),
            dir => Dir::new(dir?)?,
        };
        loop {
            let mut changed = false;
            while let Some(child) = next(&mut dir)? {
                if unlink(dir.fd()?, &*child)? == Left::Full && !self.move_up(dir.fd()?, &child)? {
                    return Ok(Some(dir));
                }
                changed = true;
            }
            match remove_dir(self.top.fd()?, name)? {
                Left::Nothing => {
                    self.removed = true;
                    return Ok(None);
                }
                // Some file systems leave entries out when others are removed while they are read.
                Left::Full if changed => dir.rewind(),
                Left::Full => return Err(Errno::NOTEMPTY),
            }
        }
    }

    /// False when the kernel will not have it moved.
    fn move_up(&mut self, from: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<bool> {
        loop {
            let fresh = fresh(self.moved);
            self.moved += 1;
            match (self.rename)(from, name, self.top.fd()?, &fresh) {
                Ok(()) | Err(Errno::NOENT) => return Ok(true),
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                Err(Errno::XDEV | Errno::NOSPC | Errno::DQUOT | Errno::MLINK) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

fn fresh(number: u64) -> CString {
    CString::new(format!(".removed-{number}")).unwrap_or_default()
}

fn next(dir: &mut Dir) -> rustix::io::Result<Option<CString>> {
    loop {
        match dir.read().transpose()? {
            Some(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            entry => return Ok(entry.map(|entry| entry.file_name().to_owned())),
        }
    }
}

fn open(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Removes anything but a directory with something in it.
fn unlink(dir: BorrowedFd<'_>, name: impl rustix::path::Arg + Copy) -> rustix::io::Result<Left> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(Left::Nothing),
        Err(Errno::ISDIR) => remove_dir(dir, name),
        Err(error) => Err(error),
    }
}

fn remove_dir(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<Left> {
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(Left::Nothing),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Left::Full),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        fs,
        os::{fd::AsFd, unix::fs::symlink},
    };

    use rustix::fs::mkdirat;

    use super::*;

    /// `levels` directories inside one another, a file in each.
    fn nest(root: &Path, levels: usize) {
        fs::create_dir(root).unwrap();
        let mut at = open(CWD, root).unwrap();
        for _ in 0..levels {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&at, "file", flags, Mode::RUSR).unwrap();
            at = open(at.as_fd(), "d").unwrap();
        }
    }

    thread_local! {
        /// Moves so far, and the most descriptors seen at one.
        static SEEN: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    }

    fn descriptors() -> usize {
        fs::read_dir("/proc/thread-self/fd").unwrap().count()
    }

    fn counted(from: BorrowedFd<'_>, name: &CStr, top: BorrowedFd<'_>, fresh: &CStr) -> rustix::io::Result<()> {
        let (moves, most) = SEEN.get();
        SEEN.set((moves + 1, if moves % 1000 == 0 { most.max(descriptors()) } else { most }));
        renameat(from, name, top, fresh)
    }

    #[test]
    fn what_is_nested_deeply_takes_neither_stack_nor_descriptors() {
        // In memory if possible: on a slow disk this takes a minute.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let root = dir.path().join("root");
        nest(&root, 20_000);
        let removing = move || {
            // Descriptors of its own, which no other test opens any of.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).unwrap();
            let before = descriptors();
            remove_by(&root, counted).unwrap();
            assert!(!root.exists());
            let (moves, most) = SEEN.get();
            assert!(moves > 19_000, "{moves}");
            assert!(most <= before + 3, "{most} descriptors, {before} before");
        };
        thread::Builder::new().stack_size(256 << 10).spawn(removing).unwrap().join().unwrap();
    }

    #[test]
    fn no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(outside.join("kept")).unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        for link in ["link", "a/link", "a/b/link"] {
            symlink(&outside, root.join(link)).unwrap();
        }
        remove_tree(&root).unwrap();
        assert!(!root.exists() && outside.join("kept").exists());
        symlink(&outside, &root).unwrap();
        remove_tree(&root).unwrap();
        assert!(root.symlink_metadata().is_err() && outside.join("kept").exists());
        remove_tree(&root).unwrap();
    }

    #[test]
    fn names_that_are_taken_already_are_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for number in 0..40 {
            let taken = root.join(format!(".removed-{number}"));
            fs::create_dir_all(&root).unwrap();
            match number % 4 {
                0 => fs::write(taken, "").unwrap(),
                1 => fs::create_dir_all(taken.join(format!(".removed-{number}/x/y"))).unwrap(),
                2 => symlink("/", taken).unwrap(),
                _ => fs::create_dir_all(taken).unwrap(),
            }
        }
        nest(&root.join("deep"), 50);
        remove_tree(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn what_cannot_be_moved_is_removed_where_it_is() {
        fn never(_: BorrowedFd<'_>, _: &CStr, _: BorrowedFd<'_>, _: &CStr) -> rustix::io::Result<()> {
            Err(Errno::NOSPC)
        }
        fn sometimes(from: BorrowedFd<'_>, name: &CStr, top: BorrowedFd<'_>, fresh: &CStr) -> rustix::io::Result<()> {
            let (moves, _) = SEEN.get();
            SEEN.set((moves + 1, 0));
            if moves % 3 == 0 { Err(Errno::XDEV) } else { renameat(from, name, top, fresh) }
        }
        let dir = tempfile::tempdir().unwrap();
        for rename in [never as Move, sometimes] {
            let root = dir.path().join("root");
            nest(&root, 100);
            for wide in 0..20 {
                nest(&root.join(format!("wide-{wide}")), 3);
            }
            remove_by(&root, rename).unwrap();
            assert!(!root.exists());
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        fn refused(_: BorrowedFd<'_>, _: &CStr, _: BorrowedFd<'_>, _: &CStr) -> rustix::io::Result<()> {
            Err(Errno::PERM)
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        nest(&root, 3);
        assert_eq!(remove_by(&root, refused).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(root.exists());
    }
}
