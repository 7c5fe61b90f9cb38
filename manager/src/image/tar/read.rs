//! Reads a tar stream entry by entry: old, ustar, GNU and pax headers. Allocates at most what the caps below allow.

use std::io::{self, Read};

use super::{
    entry::{Entry, EntryFault, Kind, Meta, Mtime, check_clean, clean, show},
    pax::{self, Pax},
};

const BLOCK: usize = 512;
/// Extended headers hold paths and attributes; the kernel's own limit on one attribute is 64 KiB.
const EXTENDED_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub enum ReadError {
    /// The stream below failed or ended inside an entry.
    Io(io::Error),
    /// The entry (its path as far as known) is not acceptable.
    Entry { path: String, fault: EntryFault },
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn fault(path: &[u8], fault: EntryFault) -> ReadError {
    ReadError::Entry { path: show(path), fault }
}

/// A tar stream. [`Reader::next`] gives the header of the next entry; between two calls, reading from the reader gives
/// the content of the current one.
pub struct Reader<R> {
    inner: R,
    /// Content of the current entry that was not read yet, and what pads it to a block.
    left: u64,
    padding: u64,
    /// Whether paths have to be in the stored form already.
    strict: bool,
    /// Offset of the next byte of the stream.
    position: u64,
}

impl<R: Read> Reader<R> {
    /// For layers from outside: paths as image builders write them.
    pub fn lenient(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, strict: false, position: 0 }
    }

    /// For stored layers: only what [`super::LayerWriter`] writes.
    pub fn strict(inner: R) -> Self {
        Self { strict: true, ..Self::lenient(inner) }
    }

    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Where the current entry's content begins in the stream (right after [`Reader::next`]).
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; `None` at the end of the archive.
    pub fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        let mut pax: Option<Pax> = None;
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip_content()?;
            let Some(block) = self.header_block()? else { return Ok(None) };
            let header = ::tar::Header::from_byte_slice(&block);
            let raw_path = header.path_bytes().into_owned();
            let bad = |what| fault(&raw_path, EntryFault::Header(what));
            if !checksum_is_right(&block, header) {
                return Err(bad("the checksum does not fit"));
            }
            let size = number(&block[124..136]).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| bad("the size"))?;
            match block[156] {
                b'x' => {
                    let bytes = self.extended(size).map_err(|e| e.at(&raw_path))?;
                    pax = Some(pax::parse(&bytes).map_err(bad)?);
                }
                b'L' if !self.strict => long_name = Some(self.long(size).map_err(|e| e.at(&raw_path))?),
                b'K' if !self.strict => long_link = Some(self.long(size).map_err(|e| e.at(&raw_path))?),
                // Global headers carry comments (the commit an archive was made from); no image tool gives them meaning.
                b'g' if !self.strict => self.begin(size)?,
                _ => {
                    let pax = pax.unwrap_or_default();
                    let raw = pax.path.clone().or(long_name).unwrap_or(raw_path);
                    return self.entry(&block, size, raw, long_link, pax).map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        size: u64,
        raw: Vec<u8>,
        long_link: Option<Vec<u8>>,
        pax: Pax,
    ) -> Result<Entry, ReadError> {
        let header = ::tar::Header::from_byte_slice(block);
        let kind = block[156];
        let err = |f| fault(&raw, f);
        let bad = |what| fault(&raw, EntryFault::Header(what));
        if pax.sparse || kind == b'S' {
            return Err(err(EntryFault::Sparse));
        }
        // Old tars mark directories by a trailing slash only.
        let kind = if matches!(kind, 0 | b'0') && raw.ends_with(b"/") && !self.strict { b'5' } else { kind };
        let path = self.path(&raw).map_err(err)?;
        let size = pax.size.unwrap_or(size);
        let link = || pax.linkpath.clone().or(long_link).or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
        let field = |at: std::ops::Range<usize>, what| number(&block[at]).ok_or_else(|| bad(what));
        let device = || -> Result<(u32, u32), ReadError> {
            let part = |at| u32::try_from(field(at, "the device number")?).map_err(|_| bad("the device number"));
            Ok((part(329..337)?, part(337..345)?))
        };
        let kind = match kind {
            0 | b'0' => Kind::File { size },
            b'7' if !self.strict => Kind::File { size },
            b'1' => {
                let target = link().ok_or_else(|| bad("a hard link without a target"))?;
                Kind::Hardlink(self.path(&target).map_err(|_| err(EntryFault::HardlinkTarget(show(&target))))?)
            }
            b'2' => {
                let target = link().filter(|l| !l.is_empty()).ok_or_else(|| bad("a symbolic link without a target"))?;
                if target.len() > 4095 || target.contains(&0) {
                    return Err(bad("a symbolic link's target is too long or has a NUL byte"));
                }
                Kind::Symlink(target)
            }
            b'3' => device().map(|(major, minor)| Kind::Char { major, minor })?,
            b'4' => device().map(|(major, minor)| Kind::Block { major, minor })?,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => return Err(err(EntryFault::UnknownType(other))),
        };
        if path.is_empty() && kind != Kind::Dir {
            return Err(err(EntryFault::Name));
        }
        let id = |given: Option<u32>, at, what| match given {
            Some(id) => Ok(id),
            None => u32::try_from(field(at, what)?).ok().filter(|id| *id != u32::MAX).ok_or_else(|| bad(what)),
        };
        let uid = id(pax.uid, 108..116, "the user ID")?;
        let gid = id(pax.gid, 116..124, "the group ID")?;
        // The bits above these say again what kind it is.
        let mode = (field(100..108, "the mode")? & 0o7777) as u32;
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => Mtime { sec: field(136..148, "the modification time")?, nsec: 0 },
        };
        // Only files have content. A hard link's size field is that of its target, and nothing follows.
        self.begin(if let Kind::File { size } = kind { size } else { 0 })?;
        Ok(Entry { path, kind, meta: Meta { mode, uid, gid, mtime, xattrs: pax.xattrs } })
    }

    fn path(&self, raw: &[u8]) -> Result<Vec<u8>, EntryFault> {
        if self.strict { check_clean(raw).map(|()| raw.to_vec()) } else { clean(raw) }
    }

    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, ReadError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position += BLOCK as u64;
        Ok(if block == [0; BLOCK] { None } else { Some(block) })
    }

    fn begin(&mut self, size: u64) -> Result<(), ReadError> {
        let rest = size % BLOCK as u64;
        if size > i64::MAX as u64 {
            return Err(fault(b"", EntryFault::Header("the size is beyond any file")));
        }
        (self.left, self.padding) = (size, if rest == 0 { 0 } else { BLOCK as u64 - rest });
        Ok(())
    }

    fn extended(&mut self, size: u64) -> Result<Vec<u8>, ExtendedError> {
        if size > EXTENDED_MAX {
            return Err(ExtendedError::TooLarge);
        }
        self.begin(size).map_err(|_| ExtendedError::TooLarge)?;
        let mut bytes = vec![0; size as usize];
        self.read_exact(&mut bytes).map_err(ExtendedError::Io)?;
        Ok(bytes)
    }

    /// A GNU long name: NUL-terminated.
    fn long(&mut self, size: u64) -> Result<Vec<u8>, ExtendedError> {
        let mut bytes = self.extended(size)?;
        bytes.truncate(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
        Ok(bytes)
    }

    fn skip_content(&mut self) -> io::Result<()> {
        let skip = self.left + self.padding;
        let skipped = io::copy(&mut self.inner.by_ref().take(skip), &mut io::sink())?;
        self.position += skipped;
        (self.left, self.padding) = (0, 0);
        if skipped < skip { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        self.position += n as u64;
        Ok(n)
    }
}

enum ExtendedError {
    TooLarge,
    Io(io::Error),
}

impl ExtendedError {
    fn at(self, path: &[u8]) -> ReadError {
        match self {
            Self::TooLarge => fault(path, EntryFault::Header("an extended header is over 1 MiB")),
            Self::Io(error) => ReadError::Io(error),
        }
    }
}

fn checksum_is_right(block: &[u8; BLOCK], header: &::tar::Header) -> bool {
    let sum: u32 =
        block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
    header.cksum().is_ok_and(|stored| stored == sum)
}

/// A number of a header: octal digits, or two's complement where the first bit is set; nothing at all is zero.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        // The first bit is the mark, the next the sign.
        let start = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        let value = field[1..].iter().try_fold(start, |n, b| n.checked_mul(256).map(|n| n + i128::from(*b)))?;
        return i64::try_from(value).ok();
    }
    let digits = field.split(|b| *b == 0).next().unwrap_or_default().trim_ascii();
    if digits.is_empty() {
        return Some(0);
    }
    if !digits.iter().all(|b| (b'0'..=b'7').contains(b)) {
        return None;
    }
    i64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_of_headers() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"\x80\0\0\0\0\0\0\x01", Some(1)),
            (b"\x80\0\0\0\xff\xff\xff\xff", Some(0xffff_ffff)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfb", Some(-5)),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"0000800\0", None),
            (b"-000001\0", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
