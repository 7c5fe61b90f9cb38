//! TCP over IPv4 over Ethernet as bytes: the few segments sent, and what a captured frame says. Pure.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::decide::Segment;
use crate::spec::Mac;

const ETHERNET: usize = 14;
const IP: usize = 20;
const TCP: usize = 20;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const TIMESTAMPS: usize = 12;

/// Between whom, on both layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) from_mac: Mac,
    pub(super) to_mac: [u8; 6],
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
}

/// A keepalive probe: one byte the peer has had already, which it therefore drops, and answers with where it stands. A
/// probe without that byte would do, but peers limit how often they answer those.
pub(super) fn keepalive(path: &Path, snd_una: u32, rcv_nxt: u32, window: u16, timestamp: Option<u32>) -> Vec<u8> {
    let mut tail = Vec::with_capacity(TIMESTAMPS + 1);
    if let Some(value) = timestamp {
        tail.extend([1, 1, 8, 10]);
        tail.extend(value.to_be_bytes());
        tail.extend([0; 4]);
    }
    let options = tail.len();
    tail.push(0);
    segment(path, snd_una.wrapping_sub(1), rcv_nxt, ACK, window, &tail, options)
}

/// A reset that the peer accepts: its sequence number is exactly what the peer expects next (RFC 5961 §3.2).
pub(super) fn reset(path: &Path, expected: u32, ack: u32) -> Vec<u8> {
    segment(path, expected, ack, RST | ACK, 0, &[], 0)
}

fn segment(path: &Path, seq: u32, ack: u32, flags: u8, window: u16, tail: &[u8], options: usize) -> Vec<u8> {
    let total = IP + TCP + tail.len();
    let mut frame = vec![0; ETHERNET + total];
    frame[0..6].copy_from_slice(&path.to_mac);
    frame[6..12].copy_from_slice(&path.from_mac.0);
    frame[12..14].copy_from_slice(&ETHERTYPE_IPV4);
    let (ip, tcp) = frame[ETHERNET..].split_at_mut(IP);
    ip[0] = 0x45;
    // At most 20 + 20 + 13 bytes.
    ip[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    ip[6] = 0x40; // not to be fragmented
    ip[8] = 64;
    ip[9] = libc::IPPROTO_TCP as u8;
    ip[12..16].copy_from_slice(&path.from.ip().octets());
    ip[16..20].copy_from_slice(&path.to.ip().octets());
    let ip_sum = checksum(sum(0, ip));
    ip[10..12].copy_from_slice(&ip_sum.to_be_bytes());
    tcp[0..2].copy_from_slice(&path.from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&path.to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    tcp[12] = (((TCP + options) / 4) as u8) << 4;
    tcp[13] = flags;
    tcp[14..16].copy_from_slice(&window.to_be_bytes());
    tcp[TCP..].copy_from_slice(tail);
    // The pseudo header: addresses, protocol, length.
    let pseudo = sum_words(&[libc::IPPROTO_TCP as u16, (total - IP) as u16]);
    let tcp_sum = checksum(sum(sum(pseudo, &ip[12..20]), tcp));
    tcp[16..18].copy_from_slice(&tcp_sum.to_be_bytes());
    frame
}

fn sum_words(words: &[u16]) -> u32 {
    words.iter().map(|word| u32::from(*word)).sum()
}

fn sum(start: u32, bytes: &[u8]) -> u32 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    start + pairs.sum::<u32>()
}

fn checksum(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Who sent what to whom. Checksums are not looked at: between containers of one node they are left to be filled in by
/// hardware that is not there. The frame may be cut behind the TCP header.
pub(super) fn parse(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, Segment)> {
    if frame.get(12..14)? != ETHERTYPE_IPV4 {
        return None;
    }
    let ip = frame.get(ETHERNET..)?;
    let head = ip.first_chunk::<IP>()?;
    let (version, ip_length) = (head[0] >> 4, usize::from(head[0] & 15) * 4);
    // Any but the first fragment has no TCP header.
    let fragment = u16::from_be_bytes([head[6], head[7]]) & 0x1fff;
    if version != 4 || ip_length < IP || head[9] != libc::IPPROTO_TCP as u8 || fragment != 0 {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let tcp = ip.get(ip_length..)?.first_chunk::<TCP>()?;
    let tcp_length = usize::from(tcp[12] >> 4) * 4;
    let data = total.checked_sub(ip_length)?.checked_sub(tcp_length)?;
    if tcp_length < TCP {
        return None;
    }
    let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let address = |at: usize| Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]);
    let flags = tcp[13];
    let segment = Segment {
        seq: word(4),
        ack: (flags & ACK != 0).then(|| word(8)),
        length: data as u32 + u32::from(flags & FIN != 0),
        syn: flags & SYN != 0,
        rst: flags & RST != 0,
    };
    Some((SocketAddrV4::new(address(12), port(0)), SocketAddrV4::new(address(16), port(2)), segment))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path() -> Path {
        Path {
            from_mac: Mac([2, 0, 0, 0, 0, 1]),
            to_mac: [2, 0, 0, 0, 0, 2],
            from: "10.77.0.2:7000".parse().unwrap(),
            to: "10.77.0.3:40000".parse().unwrap(),
        }
    }

    #[test]
    fn what_is_sent_is_read_back_with_right_checksums() {
        for timestamp in [None, Some(0x0102_0304)] {
            let frame = keepalive(&path(), 0, 77, 500, timestamp);
            let (from, to, segment) = parse(&frame).unwrap();
            assert_eq!((from, to), (path().from, path().to));
            assert_eq!(segment, Segment { seq: u32::MAX, ack: Some(77), length: 1, syn: false, rst: false });
            assert_eq!(checksum(sum(0, &frame[14..34])), 0, "a right sum over itself is 0");
            let pseudo = sum(sum_words(&[6, (frame.len() - 34) as u16]), &frame[26..34]);
            assert_eq!(checksum(sum(pseudo, &frame[34..])), 0);
        }
        let (_, _, segment) = parse(&reset(&path(), 5, 6)).unwrap();
        assert_eq!(segment, Segment { seq: 5, ack: Some(6), length: 0, syn: false, rst: true });
    }

    #[test]
    fn broken_frames_are_no_segments() {
        let good = keepalive(&path(), 1, 2, 3, Some(4));
        for length in 0..ETHERNET + IP + TCP {
            assert_eq!(parse(&good[..length]), None, "cut to {length} bytes");
        }
        assert!(parse(&good[..ETHERNET + IP + TCP]).is_some(), "cut behind the header");
        for (at, value) in
            [(13, 6), (14, 0x65), (14, 0x44), (14, 0x4f), (17, 19), (21, 1), (23, 17), (46, 0x40), (46, 0xf0)]
        {
            let mut frame = good.clone();
            frame[at] = value;
            assert_eq!(parse(&frame), None, "byte {at} = {value:#x}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(mut frame in prop::collection::vec(any::<u8>(), 14..128)) {
            let _ = parse(&frame);
            frame[12..14].copy_from_slice(&ETHERTYPE_IPV4);
            if let Some(byte) = frame.get_mut(14) { *byte = 0x45 }
            if let Some(byte) = frame.get_mut(23) { *byte = 6 }
            let _ = parse(&frame);
        }
    }
}
