//! A watchdog without processes and links: the real core behind a real socket, and what can go wrong between it and a manager.

use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen, recv, send, socket,
};

use super::{
    Guard, SOCKET, Setting, clock,
    core::{Action, Core, Event, Fencing},
    protocol::{Due, Order, Report, Standing},
};

/// How it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Well,
    /// It reads nothing.
    Deaf,
    /// It cannot release.
    Failing,
    /// It does what it is told and is gone before it says so.
    Losing,
}

pub struct Fake {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    core: Mutex<Core>,
    manner: Mutex<Manner>,
    over: AtomicBool,
}

impl Fake {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&dir.path().join(SOCKET)).unwrap()).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        let (core, manner) = (Mutex::new(Core::new(false)), Mutex::new(Manner::Well));
        let shared = Arc::new(Shared { core, manner, over: AtomicBool::new(false) });
        let setting = Setting::new(dir.path()).digest();
        let there = Arc::clone(&shared);
        let thread = Some(thread::spawn(move || there.run(&listener, setting)));
        Self { dir, shared, thread }
    }

    pub async fn guard(&self) -> Guard {
        Guard::start(Setting::new(self.dir.path())).await.unwrap()
    }

    pub fn is(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = manner;
    }

    /// The containers are frozen.
    pub fn fired(&self) -> bool {
        self.shared.core().fired()
    }

    /// The containers go on without a deadline.
    pub fn is_parked(&self) -> bool {
        let core = self.shared.core();
        !core.fired() && core.due() == Due::Never
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap()
    }

    fn run(&self, listener: &OwnedFd, setting: u64) {
        let mut manager: Option<OwnedFd> = None;
        while !self.over.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
            // For the whole turn: who changes it does not meet the old one afterwards.
            let turn = self.manner.lock().unwrap();
            let manner = *turn;
            if manner == Manner::Deaf {
                continue;
            }
            self.follow(Event::Timer, manner, setting, manager.as_ref());
            if let Ok(fd) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                // SAFETY: the kernel just returned this descriptor and nobody else owns it.
                #[allow(unsafe_code)]
                let connection = unsafe { OwnedFd::from_raw_fd(fd) };
                manager = Some(connection);
            }
            let mut frame = [0; 64];
            while let Some(fd) = &manager {
                let Ok(length) = recv(fd.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) else { break };
                let Ok(order) = Order::decode(&frame[..length]) else {
                    manager = None;
                    break;
                };
                let lost = manner == Manner::Losing && matches!(order, Order::Release { .. });
                if lost {
                    manager = None;
                }
                self.follow(Event::Told(order), manner, setting, manager.as_ref());
            }
        }
    }

    fn follow(&self, event: Event, manner: Manner, setting: u64, manager: Option<&OwnedFd>) {
        let mut core = self.core();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in core.handle(event, clock::now()) {
                let report = match action {
                    Action::Fence => {
                        events.push(Event::Fenced(Fencing { stopped: true, problem: String::new() }));
                        continue;
                    }
                    Action::Release if manner == Manner::Failing => {
                        events.push(Event::Released(Err("a link does not come up".into())));
                        continue;
                    }
                    Action::Release => {
                        events.push(Event::Released(Ok(())));
                        continue;
                    }
                    Action::Say => Report::State(Standing {
                        due: core.due(),
                        fired: core.fired(),
                        problem: core.problem().to_owned(),
                        pid: std::process::id(),
                        setting,
                    }),
                    Action::Ack { number, done, problem } => Report::Ack { number, done, problem },
                    Action::End => continue,
                };
                if let Some(manager) = manager {
                    let _ =
                        send(manager.as_raw_fd(), &report.encode(), MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
                }
            }
        }
    }
}
