//! The watchdog's loop: one manager, one deadline, one hardware watchdog, nothing that waits for anybody.

use std::{
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        socket::{MsgFlags, SockFlag, accept4, recv, send},
        time::TimeSpec,
    },
};

use super::{
    FenceError, clock,
    core::{Action, Core, Event, Fencing},
    device::Device,
    freezer::{Freezer, Stopped},
    process::Journal,
    protocol::{Due, FrameError, ORDER, Order, Report, Standing},
};
use crate::network::HostLinks;

/// More orders than a manager's queue has room for: one that goes on sending does not keep the next one out.
const QUEUED: usize = 64;

/// What came of reading an order.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// There was none, or nobody is there any more.
    Nothing,
    /// It was followed.
    Order,
    /// It was the last one.
    End,
}

pub(super) struct Watchdog {
    core: Core,
    freezer: Freezer,
    links: HostLinks,
    /// The links that were taken down here, by index.
    lowered: Vec<u32>,
    /// Who was killed, and why, since the last release.
    killed: Option<String>,
    device: Option<Device>,
    /// The last petting failed: said once.
    device_failed: bool,
    listener: OwnedFd,
    manager: Option<OwnedFd>,
    setting: u64,
    journal: Journal,
}

impl Watchdog {
    pub fn new(
        core: Core,
        freezer: Freezer,
        mut links: HostLinks,
        device: Option<Device>,
        listener: OwnedFd,
        setting: u64,
        journal: Journal,
    ) -> Self {
        // After one that fenced and was killed. Nobody else takes a container's link down.
        let lowered = if core.fired() { links.down().unwrap_or_default() } else { Vec::new() };
        let (killed, manager) = (None, None);
        let device_failed = false;
        Self { core, freezer, links, lowered, killed, device, device_failed, listener, manager, setting, journal }
    }

    /// Until it is told to end.
    pub fn run(mut self) -> Result<(), FenceError> {
        let failed = |errno: Errno| FenceError::watchdog(format!("its loop failed: {errno}"));
        while !self.turn().map_err(failed)? {}
        match self.device.take().map(Device::disarm) {
            Some(Err(error)) => Err(FenceError::watchdog(format!("the hardware watchdog cannot be disarmed: {error}"))),
            _ => Ok(()),
        }
    }

    /// What comes next; true when it was told to end.
    fn turn(&mut self) -> Result<bool, Errno> {
        self.pet();
        let (connecting, speaking) = self.wait()?;
        // First what time demands: a manager that sends without end must not put it off.
        if self.follow(Event::Timer) {
            return Ok(true);
        }
        if !connecting {
            return Ok(speaking && self.listen() == Heard::End);
        }
        // What the manager before has said counts, and the next one is told a state in which it does.
        for _ in 0..QUEUED {
            match self.listen() {
                Heard::Order => {}
                Heard::Nothing => break,
                Heard::End => return Ok(true),
            }
        }
        self.accept();
        Ok(false)
    }

    fn pet(&mut self) {
        let Some(device) = self.device.as_mut().filter(|_| self.core.well()) else { return };
        let outcome = device.pet(clock::now());
        if let (Err(error), false) = (&outcome, self.device_failed) {
            self.journal.say(&format!("the hardware watchdog cannot be written to: {error}"));
        }
        self.device_failed = outcome.is_err();
    }

    /// Until somebody connects, the manager says something, or it is time.
    fn wait(&self) -> Result<(bool, bool), Errno> {
        let timeout = self.wake().map(|at| TimeSpec::from(Duration::from_nanos(at.saturating_sub(clock::now()))));
        let mut fds = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.manager.iter().map(|manager| PollFd::new(manager.as_fd(), PollFlags::POLLIN)));
        match ppoll(&mut fds, timeout, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let ready = |fd: Option<&PollFd<'_>>| fd.and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
        Ok((ready(fds.first()), ready(fds.get(1))))
    }

