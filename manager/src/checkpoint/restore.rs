//! Bringing a container back from its images, through the runtime.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{images, logs};
use crate::runtime::{Runtime, RuntimeError};

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("the images in {images:?} are incomplete: {part} is missing or empty")]
    Incomplete { images: PathBuf, part: &'static str },
    #[error("CRIU could not restore the container: {lines}")]
    Criu { lines: String, source: RuntimeError },
    #[error("the container could not be restored")]
    Runtime { source: RuntimeError },
}

/// Restores a container, detached, and returns its init process. The bundle's network namespace has to be a fresh one, and
/// its root file system and volumes have to be what was captured with the images.
///
/// # Errors
/// With CRIU's own words where it has any. The runtime then knows nothing of the container any more and its cgroup is
/// gone; the network namespace must not be used again.
pub fn restore(
    runtime: &dyn Runtime,
    id: &str,
    bundle: &Path,
    images: &Path,
    work: &Path,
    timeout: Duration,
) -> Result<i32, RestoreError> {
    if let Some(part) = images::missing_part(images) {
        return Err(RestoreError::Incomplete { images: images.to_owned(), part });
    }
    let log = work.join("restore.log");
    // An old one would explain a failure that is not its own; mostly there is none.
    let _ = std::fs::remove_file(&log);
    runtime.restore(id, bundle, images, work, timeout).map_err(|source| match logs::decisive_lines(&log) {
        Some(lines) => RestoreError::Criu { lines, source },
        None => RestoreError::Runtime { source },
    })
}
