//! The TCP connections of a CRIU dump, read from its images.
//!
//! An image file is a magic number or two and then messages, each behind its length. `files.img` names the sockets with
//! their addresses, `tcp-stream-<inode>.img` holds the state of one connection. Only the fields needed here are
//! declared; protobuf passes over the others. Images come from the store: nothing in them is trusted.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use prost::Message;

use super::decide::Sequences;

const COMMON_MAGIC: u32 = 0x5456_4319;
const FILES_MAGIC: u32 = 0x5630_3138;
const TCP_STREAM_MAGIC: u32 = 0x5146_5506;
/// The largest message that is read; the ones looked for are below 1 KiB, the largest CRIU writes to `files.img` (a
/// socket's filter, a path) far below this.
const MESSAGE_CAP: u32 = 1 << 20;
/// A container has fewer open files than that; more is a broken or hostile image.
const FILES_CAP: usize = 1 << 20;

const TYPE_INET_SOCKET: i32 = 4;
const STATE_ESTABLISHED: u32 = 1;
const STATE_CLOSE_WAIT: u32 = 8;
const OPTION_TIMESTAMPS: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    #[error("reading {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not the CRIU image its name says; the snapshot is broken, or from an incompatible CRIU", path.display())]
    Format { path: PathBuf },
}

/// One connection as the restored process has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    /// `None` when the connection was being closed: CRIU brings it back, but there is nothing left to lose.
    pub(super) sequences: Option<Sequences>,
    /// The clock in the TCP timestamp option, where the connection has that option.
    pub(super) timestamp: Option<u32>,
    /// What the window field of a segment carries.
    pub(super) window: u16,
}

#[derive(Clone, PartialEq, Message)]
struct FileEntry {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "4")]
    socket: Option<InetSocket>,
}

