//! ARP over Ethernet (RFC 826) as bytes: what is sent, and what a frame from the wire says. Pure.

use std::net::Ipv4Addr;

use crate::spec::Mac;

/// `ETH_P_ARP`.
pub(super) const ETHERTYPE: u16 = 0x0806;
const FRAME: usize = 42;
const BROADCAST: [u8; 6] = [0xff; 6];
/// Ethernet, IPv4, address lengths 6 and 4.
const FIXED: [u8; 6] = [0, 1, 8, 0, 6, 4];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Request,
    Reply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arp {
    pub(super) operation: Operation,
    pub(super) sender_mac: [u8; 6],
    pub(super) sender_ip: Ipv4Addr,
    pub(super) target_mac: [u8; 6],
    pub(super) target_ip: Ipv4Addr,
}

impl Arp {
    /// "Who has `ip`?" without claiming it (RFC 5227 §2.1.1).
    pub(super) fn probe(ip: Ipv4Addr, mac: Mac) -> Self {
        Self::request(Ipv4Addr::UNSPECIFIED, mac, ip)
    }

    /// An ordinary question.
    pub(super) fn request(sender_ip: Ipv4Addr, mac: Mac, target_ip: Ipv4Addr) -> Self {
        Self { operation: Operation::Request, sender_mac: mac.0, sender_ip, target_mac: [0; 6], target_ip }
    }

    /// "`ip` is here" (RFC 5227 §2.3), in the request form.
    pub(super) fn announcement(ip: Ipv4Addr, mac: Mac) -> Self {
        Self::request(ip, mac, ip)
    }

    /// The same as an unasked reply: some stacks update their table from this form only.
    pub(super) fn unasked_reply(ip: Ipv4Addr, mac: Mac) -> Self {
        Self { operation: Operation::Reply, sender_mac: mac.0, sender_ip: ip, target_mac: BROADCAST, target_ip: ip }
    }

    /// A broadcast Ethernet frame.
    pub(super) fn frame(&self) -> [u8; FRAME] {
        let mut frame = [0; FRAME];
        frame[0..6].copy_from_slice(&BROADCAST);
        frame[6..12].copy_from_slice(&self.sender_mac);
        frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
        frame[14..20].copy_from_slice(&FIXED);
        frame[21] = if self.operation == Operation::Request { 1 } else { 2 };
        frame[22..28].copy_from_slice(&self.sender_mac);
        frame[28..32].copy_from_slice(&self.sender_ip.octets());
        frame[32..38].copy_from_slice(&self.target_mac);
        frame[38..42].copy_from_slice(&self.target_ip.octets());
        frame
    }

    /// `None` for anything that is not a whole ARP request or reply for IPv4 over Ethernet.
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let frame = frame.first_chunk::<FRAME>()?;
        if frame[12..14] != ETHERTYPE.to_be_bytes() || frame[14..20] != FIXED || frame[20] != 0 {
            return None;
        }
        let operation = match frame[21] {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return None,
        };
        let mac = |at: usize| [frame[at], frame[at + 1], frame[at + 2], frame[at + 3], frame[at + 4], frame[at + 5]];
        let ip = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        Some(Self { operation, sender_mac: mac(22), sender_ip: ip(28), target_mac: mac(32), target_ip: ip(38) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
    const MAC: Mac = Mac([2, 0, 0x5e, 1, 2, 3]);

    #[test]
    fn what_is_sent_is_read_back() {
        for arp in [Arp::probe(IP, MAC), Arp::announcement(IP, MAC), Arp::unasked_reply(IP, MAC)] {
            assert_eq!(Arp::parse(&arp.frame()), Some(arp));
        }
    }

    #[test]
    fn a_probe_claims_nothing() {
        let frame = Arp::probe(IP, MAC).frame();
        assert_eq!(&frame[28..32], &[0; 4], "the sender address of a probe is 0.0.0.0");
        assert_eq!(&frame[38..42], &IP.octets());
        assert_eq!(&frame[0..6], &[0xff; 6]);
    }

    #[test]
    fn broken_frames_are_not_arp() {
        let good = Arp::announcement(IP, MAC).frame();
        for length in 0..good.len() {
            assert_eq!(Arp::parse(&good[..length]), None, "cut to {length} bytes");
        }
        for (at, value) in [(12, 9), (15, 2), (16, 0x86), (18, 8), (19, 16), (20, 1), (21, 0), (21, 3)] {
            let mut frame = good;
            frame[at] = value;
            assert_eq!(Arp::parse(&frame), None, "byte {at} = {value}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(frame in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = Arp::parse(&frame);
        }
    }
}
