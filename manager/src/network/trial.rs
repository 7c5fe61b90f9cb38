//! Whether this kernel closes a port of a bridge and hands over what came for it meanwhile: tried once, with links of its own.
//!
//! ```text
//!   outside ══ port ─┐        ┌─ host ══ inside
//!                    └ bridge ┘ closed, then open
//! ```

use std::{
    collections::HashSet,
    io,
    time::{Duration, Instant},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use super::{
    NetworkError, bridge,
    gate::Gate,
    hold::{Hold, Links, Shut},
    netlink::Rtnl,
    packet::{self, PacketSocket},
};
use crate::spec::Mac;

/// Frames within one kernel take microseconds.
const PATIENCE: Duration = Duration::from_secs(2);
const MAC: Mac = Mac([2, 0x68, 0, 0, 0, 1]);
/// To `MAC`, from another one, of the protocol for local experiments.
const FRAME: &[u8] = b"\x02\x68\0\0\0\x01\x02\x68\0\0\0\x02\x88\xb5ha-manager tries whether this is handed over....";

/// What does not work.
#[derive(Debug, thiserror::Error)]
pub enum GateTrouble {
    #[error("links to try it with cannot be made")]
    Links(#[source] io::Error),
    #[error("a port of a bridge cannot be closed and opened")]
    Port(#[source] NetworkError),
    #[error("a closed port of a bridge lets frames through")]
    Leaks,
    #[error("what arrives cannot be captured")]
    Capture(#[source] io::Error),
    #[error("what arrived while a port was closed did not come out when it was opened")]
    Lost,
}

impl GateTrouble {
    /// True when a gate works, only that it drops what it should hold.
    pub fn only_drops(&self) -> bool {
        matches!(self, GateTrouble::Capture(_) | GateTrouble::Lost)
    }
}

/// Does what a checkpoint does to a container's port. To be called in a network namespace that ends afterwards: what it makes
/// stays there.
pub fn try_gate() -> Result<(), GateTrouble> {
    let links = make_links().map_err(GateTrouble::Links)?;
    let shut = Shut::default();
    let gate = |index, name: &str| Gate::new(name.to_owned(), index, shut.clone()).map_err(GateTrouble::Port);
    open_new(&mut gate(links.port, "the other port")?)?;
    let mut gate = gate(links.host, "the tried port")?;
    open_new(&mut gate)?;
    gate.close().map_err(GateTrouble::Port)?;
    gate.open().map_err(GateTrouble::Port)?;
    let listen = |index| PacketSocket::open(index, packet::ALL).map_err(GateTrouble::Capture);
    let (outside, port, inside) = (listen(links.outside)?, listen(links.port)?, listen(links.inside)?);
    let around = Links { host: links.host, bridge: links.bridge, ports: HashSet::from([links.host, links.port]) };
    let mut gate = gate.holding(Ok(Hold::prepare(around, MAC, shut.clone(), None).map_err(GateTrouble::Capture)?));
    gate.close().map_err(GateTrouble::Port)?;
    outside.send(FRAME).map_err(GateTrouble::Capture)?;
    if !hears(&port, PATIENCE)? {
        return Err(GateTrouble::Lost);
    }
    let leaks = hears(&inside, Duration::ZERO)?;
    gate.open().map_err(GateTrouble::Port)?;
    match (leaks, hears(&inside, PATIENCE)?) {
        (true, _) => Err(GateTrouble::Leaks),
        (false, false) => Err(GateTrouble::Lost),
        (false, true) => Ok(()),
    }
}

/// The kernel takes a moment to see that a new link works, and refuses until then.
fn open_new(gate: &mut Gate) -> Result<(), GateTrouble> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match gate.open() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            other => return other.map_err(GateTrouble::Port),
        }
    }
}

/// Whether the frame comes out of a link or into it within `patience`. The kernel's own packets come by, too.
fn hears(socket: &PacketSocket, patience: Duration) -> Result<bool, GateTrouble> {
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 128];
    loop {
        match socket.receive(&mut buffer, deadline).map_err(GateTrouble::Capture)? {
            Some((frame, _)) if frame == FRAME => return Ok(true),
            Some(_) => {}
            None => return Ok(false),
        }
    }
}

/// The indices of what was made.
struct Made {
    bridge: u32,
    host: u32,
    inside: u32,
    port: u32,
    outside: u32,
}

fn make_links() -> io::Result<Made> {
    const BRIDGE: &str = "ha-trial";
    const ENDS: [(&str, &str); 2] = [("ha-trial-h", "ha-trial-i"), ("ha-trial-p", "ha-trial-o")];
    let mut rtnl = Rtnl::open()?;
    let mut make = |name: &str, info: Vec<LinkInfo>| {
        let mut link = named(name);
        link.attributes.push(LinkAttribute::LinkInfo(info));
        rtnl.request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
    };
    make(BRIDGE, vec![LinkInfo::Kind(InfoKind::Bridge)])?;
    for (end, peer) in ENDS {
        let peer = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(named(peer))));
        make(end, vec![LinkInfo::Kind(InfoKind::Veth), peer])?;
    }
    let mut raise = |name: &str, controller: Option<u32>| -> io::Result<u32> {
        let link = rtnl.link(name)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        let mut message = bridge::link_message(link.header.index, LinkFlags::Up);
        message.attributes.extend(controller.map(LinkAttribute::Controller));
        rtnl.request(RouteNetlinkMessage::SetLink(message), 0)?;
        Ok(link.header.index)
    };
    let bridge = raise(BRIDGE, None)?;
    let [(host, inside), (port, outside)] = ENDS;
    let (inside, outside) = (raise(inside, None)?, raise(outside, None)?);
    Ok(Made { bridge, host: raise(host, Some(bridge))?, inside, port: raise(port, Some(bridge))?, outside })
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}
