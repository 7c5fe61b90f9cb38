//! One manager per state directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::Path,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};

/// A manager that was killed holds the lock until the kernel has taken it apart.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "another manager (pid {pid}) uses the state directory {dir}; stop it, or give this one its own `state_dir`"
    )]
    Taken { dir: String, pid: String },
    #[error("cannot lock {path}")]
    Io { path: String, source: io::Error },
}

/// Held until it is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct StateLock {
    _file: Flock<File>,
}

impl StateLock {
    /// Blocks for a moment when another manager has it.
    pub fn acquire(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join("lock");
        let io = |source| LockError::Io { path: path.display().to_string(), source };
        fs::create_dir_all(state_dir).map_err(io)?;
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(io)?;
        let start = Instant::now();
        let attempt = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Err((held, nix::errno::Errno::EWOULDBLOCK)) if start.elapsed() < PATIENCE => file = held,
                other => break other,
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        match attempt {
            Ok(mut file) => {
                file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
                write!(file, "{}", std::process::id()).map_err(io)?;
                Ok(Self { _file: file })
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let _ = (&mut file).take(16).read_to_string(&mut pid);
                Err(LockError::Taken { dir: state_dir.display().to_string(), pid })
            }
            Err((_, errno)) => Err(io(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_manager_on_the_same_directory_is_refused_and_the_first_named() {
        let dir = tempfile::tempdir().unwrap();
        let held = StateLock::acquire(dir.path()).unwrap();
        let refused = StateLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(held);
        StateLock::acquire(dir.path()).unwrap();
    }
}
