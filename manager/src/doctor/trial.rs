//! A process with an open connection is dumped and restored, and has to go on counting: the trial by which
//! `scripts/setup` chooses CRIU, so that both judge alike.
//!
//! It runs in namespaces of its own. In the node's a restore could find the process's number taken meanwhile.

use std::{fs, io, path::Path, time::Duration};

use super::{disk::Scrap, tool};

const SCRIPT: &str = include_str!("../../../scripts/criu-trial");
/// CRIU runs four times; the process is tiny.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub(super) enum TrialError {
    #[error("cannot write the trial down")]
    Prepare(#[source] io::Error),
    #[error("cannot run the trial")]
    Run(#[from] tool::ToolError),
    #[error("{0}")]
    Refused(String),
}

/// `base`: where the images may lie. What it found, in a sentence.
pub(super) fn run(criu: &str, base: &Path) -> Result<String, TrialError> {
    let scrap = Scrap::new(base).map_err(TrialError::Prepare)?;
    let script = scrap.path().join("criu-trial");
    fs::write(&script, SCRIPT).map_err(TrialError::Prepare)?;
    let (script, dir) = (script.to_string_lossy(), scrap.path().to_string_lossy());
    let (criu, temporary) = (format!("CRIU={criu}"), format!("TMPDIR={dir}"));
    // Killed, `bash` has become `unshare` by then, which takes all in its namespaces along.
    let output = tool::run("env", &["--chdir=/", &criu, &temporary, "bash", &script], TIMEOUT)?;
    match output.ok() {
        true => Ok(output.last_line()),
        false => Err(TrialError::Refused(output.text.lines().map(str::trim).collect::<Vec<_>>().join("; "))),
    }
}
