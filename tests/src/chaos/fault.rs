//! The faults, and what each is made of.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::fmt;

/// A node's place in the cluster, from 0; shown as its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub usize);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0 + 1)
    }
}

/// What is done to the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// No packet of the node comes through, neither from nor to it; its link stays up.
    CutOff(Place),
    /// What the node sends is lost; what is sent to it comes through.
    Mute(Place),
    /// What is sent to the node is lost; what it sends comes through.
    Deaf(Place),
    /// Two nodes cannot reach each other; both reach the third and the clients.
    CutFrom(Place, Place),
    /// Cut off, and without the store.
    Isolated(Place),
    /// The cable is pulled: the node sees no carrier.
    Unplugged(Place),
    /// The cable is pulled and put back several times: milliseconds down and up.
    Flaps(Place, Vec<(u64, u64)>),
    /// The store is away, for one node or for all.
    StoreAway(Option<Place>),
    /// SIGKILL to the manager; it is started again at the end.
    Killed(Place),
    /// SIGTERM to the manager; it is started again at the end.
    Terminated(Place),
    /// SIGSTOP to the manager, SIGCONT at the end.
    Stopped(Place),
    /// SIGKILL to the node's PID 1; it boots at the end.
    PowerCut(Place),
    /// Every processor of the machine is busy.
    Load,
}

/// What a fault makes use of: no two at a time have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Manager(Place),
    Network(Place),
    Store(Place),
    Processors,
}

/// Packets that the switch drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    From(Place),
    To(Place),
    Between(Place, Place),
}

/// What is done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeOp {
    LinkDown,
    LinkUp,
    StoreAway,
    StoreBack,
    Kill,
    Terminate,
    Stop,
    Continue,
    Start,
    PowerCut,
    Boot,
}

/// What is done at one moment of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Block(Block),
    Unblock(Block),
    Node(Place, NodeOp),
    LoadBegins,
    LoadEnds,
}

/// A fault with its times, in milliseconds since the beginning of the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// From 1.
    pub number: usize,
    pub at: u64,
    pub until: u64,
    pub kind: Kind,
}

impl Kind {
    /// What no other fault may use meanwhile, in a cluster of `nodes`.
    pub fn parts(&self, nodes: usize) -> Vec<Part> {
        match *self {
            Self::CutOff(n) | Self::Mute(n) | Self::Deaf(n) | Self::Unplugged(n) | Self::Flaps(n, _) => {
                vec![Part::Network(n)]
            }
            Self::CutFrom(a, b) => vec![Part::Network(a), Part::Network(b)],
            Self::Isolated(n) => vec![Part::Network(n), Part::Store(n)],
            Self::StoreAway(Some(n)) => vec![Part::Store(n)],
            Self::StoreAway(None) => (0..nodes).map(|n| Part::Store(Place(n))).collect(),
            Self::Killed(n) | Self::Terminated(n) | Self::Stopped(n) => vec![Part::Manager(n)],
            Self::PowerCut(n) => vec![Part::Manager(n), Part::Network(n), Part::Store(n)],
            Self::Load => vec![Part::Processors],
        }
    }

    /// The nodes that cannot be counted on meanwhile. The loss of the store by all is the one fault that spares nobody and is
    /// not counted: nobody can do better then than wait.
    pub fn touches(&self) -> Vec<Place> {
        match *self {
            Self::CutFrom(a, b) => vec![a, b],
            Self::CutOff(n)
            | Self::Mute(n)
            | Self::Deaf(n)
            | Self::Isolated(n)
            | Self::Unplugged(n)
            | Self::Flaps(n, _)
            | Self::StoreAway(Some(n))
            | Self::Killed(n)
            | Self::Terminated(n)
            | Self::Stopped(n)
            | Self::PowerCut(n) => vec![n],
            Self::StoreAway(None) | Self::Load => Vec::new(),
        }
    }

