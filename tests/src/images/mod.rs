//! Root file systems for the workloads, made from what is installed here: no registry is asked.
//!
//! Each is cached under the target directory by the content it was made from, and handed out as a directory tree.

mod counter;
mod redis;
mod rootfs;
pub mod vlc;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, bail};

/// The workloads with an image.
pub const NAMES: [&str; 3] = ["counter", "redis", "vlc"];

/// Builds the image `name` into the directory `dir`, which must not exist or be empty.
///
/// # Errors
/// When the name is not one of [`NAMES`], or with the step or the package that is missing.
pub fn build(name: &str, dir: &Path) -> anyhow::Result<()> {
    let cached = cached(name)?;
    let empty = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    anyhow::ensure!(empty, "{} is not empty", dir.display());
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    crate::run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(cached.join(".")).arg(dir)).map(drop)
}

/// The image `name` in the cache, built first if need be. Not to be changed by its user.
///
/// # Errors
/// As [`build`].
pub fn cached(name: &str) -> anyhow::Result<PathBuf> {
    let (key, make): (String, fn(&Path) -> anyhow::Result<()>) = match name {
        "counter" => (counter::key(), counter::make),
        "redis" => (redis::key()?, redis::make),
        "vlc" => (vlc::key()?, vlc::make),
        _ => bail!("no image {name:?}; there are {}", NAMES.join(", ")),
    };
    let dir = target_dir()?.join("images").join(format!("{name}-{key}"));
    // Tests on several threads of one program ask at once.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    if dir.is_dir() {
        return Ok(dir);
    }
    // Built aside and renamed: an interrupted build is never taken for an image, and of two at once one wins.
    let aside = dir.with_extension(format!("tmp{}", std::process::id()));
    let _ = fs::remove_dir_all(&aside);
    fs::create_dir_all(&aside).with_context(|| format!("cannot create {}", aside.display()))?;
    let made = make(&aside).with_context(|| format!("cannot build the image {name}"));
    if made.is_err() || (fs::rename(&aside, &dir).is_err() && !dir.is_dir()) {
        let _ = fs::remove_dir_all(&aside);
        made?;
        bail!("cannot move the image {name} to {}", dir.display());
    }
    let _ = fs::remove_dir_all(&aside);
    Ok(dir)
}

/// The workspace's target directory: the programs are in one of its profiles' directories. Whatever cargo puts into it to mark
/// it is not relied on: cargo marks only a directory that it made itself, and a tool's may have been there before.
///
/// # Errors
/// When there is no `ha-lab` in one.
pub fn target_dir() -> anyhow::Result<PathBuf> {
    let program = crate::lab_program()?;
    let dir = program.ancestors().nth(2).filter(|dir| !dir.as_os_str().is_empty());
    dir.map(Path::to_path_buf).with_context(|| format!("{} is not in a cargo target directory", program.display()))
}
