//! A system call made in a process's name, under ptrace.
//!
//! ```text
//!   seize, interrupt ─► stopped ─► registers for munmap ─► one step ─► registers as they were ─► let go
//!                          ▲                                  │ a signal was first
//!                          └──── let go with the signal ◄─────┘ registers as they were
//! ```
//! No signal is blocked for it: should the manager be killed, nothing would unblock them. While the registers are not the
//! program's own the kernel would kill the process together with its tracer, since it could only run into the void.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::ptrace,
    unistd::{Pid, gettid},
};
use rustix::process::{WaitOptions, WaitStatus, waitpid};

use super::PATIENCE;
use crate::checkpoint::proc;

/// Between two looks at a process.
const LOOK: Duration = Duration::from_micros(200);

pub fn unmap(pid: i32, ranges: &[(u64, u64)], vdso: (u64, u64), deadline: Instant) -> io::Result<()> {
    let instruction = system_call_in(pid, vdso)?;
    // A thread of its own: the kernel lets go of what it traces when it ends, also of what would not stop for us.
    let (outcome, tracer) = thread::scope(|scope| {
        let tracing = move || (in_rounds(pid, ranges, instruction, deadline), gettid().as_raw());
        thread::Builder::new().spawn_scoped(scope, tracing)?.join().map_err(|_| io::Error::other("it panicked"))
    })?;
    let gone = Instant::now() + PATIENCE;
    while outcome.is_err() && proc::tracer(pid) == Some(tracer) && Instant::now() < gone {
        thread::sleep(LOOK);
    }
    outcome
}

fn in_rounds(pid: i32, ranges: &[(u64, u64)], instruction: u64, deadline: Instant) -> io::Result<()> {
    let mut left = ranges.iter().peekable();
    while left.peek().is_some() {
        let mut stopped = Stopped::stop(pid, deadline)?;
        let at = ptrace::getregs(stopped.pid)?.rip;
        if ranges.iter().any(|(start, end)| (*start..*end).contains(&at)) {
            drop(stopped);
            if Instant::now() >= deadline {
                return Err(io::Error::other("the process still runs CRIU's code"));
            }
            thread::sleep(10 * LOOK);
            continue;
        }
        while let Some(range) = left.peek() {
            if !stopped.munmap(instruction, **range, deadline)? {
                break;
            }
            left.next();
        }
    }
    Ok(())
}

/// Where in the vDSO a `syscall` instruction is.
fn system_call_in(pid: i32, (start, end): (u64, u64)) -> io::Result<u64> {
    let mut code = vec![0; (end - start).min(1 << 16) as usize];
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut code, start)?;
    let at = code.windows(SYSCALL.len()).position(|two| two == SYSCALL);
    at.map(|at| start + at as u64).ok_or_else(|| io::Error::other("the vDSO has no system call in it"))
}

const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// A process stopped by us; it runs again when this goes.
struct Stopped {
    pid: Pid,
    /// What it was about to get when it stopped, and gets now; 0 is nothing.
    signal: i32,
}

/// Why a process has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Because we asked for it, or all of its threads stop.
    Asked,
    /// It is about to get this signal.
    Signal(i32),
}

