//! Writes a layer in the stored form: tar, zstd around it, blake3 of the result. The same entries give the same bytes.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::Path,
};

use super::{
    entry::{Entry, Kind, Meta},
    pax,
};
use crate::spec::Layer;

/// A good ratio at some hundred MB/s; images are written once and read on every node.
const LEVEL: i32 = 3;
/// What the seven octal digits of a ustar number hold.
const OCTAL7: u32 = 0o7_777_777;

pub struct LayerWriter {
    zstd: zstd::stream::write::Encoder<'static, Hashing<BufWriter<File>>>,
}

impl LayerWriter {
    pub fn create(path: &Path) -> io::Result<Self> {
        let out = Hashing { inner: BufWriter::new(File::create(path)?), hasher: blake3::Hasher::new(), bytes: 0 };
        Ok(Self { zstd: zstd::stream::write::Encoder::new(out, LEVEL)? })
    }

    /// Appends an entry; `content` has to give a file's `size` bytes, and is not read for anything else.
    pub fn append(&mut self, entry: &Entry, content: &mut impl Read) -> io::Result<()> {
        self.header(entry)?;
        if let Kind::File { size } = entry.kind {
            if io::copy(&mut content.take(size), &mut self.zstd)? != size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.zstd.write_all(&[0; 512][..(512 - (size % 512) as usize) % 512])?;
        }
        Ok(())
    }

    /// Appends an entry that has no content.
    pub fn append_bare(&mut self, path: &[u8], kind: Kind, meta: Meta) -> io::Result<()> {
        self.append(&Entry { path: path.to_vec(), kind, meta }, &mut io::empty())
    }

    /// Ends the archive and makes it durable enough to be uploaded.
    pub fn finish(mut self) -> io::Result<Layer> {
        self.zstd.write_all(&[0; 1024])?;
        let mut out = self.zstd.finish()?;
        out.inner.flush()?;
        Ok(Layer { digest: out.hasher.finalize().to_hex().to_string(), size_bytes: out.bytes })
    }

    fn header(&mut self, entry: &Entry) -> io::Result<()> {
        let mut extended = Vec::new();
        let mut header = ::tar::Header::new_ustar();
        let (kind, size, link): (u8, u64, &[u8]) = match &entry.kind {
            Kind::Dir => (b'5', 0, b""),
            Kind::File { size } => (b'0', *size, b""),
            Kind::Hardlink(target) => (b'1', 0, target),
            Kind::Symlink(target) => (b'2', 0, target),
            Kind::Char { .. } => (b'3', 0, b""),
            Kind::Block { .. } => (b'4', 0, b""),
            Kind::Fifo => (b'6', 0, b""),
        };
        if let Kind::Char { major, minor } | Kind::Block { major, minor } = entry.kind {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        put_name(&mut header.as_old_mut().name, b"path", &entry.path, &mut extended);
        put_name(&mut header.as_old_mut().linkname, b"linkpath", link, &mut extended);
        header.set_entry_type(::tar::EntryType::new(kind));
        // Ustar's twelve digits hold 8 GiB; above, the crate writes the GNU base-256 form, which our reader takes.
        header.set_size(size);
        header.set_mode(entry.meta.mode & 0o7777);
        for (value, key) in [(entry.meta.uid, &b"uid"[..]), (entry.meta.gid, &b"gid"[..])] {
            let short = if value <= OCTAL7 { value } else { 0 };
            if key == b"uid" {
                header.set_uid(short.into())
            } else {
                header.set_gid(short.into())
            }
            if value > OCTAL7 {
                pax::push_record(&mut extended, key, value.to_string().as_bytes());
            }
        }
        let mtime = entry.meta.mtime;
        match u64::try_from(mtime.sec).ok().filter(|sec| mtime.nsec == 0 && *sec <= 0o77_777_777_777) {
            Some(sec) => header.set_mtime(sec),
            None => {
                header.set_mtime(0);
                pax::push_mtime(&mut extended, mtime);
            }
        }
        for (name, value) in &entry.meta.xattrs {
            pax::push_xattr(&mut extended, name, value);
        }
        if !extended.is_empty() {
            let mut before = ::tar::Header::new_ustar();
            before.as_old_mut().name[..10].copy_from_slice(b"PaxHeaders");
            before.set_entry_type(::tar::EntryType::new(b'x'));
            before.set_size(extended.len() as u64);
            before.set_mode(0o644);
            before.set_uid(0);
            before.set_gid(0);
            before.set_mtime(0);
            before.set_cksum();
            self.zstd.write_all(before.as_bytes())?;
            extended.resize(extended.len().next_multiple_of(512), 0);
            self.zstd.write_all(&extended)?;
        }
        header.set_cksum();
        self.zstd.write_all(header.as_bytes())
    }
}

/// Short names go into the header, others (and an empty one, which a header cannot tell from a missing one) into a record.
fn put_name(field: &mut [u8; 100], key: &[u8], name: &[u8], extended: &mut Vec<u8>) {
    if name.len() <= field.len() && !(name.is_empty() && key == b"path") {
        field[..name.len()].copy_from_slice(name);
    } else {
        pax::push_record(extended, key, name);
    }
}

struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{entry::Mtime, read::Reader},
        *,
    };

    fn name() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(1u8..=255, 1..200)
            .prop_map(|bytes| bytes.into_iter().map(|b| if b == b'/' || b == b'.' { b'_' } else { b }).collect())
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::Dir),
            (0u64..2000).prop_map(|size| Kind::File { size }),
            name().prop_map(Kind::Hardlink),
            name().prop_map(Kind::Symlink),
            (0u32..4096, 0u32..100_000).prop_map(|(major, minor)| Kind::Char { major, minor }),
            (0u32..4096, 0u32..100_000).prop_map(|(major, minor)| Kind::Block { major, minor }),
            Just(Kind::Fifo),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            entries in proptest::collection::vec((proptest::collection::vec(name(), 1..4), kind(),
                0u32..0o10000, 0u32..u32::MAX, 0u32..u32::MAX, -5_000_000_000i64..100_000_000_000, 0u32..1_000_000_000,
                proptest::collection::btree_map(name(), proptest::collection::vec(any::<u8>(), 0..80), 0..3)), 1..8)
        ) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut writer = LayerWriter::create(file.path()).unwrap();
            let entries: Vec<Entry> = entries.into_iter().map(|(path, kind, mode, uid, gid, sec, nsec, xattrs)| Entry {
                path: path.join(&b'/'), kind, meta: Meta { mode, uid, gid, mtime: Mtime { sec, nsec }, xattrs },
            }).collect();
            for entry in &entries {
                writer.append(entry, &mut io::repeat(7)).unwrap();
            }
            let layer = writer.finish().unwrap();
            let stored = std::fs::read(file.path()).unwrap();
            prop_assert_eq!(layer.digest, blake3::hash(&stored).to_hex().to_string());
            prop_assert_eq!(layer.size_bytes, stored.len() as u64);
            let mut reader = Reader::strict(zstd::stream::read::Decoder::new(&stored[..]).unwrap());
            for entry in &entries {
                let read = reader.next().unwrap().unwrap();
                prop_assert_eq!(&read, entry);
                if let Kind::File { size } = read.kind {
                    let mut content = Vec::new();
                    reader.read_to_end(&mut content).unwrap();
                    prop_assert_eq!(content, vec![7; size as usize]);
                }
            }
            prop_assert_eq!(reader.next().unwrap(), None);
        }
    }
}
