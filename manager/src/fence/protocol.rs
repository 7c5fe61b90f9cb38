//! What manager and watchdog say to each other: frames of one size each way, over a socket that keeps them apart.
//!
//! ```text
//!   order  (24 bytes)   "HW" version kind │ 0 0 0 0  │ number (8) │ moment (8)
//!   report (560 bytes)  "HW" version kind │ flags 0 length (2) │ number (8) │ moment (8) │ pid (4) 0 0 0 0 │ setting (8)
//!                       │ text (512), zeros after its length
//! ```
//!
//! Numbers are little-endian. A moment is in nanoseconds of CLOCK_MONOTONIC; all ones are *never*.

// Pure.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use crate::cut;

/// Raised whenever a frame or what it means changes.
pub(super) const VERSION: u8 = 1;

pub(super) const ORDER: usize = 24;
pub(super) const REPORT: usize = 560;
/// A problem is cut to this many bytes.
pub(super) const TEXT: usize = 512;

const MAGIC: [u8; 2] = *b"HW";
const NEVER: u64 = u64::MAX;
const TEXT_AT: usize = REPORT - TEXT;

const FIRED: u8 = 1;
const DONE: u8 = 2;

/// When the node fences itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Never,
    /// Nanoseconds of CLOCK_MONOTONIC, less than `u64::MAX`.
    At(u64),
}

impl Due {
    fn encode(self) -> u64 {
        match self {
            Self::Never => NEVER,
            Self::At(at) => at.min(NEVER - 1),
        }
    }

    fn decode(raw: u64) -> Self {
        if raw == NEVER { Self::Never } else { Self::At(raw) }
    }
}

/// Manager to watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Asks for the state.
    Hello,
    Hold(Due),
    /// Answered by an [`Report::Ack`] with the same number.
    Release {
        number: u64,
        due: Due,
    },
    FenceNow,
    Quit,
}

/// What the watchdog says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    pub due: Due,
    pub fired: bool,
    /// What went wrong with the last thing that was done; empty when nothing did.
    pub problem: String,
    pub pid: u32,
    /// Which program with which options it is ([`super::Setting::digest`]).
    pub setting: u64,
}

/// Watchdog to manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Report {
    State(Standing),
    /// A release was done, or not; then `problem` says why.
    Ack {
        number: u64,
        done: bool,
        problem: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("it is not a watchdog's frame")]
    Foreign,
    /// Of another program than this.
    #[error("it speaks version {0}, this program version {VERSION}")]
    Version(u8),
    #[error("the frame has a wrong {0}")]
    Bad(&'static str),
}

impl Order {
    pub fn encode(self) -> [u8; ORDER] {
        let (kind, number, moment) = match self {
            Self::Hello => (1, 0, 0),
            Self::Hold(due) => (2, 0, due.encode()),
            Self::Release { number, due } => (3, number, due.encode()),
            Self::FenceNow => (4, 0, 0),
            Self::Quit => (5, 0, 0),
        };
        let mut frame = [0; ORDER];
        head(&mut frame, kind);
        put(&mut frame, 8, number);
        put(&mut frame, 16, moment);
        frame
    }

    pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        let (kind, _) = open(frame, ORDER)?;
        let (number, moment) = (get(frame, 8), get(frame, 16));
        match kind {
            1 => Ok(Self::Hello),
            2 => Ok(Self::Hold(Due::decode(moment))),
            3 => Ok(Self::Release { number, due: Due::decode(moment) }),
            4 => Ok(Self::FenceNow),
            5 => Ok(Self::Quit),
            _ => Err(FrameError::Bad("kind")),
        }
    }
}

impl Report {
    pub fn encode(&self) -> [u8; REPORT] {
        let mut frame = [0; REPORT];
        let (flags, problem) = match self {
            Self::State(state) => {
                head(&mut frame, 1);
                put(&mut frame, 16, state.due.encode());
                frame[24..28].copy_from_slice(&state.pid.to_le_bytes());
                put(&mut frame, 32, state.setting);
                (if state.fired { FIRED } else { 0 }, &state.problem)
            }
            Self::Ack { number, done, problem } => {
                head(&mut frame, 2);
                put(&mut frame, 8, *number);
                (if *done { DONE } else { 0 }, problem)
            }
        };
        frame[4] = flags;
        let text = cut(problem, TEXT).as_bytes();
        frame[6..8].copy_from_slice(&(text.len() as u16).to_le_bytes());
        frame[TEXT_AT..TEXT_AT + text.len()].copy_from_slice(text);
        frame
    }

    pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        let (kind, flags) = open(frame, REPORT)?;
        let length = usize::from(u16::from_le_bytes([frame[6], frame[7]]));
        let text = frame[TEXT_AT..].get(..length).ok_or(FrameError::Bad("length of its text"))?;
        let problem = String::from_utf8_lossy(text).into_owned();
        match kind {
            1 => {
                let mut pid = [0; 4];
                pid.copy_from_slice(&frame[24..28]);
                Ok(Self::State(Standing {
                    due: Due::decode(get(frame, 16)),
                    fired: flags & FIRED != 0,
                    problem,
                    pid: u32::from_le_bytes(pid),
                    setting: get(frame, 32),
                }))
            }
            2 => Ok(Self::Ack { number: get(frame, 8), done: flags & DONE != 0, problem }),
            _ => Err(FrameError::Bad("kind")),
        }
    }
}

fn head(frame: &mut [u8], kind: u8) {
    frame[..2].copy_from_slice(&MAGIC);
    frame[2] = VERSION;
    frame[3] = kind;
}

/// Kind and flags of a frame that is one. The version comes before the size: another version's may differ.
fn open(frame: &[u8], size: usize) -> Result<(u8, u8), FrameError> {
    let Some([m0, m1, version, kind, flags]) = frame.first_chunk::<5>().copied() else {
        return Err(FrameError::Foreign);
    };
    if [m0, m1] != MAGIC {
        return Err(FrameError::Foreign);
    }
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    if frame.len() == size { Ok((kind, flags)) } else { Err(FrameError::Bad("size")) }
}

fn put(frame: &mut [u8], at: usize, value: u64) {
    frame[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(frame: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&frame[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn orders() -> Vec<Order> {
        let release = Order::Release { number: u64::MAX, due: Due::At(7) };
        vec![Order::Hello, Order::Hold(Due::Never), Order::Hold(Due::At(0)), release, Order::FenceNow, Order::Quit]
    }

    fn standing(problem: &str) -> Report {
        let due = Due::At(1 << 40);
        Report::State(Standing { due, fired: true, problem: problem.to_owned(), pid: 4_000_000, setting: u64::MAX - 3 })
    }

    #[test]
    fn what_was_said_is_heard() {
        for order in orders() {
            assert_eq!(Order::decode(&order.encode()), Ok(order));
        }
        let ack = |done| Report::Ack { number: 9, done, problem: "why".into() };
        for report in [standing(""), standing("the links stay up"), ack(true), ack(false)] {
            assert_eq!(Report::decode(&report.encode()), Ok(report));
        }
    }

    #[test]
    fn the_last_moment_there_is_does_not_become_never() {
        let order = Order::decode(&Order::Hold(Due::At(u64::MAX)).encode());
        assert_eq!(order, Ok(Order::Hold(Due::At(u64::MAX - 1))));
    }

    #[test]
    fn a_long_problem_is_cut_between_characters() {
        let Ok(Report::State(heard)) = Report::decode(&standing(&"ä".repeat(400)).encode()) else { panic!() };
        assert_eq!(heard.problem, "ä".repeat(TEXT / 2));
        let Ok(Report::State(heard)) = Report::decode(&standing(&format!("x{}", "ä".repeat(400))).encode()) else {
            panic!()
        };
        assert_eq!(heard.problem.len(), TEXT - 1);
    }

    #[test]
    fn another_version_is_named_whatever_its_size() {
        let mut frame = Order::Hello.encode().to_vec();
        frame[2] = 9;
        frame.push(0);
        assert_eq!(Order::decode(&frame), Err(FrameError::Version(9)));
        assert_eq!(Report::decode(&frame), Err(FrameError::Version(9)));
    }

    #[test]
    fn a_text_longer_than_its_place_is_refused() {
        let mut frame = standing("x").encode();
        frame[6..8].copy_from_slice(&513u16.to_le_bytes());
        assert_eq!(Report::decode(&frame), Err(FrameError::Bad("length of its text")));
    }

    proptest! {
        #[test]
        fn anything_at_all_is_refused_or_read(frame in proptest::collection::vec(any::<u8>(), 0..700)) {
            let _ = (Order::decode(&frame), Report::decode(&frame));
        }

        #[test]
        fn a_frame_with_any_bytes_changed_is_refused_or_read(
            changes in proptest::collection::vec((0..REPORT, any::<u8>()), 0..8),
            length in 0..=REPORT,
        ) {
            let mut report = standing("the links stay up").encode();
            let mut order = Order::Hold(Due::At(1)).encode();
            for (at, byte) in changes {
                report[at] = byte;
                if at < ORDER {
                    order[at] = byte;
                }
            }
            let _ = Report::decode(&report[..length]);
            let _ = Order::decode(&order[..length.min(ORDER)]);
        }
    }
}
