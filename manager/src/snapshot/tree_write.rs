//! A directory tree as a tar stream, with everything an overlay's upper layer is made of.
//!
//! GNU headers, with pax headers for what those cannot hold: times to the nanosecond and extended attributes
//! (`SCHILY.xattr.`, as GNU tar reads them; attributes with a line feed in them as `HA.xattr-hex.`). Files with holes
//! use the GNU sparse form. Unix sockets are left out, as in every tar: they have no content, and whoever listens
//! there makes them anew.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::{File, Metadata},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use tar::{Builder, EntryType, Header};

use super::{
    SnapshotError,
    error::io as io_error,
    held::Held,
    tar_guard::{EXTENDED_MAX, PIECES_MAX},
};

pub const XATTR: &str = "SCHILY.xattr.";
pub const XATTR_HEX: &str = "HA.xattr-hex.";
/// Deeper trees are refused: their paths do not fit PATH_MAX.
const MAX_DEPTH: usize = 1024;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    pub entries: u64,
    /// The sum of the files' sizes, holes included.
    pub logical_bytes: u64,
}

/// Where the stream goes; a file's bytes are read straight into it.
pub trait Sink: Write {
    /// Takes exactly `len` bytes from `source`.
    fn fill(&mut self, source: &mut dyn Read, len: u64) -> io::Result<()>;
}

/// Writes the tree under `root`, its top directory included as `.`.
pub fn write_tree<S: Sink>(root: &Path, sink: S) -> Result<(S, Written), SnapshotError> {
    write_within(root, sink, Held::default())
}

pub(super) fn write_within<S: Sink>(root: &Path, sink: S, held: Held) -> Result<(S, Written), SnapshotError> {
    let (builder, links) = (Builder::new(sink), HashMap::new());
    let mut writer = Writer { root, builder, links, held, written: Written::default() };
    let meta = std::fs::symlink_metadata(root).map_err(io_error("read", root))?;
    if !meta.is_dir() {
        return Err(io_error("read", root)(io::ErrorKind::NotADirectory.into()));
    }
    writer.entry(Path::new(""), &meta)?;
    writer.directory(Path::new(""), 0)?;
    let sink = writer.builder.into_inner().map_err(io_error("pack", root))?;
    Ok((sink, writer.written))
}

struct Writer<'a, S: Sink> {
    root: &'a Path,
    builder: Builder<S>,
    /// The first name of every file with several.
    links: HashMap<(u64, u64), PathBuf>,
    /// What a reader still holds of directories.
    held: Held,
    written: Written,
}

