//! The runtime as the manager uses it, and runc.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{
    cgroup::Cgroup,
    command::{self, Output},
    pidfd::ExitWatch,
};

/// For the steps that clean up after a failure.
const CLEANING: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("cannot run {program:?} to {verb} container {id}: is it installed?")]
    Spawn { program: PathBuf, verb: &'static str, id: String, source: io::Error },
    #[error("{program:?} did not {verb} container {id} within {timeout:?} and was killed")]
    Timeout { program: PathBuf, verb: &'static str, id: String, timeout: Duration },
    #[error("{program:?} could not {verb} container {id}: {message}")]
    Failed { program: PathBuf, verb: &'static str, id: String, message: String },
    #[error("{program:?} gave an answer to `{verb}` that is not understood: {answer:.200}")]
    Answer { program: PathBuf, verb: &'static str, answer: String },
    #[error(
        "the cgroup of container {id} is not empty: processes {pids:?} are in it; is the container running already?"
    )]
    Busy { id: String, pids: Vec<i32> },
    #[error("container {id} ended while it was being started")]
    Ended { id: String },
    #[error(
        "processes {pids:?} of container {id} do not end though they were killed; one that waits for a device or a hung mount \
         ends when that answers or goes"
    )]
    Alive { id: String, pids: Vec<i32> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

/// What a runtime knows of a container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ContainerState {
    pub id: String,
    pub status: Status,
    /// The init process as this PID namespace sees it; 0 when it has ended.
    #[serde(default)]
    pub pid: i32,
    pub bundle: PathBuf,
}

/// An OCI runtime. No call leaves a child of ours behind, and the container is never one: the PID 1 of the PID namespace
/// inherits and reaps it. So the manager must not be a child subreaper unless it reaps.
pub trait Runtime: Send + Sync {
    /// Creates and starts a container, detached, with `/dev/null` as its three standard descriptors.
    ///
    /// # Errors
    /// With the runtime's own words. Nothing of the container is left then.
    fn start(&self, id: &str, bundle: &Path, timeout: Duration) -> Result<i32, RuntimeError>;

    /// Restores a container from CRIU images, detached. `work` gets CRIU's `restore.log`.
    ///
    /// # Errors
    /// As for [`Runtime::start`].
    fn restore(
        &self,
        id: &str,
        bundle: &Path,
        images: &Path,
        work: &Path,
        timeout: Duration,
    ) -> Result<i32, RuntimeError>;

    /// `None` when the runtime does not know the container.
    fn state(&self, id: &str, timeout: Duration) -> Result<Option<ContainerState>, RuntimeError>;

    /// Kills what runs and removes the container's state and cgroup. A container it does not know is no error.
    fn delete(&self, id: &str, timeout: Duration) -> Result<(), RuntimeError>;
}

/// runc, called as a program.
#[derive(Debug, Clone)]
pub struct Runc {
    program: PathBuf,
    root: PathBuf,
    criu: PathBuf,
}

impl Runc {
    /// `root` is runc's state directory and should be on a tmpfs: after a reboot nothing in it is true any more.
    pub fn new(program: impl Into<PathBuf>, root: impl Into<PathBuf>, criu: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), root: root.into(), criu: criu.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Takes a container away, and whatever a runtime that was killed half-way has left of it: processes in the cgroup of
    /// its bundle, mounts, state. The runtime's refusal (of state it cannot read, say) is overcome by this and only logged.
    ///
    /// # Errors
    /// [`RuntimeError::Alive`] when processes are left; the runtime's own error when the bundle does not say in which cgroup
    /// to look for them.
    pub fn clear(&self, id: &str, bundle: &Path, timeout: Duration) -> Result<(), RuntimeError> {
        let cgroup = Cgroup::of_bundle(bundle);
        cgroup.end_frozen();
        let deleted = self.delete(id, timeout);
        let left = self.remove_remains(id, &cgroup);
        cleared(id, deleted, left, cgroup.is_unknown())
    }

    /// Whether processes of the bundle's container may be there.
    pub fn is_inhabited(&self, bundle: &Path) -> bool {
        let cgroup = Cgroup::of_bundle(bundle);
        if cgroup.is_unknown() { bundle.exists() } else { !cgroup.processes().is_empty() }
    }

