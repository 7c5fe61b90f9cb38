//! Overlay mounts of a container's layers.
//!
//! The old `mount` call takes one page of options, which some forty paths fill. The newer calls take one layer at a time;
//! kernels before 6.7 do not know `lowerdir+` and get the page, with the paths shortened to descriptors of this process.
//!
//! The options are fixed because the upper directory travels between nodes: a file there has to be whole (`metacopy=off`),
//! a renamed directory must not be a reference into the layers (`redirect_dir=nofollow`), and the kernel must not expect
//! the inode numbers of the node it came from (`index=off`).

use std::{
    ffi::{CString, OsStr},
    fmt::Write as _,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags},
};

use super::ImageError;

const FIXED: [(&str, &str); 3] = [("index", "off"), ("metacopy", "off"), ("redirect_dir", "nofollow")];
/// The kernel's own bound on the layers of one overlay.
const LAYERS_MAX: usize = 500;
/// The old call copies one page, its end included.
const OPTIONS_MAX: usize = 4095;
/// `fsconfig` takes strings of 255 bytes.
const VALUE_MAX: usize = 255;

/// Mounts an overlay on the directory `merged`: `lower` read-only, bottom first, under `upper`, which takes the changes.
/// `work` is an empty directory on the file system of `upper`. Blocking; needs root.
pub fn mount_overlay(lower: &[PathBuf], upper: &Path, work: &Path, merged: &Path) -> Result<(), ImageError> {
    match new_mount(lower, upper, work, merged) {
        Err(Failure::NoSuchOption) => old_mount(lower, upper, work, merged),
        Err(Failure::Error(error)) => Err(error),
        Ok(()) => Ok(()),
    }
}

/// Unmounts what [`mount_overlay`] mounted. That nothing is mounted there (any more) is no error.
pub fn umount_overlay(merged: &Path) -> Result<(), ImageError> {
    match mount::unmount(merged, UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(ImageError::Unmount { merged: merged.to_owned(), source: errno.into() }),
    }
}

enum Failure {
    /// The kernel is too old for `lowerdir+` (or for `fsopen`).
    NoSuchOption,
    Error(ImageError),
}

fn check_count(lower: &[PathBuf]) -> Result<(), ImageError> {
    let refuse = |reason| Err(ImageError::TooManyLayers { layers: lower.len(), reason });
    match lower.len() {
        0 => refuse("an image has at least one"),
        n if n > LAYERS_MAX => refuse("the kernel takes 500; build the image with fewer layers"),
        _ => Ok(()),
    }
}

fn failed(merged: &Path, step: impl Into<String>) -> impl FnOnce(Errno) -> ImageError {
    let (merged, step) = (merged.to_owned(), step.into());
    move |errno| ImageError::Mount { merged, step, source: io::Error::from(errno) }
}

fn new_mount(lower: &[PathBuf], upper: &Path, work: &Path, merged: &Path) -> Result<(), Failure> {
    check_count(lower).map_err(Failure::Error)?;
    let error = |step: String| move |errno| Failure::Error(failed(merged, step)(errno));
    let context = open_context(merged)?;
    if !parses_by_itself(merged)? {
        return Err(Failure::NoSuchOption);
    }
    let mut names = Names::default();
    for (index, dir) in lower.iter().rev().enumerate() {
        let value = names.direct(dir).map_err(|e| error(format!("open {}", dir.display()))(e))?;
        mount::fsconfig_set_string(context.as_fd(), "lowerdir+", &value[..]).map_err(|errno| match errno {
            Errno::INVAL if index == 0 && dir.is_dir() => Failure::NoSuchOption,
            errno => error(format!("lowerdir {}", dir.display()))(errno),
        })?;
    }
    for (key, dir) in [("upperdir", upper), ("workdir", work)] {
        let value = names.direct(dir).map_err(|e| error(format!("open {}", dir.display()))(e))?;
        let set = mount::fsconfig_set_string(context.as_fd(), key, &value[..]);
        set.map_err(error(format!("{key} {}", dir.display())))?;
    }
    for (key, value) in FIXED {
        mount::fsconfig_set_string(context.as_fd(), key, value).map_err(error(format!("{key}={value}")))?;
    }
    mount::fsconfig_create(context.as_fd()).map_err(error("create".to_owned()))?;
    let mounted = mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(error("fsmount".to_owned()))?;
    mount::move_mount(mounted.as_fd(), "", CWD, merged, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(error("move_mount".to_owned()))
}

fn open_context(merged: &Path) -> Result<OwnedFd, Failure> {
    mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
        Errno::NOSYS => Failure::NoSuchOption,
        errno => Failure::Error(failed(merged, "fsopen")(errno)),
    })
}

/// Before 6.5 the kernel only collected an overlay's options, of any name, to refuse them when it was too late to know
/// which; since then it refuses at once what it does not know.
fn parses_by_itself(merged: &Path) -> Result<bool, Failure> {
    let context = open_context(merged)?;
    Ok(mount::fsconfig_set_string(context.as_fd(), "no-such-option", "x").is_err())
}

