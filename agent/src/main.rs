//! The program: `ha-agent` in a container, `ha-agent --channel DIR` to try it outside of one.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use ha_agent::{clock, frame, names, supervisor::Agent};

/// What the agent exits with when it could not begin, as Docker does.
const CANNOT_START: u8 = 125;

fn main() -> ExitCode {
    let channel = match arguments() {
        Ok(Some(channel)) => channel,
        Ok(None) => return ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("ha-agent: {problem}");
            return ExitCode::from(CANNOT_START);
        }
    };
    if std::process::id() != 1 {
        // Outside a PID namespace orphans come here all the same.
        let _ = nix::sys::prctl::set_child_subreaper(true);
    }
    match Agent::new(&channel) {
        // Codes of processes are 0 to 255 (128 + 64 at most for signals).
        Ok(agent) => ExitCode::from(u8::try_from(agent.run()).unwrap_or(CANNOT_START)),
        Err(error) => {
            let mut text = format!("agent: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text += &format!(": {error}");
                cause = error.source();
            }
            eprintln!("ha-{text}");
            leave_word(&channel, &text);
            ExitCode::from(CANNOT_START)
        }
    }
}

/// `None`: there is nothing to do.
fn arguments() -> Result<Option<PathBuf>, String> {
    let mut arguments = env::args_os().skip(1);
    let channel = match arguments.next() {
        None => PathBuf::from(names::CHANNEL),
        Some(flag) if flag == "--version" => {
            println!("ha-agent {}", env!("CARGO_PKG_VERSION"));
            return Ok(None);
        }
        Some(flag) if flag == "--channel" => {
            arguments.next().ok_or("--channel needs the directory of the channel")?.into()
        }
        Some(other) => return Err(format!("unknown argument {other:?}; allowed are --version and --channel DIR")),
    };
    match arguments.next() {
        None => Ok(Some(channel)),
        Some(more) => Err(format!("unexpected argument {more:?}")),
    }
}

/// The container's own stderr leads nowhere; the log is where its user looks.
fn leave_word(channel: &Path, text: &str) {
    let timestamp = clock::rfc3339(clock::wall());
    let text = text.replace('\n', " ");
    let record = frame::record(&timestamp, frame::Stream::Agent, true, text.as_bytes());
    let file = fs::OpenOptions::new().append(true).create(true).open(channel.join(names::LOG));
    let _ = file.and_then(|mut file| file.write_all(&record));
}
