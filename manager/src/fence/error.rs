//! What can go wrong with the watchdog.

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// Of the watchdog's own process.
    #[error("the watchdog cannot do its work: {what}")]
    Watchdog { what: String },
    #[error(
        "another watchdog (pid {pid}) already runs for {run_dir}; a node has one, and each manager uses the one that is there"
    )]
    Taken { run_dir: PathBuf, pid: String },
    #[error("cannot start the watchdog {exe}")]
    Start { exe: PathBuf, source: io::Error },
    #[error("the watchdog did not start: {said}")]
    Ended { said: String },
    #[error("the watchdog at {socket} does not answer{}; look whether it is stopped, or kill it: a new one is started then", pid_of(.pid))]
    Silent { socket: PathBuf, pid: Option<u32> },
    #[error("cannot connect to the watchdog at {socket}")]
    Connect { socket: PathBuf, source: io::Error },
    #[error(
        "the watchdog at {socket}{} is of another version of ha-manager ({why}); when no container runs, kill it and start the \
         manager again",
        pid_of(.pid)
    )]
    Version { socket: PathBuf, pid: Option<u32>, why: String },
    #[error("the watchdog went away while it was asked to release the containers")]
    Lost,
    #[error("the watchdog could not release the containers: {problem}")]
    NotReleased { problem: String },
    #[error("the watchdog has not released the containers within {} s", .after.as_secs())]
    Late { after: std::time::Duration },
}

impl FenceError {
    pub(super) fn watchdog(what: impl Into<String>) -> Self {
        Self::Watchdog { what: what.into() }
    }
}

fn pid_of(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}
