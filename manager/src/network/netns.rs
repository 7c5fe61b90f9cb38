//! Named network namespaces, in the form `ip netns` uses: a file under `/run/netns` with the namespace mounted on it.
//!
//! Work inside a namespace runs on a thread of its own that ends with it, so no pooled thread can be left in a foreign
//! namespace, and nothing is forked.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

pub(super) const DIRECTORY: &str = "/run/netns";

/// Makes a namespace at `path`, which must not exist, and runs `setup` inside it. Nothing is left when either fails.
pub(super) fn create<T: Send>(path: &Path, setup: impl FnOnce(File) -> io::Result<T> + Send) -> io::Result<T> {
    prepare_directory()?;
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
    let made = on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let own = "/proc/thread-self/ns/net";
        mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        setup(File::open(own)?)
    });
    if made.is_err() {
        // The first error is the one to report; a leftover is torn down by the next build or sweep.
        let _ = remove(path);
    }
    made
}

/// Runs `work` inside the namespace at `path`.
pub(super) fn enter<T: Send>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(path)?;
    on_thread(|| {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

/// Takes the name away; the namespace ends when its last process and socket do. One that is not there is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    // More than once when mounts were stacked by someone who did not look.
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// `/run/netns` as `ip netns` wants it: a shared mount, so that unmounting a name reaches every mount namespace that
/// was copied since and none keeps the network alive unseen.
fn prepare_directory() -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
    let share = || mount(None::<&str>, DIRECTORY, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Err(nix::Error::EINVAL) => {
            mount(Some(DIRECTORY), DIRECTORY, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
            Ok(share()?)
        }
        other => Ok(other?),
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("ha-netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
    })
}
