//! Which frames a holding gate captures, as a program for the kernel (classic BPF). Pure.

#![deny(clippy::disallowed_methods)]

use libc::{
    BPF_ABS, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SKF_AD_IFINDEX, SKF_AD_OFF, SKF_AD_PKTTYPE,
    SKF_AD_VLAN_TAG_PRESENT,
};

use super::arp;
use crate::spec::Mac;

pub(super) type Instruction = libc::sock_filter;

/// Lets no frame through.
pub(super) const NOTHING: [Instruction; 1] = [Instruction { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: 0 }];

/// Longer than any frame.
const WHOLE: u32 = 1 << 20;
const ACCEPT: usize = 25;
const REJECT: usize = 26;

enum Step {
    /// Loads four bytes of the frame.
    Word(u32),
    /// Loads two.
    Half(u32),
    /// Loads what the kernel knows of the frame beside its bytes.
    About(i32),
    /// Goes on at the second number when what was loaded is the first, else at the third.
    Is(u32, usize, usize),
    /// Takes so many bytes of the frame.
    Take(u32),
}

/// Without a VLAN tag: what the container sends, coming in at its `host` end; and what is addressed to `mac`, and ARP to everybody,
/// coming in at any other link but the `bridge`, or going out at one of these two.
pub(super) fn of_container(host: u32, bridge: u32, mac: Mac) -> Vec<Instruction> {
    use Step::{About, Half, Is, Take, Word};
    let [a, b, c, d, e, f] = mac.0;
    let (head, tail) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, 0, e, f]));
    let outgoing = u32::from(libc::PACKET_OUTGOING);
    let program = [
        /* 0 */ About(SKF_AD_VLAN_TAG_PRESENT),
        /* 1 */ Is(0, 2, REJECT),
        /* 2 */ About(SKF_AD_IFINDEX),
        /* 3 */ Is(host, 4, 6),
        /* 4 */ About(SKF_AD_PKTTYPE),
        /* 5 */ Is(outgoing, 6, ACCEPT),
        /* 6 */ Word(0),
        /* 7 */ Is(head, 8, 13),
        /* 8 */ Half(4),
        /* 9 */ Is(tail, 10, REJECT),
        /* 10 */ Half(12),
        /* 11 */ Is(libc::ETH_P_8021Q as u32, REJECT, 12),
        /* 12 */ Is(libc::ETH_P_8021AD as u32, REJECT, 18),
        /* 13 */ Is(u32::MAX, 14, REJECT),
        /* 14 */ Half(4),
        /* 15 */ Is(0xffff, 16, REJECT),
        /* 16 */ Half(12),
        /* 17 */ Is(arp::ETHERTYPE.into(), 18, REJECT),
        /* 18 */ About(SKF_AD_IFINDEX),
        /* 19 */ Is(host, ACCEPT, 20),
        /* 20 */ Is(bridge, 23, 21),
        /* 21 */ About(SKF_AD_PKTTYPE),
        /* 22 */ Is(outgoing, REJECT, ACCEPT),
        /* 23 */ About(SKF_AD_PKTTYPE),
        /* 24 */ Is(outgoing, ACCEPT, REJECT),
        /* 25 */ Take(WHOLE),
        /* 26 */ Take(0),
    ];
    program.iter().enumerate().map(|(at, step)| instruction(at, step)).collect()
}

fn instruction(at: usize, step: &Step) -> Instruction {
    let load = |size, k| Instruction { code: (BPF_LD | size | BPF_ABS) as u16, jt: 0, jf: 0, k };
    // The program is shorter than 256 steps and jumps forwards only.
    let way = |to: usize| to.saturating_sub(at + 1) as u8;
    match *step {
        Step::Word(offset) => load(BPF_W, offset),
        Step::Half(offset) => load(BPF_H, offset),
        Step::About(what) => load(BPF_W, (SKF_AD_OFF + what).cast_unsigned()),
        Step::Is(value, yes, no) => {
            Instruction { code: (BPF_JMP | BPF_JEQ | BPF_K) as u16, jt: way(yes), jf: way(no), k: value }
        }
        Step::Take(bytes) => Instruction { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: bytes },
    }
}
