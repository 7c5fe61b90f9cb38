//! Taking out of a process what a CRIU that was killed left mapped in it.
//!
//! The code CRIU puts into a process finds its way back to the program when CRIU dies, but its pages stay, and the next
//! CRIU takes them for a place to put its own code, and fails. So the process is made to unmap them, as CRIU would have.

use std::io;

/// Unmaps CRIU's pages from a process, if there are any; true when there were.
///
/// # Errors
/// When the process could not be stopped or its code could not be used. It then runs on as before, but cannot be dumped.
pub(super) fn evict(pid: i32) -> io::Result<bool> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let left: Vec<(u64, u64)> =
        maps.lines().filter(|line| line.ends_with("/memfd:CRIUMFD (deleted)")).filter_map(range).collect();
    if left.is_empty() {
        return Ok(false);
    }
    let vdso = maps.lines().find(|line| line.ends_with("[vdso]")).and_then(range);
    let vdso = vdso.ok_or_else(|| io::Error::other("the process has no vDSO to take a system call from"))?;
    arch::unmap(pid, &left, vdso).map(|()| true)
}

fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use std::{
        fs::File,
        io,
        os::unix::fs::FileExt,
        thread,
        time::{Duration, Instant},
    };

    use nix::{
        sys::{
            ptrace,
            signal::Signal,
            wait::{WaitPidFlag, WaitStatus, waitpid},
        },
        unistd::Pid,
    };

    /// For CRIU's code to find its way back.
    const PATIENCE: Duration = Duration::from_secs(1);

    pub fn unmap(pid: i32, ranges: &[(u64, u64)], vdso: (u64, u64)) -> io::Result<()> {
        let instruction = system_call_in(pid, vdso)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stopped = Stopped::stop(Pid::from_raw(pid))?;
            let registers = ptrace::getregs(stopped.pid)?;
            if ranges.iter().any(|(start, end)| (*start..*end).contains(&registers.rip)) {
                drop(stopped);
                if Instant::now() >= deadline {
                    return Err(io::Error::other("the process still runs CRIU's code"));
                }
                thread::sleep(Duration::from_millis(2));
                continue;
            }
            let result = ranges.iter().try_for_each(|range| stopped.munmap(registers, instruction, *range));
            // Whatever came of it, the program goes on where it was. An interrupted system call restarts by itself.
            ptrace::setregs(stopped.pid, registers)?;
            return result;
        }
    }

    /// Where in the vDSO a `syscall` instruction is.
    fn system_call_in(pid: i32, (start, end): (u64, u64)) -> io::Result<u64> {
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        let mut code = vec![0; (end - start).min(1 << 16) as usize];
        File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut code, start)?;
        let at = code.windows(2).position(|two| two == SYSCALL);
        at.map(|at| start + at as u64).ok_or_else(|| io::Error::other("the vDSO has no system call in it"))
    }

    /// A process stopped by us, with all signals blocked; it runs again when this goes.
    struct Stopped {
        pid: Pid,
        mask: u64,
    }

    impl Stopped {
        fn stop(pid: Pid) -> io::Result<Self> {
            ptrace::seize(pid, ptrace::Options::empty())?;
            let stopped = ptrace::interrupt(pid).map_err(io::Error::from).and_then(|()| {
                wait_for_stop(pid)?;
                let mask = signal_mask(pid)?;
                set_signal_mask(pid, u64::MAX)?;
                Ok(Self { pid, mask })
            });
            if stopped.is_err() {
                // Seized and no more; if it is gone there is nothing to let go of.
                let _ = ptrace::detach(pid, None);
            }
            stopped
        }

        fn munmap(&self, at: libc::user_regs_struct, instruction: u64, (start, end): (u64, u64)) -> io::Result<()> {
            let call = libc::user_regs_struct {
                rip: instruction,
                rax: libc::SYS_munmap as u64,
                rdi: start,
                rsi: end - start,
                // Not in a system call: the kernel must not restart the one that was interrupted now.
                orig_rax: u64::MAX,
                ..at
            };
            ptrace::setregs(self.pid, call)?;
            ptrace::step(self.pid, None)?;
            match waitpid(self.pid, Some(WaitPidFlag::__WALL))? {
                WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
                other => return Err(io::Error::other(format!("unexpected {other:?} instead of the step's end"))),
            }
            match ptrace::getregs(self.pid)?.rax as i64 {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(-errno as i32)),
            }
        }
    }

    impl Drop for Stopped {
        fn drop(&mut self) {
            // A process that is gone by now needs neither.
            let _ = set_signal_mask(self.pid, self.mask);
            let _ = ptrace::detach(self.pid, None);
        }
    }

    /// Waits for the stop we asked for; signals that arrive first are passed on.
    fn wait_for_stop(pid: Pid) -> io::Result<()> {
        loop {
            match waitpid(pid, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceEvent(..) => return Ok(()),
                WaitStatus::Stopped(_, signal) => ptrace::cont(pid, signal)?,
                other => return Err(io::Error::other(format!("unexpected {other:?} instead of a stop"))),
            }
        }
    }

    const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
    const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;

    fn signal_mask(pid: Pid) -> io::Result<u64> {
        let mut mask = 0u64;
        // SAFETY: the kernel writes the 8 bytes it is told of to `mask`, which outlives the call.
        #[allow(unsafe_code)]
        let rc = unsafe { libc::ptrace(PTRACE_GETSIGMASK, pid.as_raw(), size_of::<u64>(), &raw mut mask) };
        if rc == 0 { Ok(mask) } else { Err(io::Error::last_os_error()) }
    }

    fn set_signal_mask(pid: Pid, mask: u64) -> io::Result<()> {
        // SAFETY: the kernel reads the 8 bytes it is told of from `mask`, which outlives the call.
        #[allow(unsafe_code)]
        let rc = unsafe { libc::ptrace(PTRACE_SETSIGMASK, pid.as_raw(), size_of::<u64>(), &raw const mask) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod arch {
    pub fn unmap(_pid: i32, _ranges: &[(u64, u64)], _vdso: (u64, u64)) -> std::io::Result<()> {
        Err(std::io::Error::other("not known how on this processor"))
    }
}
