//! A tar stream on its way to the `tar` crate, which takes a header's word for how much memory an extended header needs, and
//! reads a sparse file's holes byte by byte.
//!
//! ```text
//!   chunks ─► [ header ─ 'x' 'g' 'L' 'K': at most 1 MiB, no size of its own ] ─► tar::Archive ─► the tree
//!             [        └ 'S': becomes a plain file of its data; the map goes beside ───────────► with its holes ]
//! ```

use std::{
    cell::RefCell,
    io::{self, Read},
    rc::Rc,
};

use tar::{EntryType, GnuExtSparseHeader, Header, PaxExtensions};

const BLOCK: usize = 512;
/// One extended header: paths and attributes. Bytes.
pub const EXTENDED_MAX: u64 = 1 << 20;
/// Pieces of data in one sparse file; each takes 16 bytes of memory.
pub const PIECES_MAX: usize = 4 << 20;

/// Where the data of a sparse file belongs: ascending, within `size`, `data` bytes in all.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SparseMap {
    pub size: u64,
    pub pieces: Vec<(u64, u64)>,
}

/// The map of the entry that was read last, if that is a sparse file.
pub type Sparse = Rc<RefCell<Option<SparseMap>>>;

pub struct TarGuard<R> {
    inner: R,
    sparse: Sparse,
    /// A header or extended header that was looked at and is to be handed on, from `handed`.
    ready: Vec<u8>,
    handed: usize,
    /// Content that is handed on without being looked at, padding included.
    content: u64,
    /// Behind the end of the archive.
    ended: bool,
}

impl<R: Read> TarGuard<R> {
    pub fn new(inner: R) -> (Self, Sparse) {
        let sparse = Sparse::default();
        let guard = Self { inner, sparse: Rc::clone(&sparse), ready: Vec::new(), handed: 0, content: 0, ended: false };
        (guard, sparse)
    }

    /// Reads the next header, and what has to be judged with it.
    fn look(&mut self) -> io::Result<()> {
        self.ready.clear();
        self.handed = 0;
        let mut header = Header::new_old();
        let filled = fill(&mut self.inner, header.as_mut_bytes())?;
        if filled < BLOCK || header.as_bytes().iter().all(|byte| *byte == 0) {
            self.ended = true;
            self.ready.extend_from_slice(&header.as_bytes()[..filled]);
            return Ok(());
        }
        let size = header.entry_size()?;
        let padded = size.checked_next_multiple_of(BLOCK as u64).ok_or_else(|| malformed("a size beyond any file"))?;
        match header.entry_type() {
            EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink => {
                if size > EXTENDED_MAX {
                    return Err(malformed("an extended header is over 1 MiB"));
                }
                self.ready.extend_from_slice(header.as_bytes());
                self.ready.resize(BLOCK + padded as usize, 0);
                self.inner.read_exact(&mut self.ready[BLOCK..])?;
                let content = &self.ready[BLOCK..BLOCK + size as usize];
                // A size in there would move the boundaries of entries away from where they are looked for here.
                let pax = matches!(header.entry_type(), EntryType::XHeader | EntryType::XGlobalHeader);
                if pax && PaxExtensions::new(content).any(|e| e.map_or(true, |e| e.key_bytes() == b"size")) {
                    return Err(malformed("an extended header is malformed or states a size"));
                }
                return Ok(());
            }
            EntryType::GNUSparse => {
                let map = self.map(&header, size)?;
                *self.sparse.borrow_mut() = Some(map);
                header.set_entry_type(EntryType::Regular);
                header.set_cksum();
            }
            _ => *self.sparse.borrow_mut() = None,
        }
        self.content = padded;
        self.ready.extend_from_slice(header.as_bytes());
        Ok(())
    }

    fn map(&mut self, header: &Header, data: u64) -> io::Result<SparseMap> {
        let mut original = header.clone();
        original.set_cksum();
        if header.cksum()? != original.cksum()? {
            return Err(malformed("a header's checksum does not fit"));
        }
        let gnu = header.as_gnu().ok_or_else(|| malformed("a sparse file without a GNU header"))?;
        let mut map = SparseMap { size: gnu.real_size()?, pieces: Vec::new() };
        let (mut end, mut total) = (0_u64, 0_u64);
        let mut add = |map: &mut SparseMap, offset: u64, len: u64| {
            let after = offset.checked_add(len).filter(|after| *after <= map.size && offset >= end);
            end = after.ok_or_else(|| malformed("a sparse file's map is out of order"))?;
            total = total.saturating_add(len);
            if map.pieces.len() == PIECES_MAX {
                return Err(malformed("a sparse file is in too many pieces"));
            }
            if len > 0 {
                map.pieces.push((offset, len));
            }
            Ok(())
        };
        for piece in gnu.sparse.iter().filter(|piece| !piece.is_empty()) {
            add(&mut map, piece.offset()?, piece.length()?)?;
        }
        let (mut more, mut blocks) = (gnu.is_extended(), 0);
        while more {
            let mut next = GnuExtSparseHeader::new();
            self.inner.read_exact(next.as_mut_bytes())?;
            for piece in next.sparse.iter().filter(|piece| !piece.is_empty()) {
                add(&mut map, piece.offset()?, piece.length()?)?;
            }
            blocks += 1;
            // Of empty ones, too, there is an end.
            more = next.is_extended() && blocks <= PIECES_MAX;
        }
        if total != data || map.size > i64::MAX as u64 {
            return Err(malformed("a sparse file's map does not fit its size"));
        }
        Ok(map)
    }
}

impl<R: Read> Read for TarGuard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.handed == self.ready.len() && self.content == 0 && !self.ended {
            self.look()?;
        }
        let ready = &self.ready[self.handed..];
        if !ready.is_empty() {
            let len = ready.len().min(buffer.len());
            buffer[..len].copy_from_slice(&ready[..len]);
            self.handed += len;
            return Ok(len);
        }
        if self.ended {
            return self.inner.read(buffer);
        }
        let most = usize::try_from(self.content).map_or(buffer.len(), |left| left.min(buffer.len()));
        let len = self.inner.read(&mut buffer[..most])?;
        self.content = if len == 0 { 0 } else { self.content - len as u64 };
        self.ended |= len == 0;
        Ok(len)
    }
}

/// Reads until the buffer is full or the stream ends.
fn fill(inner: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match inner.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
