//! Which frames a holding gate captures, as a program for the kernel (classic BPF). Pure.

#![deny(clippy::disallowed_methods)]

use libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET, BPF_W,
    SKF_AD_IFINDEX, SKF_AD_OFF, SKF_AD_PKTTYPE, SKF_AD_VLAN_TAG_PRESENT,
};

use super::arp;
use crate::spec::Mac;

pub(super) type Instruction = libc::sock_filter;

/// Lets no frame through.
pub(super) const NOTHING: [Instruction; 1] = [Instruction { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: 0 }];

/// Longer than any frame.
const WHOLE: u32 = 1 << 20;
/// In the byte of a TCP header that has its flags.
const SYN: u32 = 0x02;
const ACCEPT: usize = 35;
const REJECT: usize = 36;

enum Step {
    /// Loads four bytes of the frame.
    Word(u32),
    /// Loads two.
    Half(u32),
    /// Loads one.
    Byte(u32),
    /// Takes the length of the IPv4 header that begins there.
    Behind(u32),
    /// Loads the byte as far behind that header as it would be in the frame without it.
    ByteBehind(u32),
    /// Loads what the kernel knows of the frame beside its bytes.
    About(i32),
    /// Goes on at the second number when what was loaded is the first, else at the third.
    Is(u32, usize, usize),
    /// Goes on at the second number when what was loaded has one of these bits, else at the third.
    Has(u32, usize, usize),
    /// Takes so many bytes of the frame.
    Take(u32),
}

/// What is addressed to `mac`, and ARP to everybody, without a VLAN tag: coming in at any link but the container's `host`
/// end and the `bridge`, or going out at one of these two. And of what the container sends, coming in at `host`, what its kernel
/// answers by itself and what is sent again only after a second: ARP, and TCP segments with SYN over IPv4.
pub(super) fn of_container(host: u32, bridge: u32, mac: Mac) -> Vec<Instruction> {
    use Step::{About, Behind, Byte, ByteBehind, Half, Has, Is, Take, Word};
    let [a, b, c, d, e, f] = mac.0;
    let (head, tail) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, 0, e, f]));
    let outgoing = u32::from(libc::PACKET_OUTGOING);
    let program = [
        /* 0 */ About(SKF_AD_VLAN_TAG_PRESENT),
        /* 1 */ Is(0, 2, REJECT),
        /* 2 */ About(SKF_AD_IFINDEX),
        /* 3 */ Is(host, 4, 6),
        /* 4 */ About(SKF_AD_PKTTYPE),
        /* 5 */ Is(outgoing, 6, 25),
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
        /* 25 */ Half(12),
        /* 26 */ Is(arp::ETHERTYPE.into(), ACCEPT, 27),
        /* 27 */ Is(libc::ETH_P_IP as u32, 28, REJECT),
        /* 28 */ Byte(14 + 9),
        /* 29 */ Is(libc::IPPROTO_TCP as u32, 30, REJECT),
        /* 30 */ Half(14 + 6),
        /* 31 */ Has(0x1fff, REJECT, 32),
        /* 32 */ Behind(14),
        /* 33 */ ByteBehind(14 + 13),
        /* 34 */ Has(SYN, ACCEPT, REJECT),
        /* 35 */ Take(WHOLE),
        /* 36 */ Take(0),
    ];
    program.iter().enumerate().map(|(at, step)| instruction(at, step)).collect()
}

fn instruction(at: usize, step: &Step) -> Instruction {
    let step_of = |code, k| Instruction { code: code as u16, jt: 0, jf: 0, k };
    let load = |size, k| step_of(BPF_LD | size | BPF_ABS, k);
    // The program is shorter than 256 steps and jumps forwards only.
    let way = |to: usize| to.saturating_sub(at + 1) as u8;
    match *step {
        Step::Word(offset) => load(BPF_W, offset),
        Step::Half(offset) => load(BPF_H, offset),
        Step::About(what) => load(BPF_W, (SKF_AD_OFF + what).cast_unsigned()),
        Step::Byte(offset) => load(BPF_B, offset),
        Step::Behind(offset) => step_of(BPF_LDX | BPF_B | BPF_MSH, offset),
        Step::ByteBehind(offset) => step_of(BPF_LD | BPF_B | BPF_IND, offset),
        Step::Is(k, yes, no) => Instruction { jt: way(yes), jf: way(no), ..step_of(BPF_JMP | BPF_JEQ | BPF_K, k) },
        Step::Has(k, yes, no) => Instruction { jt: way(yes), jf: way(no), ..step_of(BPF_JMP | BPF_JSET | BPF_K, k) },
        Step::Take(bytes) => step_of(BPF_RET | BPF_K, bytes),
    }
}
