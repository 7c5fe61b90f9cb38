//! Running a program to its end, within a time.

use std::{
    fs::File,
    io::{self, Read, Seek},
    os::fd::OwnedFd,
    os::unix::process::CommandExt,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::pidfd::ExitWatch;

/// How much of a program's output is read; what follows is left out.
const OUTPUT_CAP: u64 = 1 << 20;

pub(crate) struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// What becomes of the program's standard output and error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Captured,
    /// For a program that hands its own descriptors on to something that outlives it (a detached container).
    DevNull,
}

/// Runs it; `None` when it had not ended after `timeout` and was killed with its process group.
pub(crate) fn run(mut command: Command, output: Output, timeout: Duration) -> io::Result<Option<Finished>> {
    command.stdin(Stdio::null()).process_group(0);
    let captured = match output {
        Output::DevNull => None,
        Output::Captured => Some((memory_file()?, memory_file()?)),
    };
    match &captured {
        None => command.stdout(Stdio::null()).stderr(Stdio::null()),
        Some((out, err)) => command.stdout(out.try_clone()?).stderr(err.try_clone()?),
    };
    let mut child = command.spawn()?;
    let ended = ExitWatch::new(child.id() as i32).and_then(|watch| watch.wait(timeout));
    if !matches!(ended, Ok(true)) {
        let group = nix::unistd::Pid::from_raw(child.id() as i32);
        // The group first, so that helpers of the program do not outlive it; both may be gone already.
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = child.kill();
        child.wait()?;
        return ended.map(|_| None);
    }
    let status = child.wait()?;
    let (stdout, stderr) = match captured {
        Some((out, err)) => (text_of(out)?, text_of(err)?),
        None => Default::default(),
    };
    Ok(Some(Finished { status, stdout, stderr }))
}

/// An anonymous file: unlike a pipe it needs no reader while the program runs.
pub(crate) fn memory_file() -> io::Result<File> {
    let fd: OwnedFd = memfd_create(c"ha-output", MFdFlags::MFD_CLOEXEC)?;
    Ok(File::from(fd))
}

/// The first [`OUTPUT_CAP`] bytes of what was written, as text.
pub(crate) fn text_of(mut file: File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_CAP).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
