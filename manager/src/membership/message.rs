//! What goes into the core and what comes out of it.

use std::{fmt, time::Duration};

use crate::spec::NodeName;

/// Time since an origin of the shell's choice, on a monotonic clock. The core reads no clock of its own.
pub type Time = Duration;

/// The most rumours one message carries.
pub const MAX_RUMOURS: usize = 64;
/// The longest address (`host:port`) accepted, in bytes.
pub const MAX_ADDRESS: usize = 255;
/// Incarnations beyond this are not believed: a node raises its own by one at a time and never gets here.
pub const MAX_INCARNATION: u64 = 1 << 48;

/// Drawn at each start of a manager: tells a restarted node from the one before, and two nodes of one name apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Boot(pub [u8; 16]);

impl Boot {
    /// A fresh one.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Debug for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

/// What is believed of a peer. At one incarnation the later word wins, and a higher incarnation beats them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    Alive,
    Suspect,
    Dead,
    /// It said so itself.
    Left,
}

impl Liveness {
    /// As shown to people and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Liveness::Alive => "alive",
            Liveness::Suspect => "suspect",
            Liveness::Dead => "dead",
            Liveness::Left => "left",
        }
    }
}

/// A claim about a node, passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rumour {
    pub node: NodeName,
    pub address: String,
    pub boot: Boot,
    pub incarnation: u64,
    pub liveness: Liveness,
    /// Who found it so by its own probes.
    pub accuser: Option<NodeName>,
}

impl Rumour {
    /// Claims form a lattice: the greater of two is kept, in whatever order they arrive.
    pub fn precedence(&self) -> (u64, Liveness) {
        (self.incarnation, self.liveness)
    }
}

/// What every message carries: who sends it, whom it is for, and news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gossip {
    pub from: NodeName,
    /// Whom the sender means. `None`: an introduction, to whoever lives at a seed's address.
    pub to: Option<NodeName>,
    pub address: String,
    pub boot: Boot,
    pub incarnation: u64,
    pub rumours: Vec<Rumour>,
}

/// Names one call of this core until it is answered or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// The two calls of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Ping,
    /// "Probe `target` for me and say within `timeout` whether it answered."
    PingIndirect {
        target: NodeName,
        timeout: Duration,
    },
}

/// A kind of contact between two nodes, remembered for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Touch {
    /// We are about to send it a message for the first time ever, asked or unasked.
    Known,
    /// It sent us one, meant for us by name.
    Met,
}

#[derive(Debug, Clone)]
pub enum Input {
    /// The deadline was reached.
    Tick,
    /// A peer calls us. Exactly one [`Output::Reply`] with this token follows, at once for a ping.
    Asked { token: u64, gossip: Gossip, request: Request },
    /// A call of ours was answered. `answered` is what an indirect probe found; true for a ping.
    Answered { call: CallId, gossip: Gossip, answered: bool },
    /// A call of ours failed: refused, reset or out of time. It is a failed probe, no more.
    Failed { call: CallId },
    /// A call of ours was never sent, because too many to the same peer were under way. It says nothing of the peer.
    Dropped { call: CallId },
    /// We are about to stop: tell the others, and probe no more.
    Leave,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Call the peer service at `to`; report [`Input::Answered`], [`Input::Failed`] or
    /// [`Input::Dropped`]. After `timeout` the core holds
    /// it for failed by itself.
    Call {
        id: CallId,
        to: String,
        request: Request,
        gossip: Gossip,
        timeout: Duration,
    },
    /// Answers [`Input::Asked`].
    Reply {
        token: u64,
        gossip: Gossip,
        answered: bool,
    },
    /// To be remembered, and on the disk, before any later output is executed. When that fails, no [`Output::Call`] and no
    /// [`Output::Reply`] to a node that is not known is executed: the call is [`Input::Failed`].
    Touch {
        node: NodeName,
        kind: Touch,
    },
    Event(Event),
}

/// What changed. Gossip suspects: none of these is a reason to start a container by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Met for the first time, back from the dead, or started anew (`restarted`: its memory is gone).
    Up { node: NodeName, address: String, boot: Boot, restarted: bool },
    /// `accuser` could not reach it, neither directly nor through others.
    Suspect { node: NodeName, accuser: NodeName },
    /// `accuser` found the same on its own.
    ConfirmedByPeer { node: NodeName, accuser: NodeName },
    /// A suspected node has proved that it lives.
    Refuted { node: NodeName },
    /// The suspicion ran out unanswered.
    Dead { node: NodeName },
    /// It stopped and said so.
    Left { node: NodeName },
    /// Others thought that we were suspect or dead; we have told them better.
    RefutedSelf { liveness: Liveness, accuser: Option<NodeName> },
    /// Two running nodes call themselves `node`.
    NameConflict { node: NodeName, address: String, other_address: String },
    /// We were not run for `late` after our deadline: nobody is judged by what happened meanwhile.
    Stalled { late: Duration },
    /// More names than `max_peers`: this one and further ones are ignored. Said once.
    TooManyPeers { refused: NodeName },
}

impl Event {
    /// The node it is about; `None` for ourselves.
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Event::Up { node, .. }
            | Event::Suspect { node, .. }
            | Event::ConfirmedByPeer { node, .. }
            | Event::Refuted { node }
            | Event::Dead { node }
            | Event::Left { node }
            | Event::NameConflict { node, .. }
            | Event::TooManyPeers { refused: node } => Some(node),
            Event::RefutedSelf { .. } | Event::Stalled { .. } => None,
        }
    }
}