#[derive(Clone, PartialEq, Message)]
struct InetSocket {
    #[prost(uint32, required, tag = "2")]
    inode: u32,
    #[prost(uint32, required, tag = "3")]
    family: u32,
    #[prost(uint32, required, tag = "5")]
    protocol: u32,
    #[prost(uint32, required, tag = "6")]
    state: u32,
    #[prost(uint32, required, tag = "7")]
    local_port: u32,
    #[prost(uint32, required, tag = "8")]
    peer_port: u32,
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    local: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    peer: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct TcpStream {
    #[prost(uint32, required, tag = "2")]
    received: u32,
    #[prost(uint32, required, tag = "3")]
    queued: u32,
    #[prost(uint32, required, tag = "4")]
    written: u32,
    #[prost(uint32, required, tag = "5")]
    options: u32,
    #[prost(uint32, optional, tag = "8")]
    receive_scale: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    timestamp: Option<u32>,
    #[prost(uint32, optional, tag = "12")]
    unsent: Option<u32>,
    #[prost(uint32, optional, tag = "16")]
    receive_window: Option<u32>,
}

/// All connections in `images` but those over loopback. No `files.img`, no connections.
pub(super) fn read(images: &Path) -> Result<Vec<Connection>, ImagesError> {
    let path = images.join("files.img");
    let Some(mut files) = ImageFile::open(path, FILES_MAGIC)? else { return Ok(Vec::new()) };
    let mut connections = Vec::new();
    for _ in 0..FILES_CAP {
        let Some(entry) = files.next::<FileEntry>()? else { return Ok(connections) };
        if entry.kind != TYPE_INET_SOCKET {
            continue;
        }
        let Some(socket) = entry.socket else { return Err(files.broken()) };
        // Sockets without a peer listen or are not connected.
        if socket.protocol != libc::IPPROTO_TCP as u32 || socket.peer_port == 0 {
            continue;
        }
        let local = address(&socket.local, socket.local_port).ok_or_else(|| files.broken())?;
        let peer = address(&socket.peer, socket.peer_port).ok_or_else(|| files.broken())?;
        if peer.ip().is_loopback() || local.ip() == peer.ip() {
            continue;
        }
        connections.push(connection(images, &socket, local, peer)?);
    }
    Err(files.broken())
}

fn connection(
    images: &Path,
    socket: &InetSocket,
    local: SocketAddr,
    peer: SocketAddr,
) -> Result<Connection, ImagesError> {
    let mut connection = Connection { local, peer, sequences: None, timestamp: None, window: 1024 };
    if !matches!(socket.state, STATE_ESTABLISHED | STATE_CLOSE_WAIT) {
        return Ok(connection);
    }
    let path = images.join(format!("tcp-stream-{:x}.img", socket.inode));
    // Absent when the dump was told to close connections.
    let Some(mut image) = ImageFile::open(path, TCP_STREAM_MAGIC)? else { return Ok(connection) };
    let Some(stream) = image.next::<TcpStream>()? else { return Err(image.broken()) };
    connection.sequences = Some(Sequences {
        snd_una: stream.written.wrapping_sub(stream.queued),
        snd_nxt: stream.written.wrapping_sub(stream.unsent.unwrap_or(0)),
        rcv_nxt: stream.received,
    });
    connection.timestamp = stream.timestamp.filter(|_| stream.options & OPTION_TIMESTAMPS != 0);
    if let Some(window) = stream.receive_window {
        let scaled = window.checked_shr(stream.receive_scale.unwrap_or(0)).unwrap_or(0);
        connection.window = u16::try_from(scaled).unwrap_or(u16::MAX);
    }
    Ok(connection)
}

/// Words as the kernel had them in memory, which is network order. IPv4 in IPv6 is IPv4 on the wire.
fn address(words: &[u32], port: u32) -> Option<SocketAddr> {
    let port = u16::try_from(port).ok()?;
    let ip: IpAddr = match *words {
        [word] => Ipv4Addr::from(word.to_ne_bytes()).into(),
        [a, b, c, d] => {
            let mut octets = [0; 16];
            for (chunk, word) in octets.chunks_exact_mut(4).zip([a, b, c, d]) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            Ipv6Addr::from(octets).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

struct ImageFile {
    path: PathBuf,
    file: BufReader<File>,
}

impl ImageFile {
    /// `None` when there is no such file.
    fn open(path: PathBuf, magic: u32) -> Result<Option<Self>, ImagesError> {
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ImagesError::Read { path, source }),
            Ok(file) => file,
        };
        let mut image = Self { path, file: BufReader::new(file) };
        match (image.word()?, image.word()?) {
            (Some(COMMON_MAGIC), Some(own)) if own == magic => Ok(Some(image)),
            _ => Err(image.broken()),
        }
    }

    fn next<M: Message + Default>(&mut self) -> Result<Option<M>, ImagesError> {
        let Some(length) = self.word()? else { return Ok(None) };
        if length > MESSAGE_CAP {
            return Err(self.broken());
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        M::decode(&bytes[..]).map(Some).map_err(|_| self.broken())
    }

    /// `None` at the end of the file.
    fn word(&mut self) -> Result<Option<u32>, ImagesError> {
        let mut bytes = [0; 4];
        match self.file.read(&mut bytes[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => self.fill(&mut bytes[1..])?,
            Err(source) => return Err(ImagesError::Read { path: self.path.clone(), source }),
        }
        Ok(Some(u32::from_le_bytes(bytes)))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ImagesError> {
        self.file.read_exact(bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.broken(),
            _ => ImagesError::Read { path: self.path.clone(), source },
        })
    }

    fn broken(&self) -> ImagesError {
        ImagesError::Format { path: self.path.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn image(magic: u32, messages: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = COMMON_MAGIC.to_le_bytes().to_vec();
        bytes.extend(magic.to_le_bytes());
        for message in messages {
            bytes.extend((message.len() as u32).to_le_bytes());
            bytes.extend(message);
        }
        bytes
    }

    fn socket(inode: u32, peer: &[u32], state: u32) -> Vec<u8> {
        let local = if peer.len() == 1 { vec![word([10, 77, 0, 2])] } else { mapped([10, 77, 0, 2]) };
        let socket = InetSocket {
            inode,
            family: 2,
            protocol: 6,
            state,
            local_port: 7000,
            peer_port: 40000,
            local,
            peer: peer.to_vec(),
        };
        FileEntry { kind: TYPE_INET_SOCKET, socket: Some(socket) }.encode_to_vec()
    }

    fn word(octets: [u8; 4]) -> u32 {
        u32::from_ne_bytes(octets)
    }

    fn mapped(octets: [u8; 4]) -> Vec<u32> {
        vec![0, 0, u32::from_be(0xffff), word(octets)]
    }

    fn stream() -> Vec<u8> {
        let stream = TcpStream {
            received: 500,
            queued: 30,
            written: 10,
            options: 7,
            receive_scale: Some(7),
            timestamp: Some(99),
            unsent: Some(20),
            receive_window: Some(64 << 7),
        };
        stream.encode_to_vec()
    }

    #[test]
    fn a_connection_is_read_with_its_queues() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), [], "no images at all");
        let other = FileEntry { kind: 1, socket: None }.encode_to_vec();
        let files = [
            other,
            socket(0xab, &[word([10, 77, 0, 3])], 1),
            socket(0xac, &mapped([10, 77, 0, 4]), 8),
            socket(0xad, &[word([127, 0, 0, 1])], 1),
            socket(0xae, &[word([10, 77, 0, 5])], 4),
        ];
        fs::write(directory.path().join("files.img"), image(FILES_MAGIC, &files)).unwrap();
        for inode in ["ab", "ac"] {
            let path = directory.path().join(format!("tcp-stream-{inode}.img"));
            fs::write(path, image(TCP_STREAM_MAGIC, &[stream()])).unwrap();
        }
        let found = read(directory.path()).unwrap();
        assert_eq!(found.len(), 3, "{found:?}");
        // The send queue wraps around: 10 written, of which 30 are unacknowledged and 20 unsent.
        let sequences = Sequences { snd_una: 10_u32.wrapping_sub(30), snd_nxt: 10_u32.wrapping_sub(20), rcv_nxt: 500 };
        assert_eq!(found[0].sequences, Some(sequences));
        assert_eq!((found[0].timestamp, found[0].window), (Some(99), 64));
        assert_eq!(found[1].peer, "10.77.0.4:40000".parse().unwrap(), "IPv4 in IPv6");
        assert_eq!(found[2].sequences, None, "it was being closed");
    }

    #[test]
    fn broken_images_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("files.img");
        let good = image(FILES_MAGIC, &[socket(0xab, &[word([10, 77, 0, 3])], 1)]);
        let mut huge = image(FILES_MAGIC, &[]);
        huge.extend(u32::MAX.to_le_bytes());
        let two_words = image(FILES_MAGIC, &[socket(1, &[1, 2], 1)]);
        for bad in [&good[..good.len() - 1], &good[..6], &good[4..], &huge, &two_words, b"x"] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(read(directory.path()), Err(ImagesError::Format { .. })), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let directory = tempfile::tempdir().unwrap();
            let mut file = image(FILES_MAGIC, &[]);
            file.extend(bytes);
            fs::write(directory.path().join("files.img"), file).unwrap();
            let _ = read(directory.path());
        }
    }
}
