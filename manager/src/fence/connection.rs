//! Finding the node's watchdog, or starting it; frames to and from it that wait for nobody.

use std::{
    fs::File,
    io::{self, Read, Seek},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, recv, send, setsockopt, socket,
            sockopt,
        },
    },
};
use tokio::{io::unix::AsyncFd, process::Command, time::timeout};

use super::{
    FenceError, SOCKET, Setting,
    protocol::{FrameError, Order, REPORT, Report, Standing},
};

/// A watchdog that was just started locks its memory first, on a node that may be busy.
const START: Duration = Duration::from_secs(10);
/// One that runs answers at once, or when it has fenced.
const ANSWER: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(3);
/// A few orders: what waits longer than for these is replaced by something newer.
const QUEUE: usize = 4096;
/// How much of a dying watchdog's last words is read.
const WORDS: u64 = 2048;

#[derive(Debug)]
pub(super) struct Connection(AsyncFd<OwnedFd>);

impl Connection {
    /// To the watchdog that is there; starts one when there is none. Returns what it says of itself.
    pub async fn make(setting: &Setting) -> Result<(Self, Standing), FenceError> {
        if let Some((connection, standing)) = Self::existing(setting).await?
            && (standing.setting == setting.digest() || !connection.replaced(setting).await?)
        {
            return Ok((connection, standing));
        }
        Self::started(setting).await
    }

    async fn existing(setting: &Setting) -> Result<Option<(Self, Standing)>, FenceError> {
        let path = setting.run_dir.join(SOCKET);
        match Self::open(&path) {
            Ok(connection) => {
                let standing = connection.greet(&path).await?;
                Ok(Some((connection, standing)))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(source) => Err(FenceError::Connect { socket: path, source }),
        }
    }

    /// Asks one with other options to end; false when it is needed still: then it goes on as it is.
    async fn replaced(&self, setting: &Setting) -> Result<bool, FenceError> {
        let silent = || FenceError::Silent { socket: setting.run_dir.join(SOCKET), pid: self.peer() };
        self.try_send(Order::Quit).map_err(|_| silent())?;
        match timeout(ANSWER, self.receive()).await {
            Err(_) => Err(silent()),
            // It says its state instead of ending.
            Ok(Ok(Ok(_))) => Ok(false),
            Ok(_) => Ok(true),
        }
    }

    async fn started(setting: &Setting) -> Result<(Self, Standing), FenceError> {
        let failed = |source| FenceError::Start { exe: setting.exe.clone(), source };
        let words = last_words().map_err(failed)?;
        // Nobody reads it later: it is a file in memory, which nobody has to. The process is reaped by the runtime, also when
        // nobody waits for it any more.
        let child = Command::new(&setting.exe)
            .arg0("ha-manager")
            .args(setting.arguments())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(words.try_clone().map_err(failed)?)
            .spawn();
        let mut child = child.map_err(failed)?;
        let deadline = Instant::now() + START;
        loop {
            if let Some(found) = Self::existing(setting).await? {
                return Ok(found);
            }
            if child.try_wait().map_err(failed)?.is_some() {
                // Another one may have been quicker, or was just ending.
                return match Self::existing(setting).await? {
                    Some(found) => Ok(found),
                    None => Err(FenceError::Ended { said: said(words) }),
                };
            }
            if Instant::now() >= deadline {
                return Err(FenceError::Silent { socket: setting.run_dir.join(SOCKET), pid: child.id() });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn open(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        setsockopt(&socket, sockopt::SndBuf, &QUEUE)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        // SAFETY: the descriptor is owned here and neither replaced nor closed while the `AsyncFd` has it.
        #[allow(unsafe_code)]
        let registered = unsafe { AsyncFd::register(socket) };
        Ok(Self(registered.map_err(io::Error::from)?))
    }

    async fn greet(&self, path: &Path) -> Result<Standing, FenceError> {
        let silent = || FenceError::Silent { socket: path.to_owned(), pid: self.peer() };
        self.try_send(Order::Hello).map_err(|_| silent())?;
        let answer = timeout(ANSWER, self.receive()).await.map_err(|_| silent())?;
        match answer.map_err(|source| FenceError::Connect { socket: path.to_owned(), source })? {
            Ok(Report::State(standing)) => Ok(standing),
            Ok(Report::Ack { .. }) => Err(silent()),
            Err(error) => {
                Err(FenceError::Version { socket: path.to_owned(), pid: self.peer(), why: error.to_string() })
            }
        }
    }

    /// The process at the other end.
    fn peer(&self) -> Option<u32> {
        let credentials = getsockopt(self.0.get_ref(), sockopt::PeerCredentials).ok()?;
        u32::try_from(credentials.pid()).ok()
    }

    /// Never waits.
    ///
    /// # Errors
    /// `WouldBlock` when the watchdog is behind; anything else when it is gone.
    pub fn try_send(&self, order: Order) -> io::Result<()> {
        loop {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.0.get_ref().as_raw_fd(), &order.encode(), flags) {
                Err(Errno::EINTR) => {}
                other => return other.map(|_| ()).map_err(io::Error::from),
            }
        }
    }

    /// The next report; the outer error is the end of the connection.
    pub async fn receive(&self) -> io::Result<Result<Report, FrameError>> {
        let mut frame = [0; REPORT + 1];
        let length = loop {
            let mut ready = self.0.readable().await?;
            let attempt = ready
                .try_io(|fd| recv(fd.as_fd().as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from));
            match attempt {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(other) => break other?,
                Err(_would_block) => {}
            }
        };
        Ok(Report::decode(&frame[..length]))
    }
}

fn last_words() -> io::Result<File> {
    Ok(File::from(memfd_create(c"ha-watchdog-stderr", MFdFlags::MFD_CLOEXEC)?))
}

fn said(mut words: File) -> String {
    let mut bytes = Vec::new();
    let _ = words.rewind().and_then(|()| words.take(WORDS).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes).trim().trim_start_matches("ha-manager: ").to_owned();
    if text.is_empty() { "it said nothing".to_owned() } else { text }
}
