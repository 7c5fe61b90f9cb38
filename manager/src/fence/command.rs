//! Switching another node off by a program of the operator's: a command of any kind, or a ClusterLabs fence agent.
//!
//! Its success is taken for the proof that the node runs nothing any more, so only one thing is success: that the program itself
//! ended in time, with 0.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

use super::agent::AgentOptions;
use crate::spec::NodeName;

/// Of what a program printed, the end is kept.
const KEPT: usize = 4 * 1024;
/// A program that ended has printed all it had to; who still holds its output is not waited for longer.
const REST: Duration = Duration::from_millis(500);

/// How a node is switched off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceCommand {
    /// The program, which is not looked for in PATH unless it is a bare name, and its arguments.
    pub argv: Vec<String>,
    /// After it the program is killed with all it started, and has failed.
    pub timeout: Duration,
    /// When it is a fence agent.
    pub agent: Option<AgentOptions>,
}

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("the fencing command for {node} is empty; set `command` or `agent` in [fence.{node}]")]
    Empty { node: NodeName },
    #[error("the options in [fence.{node}] cannot be given to {program}: {why}")]
    Options { node: NodeName, program: String, why: String },
    #[error("the fencing command {program} for {node} cannot be started; look at [fence.{node}]")]
    Start { node: NodeName, program: String, source: io::Error },
    #[error("the fencing command {program} for {node} failed ({how}){}", tail(.output))]
    Failed { node: NodeName, program: String, how: String, output: String },
    #[error("the fencing command {program} for {node} had not ended after {} and was killed{}", humantime::format_duration(*.after), tail(.output))]
    Late { node: NodeName, program: String, after: Duration, output: String },
}

fn tail(output: &str) -> String {
    if output.is_empty() { ", and printed nothing".to_owned() } else { format!(": {output}") }
}

impl FenceCommand {
    /// Runs it for `node`; `Ok` means that the node is off. A call that is dropped kills the program.
    ///
    /// # Errors
    /// It could not be started, failed, or took too long: nothing is known of the node then.
    pub async fn run(&self, node: &NodeName) -> Result<(), CommandError> {
        let (name, arguments) = self.argv.split_first().ok_or_else(|| CommandError::Empty { node: node.clone() })?;
        let program = name.clone();
        let input = self.agent.as_ref().map(AgentOptions::input).transpose();
        let input = input.map_err(|why| CommandError::Options { node: node.clone(), program: program.clone(), why })?;
        let mut command = Command::new(name);
        command
            .args(arguments)
            .current_dir("/")
            .env("HA_FENCE_NODE", node.as_str())
            .env("HA_FENCE_ACTION", self.agent.as_ref().map_or("off", |agent| agent.action.as_str()))
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let start = |source| CommandError::Start { node: node.clone(), program: program.clone(), source };
        let mut child = command.spawn().map_err(start)?;
        let group = Group::of(&child);
        let (out, err) = (Reader::of(child.stdout.take()), Reader::of(child.stderr.take()));
        let told = async {
            if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
                // One that does not want them has its own way to fail.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait().await
        };
        let ended = timeout(self.timeout, told).await;
        let Ok(ended) = ended else {
            drop(group);
            // Its end takes no time unless the kernel itself hangs, and then nobody waits.
            let _ = timeout(REST, child.wait()).await;
            let (after, output) = (self.timeout, self.output(out, err).await);
            return Err(CommandError::Late { node: node.clone(), program, after, output });
        };
        group.leave();
        let how = match ended {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => how(status),
            Err(error) => format!("its end is not known: {error}"),
        };
        let output = self.output(out, err).await;
        Err(CommandError::Failed { node: node.clone(), program, how, output })
    }

    async fn output(&self, out: Reader, err: Reader) -> String {
        let (out, err) = (out.text().await, err.text().await);
        let text = [err.trim(), out.trim()].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n");
        match &self.agent {
            Some(agent) => agent.redact(text),
            None => text,
        }
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The program's process group; killed unless the program has ended. From then on its number may be somebody else's.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Nobody may be left in it.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Reads what is printed to the end, so that nobody waits for room, and keeps little of it.
struct Reader {
    kept: Arc<Mutex<Kept>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    /// The beginning is missing.
    cut: bool,
}

impl Reader {
    fn of(pipe: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let into = Arc::clone(&kept);
        let task = tokio::spawn(async move {
            let Some(mut pipe) = pipe else { return };
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
                into.lock().unwrap_or_else(PoisonError::into_inner).push(&chunk[..length]);
            }
        });
        Self { kept, task }
    }

    async fn text(mut self) -> String {
        let _ = timeout(REST, &mut self.task).await;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).text()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Kept {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let over = self.bytes.len().saturating_sub(KEPT);
        self.bytes.drain(..over);
        self.cut |= over > 0;
    }

    /// Whole lines only: of half a secret nobody would see that it is one.
    fn text(&self) -> String {
        let whole = match (self.cut, self.bytes.iter().position(|byte| *byte == b'\n')) {
            (false, _) => &self.bytes[..],
            (true, Some(end)) => &self.bytes[end + 1..],
            (true, None) => b"(a line too long to show)",
        };
        String::from_utf8_lossy(whole).into_owned()
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
