//! Asking whether anyone has an address before it is used (RFC 5227 §2.1).

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::{
    NetworkError,
    arp::{Arp, ETHERTYPE, Operation},
    bridge,
    netlink::Rtnl,
    packet::{Direction, PacketSocket},
};
use crate::spec::Mac;

/// How long an answer is waited for when nothing else is asked for.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(100);

const PROBES: u32 = 3;

/// Someone else on the network has the address or is about to take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// Who.
    pub mac: Mac,
    pub kind: ConflictKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConflictKind {
    /// Another machine uses the address.
    InUse,
    /// Another machine probes for the address at the same time.
    Probing,
    /// It is answered from the container's own MAC address: the container still runs, here or on the node it was on.
    StillRunning,
}

/// What one frame that came in means. `own` is the MAC address the probes are sent from.
fn judge(frame: &[u8], ip: Ipv4Addr, own: Mac, container: Mac) -> Option<Conflict> {
    let arp = Arp::parse(frame)?;
    let mac = Mac(arp.sender_mac);
    // A multicast sender is not a machine. Our own frame can come back through a loop in the network.
    if mac == own || mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return None;
    }
    let kind = if arp.sender_ip == ip {
        if mac == container { ConflictKind::StillRunning } else { ConflictKind::InUse }
    } else if arp.sender_ip.is_unspecified() && arp.target_ip == ip && arp.operation == Operation::Request {
        ConflictKind::Probing
    } else {
        return None;
    };
    Some(Conflict { mac, kind })
}

/// Sends probes for `ip` out of the link `on` (the bridge) and waits up to `timeout` for someone to object. The probes
/// carry the link's own MAC address, not `container`'s: they must not draw a living container's traffic to this node.
///
/// # Errors
/// [`NetworkError::NoBridge`] when `on` does not exist, [`NetworkError::Kernel`] when frames cannot be sent or received.
pub fn probe(ip: Ipv4Addr, on: &str, timeout: Duration, container: Mac) -> Result<Option<Conflict>, NetworkError> {
    let failed = |source| NetworkError::Kernel { doing: format!("probing for {ip} on {on}"), source };
    let mut rtnl = Rtnl::open().map_err(failed)?;
    let link = bridge::link_of(&mut rtnl, on)?.ok_or_else(|| NetworkError::NoBridge { name: on.to_owned() })?;
    let own = bridge::mac(&link).and_then(|mac| <[u8; 6]>::try_from(mac).ok()).map(Mac).unwrap_or(container);
    let socket = PacketSocket::open(link.header.index, ETHERTYPE).map_err(failed)?;
    let frame = Arp::probe(ip, own).frame();
    let start = Instant::now();
    let mut buffer = [0; 128];
    for sent in 0..PROBES {
        socket.send(&frame).map_err(failed)?;
        // The last wait ends with the timeout; the others share it evenly.
        let until = start + timeout * (sent + 1) / PROBES;
        while let Some((frame, direction)) = socket.receive(&mut buffer, until).map_err(failed)? {
            if direction == Direction::In
                && let Some(conflict) = judge(frame, ip, own, container)
            {
                return Ok(Some(conflict));
            }
            if Instant::now() >= until {
                break; // under a flood of other frames the deadline still holds
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const CONTAINER: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 3]);

    fn kind(arp: Arp) -> Option<ConflictKind> {
        judge(&arp.frame(), IP, OWN, CONTAINER).map(|conflict| conflict.kind)
    }

    #[test]
    fn only_who_claims_the_address_is_in_conflict() {
        let elsewhere = Ipv4Addr::new(10, 77, 0, 6);
        assert_eq!(kind(Arp::announcement(IP, OTHER)), Some(ConflictKind::InUse));
        assert_eq!(kind(Arp::unasked_reply(IP, OTHER)), Some(ConflictKind::InUse));
        assert_eq!(kind(Arp::request(IP, OTHER, elsewhere)), Some(ConflictKind::InUse));
        assert_eq!(kind(Arp::unasked_reply(IP, CONTAINER)), Some(ConflictKind::StillRunning));
        assert_eq!(kind(Arp::probe(IP, OTHER)), Some(ConflictKind::Probing));
        assert_eq!(kind(Arp::probe(IP, OWN)), None, "our own probe");
        assert_eq!(kind(Arp::request(elsewhere, OTHER, IP)), None, "someone looks for the address");
        assert_eq!(kind(Arp::announcement(elsewhere, OTHER)), None);
        assert_eq!(kind(Arp::announcement(IP, Mac([3, 0, 0, 0, 0, 9]))), None, "a multicast sender");
    }
}
