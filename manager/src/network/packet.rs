//! Raw Ethernet frames through one link or past all of them (AF_PACKET), non-blocking.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::filter::Instruction;

/// Frames of every protocol (`ETH_P_ALL`), outgoing ones too.
pub(super) const ALL: u16 = libc::ETH_P_ALL as u16;

pub(super) struct PacketSocket {
    fd: OwnedFd,
    index: u32,
}

/// Bytes of `struct virtio_net_hdr` before each packet of a socket [`PacketSocket::with_offload_header`].
pub(super) const OFFLOAD_HEADER: usize = 10;
/// From `linux/if_packet.h`.
const PACKET_VNET_HDR: libc::c_int = 15;

/// A packet as it was received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// Of the whole packet; more than the buffer has room for when it was cut.
    pub(super) length: usize,
    /// The index of the link.
    pub(super) link: u32,
    pub(super) direction: Direction,
}

/// Where a frame that was seen on the link was going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    In,
    /// Sent by this host (or, seen on a bridge, by its own stack).
    Out,
}

impl PacketSocket {
    /// On the link with that index of the calling thread's network namespace. Protocol 0 receives nothing, index 0 is no
    /// link in particular.
    #[allow(unsafe_code)]
    pub(super) fn open(index: u32, protocol: u16) -> io::Result<Self> {
        // SAFETY: socket() takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nothing else owns it.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, index };
        // Bound to link and protocol in one step, so that no frame of another link gets in before.
        socket.bind(index, protocol)?;
        Ok(socket)
    }

    #[allow(unsafe_code)]
    fn bind(&self, index: u32, protocol: u16) -> io::Result<()> {
        let address = address(index, protocol)?;
        // SAFETY: the pointer and the length describe `address`, which outlives the call.
        let bound = unsafe {
            libc::bind(
                self.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// From here on it receives the frames of every link of its namespace, both ways. For a socket that was opened with
    /// index and protocol 0, and quick then.
    pub(super) fn hear_all_links(&self) -> io::Result<()> {
        self.bind(0, ALL)
    }

    /// Every packet, received or sent, then begins with [`OFFLOAD_HEADER`] bytes that say what is left to be done to it:
    /// a checksum to be filled in, a segment to be cut. So it leaves as it came.
    #[allow(unsafe_code)]
    pub(super) fn with_offload_header(&self) -> io::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: the pointer and the length describe `on`, which outlives the call.
        let set = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Replaces the filter of what is received.
    #[allow(unsafe_code)]
    pub(super) fn filter(&self, program: &[Instruction]) -> io::Result<()> {
        let len = u16::try_from(program.len()).map_err(io::Error::other)?;
        let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
        // SAFETY: the pointer and the length describe a sock_fprog, which describes the instructions; all of them outlive
        // the call, and the kernel only reads them.
        let set = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sees every frame that passes the link, whoever it is for, until the socket is closed.
    #[allow(unsafe_code)]
    pub(super) fn see_all(&self) -> io::Result<()> {
        // SAFETY: packet_mreq is plain data, for which zero is a value.
        let mut request: libc::packet_mreq = unsafe { std::mem::zeroed() };
        request.mr_ifindex = i32::try_from(self.index).map_err(io::Error::other)?;
        request.mr_type = libc::PACKET_MR_PROMISC as u16;
        // SAFETY: the pointer and the length describe `request`, which outlives the call.
        let set = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const request).cast(),
                size_of::<libc::packet_mreq>() as libc::socklen_t,
            )
        };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Makes room for a burst; as much as the kernel gives.
    pub(super) fn grow(&self, bytes: usize) {
        use nix::sys::socket::{setsockopt, sockopt};
        // The second is for when the first, which needs CAP_NET_ADMIN, is refused.
        if setsockopt(&self.fd, sockopt::RcvBufForce, &bytes).is_err() {
            let _ = setsockopt(&self.fd, sockopt::RcvBuf, &bytes);
        }
    }

    /// How many frames were lost for want of room since this was last asked.
    #[allow(unsafe_code)]
    pub(super) fn lost_frames(&self) -> io::Result<usize> {
        // `struct tpacket_stats`: frames seen, frames dropped.
        let mut counts = [0_u32; 2];
        let mut length = size_of_val(&counts) as libc::socklen_t;
        // SAFETY: the pointer and the length describe `counts`; both outlive the call.
        let got = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                counts.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if got < 0 { Err(io::Error::last_os_error()) } else { Ok(counts[1] as usize) }
    }

    /// A whole Ethernet frame, out of the link.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        nix::sys::socket::send(self.fd.as_raw_fd(), frame, nix::sys::socket::MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// A packet with its offload header, out of the link with that index.
    #[allow(unsafe_code)]
    pub(super) fn send_through(&self, index: u32, packet: &[u8]) -> io::Result<()> {
        let ethertype = packet.get(OFFLOAD_HEADER + 12..OFFLOAD_HEADER + 14);
        let ethertype = ethertype.map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
        let address = address(index, ethertype)?;
        // SAFETY: each pointer comes with the length of what it points to, and both outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_NOSIGNAL,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// What is there, without waiting.
    pub(super) fn next(&self, buffer: &mut [u8]) -> io::Result<Option<Seen>> {
        match self.take(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            other => other.map(Some),
        }
    }

    /// The next frame, cut to the size of `buffer`; `None` when there is none before `deadline`.
    pub(super) fn receive<'b>(
        &self,
        buffer: &'b mut [u8],
        deadline: Instant,
    ) -> io::Result<Option<(&'b [u8], Direction)>> {
        loop {
            match self.take(buffer) {
                Ok(seen) => return Ok(Some((&buffer[..seen.length.min(buffer.len())], seen.direction))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Rounded up: a wait of 0 ms would spin until the deadline.
            let wait = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], wait) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    #[allow(unsafe_code)]
    fn take(&self, buffer: &mut [u8]) -> io::Result<Seen> {
        // SAFETY: sockaddr_ll is plain data, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: both pointers come with the size of what they point to, and both outlive the call.
        let received = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_TRUNC,
                (&raw mut address).cast(),
                &raw mut length,
            )
        };
        let length = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        let direction = if address.sll_pkttype == libc::PACKET_OUTGOING { Direction::Out } else { Direction::In };
        Ok(Seen { length, link: address.sll_ifindex.cast_unsigned(), direction })
    }
}

#[allow(unsafe_code)]
fn address(index: u32, protocol: u16) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: sockaddr_ll is plain data, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    Ok(address)
}
