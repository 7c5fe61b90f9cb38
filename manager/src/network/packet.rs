//! Raw Ethernet frames through one link (AF_PACKET), non-blocking, with a deadline for each receive.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Frames of every protocol (`ETH_P_ALL`), outgoing ones too.
pub(super) const ALL: u16 = libc::ETH_P_ALL as u16;

pub(super) struct PacketSocket {
    fd: OwnedFd,
    index: u32,
}

/// Where a frame that was seen on the link was going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    In,
    /// Sent by this host (or, seen on a bridge, by its own stack).
    Out,
}

impl PacketSocket {
    /// On the link with that index of the calling thread's network namespace. Protocol 0 receives nothing.
    #[allow(unsafe_code)]
    pub(super) fn open(index: u32, protocol: u16) -> io::Result<Self> {
        // SAFETY: socket() takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Bound to link and protocol in one step, so that no frame of another link gets in before.
        // SAFETY: sockaddr_ll is plain data, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
        // SAFETY: the pointer and the length describe `address`, which outlives the call.
        let bound = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
        };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { fd, index }) }
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

    /// A whole Ethernet frame, out of the link.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        nix::sys::socket::send(self.fd.as_raw_fd(), frame, nix::sys::socket::MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// The next frame, cut to the size of `buffer`; `None` when there is none before `deadline`.
    pub(super) fn receive<'b>(
        &self,
        buffer: &'b mut [u8],
        deadline: Instant,
    ) -> io::Result<Option<(&'b [u8], Direction)>> {
        loop {
            match self.take(buffer) {
                Ok((length, direction)) => return Ok(Some((&buffer[..length], direction))),
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
    fn take(&self, buffer: &mut [u8]) -> io::Result<(usize, Direction)> {
        // SAFETY: sockaddr_ll is plain data, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: both pointers come with the size of what they point to, and both outlive the call.
        let received = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut address).cast(),
                &raw mut length,
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        let direction = if address.sll_pkttype == libc::PACKET_OUTGOING { Direction::Out } else { Direction::In };
        Ok((received.min(buffer.len()), direction))
    }
}