    fn blocks(&self) -> Vec<Block> {
        match *self {
            Self::CutOff(n) | Self::Isolated(n) => vec![Block::From(n), Block::To(n)],
            Self::Mute(n) => vec![Block::From(n)],
            Self::Deaf(n) => vec![Block::To(n)],
            Self::CutFrom(a, b) => vec![Block::Between(a, b)],
            _ => Vec::new(),
        }
    }

    fn without_store(&self, nodes: usize) -> Vec<Place> {
        match *self {
            Self::StoreAway(None) => (0..nodes).map(Place).collect(),
            Self::StoreAway(Some(n)) | Self::Isolated(n) => vec![n],
            _ => Vec::new(),
        }
    }
}

impl Fault {
    /// What is done and when, in a cluster of `nodes`; in order.
    pub fn steps(&self, nodes: usize) -> Vec<(u64, Step)> {
        let (at, until) = (self.at, self.until);
        let mut steps = Vec::new();
        for block in self.kind.blocks() {
            steps.extend([(at, Step::Block(block)), (until, Step::Unblock(block))]);
        }
        for node in self.kind.without_store(nodes) {
            steps.extend([(at, Step::Node(node, NodeOp::StoreAway)), (until, Step::Node(node, NodeOp::StoreBack))]);
        }
        let mut pair = |node, begin, end| steps.extend([(at, Step::Node(node, begin)), (until, Step::Node(node, end))]);
        match &self.kind {
            Kind::Unplugged(n) => pair(*n, NodeOp::LinkDown, NodeOp::LinkUp),
            Kind::Killed(n) => pair(*n, NodeOp::Kill, NodeOp::Start),
            Kind::Terminated(n) => pair(*n, NodeOp::Terminate, NodeOp::Start),
            Kind::Stopped(n) => pair(*n, NodeOp::Stop, NodeOp::Continue),
            Kind::PowerCut(n) => pair(*n, NodeOp::PowerCut, NodeOp::Boot),
            Kind::Load => steps.extend([(at, Step::LoadBegins), (until, Step::LoadEnds)]),
            Kind::Flaps(n, flaps) => {
                let mut now = at;
                for (down, up) in flaps {
                    steps.extend([
                        (now, Step::Node(*n, NodeOp::LinkDown)),
                        (now + down, Step::Node(*n, NodeOp::LinkUp)),
                    ]);
                    now += down + up;
                }
            }
            _ => {}
        }
        steps.sort_by_key(|(at, _)| *at);
        steps
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutOff(n) => write!(f, "{n} is cut off from all"),
            Self::Mute(n) => write!(f, "{n} is mute: what it sends is lost"),
            Self::Deaf(n) => write!(f, "{n} is deaf: what is sent to it is lost"),
            Self::CutFrom(a, b) => write!(f, "{a} and {b} are cut from each other"),
            Self::Isolated(n) => write!(f, "{n} is isolated: cut off from all, and without the store"),
            Self::Unplugged(n) => write!(f, "{n} is unplugged"),
            Self::Flaps(n, flaps) => write!(f, "{n}'s link flaps {} times", flaps.len()),
            Self::StoreAway(Some(n)) => write!(f, "{n} is without the store"),
            Self::StoreAway(None) => f.write_str("the store is away for all"),
            Self::Killed(n) => write!(f, "{n}'s manager is killed, later started"),
            Self::Terminated(n) => write!(f, "{n}'s manager is stopped in order, later started"),
            Self::Stopped(n) => write!(f, "{n}'s manager is frozen by SIGSTOP"),
            Self::PowerCut(n) => write!(f, "{n} loses its power, later boots"),
            Self::Load => f.write_str("all processors are busy"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ms: u64| std::time::Duration::from_millis(ms).as_secs_f64();
        write!(
            f,
            "fault {:<3} {:>7.2} s to {:>7.2} s  {}",
            self.number,
            seconds(self.at),
            seconds(self.until),
            self.kind
        )
    }
}
