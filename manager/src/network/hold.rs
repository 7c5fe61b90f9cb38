//! Keeping what comes for a container while its gate is closed, and handing it over afterwards; and what its kernel answers in
//! the moment of closing, which is to get out then.
//!
//! ```text
//!            begin            port closes           port opens          deliver
//!   idle ────────► capturing ────────────► holding ────────────► pairing ───────► idle
//!                      │ does not close        │ stays closed
//!                      └── forget ──► idle     └── dropped with all it holds
//! ```
//! One packet socket sees every device of the node; its filter leaves the frames for this container. They are sent out of
//! the container's own link, past the bridge, when the port is open.
//!
//! A frame that got in directly before the port closed is answered directly after it: a SYN by a SYN-ACK, a question for the
//! address by its answer, and either is sent again only a second later. These answers, and nothing else that the container sends,
//! are sent once more out of the link's other end, inside the container, and so go the way that they were to go. One that gets out
//! by itself in the microseconds around closing and opening goes out twice, which neither protocol minds.

use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    filter::{self, Instruction},
    kept::Kept,
    packet::{Direction, OFFLOAD_HEADER, PacketSocket},
};
use crate::spec::Mac;

/// What the kernel may keep for a gate: more than 1 Gbit/s brings in 200 ms. Taken as frames come, not before.
const ROOM: usize = 32 << 20;
/// The largest frame that a link hands over at once (64 KiB before it is cut into segments), and its headers.
const PACKET: usize = OFFLOAD_HEADER + 14 + (64 << 10);
/// What is kept of answers: under a hundred bytes each.
const ANSWERS: usize = 1 << 20;
/// Frames read in one go: an end to it also when they come faster than they are read.
const READS: usize = 1 << 16;

/// Which gates of this node are closed, by their links. What comes out of a closed one is nobody's.
#[derive(Clone, Default)]
pub(super) struct Shut(Arc<Mutex<HashSet<u32>>>);

impl Shut {
    pub(super) fn set(&self, link: u32, shut: bool) {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shut {
            links.insert(link)
        } else {
            links.remove(&link)
        };
    }

    pub(super) fn all(&self) -> HashSet<u32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The links around a container.
pub(super) struct Links {
    /// The container's own, on the node's side.
    pub(super) host: u32,
    pub(super) bridge: u32,
    /// All of the bridge's ports.
    pub(super) ports: HashSet<u32>,
}

pub(super) struct Hold {
    socket: PacketSocket,
    links: Links,
    shut: Shut,
    filter: Vec<Instruction>,
    state: State,
    kept: Kept,
    /// Into the container's link at its inner end; without it answers are lost.
    inside: Option<PacketSocket>,
    answers: Kept,
    buffer: Vec<u8>,
    lost: usize,
}

/// What of the frames that are read is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Both,
    Arrivals,
    Nothing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its socket hears nothing yet.
    New,
    Capturing,
    /// Its socket is open to all, with a filter that lets nothing through.
    Idle,
}

impl Hold {
    /// Makes everything that takes time: nothing is captured yet. `inside` is bound to the inner end of the container's link, for
    /// sending alone, [`PacketSocket::with_offload_header`].
    pub(super) fn prepare(links: Links, mac: Mac, shut: Shut, inside: Option<PacketSocket>) -> io::Result<Self> {
        let socket = PacketSocket::open(0, 0)?;
        socket.with_offload_header()?;
        let filter = filter::of_container(links.host, links.bridge, mac);
        socket.filter(&filter)?;
        socket.grow(ROOM);
        // Touched here: fresh memory is slow.
        let buffer = vec![1; PACKET];
        let (kept, answers) = (Kept::new(OFFLOAD_HEADER, ROOM), Kept::new(OFFLOAD_HEADER, ANSWERS));
        Ok(Self { socket, links, shut, filter, state: State::New, kept, inside, answers, buffer, lost: 0 })
    }

    /// Directly before the port closes.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        match self.state {
            State::New => self.socket.hear_all_links()?,
            State::Idle => self.socket.filter(&self.filter)?,
            State::Capturing => return Ok(()),
        }
        self.state = State::Capturing;
        Ok(())
    }

    /// Before the port opens: so that what was held follows the opening at once.
    pub(super) fn gather(&mut self) {
        if self.state == State::Capturing {
            self.read(Keep::Both);
        }
    }

    /// After the port has opened: the answers get out, and everything held goes to the container. How many frames that were, and
    /// how many were lost.
    pub(super) fn deliver(&mut self) -> (usize, usize) {
        if self.state != State::Capturing {
            return (0, 0);
        }
        let gathered = self.kept.take();
        // What came while it opened. Later no answers: those to what is handed over get out by themselves.
        self.read(Keep::Both);
        let mut delivered = self.answer() + self.send(&gathered);
        self.read(Keep::Arrivals);
        self.mute();
        // What comes in from the opening on goes in by itself; only whether the last ones did is still to be read.
        self.read(Keep::Nothing);
        let last = self.kept.take();
        delivered += self.send(&last);
        self.lost += self.socket.lost_frames().unwrap_or(0);
        (delivered, std::mem::take(&mut self.lost))
    }

    /// The port did not close.
    pub(super) fn forget(&mut self) {
        if self.state == State::Capturing {
            self.mute();
            self.read(Keep::Nothing);
            self.kept.take();
            self.answers.take();
        }
    }

    fn mute(&mut self) {
        // Refused for want of memory, it goes on capturing into a buffer with an end.
        if self.socket.filter(&filter::NOTHING).is_ok() {
            self.state = State::Idle;
        }
    }

    fn read(&mut self, keep: Keep) {
        let shut = self.shut.all();
        for _ in 0..READS {
            let seen = match self.socket.next(&mut self.buffer) {
                Ok(Some(seen)) => seen,
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // One that the kernel cannot describe to us.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.lost += 1;
                    continue;
                }
                Err(_) => return,
            };
            let Some(packet) = self.buffer.get(..seen.length) else {
                self.lost += 1;
                continue;
            };
            if seen.link == self.links.host {
                match seen.direction {
                    Direction::Out => self.kept.went_out(packet),
                    Direction::In if keep == Keep::Both && !self.answers.came_in(packet) => self.lost += 1,
                    Direction::In => {}
                }
                continue;
            }
            // The same frame is also seen where the bridge did not take it from: below a bond, above the bridge.
            let entered = match seen.direction {
                Direction::Out => seen.link == self.links.bridge,
                Direction::In => self.links.ports.contains(&seen.link) && !shut.contains(&seen.link),
            };
            if keep != Keep::Nothing && entered && !self.kept.came_in(packet) {
                self.lost += 1;
            }
        }
    }

    fn send(&mut self, packets: &[Vec<u8>]) -> usize {
        let (socket, host) = (&self.socket, self.links.host);
        count(packets, &mut self.lost, |packet| socket.send_through(host, packet))
    }

    fn answer(&mut self) -> usize {
        let packets = self.answers.take();
        let Some(inside) = &self.inside else { return 0 };
        count(&packets, &mut self.lost, |packet| inside.send(packet))
    }
}

/// How many could be sent; the others are `lost`.
fn count(packets: &[Vec<u8>], lost: &mut usize, send: impl Fn(&[u8]) -> io::Result<()>) -> usize {
    let sent = packets.iter().filter(|packet| send(packet).is_ok()).count();
    *lost += packets.len() - sent;
    sent
}
