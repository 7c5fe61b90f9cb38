//! An RTSP player without a screen: it sets a session up, receives the RTP packets over UDP, keeps the session alive,
//! and writes down when which packet came.
//!
//! ```text
//!   OPTIONS ─► DESCRIBE ─► SETUP (UDP ports) ─► PLAY ─► packets … OPTIONS with the session every 30 s
//! ```
//!
//! When the connection is reset it connects again and goes on with the session it has: that is what tells whether the
//! *server* still knows it.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail, ensure};

/// An answer's body is read up to this size.
const MAX_BODY: usize = 64 * 1024;

/// One RTP packet.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    pub at: SystemTime,
    pub instant: Instant,
    pub ssrc: u32,
    pub sequence: u16,
    pub timestamp: u32,
    pub bytes: usize,
}

/// What a player has seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub session: String,
    pub packets: Vec<Packet>,
    /// Answers to the keep-alive: when, and the status code.
    pub kept_alive: Vec<(Instant, u16)>,
    /// Answers to `PLAY` for the running session: whether the server still knows it.
    pub asked: Vec<(Instant, bool)>,
    /// Resets and timeouts of the control connection, each followed by a new one.
    pub errors: Vec<(Instant, String)>,
}

impl Seen {
    /// The first packet after `instant`.
    pub fn first_after(&self, instant: Instant) -> Option<&Packet> {
        self.packets.get(self.packets.partition_point(|packet| packet.instant <= instant))
    }

    /// The last packet at or before `instant`.
    pub fn last_before(&self, instant: Instant) -> Option<&Packet> {
        self.packets.partition_point(|packet| packet.instant <= instant).checked_sub(1).map(|at| &self.packets[at])
    }

    /// The sources there were, in order of appearance. One, when the session was kept.
    pub fn sources(&self) -> Vec<u32> {
        let mut sources = Vec::new();
        for packet in &self.packets {
            if !sources.contains(&packet.ssrc) {
                sources.push(packet.ssrc);
            }
        }
        sources
    }
}

struct Answer {
    code: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    /// For an answer to `PLAY`: VLC says 200 to any session, but has positions (`RTP-Info`) only of one that it knows.
    fn knows_session(&self) -> bool {
        self.code == 200 && self.header("RTP-Info").is_some_and(|info| info.contains("url="))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The control connection.
struct Control {
    reader: BufReader<TcpStream>,
    sequence: u32,
}

impl Control {
    fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { reader: BufReader::new(stream), sequence: 0 })
    }

    fn request(&mut self, method: &str, url: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
        self.sequence += 1;
        let mut text = format!("{method} {url} RTSP/1.0\r\nCSeq: {}\r\nUser-Agent: ha-lab\r\n", self.sequence);
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        self.reader.get_mut().write_all(text.as_bytes())?;
        let answer = self.answer()?;
        let expected = self.sequence.to_string();
        if answer.header("CSeq").is_some_and(|sequence| sequence.trim() != expected) {
            return Err(io::Error::other("an answer to another request"));
        }
        Ok(answer)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let status = self.line()?;
        let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| io::Error::other(format!("not an RTSP answer: {status:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                headers.push((name.to_owned(), value.trim().to_owned()));
            }
        }
        let mut answer = Answer { code, headers, body: String::new() };
        if let Some(length) = answer.header("Content-Length").and_then(|length| length.parse::<usize>().ok()) {
            let mut body = vec![0; length.min(MAX_BODY)];
            self.reader.read_exact(&mut body)?;
            answer.body = String::from_utf8_lossy(&body).into_owned();
        }
        Ok(answer)
    }
}

/// A player; its loop runs on a thread in the clients' namespace.
#[derive(Debug)]
pub struct Player {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    ask: Arc<AtomicBool>,
}

/// How often the session is kept alive: half of what a session lives without it (60 s; RFC 2326 §12.37), as players do.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