fn old_mount(lower: &[PathBuf], upper: &Path, work: &Path, merged: &Path) -> Result<(), ImageError> {
    check_count(lower)?;
    let mut names = Names::default();
    let mut short = |dir: &Path| names.by_descriptor(dir).map_err(failed(merged, format!("open {}", dir.display())));
    let mut options = String::new();
    for dir in lower.iter().rev() {
        let separator = if options.is_empty() { "lowerdir=" } else { ":" };
        options.push_str(separator);
        options.push_str(&short(dir)?);
    }
    let (upper, work) = (short(upper)?, short(work)?);
    // Writing to a String cannot fail.
    let _ = write!(options, ",upperdir={upper},workdir={work}");
    for (key, value) in FIXED {
        let _ = write!(options, ",{key}={value}");
    }
    if options.len() > OPTIONS_MAX {
        let reason = "this kernel takes about 200 (6.7 and newer: 500); build the image with fewer layers";
        return Err(ImageError::TooManyLayers { layers: lower.len(), reason });
    }
    let options = CString::new(options).map_err(|_| failed(merged, "options")(Errno::INVAL))?;
    mount::mount("overlay", merged, "overlay", MountFlags::empty(), options.as_c_str()).map_err(failed(merged, "mount"))
}

/// Spells directories so that the kernel's option parsers take them, and holds open what the spelling needs.
#[derive(Default)]
struct Names {
    open: Vec<OwnedFd>,
}

impl Names {
    /// The path itself where it is short and has nothing that a parser would take for its own.
    fn direct(&mut self, dir: &Path) -> Result<Vec<u8>, Errno> {
        let bytes = dir.as_os_str().as_bytes();
        let plain = bytes.len() <= VALUE_MAX && !bytes.iter().any(|b| matches!(b, b':' | b',' | b'\\'));
        if plain { Ok(bytes.to_vec()) } else { self.by_descriptor(dir).map(String::into_bytes) }
    }

    fn by_descriptor(&mut self, dir: &Path) -> Result<String, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(AsRef::<OsStr>::as_ref(dir), flags, Mode::empty())?;
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        self.open.push(fd);
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::image::testing::{Mounted, needs_root};

    type MountFn = fn(&[PathBuf], &Path, &Path, &Path) -> Result<(), ImageError>;

    fn only_new(lower: &[PathBuf], upper: &Path, work: &Path, merged: &Path) -> Result<(), ImageError> {
        new_mount(lower, upper, work, merged).map_err(|failure| match failure {
            Failure::NoSuchOption => panic!("this kernel has no lowerdir+"),
            Failure::Error(error) => error,
        })
    }

    fn layers(dir: &Path, count: usize) -> Vec<PathBuf> {
        let layer = |n: usize| {
            let layer = dir.join(format!("{n:064x}"));
            fs::create_dir_all(&layer).unwrap();
            fs::write(layer.join(format!("only-{n}")), n.to_string()).unwrap();
            fs::write(layer.join("top"), n.to_string()).unwrap();
            layer
        };
        (0..count).map(layer).collect()
    }

    fn check(count: usize, prefix: &str, mount: MountFn) {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join(prefix);
        let lower = layers(&base, count);
        let [upper, work, merged] = ["upper", "work", "merged"].map(|name| base.join(name));
        for dir in [&upper, &work, &merged] {
            fs::create_dir(dir).unwrap();
        }
        mount(&lower, &upper, &work, &merged).unwrap();
        let mounted = Mounted(merged.clone());
        assert_eq!(
            fs::read_to_string(merged.join("top")).unwrap(),
            (count - 1).to_string(),
            "the last layer is on top"
        );
        for n in [0, count / 2, count - 1] {
            assert_eq!(fs::read_to_string(merged.join(format!("only-{n}"))).unwrap(), n.to_string());
        }
        fs::write(merged.join("new"), "x").unwrap();
        assert_eq!(fs::read_to_string(upper.join("new")).unwrap(), "x");
        drop(mounted);
        assert!(!merged.join("top").exists());
        umount_overlay(&merged).unwrap();
    }

    #[test]
    fn many_layers_by_the_new_calls() {
        if !needs_root("many_layers_by_the_new_calls") {
            return;
        }
        check(1, "a", only_new);
        check(150, "b", only_new);
        check(LAYERS_MAX, "c", only_new);
        check(3, "with:colon,comma\\backslash", only_new);
        check(3, &format!("{}/{}", "l".repeat(200), "m".repeat(200)), only_new);
    }

    #[test]
    fn many_layers_by_the_old_call() {
        if !needs_root("many_layers_by_the_old_call") {
            return;
        }
        check(150, "b", old_mount);
        check(3, "with:colon,comma\\backslash", old_mount);
        let dir = tempfile::tempdir().unwrap();
        let many = layers(dir.path(), 400);
        let error = old_mount(&many, dir.path(), dir.path(), dir.path()).unwrap_err();
        assert!(matches!(error, ImageError::TooManyLayers { layers: 400, .. }), "{error}");
    }

    #[test]
    fn what_cannot_be_mounted_is_named() {
        if !needs_root("what_cannot_be_mounted_is_named") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let error = mount_overlay(&[missing], dir.path(), dir.path(), dir.path()).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
        assert!(mount_overlay(&[], dir.path(), dir.path(), dir.path()).is_err());
    }
}
