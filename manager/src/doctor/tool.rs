//! Running a program with an end in time and a bound on what it says.

use std::{
    fs::File,
    io::{self, Read, Seek},
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::memfd::{MFdFlags, memfd_create};

const MAX_OUTPUT: u64 = 64 << 10;
const POLL: Duration = Duration::from_millis(2);

#[derive(Debug, thiserror::Error)]
pub(super) enum ToolError {
    #[error("{program} is not installed")]
    Missing { program: String },
    #[error("cannot run {program}")]
    Run { program: String, source: io::Error },
    #[error("{program} was still running after {timeout:?}")]
    Timeout { program: String, timeout: Duration },
}

pub(super) struct Output {
    /// The exit code, or 128 + the signal.
    pub(super) code: i32,
    /// What it wrote to both of its outputs, at most 64 KiB.
    pub(super) text: String,
}

impl Output {
    pub(super) fn ok(&self) -> bool {
        self.code == 0
    }

    /// The last line that says anything.
    pub(super) fn last_line(&self) -> String {
        self.text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("(no output)").trim().to_owned()
    }
}

/// Runs `program` without input. Its output goes to memory rather than a pipe, which something it leaves behind could
/// hold open.
pub(super) fn run(program: &str, args: &[&str], timeout: Duration) -> Result<Output, ToolError> {
    let failed = |source| ToolError::Run { program: program.to_owned(), source };
    let memory = memfd_create("ha-doctor", MFdFlags::MFD_CLOEXEC).map_err(|errno| failed(errno.into()))?;
    let mut file = File::from(memory);
    let (out, err) = (file.try_clone().map_err(failed)?, file.try_clone().map_err(failed)?);
    let spawned = Command::new(program).args(args).stdin(Stdio::null()).stdout(out).stderr(err).spawn();
    let mut child = spawned.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ToolError::Missing { program: program.to_owned() },
        _ => failed(source),
    })?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if start.elapsed() > timeout {
            child.kill().and_then(|()| child.wait()).map_err(failed)?;
            return Err(ToolError::Timeout { program: program.to_owned(), timeout });
        }
        std::thread::sleep(POLL);
    };
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.take(MAX_OUTPUT).read_to_end(&mut bytes)).map_err(failed)?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
    Ok(Output { code, text: String::from_utf8_lossy(&bytes).into_owned() })
}

/// An error with its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text += &format!(": {source}");
        next = source.source();
    }
    text
}