impl Player {
    /// The recorder and its loop for `rtsp://ADDRESS/PATH`. The loop waits up to `patience` for the stream to exist.
    pub fn new(
        address: SocketAddr,
        path: &str,
        patience: Duration,
    ) -> (Self, impl FnOnce() -> anyhow::Result<()> + Send + 'static) {
        let player = Self { seen: Arc::default(), stop: Arc::default(), ask: Arc::default() };
        let (seen, stop, ask) = (Arc::clone(&player.seen), Arc::clone(&player.stop), Arc::clone(&player.ask));
        let url = format!("rtsp://{address}/{path}");
        let run = move || play(address, &url, patience, &seen, &stop, &ask);
        (player, run)
    }

    /// What was seen up to now.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many packets came up to now.
    pub fn count(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).packets.len()
    }

    /// Asks the server now to go on with the session, which tells whether it still knows it; tried until answered.
    pub fn ask_for_session(&self) {
        self.ask.store(true, Ordering::Relaxed);
    }

    /// Ends the loop.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.stop();
    }
}

fn note(seen: &Mutex<Seen>, change: impl FnOnce(&mut Seen)) {
    change(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
}

/// An even port and the next one, for RTP and RTCP.
fn port_pair() -> anyhow::Result<(UdpSocket, UdpSocket)> {
    for port in (40_000..50_000).step_by(2) {
        if let (Ok(rtp), Ok(rtcp)) = (UdpSocket::bind(("0.0.0.0", port)), UdpSocket::bind(("0.0.0.0", port + 1))) {
            return Ok((rtp, rtcp));
        }
    }
    bail!("no pair of free UDP ports between 40000 and 50000")
}

/// The address of the first track: its own `a=control`, absolute or below the base.
fn track(sdp: &str, base: &str) -> anyhow::Result<String> {
    let media = sdp.split_once("\nm=").context("the description has no track")?.1;
    let control = media.lines().find_map(|line| line.trim().strip_prefix("a=control:"));
    let control = control.context("the track has no address")?;
    if control.starts_with("rtsp://") {
        return Ok(control.to_owned());
    }
    Ok(format!("{}/{control}", base.trim_end_matches('/')))
}

fn describe(address: SocketAddr, url: &str, patience: Duration) -> anyhow::Result<(Control, Answer)> {
    let start = Instant::now();
    let attempt = || -> anyhow::Result<(Control, Answer)> {
        let mut control = Control::connect(address, Duration::from_secs(2))?;
        control.request("OPTIONS", url, &[])?;
        let answer = control.request("DESCRIBE", url, &[("Accept", "application/sdp")])?;
        // VLC answers before it has read the clip's tracks.
        ensure!(answer.code == 200 && answer.body.contains("m="), "DESCRIBE was answered {}", answer.code);
        Ok((control, answer))
    };
    loop {
        match attempt() {
            Ok(found) => return Ok(found),
            Err(err) if start.elapsed() > patience => return Err(err.context(format!("no stream at {url}"))),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn play(
    address: SocketAddr,
    url: &str,
    patience: Duration,
    seen: &Mutex<Seen>,
    stop: &AtomicBool,
    ask: &AtomicBool,
) -> anyhow::Result<()> {
    let (mut control, described) = describe(address, url, patience)?;
    let base = described.header("Content-Base").unwrap_or(url);
    let track = track(&described.body, base)?;
    let (rtp, _rtcp) = port_pair()?;
    let port = rtp.local_addr()?.port();
    let transport = format!("RTP/AVP;unicast;client_port={port}-{}", port + 1);
    let set_up = control.request("SETUP", &track, &[("Transport", &transport)])?;
    ensure!(set_up.code == 200, "SETUP was answered {}", set_up.code);
    let session = set_up.header("Session").and_then(|value| value.split(';').next());
    let session = session.context("SETUP gave no session")?.trim().to_owned();
    note(seen, |seen| seen.session.clone_from(&session));
    let playing = control.request("PLAY", url, &[("Session", &session), ("Range", "npt=0.000-")])?;
    ensure!(playing.code == 200, "PLAY was answered {}", playing.code);

    rtp.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut control = Some(control);
    let mut due = Instant::now() + KEEP_ALIVE;
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        match rtp.recv(&mut buffer) {
            Ok(length) => {
                if let Some(packet) = parse(&buffer[..length]) {
                    note(seen, |seen| seen.packets.push(packet));
                }
            }
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // An ICMP error from a node that has just lost its container; the socket itself is well.
            Err(err) if err.kind() == ErrorKind::ConnectionRefused => {}
            Err(err) => return Err(err).context("cannot receive RTP"),
        }
        let asking = ask.load(Ordering::Relaxed) && errors_rested(seen);
        if Instant::now() >= due || asking {
            due = Instant::now() + KEEP_ALIVE;
            let connection = match control.take() {
                Some(connection) => Ok(connection),
                None => Control::connect(address, Duration::from_millis(300)),
            };
            // A short patience: while it lasts no packet is read, though the socket keeps them.
            let asked = connection.and_then(|mut connection| {
                connection.reader.get_mut().set_read_timeout(Some(Duration::from_millis(300)))?;
                let method = if asking { "PLAY" } else { "OPTIONS" };
                let answer = connection.request(method, url, &[("Session", &session)])?;
                Ok((connection, answer.code, answer.knows_session()))
            });
            match asked {
                Ok((connection, code, knows)) => {
                    control = Some(connection);
                    if asking {
                        ask.store(false, Ordering::Relaxed);
                        note(seen, |seen| seen.asked.push((Instant::now(), knows)));
                    } else {
                        note(seen, |seen| seen.kept_alive.push((Instant::now(), code)));
                    }
                }
                Err(err) => {
                    due = Instant::now() + Duration::from_millis(200);
                    note(seen, |seen| seen.errors.push((Instant::now(), err.to_string())));
                }
            }
        }
    }
    if let Some(mut control) = control {
        // A courtesy; the server may be gone.
        let _ = control.request("TEARDOWN", url, &[("Session", &session)]);
    }
    Ok(())
}

/// False for a moment after an error, so that a server that is away is not asked without a pause.
fn errors_rested(seen: &Mutex<Seen>) -> bool {
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    seen.errors.last().is_none_or(|(at, _)| at.elapsed() > Duration::from_millis(200))
}

/// Whether a server knows the session `session`.
///
/// # Errors
/// From the socket.
pub fn ask_about(address: SocketAddr, path: &str, session: &str) -> io::Result<bool> {
    let url = format!("rtsp://{address}/{path}");
    let mut control = Control::connect(address, Duration::from_secs(2))?;
    Ok(control.request("PLAY", &url, &[("Session", session)])?.knows_session())
}

/// The fixed header of RFC 3550; `None` for anything else.
fn parse(bytes: &[u8]) -> Option<Packet> {
    let header: &[u8; 12] = bytes.first_chunk()?;
    (header[0] >> 6 == 2).then(|| Packet {
        at: SystemTime::now(),
        instant: Instant::now(),
        sequence: u16::from_be_bytes([header[2], header[3]]),
        timestamp: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        ssrc: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
        bytes: bytes.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rtp_headers_are_read_and_others_refused() {
        let mut bytes = [0x80, 0x20, 0x01, 0x02, 0, 0, 0, 7, 0xde, 0xad, 0xbe, 0xef, 1, 2, 3];
        let packet = parse(&bytes).unwrap();
        assert_eq!((packet.sequence, packet.timestamp, packet.ssrc, packet.bytes), (0x0102, 7, 0xdead_beef, 15));
        assert!(parse(&bytes[..11]).is_none());
        bytes[0] = 0x40;
        assert!(parse(&bytes).is_none());
    }

    #[test]
    fn the_track_is_found_relative_or_absolute() {
        let sdp = "v=0\r\na=control:rtsp://h/x\r\nm=video 0 RTP/AVP 32\r\na=control:trackID=0\r\n";
        assert_eq!(track(sdp, "rtsp://h/x/").unwrap(), "rtsp://h/x/trackID=0");
        let absolute = "v=0\nm=video 0 RTP/AVP 32\na=control:rtsp://h/x/t1\n";
        assert_eq!(track(absolute, "rtsp://h/y").unwrap(), "rtsp://h/x/t1");
        assert!(track("v=0\n", "rtsp://h").is_err());
    }
}
