//! Starting a process as the container's user, in a session of its own.

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use ha_proto::agent::{Config, User};
use nix::{
    errno::Errno,
    sys::{
        signal::{SigHandler, SigSet, Signal, signal},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::{Gid, Pid, Uid, getgid, getuid, setgroups, setresgid, setresuid, setsid},
};

/// A process could not be started. `code` is what a shell would exit with: 127 not found, 126 not runnable.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {program:?} in {cwd:?} as user {uid}:{gid}; {remedy}")]
pub struct SpawnError {
    pub code: i32,
    program: String,
    cwd: String,
    uid: u32,
    gid: u32,
    remedy: &'static str,
    source: io::Error,
}

/// Starts `argv` with the configuration's environment, directory and user; stdin is /dev/null.
///
/// # Errors
/// [`SpawnError`], also for what fails between fork and exec.
pub fn spawn(argv: &[String], config: &Config, stdout: OwnedFd, stderr: OwnedFd) -> Result<Pid, SpawnError> {
    let program = argv.first().map(String::as_str).unwrap_or_default();
    let mut command = Command::new(program);
    command
        .args(argv.get(1..).unwrap_or_default())
        .env_clear()
        .envs(config.env.iter().filter_map(|entry| entry.split_once('=')))
        .current_dir(&config.cwd)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr);
    become_user(&mut command, config.user.clone());
    match command.spawn() {
        // The child is reaped with all others, by the loop.
        Ok(child) => Ok(Pid::from_raw(child.id().cast_signed())),
        Err(source) => Err(error(program, &config.cwd, &config.user, source)),
    }
}

#[allow(unsafe_code)]
fn become_user(command: &mut Command, user: User) {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<Gid> = user.groups.into_iter().map(Gid::from_raw).collect();
    // Without a change there is no need for the capabilities of one.
    let change = uid != getuid() || gid != getgid() || !groups.is_empty();
    let in_child = move || {
        setsid()?;
        // The agent's mask is for its signalfd; std hands it down.
        SigSet::empty().thread_set_mask()?;
        // What an ancestor of the manager ignored (nohup: SIGHUP) is ignored over exec, and a shell then cannot even trap it.
        for number in Signal::iterator().filter(|number| !matches!(number, Signal::SIGKILL | Signal::SIGSTOP)) {
            // SAFETY: the default disposition runs no code of ours.
            unsafe { signal(number, SigHandler::SigDfl) }?;
        }
        if change {
            setgroups(&groups)?;
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only; its vector was allocated before the fork.
    unsafe { command.pre_exec(in_child) };
}

fn error(program: &str, cwd: &Path, user: &User, source: io::Error) -> SpawnError {
    SpawnError {
        code: if source.kind() == io::ErrorKind::NotFound { 127 } else { 126 },
        remedy: remedy(program, cwd, &source),
        program: program.to_owned(),
        cwd: cwd.display().to_string(),
        uid: user.uid,
        gid: user.gid,
        source,
    }
}

/// The kernel says the same of a missing program, directory and loader.
fn remedy(program: &str, cwd: &Path, source: &io::Error) -> &'static str {
    if !cwd.is_dir() {
        return "the image has no such directory: check `working_dir`";
    }
    match source.kind() {
        io::ErrorKind::NotFound if program.contains('/') && cwd.join(program).exists() => {
            "it is there, but the loader or interpreter that it needs is not: check the image"
        }
        io::ErrorKind::NotFound => "the image has no such program: check `command`, `entrypoint` and PATH",
        io::ErrorKind::PermissionDenied => {
            "it may not be executed: check that it is a program, its mode, that of the directories above, and `user`"
        }
        _ => "check the path, its permissions and the image",
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub pid: Pid,
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// 0 when it exited by itself.
    pub signal: i32,
}

/// The next child that has ended, if any has.
pub fn reap() -> Option<End> {
    loop {
        let mut status = 0;
        match wait_any(&mut status) {
            Ok(Some(pid)) => {
                let status = ExitStatus::from_raw(status);
                let signal = status.signal().unwrap_or(0);
                return Some(End { pid, code: status.code().unwrap_or(128 + signal), signal });
            }
            Err(Errno::EINTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// True while any child is there, zombies included. As PID 1: any process but those that came in from outside.
pub fn has_children() -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::All, flags), Err(Errno::ECHILD))
}

/// `waitpid(-1, WNOHANG)`. nix's own refuses a status with a real-time signal, and that child would be lost.
#[allow(unsafe_code)]
fn wait_any(status: &mut i32) -> nix::Result<Option<Pid>> {
    // SAFETY: `status` is a valid pointer for the length of the call.
    let pid = Errno::result(unsafe { nix::libc::waitpid(-1, status, nix::libc::WNOHANG) })?;
    Ok((pid != 0).then(|| Pid::from_raw(pid)))
}

/// Sends `signal`, any number, to a process or, with a negative `pid`, to its group. One that has ended is no error.
#[allow(unsafe_code)]
pub fn send_signal(pid: Pid, signal: i32) {
    // SAFETY: no memory is involved.
    unsafe { nix::libc::kill(pid.as_raw(), signal) };
}
