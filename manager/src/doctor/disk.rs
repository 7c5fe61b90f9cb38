//! Directories: overlays where the state lies, memory where the images are written.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::statfs::{TMPFS_MAGIC, statfs},
};

use super::{Check, existing, tool::chain};
use crate::image;

const LOW_SCRATCH: u64 = 256 << 20;

/// A private directory that is removed again.
pub(super) struct Scrap(PathBuf);

impl Scrap {
    /// In `base`, or the nearest directory above it that is there.
    pub(super) fn new(base: &Path) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = existing(base).join(format!("ha-doctor-{}-{number}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scrap {
    fn drop(&mut self) {
        // Nowhere to report to; what stays is an empty-handed directory with a telling name.
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn overlay(state_dir: &Path) -> Check {
    const ID: (&str, &str) = ("fs.overlay", "overlay in state_dir");
    let base = existing(state_dir);
    let place = match base == state_dir {
        true => format!("in {}", base.display()),
        false => format!("in {} ({} is not there yet)", base.display(), state_dir.display()),
    };
    let tried = Scrap::new(base).and_then(|scrap| {
        let dir = scrap.path().to_owned();
        // A mount namespace belongs to a thread: with the thread the mounts end, whatever happens.
        thread::spawn(move || try_overlay(&dir)).join().unwrap_or_else(|_| Err(io::Error::other("the trial panicked")))
    });
    match tried {
        Ok(()) => Check::ok(ID.0, ID.1, format!("mounts and records changes {place}")),
        Err(error) => {
            let remedy = "put state_dir on ext4, xfs or btrfs (not on an overlay or NFS) and load the module overlay";
            Check::fail(ID.0, ID.1, format!("{place}: {}", chain(&error)), remedy)
        }
    }
}

fn try_overlay(dir: &Path) -> io::Result<()> {
    let step = |what: &'static str| move |error: nix::Error| io::Error::other(format!("{what}: {error}"));
    unshare(CloneFlags::CLONE_NEWNS).map_err(step("a mount namespace"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(step("private mounts"))?;
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| dir.join(name));
    for dir in [&lower, &upper, &work, &merged] {
        fs::create_dir(dir)?;
    }
    fs::write(lower.join("gone"), "x")?;
    // With the very options of a container's root.
    image::mount_overlay(std::slice::from_ref(&lower), &upper, &work, &merged)
        .map_err(|error| io::Error::other(chain(&error)))?;
    let changed = fs::write(merged.join("new"), "y").and_then(|()| fs::remove_file(merged.join("gone")));
    umount2(&merged, MntFlags::MNT_DETACH).map_err(step("unmount"))?;
    changed?;
    let whiteout = fs::symlink_metadata(upper.join("gone"))?;
    if !upper.join("new").is_file() || !whiteout.file_type().is_char_device() || whiteout.rdev() != 0 {
        return Err(io::Error::other("changes are not in the upper layer"));
    }
    Ok(())
}

pub(super) fn scratch(scratch: &Path) -> Check {
    const ID: (&str, &str) = ("fs.scratch", "scratch directory");
    let base = existing(scratch);
    let stat = match statfs(base) {
        Ok(stat) => stat,
        Err(error) => {
            return Check::fail(ID.0, ID.1, format!("{}: {error}", base.display()), "set `scratch` to a directory");
        }
    };
    let is_tmpfs = stat.filesystem_type() == TMPFS_MAGIC;
    let free = stat.blocks_available().saturating_mul(u64::try_from(stat.block_size()).unwrap_or(0));
    let kind = if is_tmpfs { "tmpfs" } else { "on disk" };
    let found = format!("{} is {kind}, {} MiB free", base.display(), free >> 20);
    if let Err(error) = Scrap::new(base) {
        return Check::fail(ID.0, ID.1, format!("{found}: {error}"), "make `scratch` writable to ha-manager");
    }
    if free < LOW_SCRATCH {
        let remedy = "make room, or set `scratch` elsewhere: a dump needs about the memory of its container";
        return Check::warn(ID.0, ID.1, found, remedy);
    }
    if !is_tmpfs {
        let remedy = "set `scratch` to a directory on a tmpfs: images there cost no writes to a disk";
        return Check::warn(ID.0, ID.1, found, remedy);
    }
    Check::ok(ID.0, ID.1, found)
}