    /// Waits until no runtime works in this root any more. What a manager that was killed had begun ends by itself and is
    /// then in order; after `patience` it is killed. Only for a manager that has called nothing yet.
    pub fn settle_orphans(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let orphans = self.running();
            if orphans.is_empty() {
                return;
            }
            if Instant::now() >= deadline {
                for pid in orphans {
                    tracing::warn!(pid, "a runtime that an earlier manager began does not end and is killed");
                    // Each leads a process group with the CRIU it called; both may be gone already.
                    let _ =
                        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runtimes at work in this root, by their command lines.
    fn running(&self) -> Vec<i32> {
        let ours = format!("--root\0{}\0", self.root.display());
        let works = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let program = line.split('\0').next().map(Path::new).and_then(Path::file_name);
            program == self.program.file_name() && line.contains(&ours)
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(works).collect()
    }

    fn call(
        &self,
        verb: &'static str,
        id: &str,
        args: &[&str],
        output: Output,
        timeout: Duration,
    ) -> Result<String, RuntimeError> {
        let log =
            LogFile::new(&self.root, &self.beside(".log")).map_err(|source| self.spawn_error(verb, id, source))?;
        let mut all: Vec<OsString> = vec!["--root".into(), self.root.clone().into()];
        all.extend(["--log".into(), log.path.clone().into(), "--log-format".into(), "json".into()]);
        all.extend(args.iter().map(Into::into));
        let mut command = std::process::Command::new(&self.program);
        command.args(all);
        if verb == "restore" {
            command.env("PATH", self.path_to_criu().map_err(|source| self.spawn_error(verb, id, source))?);
        }
        let finished = command::run(command, output, timeout)
            .map_err(|source| self.spawn_error(verb, id, source))?
            .ok_or_else(|| RuntimeError::Timeout { program: self.program.clone(), verb, id: id.to_owned(), timeout })?;
        if finished.status.success() {
            return Ok(finished.stdout);
        }
        let message =
            log.errors().or_else(|| non_empty(finished.stderr)).unwrap_or_else(|| finished.status.to_string());
        Err(RuntimeError::Failed { program: self.program.clone(), verb, id: id.to_owned(), message })
    }

    /// The PATH in which a runtime finds the CRIU that is configured, by the name `criu`: newer ones have no option for it.
    fn path_to_criu(&self) -> io::Result<OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if self.criu == Path::new("criu") {
            return Ok(path);
        }
        let dir = self.beside(".criu");
        fs::create_dir_all(&dir)?;
        let link = dir.join("criu");
        let found = std::env::split_paths(&path).map(|dir| dir.join(&self.criu)).find(|path| path.is_file());
        let target = std::path::absolute(found.unwrap_or_else(|| self.criu.clone()))?;
        if fs::read_link(&link).ok().as_ref() != Some(&target) {
            static COUNT: AtomicU64 = AtomicU64::new(0);
            // Renamed into place: another restore may be looking.
            let new = dir.join(format!("new-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
            std::os::unix::fs::symlink(&target, &new)?;
            fs::rename(new, link)?;
        }
        std::env::join_paths([dir].into_iter().chain(std::env::split_paths(&path))).map_err(io::Error::other)
    }

    /// Beside the root, not in it: whatever is inside is taken for a container when a runtime lists them.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut dir = self.root.as_os_str().to_owned();
        dir.push(suffix);
        dir.into()
    }

    fn spawn_error(&self, verb: &'static str, id: &str, source: io::Error) -> RuntimeError {
        RuntimeError::Spawn { program: self.program.clone(), verb, id: id.to_owned(), source }
    }

    fn up(
        &self,
        verb: &'static str,
        id: &str,
        bundle: &Path,
        extra: &[&str],
        timeout: Duration,
    ) -> Result<i32, RuntimeError> {
        let cgroup = Cgroup::of_bundle(bundle);
        let pids = cgroup.processes();
        if !pids.is_empty() {
            return Err(RuntimeError::Busy { id: id.to_owned(), pids });
        }
        let pid_file = bundle.join("init.pid");
        // One of an earlier run would be taken for this one's; mostly there is none.
        let _ = fs::remove_file(&pid_file);
        let (bundle, pid_path) = (bundle.to_string_lossy(), pid_file.to_string_lossy());
        let run = if verb == "restore" { "restore" } else { "run" };
        let mut args = vec![run, "--detach", "--bundle", &bundle, "--pid-file", &pid_path];
        args.extend(extra);
        args.push(id);
        // From the file rather than by asking: starting the runtime once more takes longer than all of our own work.
        let up = self.call(verb, id, &args, Output::DevNull, timeout).and_then(|_| {
            let pid = fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok());
            match pid.map(|pid| (pid, ExitWatch::new(pid).and_then(|init| init.wait(Duration::ZERO)))) {
                Some((pid, Ok(false))) => Ok(pid),
                _ => Err(RuntimeError::Ended { id: id.to_owned() }),
            }
        });
        // "Already exists" is about somebody else's container of that name: it must not be deleted for our failure.
        let foreign = matches!(&up, Err(RuntimeError::Failed { message, .. })
            if message.contains("already exists") || message.contains("given ID"));
        if up.is_err() && !foreign {
            // The first error is the one to report; what the cleaning up may add says nothing about its cause.
            let _ = self.delete(id, CLEANING);
            let left = self.remove_remains(id, &cgroup);
            if !left.is_empty() {
                tracing::warn!(container = id, ?left, "processes of a failed start do not end");
            }
        }
        up
    }

    /// Takes away what a runtime that failed or was killed half-way does not know of any more: processes in the cgroup,
    /// the cgroup, the mount it restores into, its state. Who is still alive then.
    fn remove_remains(&self, id: &str, cgroup: &Cgroup) -> Vec<i32> {
        if let Err(error) = cgroup.remove(CLEANING) {
            tracing::warn!(container = id, %error, "a container's cgroup is left");
        }
        let state = self.root.join(id);
        // Mostly there is neither.
        let _ = nix::mount::umount2(&state.join("criu-root"), nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(state.join("criu-root"));
        match fs::remove_dir_all(&state) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(container = id, %error, "the runtime's state of a container is left");
            }
            _ => {}
        }
        cgroup.processes()
    }
}

impl Runtime for Runc {
    fn start(&self, id: &str, bundle: &Path, timeout: Duration) -> Result<i32, RuntimeError> {
        self.up("start", id, bundle, &[], timeout)
    }