impl Stopped {
    fn stop(pid: i32, deadline: Instant) -> io::Result<Self> {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, ptrace::Options::empty())?;
        ptrace::interrupt(pid)?;
        // Signals that are first are passed on.
        while let Stop::Signal(signal) = wait(pid, deadline)? {
            resume(libc::PTRACE_CONT, pid, signal)?;
        }
        Ok(Self { pid, signal: 0 })
    }

    /// False when something else came first: it has to be let go then, and stopped anew.
    fn munmap(&mut self, instruction: u64, (start, end): (u64, u64), deadline: Instant) -> io::Result<bool> {
        let registers = ptrace::getregs(self.pid)?;
        let call = libc::user_regs_struct {
            rip: instruction,
            rax: libc::SYS_munmap as u64,
            rdi: start,
            rsi: end - start,
            // Not in a system call: the kernel must not restart the one that was interrupted now.
            orig_rax: u64::MAX,
            ..registers
        };
        ptrace::setoptions(self.pid, ptrace::Options::PTRACE_O_EXITKILL)?;
        ptrace::setregs(self.pid, call)?;
        let result = self.step(instruction, deadline)?;
        // Whatever came of it, the program goes on where it was. An interrupted system call restarts by itself.
        ptrace::setregs(self.pid, registers)?;
        ptrace::setoptions(self.pid, ptrace::Options::empty())?;
        match result {
            Step::Made(0) => Ok(true),
            Step::Made(errno) => Err(io::Error::from_raw_os_error(-errno as i32)),
            Step::First(Stop::Signal(signal)) => {
                self.signal = signal;
                Ok(false)
            }
            Step::First(Stop::Asked) if Instant::now() >= deadline => Err(late(self.pid, "go on")),
            Step::First(Stop::Asked) => Ok(false),
        }
    }

    fn step(&self, instruction: u64, mut deadline: Instant) -> io::Result<Step> {
        let after = instruction + SYSCALL.len() as u64;
        let mut interrupted = false;
        ptrace::step(self.pid, None)?;
        loop {
            let stop = match wait(self.pid, deadline) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut && !interrupted => {
                    // With its own registers again it is none the worse.
                    (interrupted, deadline) = (true, Instant::now() + PATIENCE);
                    ptrace::interrupt(self.pid)?;
                    continue;
                }
                stop => stop?,
            };
            let registers = ptrace::getregs(self.pid)?;
            match stop {
                Stop::Signal(libc::SIGTRAP) if registers.rip == after => return Ok(Step::Made(registers.rax as i64)),
                // The step's own end is still to come, and must not be left to the program.
                Stop::Asked if registers.rip == after => resume(libc::PTRACE_CONT, self.pid, 0)?,
                stop => return Ok(Step::First(stop)),
            }
        }
    }
}

enum Step {
    /// The system call was made, with this result.
    Made(i64),
    /// It was not: the process stopped before.
    First(Stop),
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that is gone by now needs it no more.
        let _ = resume(libc::PTRACE_DETACH, self.pid, self.signal);
    }
}

/// Waits until a traced process stops.
fn wait(pid: Pid, deadline: Instant) -> io::Result<Stop> {
    let options = WaitOptions::NOHANG | WaitOptions::from_bits_retain(libc::__WALL as u32);
    loop {
        let status = waitpid(rustix::process::Pid::from_raw(pid.as_raw()), options)?.map(|(_, status)| status);
        match status.map(|status| (status, status.stopping_signal())) {
            // Above the signal is what else it is.
            Some((status, Some(_))) if WaitStatus::as_raw(status) >> 16 != 0 => return Ok(Stop::Asked),
            Some((_, Some(signal))) => return Ok(Stop::Signal(signal)),
            Some((_, None)) => return Err(io::Error::other("the process has ended")),
            None if Instant::now() >= deadline => return Err(late(pid, "stop")),
            None => thread::sleep(LOOK),
        }
    }
}

fn late(pid: Pid, what: &str) -> io::Error {
    let pid = pid.as_raw();
    let (name, state) = (proc::name(pid), proc::state(pid).unwrap_or('?'));
    let text = format!(
        "process {pid} ({name}, in state {state}) did not {what} in time: it waits in the kernel, or its control group is frozen"
    );
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// Lets a stopped process run, with the signal it was about to get, be it one that has only a number; 0 is none.
fn resume(request: libc::c_uint, pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: with these requests the kernel takes the two last arguments as numbers and touches no memory of ours.
    #[allow(unsafe_code)]
    let rc = unsafe { libc::ptrace(request, pid.as_raw(), 0_usize, signal as usize) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