impl<S: Sink> Writer<'_, S> {
    fn directory(&mut self, relative: &Path, depth: usize) -> Result<(), SnapshotError> {
        let path = self.root.join(relative);
        if depth > MAX_DEPTH {
            return Err(SnapshotError::Unsupported { path, what: format!("it is more than {MAX_DEPTH} levels deep") });
        }
        let listed: io::Result<Vec<_>> = std::fs::read_dir(&path).and_then(Iterator::collect);
        let mut names: Vec<_> = listed.map_err(io_error("read", &path))?.into_iter().map(|e| e.file_name()).collect();
        names.sort();
        for name in names {
            let relative = relative.join(name);
            let path = self.root.join(&relative);
            let meta = std::fs::symlink_metadata(&path).map_err(io_error("read", &path))?;
            self.entry(&relative, &meta)?;
            if meta.is_dir() {
                self.directory(&relative, depth + 1)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, relative: &Path, meta: &Metadata) -> Result<(), SnapshotError> {
        let path = self.root.join(relative);
        let kind = meta.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        let name = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let mut header = Header::new_gnu();
        header.set_metadata(meta);
        if !meta.is_dir() && meta.nlink() > 1 {
            if let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                let first = first.clone();
                self.builder.append_link(&mut header, name, first).map_err(io_error("pack", &path))?;
                self.written.entries += 1;
                return Ok(());
            }
            self.links.insert((meta.dev(), meta.ino()), name.to_owned());
        }
        let xattrs = xattrs(&path)?;
        let held = || xattrs.iter().map(|(name, value)| (name.as_bytes(), value.as_slice()));
        if meta.is_dir() && self.held.directory(relative, held()).is_err() {
            let what = "the names and attributes of all directories up to this one take more than 512 MiB".to_owned();
            return Err(SnapshotError::Unsupported { path, what });
        }
        self.extensions(&path, meta, xattrs)?;
        header.set_size(0);
        if kind.is_symlink() {
            let target = std::fs::read_link(&path).map_err(io_error("read", &path))?;
            header.set_entry_type(EntryType::Symlink);
            self.link(&mut header, name, &target).map_err(io_error("pack", &path))?;
        } else if meta.is_file() {
            self.file(name, &path, meta, &mut header)?;
        } else {
            if meta.is_dir() {
                header.set_entry_type(EntryType::Directory);
            } else if kind.is_fifo() {
                header.set_entry_type(EntryType::Fifo);
            } else {
                let device = meta.rdev();
                header.set_entry_type(if kind.is_block_device() { EntryType::Block } else { EntryType::Char });
                header.set_device_major(libc::major(device)).map_err(io_error("pack", &path))?;
                header.set_device_minor(libc::minor(device)).map_err(io_error("pack", &path))?;
            }
            self.builder.append_data(&mut header, name, io::empty()).map_err(io_error("pack", &path))?;
        }
        self.written.entries += 1;
        Ok(())
    }

    /// `Builder::append_link` would tidy the target up; a symbolic link's is kept to the byte.
    fn link(&mut self, header: &mut Header, name: &Path, target: &Path) -> io::Result<()> {
        let bytes = target.as_os_str().as_bytes();
        if header.set_link_name_literal(bytes).is_err() || bytes.len() > 100 {
            let mut long = Header::new_gnu();
            long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
            long.set_mode(0o644);
            long.set_size(bytes.len() as u64 + 1);
            long.set_entry_type(EntryType::GNULongLink);
            long.set_cksum();
            self.builder.append(&long, bytes.chain(&[0_u8][..]))?;
            header.set_link_name_literal(&bytes[..100])?;
        }
        self.builder.append_data(header, name, io::empty())
    }

    fn file(&mut self, name: &Path, path: &Path, meta: &Metadata, header: &mut Header) -> Result<(), SnapshotError> {
        // Opening must neither follow a link nor wait for the other end of a FIFO put there in between.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let mut file = File::options().read(true).custom_flags(flags).open(path).map_err(io_error("read", path))?;
        let size = meta.size();
        self.written.logical_bytes = self.written.logical_bytes.saturating_add(size);
        if meta.blocks().saturating_mul(512) < size && in_few_pieces(&file, meta).map_err(io_error("read", path))? {
            self.builder.append_file(name, &mut file).map_err(io_error("pack", path))?;
        } else {
            header.set_entry_type(EntryType::Regular);
            header.set_size(size);
            // The head announces the size; the content follows past the builder, without its small buffer.
            self.builder.append_data(header, name, io::empty()).map_err(io_error("pack", path))?;
            let sink = self.builder.get_mut();
            sink.fill(&mut file, size).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => changed(path, "it became shorter"),
                _ => io_error("pack", path)(e),
            })?;
            let padding = (512 - size % 512) % 512;
            sink.write_all(&[0; 512][..padding as usize]).map_err(io_error("pack", path))?;
        }
        let after = file.metadata().map_err(io_error("read", path))?;
        if (after.ino(), after.size()) != (meta.ino(), size)
            || (after.mtime(), after.mtime_nsec()) != (meta.mtime(), meta.mtime_nsec())
        {
            return Err(changed(path, "its size or time is another"));
        }
        Ok(())
    }

    fn extensions(&mut self, path: &Path, meta: &Metadata, xattrs: Vec<Xattr>) -> Result<(), SnapshotError> {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        if meta.mtime_nsec() != 0 || meta.mtime() < 0 {
            records.push(("mtime".to_owned(), format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()).into_bytes()));
        }
        records.extend(xattrs.into_iter().map(|(name, value)| encode_xattr(&name, value)));
        if records.is_empty() {
            return Ok(());
        }
        // What no reader takes is not written. A record has its length, up to seven digits, and three separators.
        let size: usize = records.iter().map(|(key, value)| key.len() + value.len() + 10).sum();
        if size as u64 > EXTENDED_MAX {
            let what = "its extended attributes take more than 1 MiB".to_owned();
            return Err(SnapshotError::Unsupported { path: path.to_owned(), what });
        }
        let records = records.iter().map(|(k, v)| (k.as_str(), v.as_slice()));
        self.builder.append_pax_extensions(records).map_err(io_error("pack", path))
    }
}

type Xattr = (OsString, Vec<u8>);

fn xattrs(path: &Path) -> Result<Vec<Xattr>, SnapshotError> {
    let error = || io_error("read the attributes of", path);
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(error()(e)),
    };
    let mut xattrs = Vec::new();
    for name in names {
        if let Some(value) = xattr::get(path, &name).map_err(error())? {
            xattrs.push((name, value));
        }
    }
    Ok(xattrs)
}

/// Whether a file with holes is in no more pieces than a reader takes.
fn in_few_pieces(file: &File, meta: &Metadata) -> io::Result<bool> {
    // A piece has at least one block, of 512 bytes or more.
    if meta.blocks() <= PIECES_MAX as u64 {
        return Ok(true);
    }
    let mut at = 0;
    for _ in 0..PIECES_MAX {
        at = match lseek(file, at, Whence::SeekData) {
            Ok(data) => lseek(file, data, Whence::SeekHole)?,
            Err(Errno::ENXIO) => {
                lseek(file, 0, Whence::SeekSet)?;
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        };
    }
    lseek(file, 0, Whence::SeekSet)?;
    Ok(false)
}

fn encode_xattr(name: &OsStr, value: Vec<u8>) -> (String, Vec<u8>) {
    let plain = name.to_str().filter(|n| !n.contains(['=', '\n']) && !value.contains(&b'\n'));
    match plain {
        Some(name) => (format!("{XATTR}{name}"), value),
        None => (format!("{XATTR_HEX}{}", hex::encode(name.as_bytes())), hex::encode(value).into_bytes()),
    }
}

fn changed(path: &Path, what: &str) -> SnapshotError {
    SnapshotError::Changed { path: path.to_owned(), what: what.to_owned() }
}