    fn wake(&self) -> Option<u64> {
        let device = self.device.as_ref().filter(|_| self.core.well()).map(Device::next);
        let core = match self.core.wake() {
            Due::Never => None,
            Due::At(at) => Some(at),
        };
        [device, core].into_iter().flatten().min()
    }

    /// The newest manager is the one.
    fn accept(&mut self) {
        if let Ok(fd) = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
            // SAFETY: the kernel just returned this descriptor and nobody else owns it.
            #[allow(unsafe_code)]
            let connection = unsafe { OwnedFd::from_raw_fd(fd) };
            self.manager = Some(connection);
        }
    }

    /// One frame.
    fn listen(&mut self) -> Heard {
        let Some(manager) = &self.manager else { return Heard::Nothing };
        let mut frame = [0; ORDER + 1];
        let length = match recv(manager.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            Ok(length) if length > 0 => length,
            Err(Errno::EAGAIN | Errno::EINTR) => return Heard::Nothing,
            // It ended, well or ill. Its deadline stands.
            _ => {
                self.manager = None;
                return Heard::Nothing;
            }
        };
        let end = match Order::decode(&frame[..length]) {
            Ok(order) => self.follow(Event::Told(order)),
            // Another version learns ours from the answer.
            Err(FrameError::Version(_)) => self.follow(Event::Told(Order::Hello)),
            Err(error) => {
                self.journal.say(&format!("a connection is closed: {error}"));
                self.manager = None;
                return Heard::Nothing;
            }
        };
        if end { Heard::End } else { Heard::Order }
    }

    /// True when that was the end.
    fn follow(&mut self, event: Event) -> bool {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.core.handle(event, clock::now()) {
                match action {
                    Action::Fence => events.push(Event::Fenced(self.fence())),
                    Action::Release => events.push(Event::Released(self.release())),
                    Action::Say => self.report(&Report::State(self.standing())),
                    Action::Ack { number, done, problem } => self.report(&Report::Ack { number, done, problem }),
                    Action::End => return true,
                }
            }
        }
        false
    }

    /// Processes first: a link that cannot be taken down must not keep them running. But a process that does not freeze keeps
    /// no link up either: as long as somebody runs, nobody is to hear of it.
    fn fence(&mut self) -> Fencing {
        let first = self.core.problem().is_empty() && !self.core.well();
        self.freezer.begin();
        let (lowered, outcome) = self.links.lower();
        self.lowered.extend(lowered);
        let (stopped, running) = match self.freezer.stop() {
            Ok(Stopped::Frozen) => (true, None),
            Ok(Stopped::Killed(what)) => {
                self.killed = Some(what);
                (true, None)
            }
            Err(why) => (false, Some(format!("containers still run: {why}"))),
        };
        let up = outcome.err().map(|error| format!("not every link went down: {error}"));
        let problems: Vec<String> = [running, self.killed.clone(), up].into_iter().flatten().collect();
        let problem = problems.join("; ");
        if first || problem != self.core.problem() {
            let how = if problem.is_empty() { "containers are frozen, their links down" } else { &problem };
            self.journal.say(&format!("this node fences itself: {how}"));
        }
        Fencing { stopped, problem }
    }

    fn release(&mut self) -> Result<(), String> {
        self.links.raise(&self.lowered).map_err(|error| format!("not every link came up: {error}"))?;
        self.freezer.thaw()?;
        self.lowered.clear();
        self.killed = None;
        self.journal.say("this node is released: containers go on");
        Ok(())
    }

    fn standing(&self) -> Standing {
        Standing {
            due: self.core.due(),
            fired: self.core.fired(),
            problem: self.core.problem().to_owned(),
            pid: std::process::id(),
            setting: self.setting,
        }
    }

    /// A manager that does not read is let go: it connects again when it does.
    fn report(&mut self, report: &Report) {
        let Some(manager) = &self.manager else { return };
        let sent = send(manager.as_raw_fd(), &report.encode(), MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
        if sent.is_err() {
            self.manager = None;
        }
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