    fn restore(
        &self,
        id: &str,
        bundle: &Path,
        images: &Path,
        work: &Path,
        timeout: Duration,
    ) -> Result<i32, RuntimeError> {
        let (images, work) = (images.to_string_lossy(), work.to_string_lossy());
        let extra = ["--image-path", &images, "--work-path", &work, "--tcp-established", "--file-locks"];
        self.up("restore", id, bundle, &extra, timeout)
    }

    fn state(&self, id: &str, timeout: Duration) -> Result<Option<ContainerState>, RuntimeError> {
        match self.call("state", id, &["state", id], Output::Captured, timeout) {
            Ok(answer) => serde_json::from_str(&answer).map(Some).map_err(|_| RuntimeError::Answer {
                program: self.program.clone(),
                verb: "state",
                answer,
            }),
            Err(error) if is_unknown(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn delete(&self, id: &str, timeout: Duration) -> Result<(), RuntimeError> {
        match self.call("delete", id, &["delete", "--force", id], Output::Captured, timeout) {
            Err(error) if !is_unknown(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// What has become of a container that was to go: the runtime may complain, but only what lives is a failure.
fn cleared(
    id: &str,
    deleted: Result<(), RuntimeError>,
    left: Vec<i32>,
    cgroup_is_unknown: bool,
) -> Result<(), RuntimeError> {
    match deleted {
        _ if !left.is_empty() => Err(RuntimeError::Alive { id: id.to_owned(), pids: left }),
        Err(error) if cgroup_is_unknown => Err(error),
        Err(error) => {
            tracing::warn!(container = id, error = crate::chain(&error), "cleared away without the runtime");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn is_unknown(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::Failed { message, .. } if message.contains("does not exist"))
}

fn non_empty(text: String) -> Option<String> {
    let text = text.trim();
    if text.is_empty() { None } else { Some(text.to_owned()) }
}

/// A log of one call, removed when it goes.
struct LogFile {
    path: PathBuf,
}

impl LogFile {
    fn new(root: &Path, dir: &Path) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(root)?;
        fs::create_dir_all(dir)?;
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { path: dir.join(format!("{}-{n}", std::process::id())) })
    }

    /// The messages at error level or above, oldest first.
    fn errors(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Line {
            level: String,
            msg: String,
        }
        let text = fs::read_to_string(&self.path).ok()?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let errors: Vec<String> =
            lines.filter(|line| matches!(line.level.as_str(), "error" | "fatal")).map(|line| line.msg).collect();
        non_empty(errors.join("; "))
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        // Absent when runc logged nothing.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lives_is_a_failure() {
        let refused = || Err(RuntimeError::Ended { id: "c".into() });
        assert!(cleared("c", Ok(()), vec![], false).is_ok());
        assert!(
            cleared("c", refused(), vec![], false).is_ok(),
            "nothing is left: the runtime's opinion does not matter"
        );
        assert!(matches!(cleared("c", refused(), vec![], true), Err(RuntimeError::Ended { .. })));
        for deleted in [Ok(()), refused()] {
            let error = cleared("c", deleted, vec![7], false).unwrap_err();
            assert!(matches!(&error, RuntimeError::Alive { pids, .. } if pids == &[7]), "{error}");
        }
    }
}
