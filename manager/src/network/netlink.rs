//! A synchronous rtnetlink client: a few messages in one send, their acknowledgements in order.
//!
//! A netlink socket belongs for good to the network namespace it was opened in, whichever thread uses it later. So one
//! opened while a thread was inside a container's namespace configures that namespace from anywhere.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkAttribute, link::LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The kernel fills a dump's packets up to 32 KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// How often a dump that changed under its reader is begun anew.
const DUMP_ATTEMPTS: usize = 5;

pub(super) struct Rtnl {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl Rtnl {
    /// In the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, received: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Sends all of `requests` at once and reads every acknowledgement. The kernel works through all of them even when
    /// one fails; the first failure is returned with its index.
    pub(super) fn execute(&mut self, requests: Vec<(RouteNetlinkMessage, u16)>) -> Result<(), (usize, io::Error)> {
        let first = self.sequence.wrapping_add(1);
        let count = requests.len();
        let mut bytes = Vec::with_capacity(256 * count);
        for (message, flags) in requests {
            self.append(&mut bytes, message, NLM_F_REQUEST | NLM_F_ACK | flags);
        }
        self.socket.send(&bytes, 0).map_err(|error| (0, error))?;
        let mut failure: Option<(usize, io::Error)> = None;
        let mut answered = 0;
        while answered < count {
            for message in self.receive().map_err(|error| (answered, error))? {
                let index = message.header.sequence_number.wrapping_sub(first) as usize;
                if index >= count {
                    continue; // the rest of an earlier request whose reading was cut short
                }
                if let NetlinkPayload::Error(answer) = message.payload {
                    answered += 1;
                    if answer.code.is_some() && failure.is_none() {
                        failure = Some((index, answer.to_io()));
                    }
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// One request, acknowledged.
    pub(super) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.execute(vec![(message, flags)]).map_err(|(_, error)| error)
    }

    /// All objects a dump request names.
    pub(super) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(found) = self.dump_once(message.clone())? {
                return Ok(found);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the kernel's tables changed faster than they could be read"))
    }

    fn dump_once(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, message, NLM_F_REQUEST | NLM_F_DUMP);
        let sequence = self.sequence;
        self.socket.send(&bytes, 0)?;
        let (mut found, mut whole) = (Vec::new(), true);
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    NetlinkPayload::Done(_) => return Ok(whole.then_some(found)),
                    NetlinkPayload::Error(answer) => return Err(answer.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// The link of that name, `None` when there is none.
    pub(super) fn link(&mut self, name: &str) -> io::Result<Option<LinkMessage>> {
        let mut query = LinkMessage::default();
        query.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let mut bytes = Vec::new();
        self.append(&mut bytes, RouteNetlinkMessage::GetLink(query), NLM_F_REQUEST);
        let sequence = self.sequence;
        self.socket.send(&bytes, 0)?;
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => return Ok(Some(link)),
                    NetlinkPayload::Error(answer) => {
                        let error = answer.to_io();
                        return if error.raw_os_error() == Some(libc::ENODEV) { Ok(None) } else { Err(error) };
                    }
                    _ => {}
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    /// One datagram's messages. One that this library cannot read (a newer kernel's attribute) is left out.
    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let length = loop {
            self.received.clear();
            match self.socket.recv(&mut self.received, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if length > self.received.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink answer is larger than its buffer"));
        }
        let mut messages = Vec::new();
        let mut rest = &self.received[..];
        while let Some(head) = rest.first_chunk::<4>() {
            let length = u32::from_ne_bytes(*head) as usize;
            let Some(one) = rest.get(..length).filter(|one| one.len() >= 16) else { break };
            match NetlinkMessage::deserialize(one) {
                Ok(message) => messages.push(message),
                Err(error) => tracing::debug!(%error, "a netlink message could not be read"),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}
