//! The manager's end of the channel to a container's agent, and the reader of its log.
//!
//! The directory is writable by the container's root, so everything in it is hostile: a socket may be a link to another
//! socket of the node, the log a link to a secret, a message of any size, an agent stopped in mid-sentence. Files are
//! opened relative to the directory's descriptor, never through a link; messages are capped; every request has a time.
//!
//! A container's root can lie about its own container. It cannot make the manager wait, grow, or open anything else.

mod dir;
mod inbox;
mod link;
mod log;
mod watchdog;

pub use dir::ChannelDir;
#[cfg(feature = "fuzzing")]
pub(crate) use inbox::{Seen, datagram, read_reply};
pub use link::AgentLink;
pub use log::{LogCursor, LogShipper, Segment};
pub use watchdog::{Verdict, Watchdog, WatchdogConfig};

use std::{io, path::PathBuf, time::Duration};

use ha_proto::agent::{ConfigError, Reply, request::Kind};

/// Why the channel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {name} in the channel directory {dir}; it belongs to root and to this manager only")]
    Channel { what: &'static str, name: &'static str, dir: PathBuf, source: io::Error },
    #[error("{name} in the channel directory {dir} is not a {wanted}: something in the container replaced it")]
    NotA { name: &'static str, wanted: &'static str, dir: PathBuf },
    #[error("the agent's configuration cannot be written")]
    Config(#[source] ConfigError),
    #[error("the agent did not answer within {0:?}; it hangs, is frozen, or has not started yet")]
    Timeout(Duration),
    #[error("the agent cannot be reached; the container has ended or has not started yet")]
    Unreachable(#[source] io::Error),
    #[error(
        "the agent's answer is not of this protocol ({0}); the container's agent is of another release or was replaced"
    )]
    Protocol(&'static str),
    #[error("the agent refused: {0}")]
    Refused(String),
}

/// What an agent answers to; the rest of the manager sees this type, never the socket.
pub type Request = Kind;

/// The answer to a request, its nonce checked and its sizes bounded.
pub type Answer = Reply;
