//! A root directory of this machine into one layer of the stored form. Every directory is opened relative to its parent
//! without following links, so a link in the tree cannot lead the import out of it.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use rustix::{
    fs::{self, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::{
    ImageError, Limits,
    convert::{check_storable, cost},
    tar::{Entry, EntryFault, Kind, LayerWriter, Meta, Mtime, join, show},
};
use crate::spec::Layer;

/// No real tree is deeper; each level holds one descriptor open.
const DEPTH: usize = 200;

/// Packs `root` into `out`, which is created. Blocking. Also returns what was left out, for people.
pub fn pack(root: &Path, limits: &Limits, out: &Path) -> Result<(Layer, Vec<String>), ImageError> {
    let what = root.display().to_string();
    let fd = fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(ImageError::io("open", root))?;
    let mut scan = Scan { what: &what, limits, entries: Vec::new(), notes: Vec::new(), bytes: 0 };
    let fd = fs::openat(&fd, ".", DIR, Mode::empty()).map_err(ImageError::io("open", root))?;
    scan.dir(&fd, b"", 0)?;
    if scan.entries.len() <= 1 {
        return Err(ImageError::malformed(&what, "a root directory is empty"));
    }
    let entries = sorted_with_links(std::mem::take(&mut scan.entries));

    let write = || ImageError::io::<io::Error>("write", out);
    let mut writer = LayerWriter::create(out).map_err(write())?;
    for entry in &entries {
        let Kind::File { size } = entry.kind else {
            writer.append(entry, &mut io::empty()).map_err(write())?;
            continue;
        };
        let changed = || ImageError::Entry { what: what.clone(), path: show(&entry.path), fault: EntryFault::Changed };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let mut file: File =
            fs::openat2(&fd, &entry.path[..], flags, Mode::empty(), inside).map_err(|_| changed())?.into();
        writer.append(entry, &mut file).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => changed(),
            _ => write()(e),
        })?;
        let now = fs::fstat(&file).map_err(|_| changed())?;
        if now.st_size as u64 != size || mtime(&now) != entry.meta.mtime {
            return Err(changed());
        }
    }
    Ok((writer.finish().map_err(write())?, scan.notes))
}

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Device and number.
type Inode = (u64, u64);

struct Scan<'a> {
    what: &'a str,
    limits: &'a Limits,
    /// With the inode, where it has several names.
    entries: Vec<(Entry, Option<Inode>)>,
    notes: Vec<String>,
    bytes: u64,
}

impl Scan<'_> {
    fn fault(&self, path: &[u8], fault: EntryFault) -> ImageError {
        ImageError::Entry { what: self.what.to_owned(), path: show(path), fault }
    }

    fn os(&self, op: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> ImageError + use<> {
        ImageError::io(op, Path::new(self.what).join(std::ffi::OsStr::from_bytes(path)))
    }

    fn dir(&mut self, fd: &OwnedFd, path: &[u8], depth: usize) -> Result<(), ImageError> {
        if depth > DEPTH {
            let limit = DEPTH as u64;
            return Err(ImageError::Limit { what: format!("{}/{}", self.what, show(path)), limit, unit: "levels" });
        }
        let stat = fs::fstat(fd).map_err(self.os("read", path))?;
        let xattrs = xattrs(fd, b".").map_err(self.os("read the attributes of", path))?;
        self.push(Entry { path: path.to_vec(), kind: Kind::Dir, meta: meta(&stat, xattrs) }, None)?;
        let mut names = Vec::new();
        for item in Dir::read_from(fd).map_err(self.os("list", path))? {
            let item = item.map_err(self.os("list", path))?;
            let name = item.file_name().to_bytes();
            if name != b"." && name != b".." {
                self.bytes += name.len() as u64 + 32;
                self.check_bytes()?;
                names.push(name.to_vec());
            }
        }
        names.sort();
        for name in names {
            self.child(fd, path, &name, depth)?;
        }
        Ok(())
    }

    fn child(&mut self, dir: &OwnedFd, dir_path: &[u8], name: &[u8], depth: usize) -> Result<(), ImageError> {
        let path = join(dir_path, name);
        let handle = fs::openat2(
            dir,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_XDEV,
        )
        .map_err(|errno| match errno {
            Errno::XDEV => self.fault(&path, EntryFault::MountPoint),
            errno => self.os("open", &path)(errno),
        })?;
        let stat = fs::fstat(&handle).map_err(self.os("read", &path))?;
        let device = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let fd = fs::openat(dir, name, DIR, Mode::empty()).map_err(self.os("open", &path))?;
                return self.dir(&fd, &path, depth + 1);
            }
            FileType::RegularFile => Kind::File { size: stat.st_size as u64 },
            FileType::Symlink => {
                let target = fs::readlinkat(&handle, "", Vec::new()).map_err(self.os("read", &path))?;
                Kind::Symlink(target.into_bytes())
            }
            FileType::CharacterDevice => Kind::Char { major: device.0, minor: device.1 },
            FileType::BlockDevice => Kind::Block { major: device.0, minor: device.1 },
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => {
                self.notes.push(format!("{}: the socket {:?} was left out", self.what, show(&path)));
                return Ok(());
            }
            _ => return Err(self.fault(&path, EntryFault::Header("the kernel gives it a type that is not known"))),
        };
        let xattrs = xattrs(dir, name).map_err(self.os("read the attributes of", &path))?;
        let inode = (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
        self.push(Entry { path, kind, meta: meta(&stat, xattrs) }, inode)
    }

    fn push(&mut self, entry: Entry, inode: Option<Inode>) -> Result<(), ImageError> {
        check_storable(&entry).map_err(|fault| self.fault(&entry.path, fault))?;
        self.bytes += cost(&entry);
        self.check_bytes()?;
        if self.entries.len() as u64 >= self.limits.entries {
            return Err(ImageError::Limit { what: self.what.to_owned(), limit: self.limits.entries, unit: "entries" });
        }
        self.entries.push((entry, inode));
        Ok(())
    }

    fn check_bytes(&self) -> Result<(), ImageError> {
        let limit = self.limits.metadata_bytes;
        if self.bytes <= limit {
            return Ok(());
        }
        Err(ImageError::Limit { what: self.what.to_owned(), limit, unit: "bytes of names and attributes" })
    }
}

/// Files with several names: the first in the stored order is the file, the others are links to it.
fn sorted_with_links(mut found: Vec<(Entry, Option<Inode>)>) -> Vec<Entry> {
    // Directories first, as in every stored layer; a stable order of its own makes the same tree the same object.
    found.sort_by(|(a, _), (b, _)| (a.kind != Kind::Dir, &a.path).cmp(&(b.kind != Kind::Dir, &b.path)));
    let mut first: HashMap<Inode, Vec<u8>> = HashMap::new();
    let link = |(mut entry, inode): (Entry, Option<Inode>)| {
        if let Some(inode) = inode {
            match first.get(&inode) {
                Some(target) => entry.kind = Kind::Hardlink(target.clone()),
                None => drop(first.insert(inode, entry.path.clone())),
            }
        }
        entry
    };
    found.into_iter().map(link).collect()
}

fn mtime(stat: &Stat) -> Mtime {
    Mtime { sec: stat.st_mtime, nsec: stat.st_mtime_nsec as u32 }
}

fn meta(stat: &Stat, xattrs: BTreeMap<Vec<u8>, Vec<u8>>) -> Meta {
    Meta { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime: mtime(stat), xattrs }
}

/// Others (SELinux labels, IMA hashes, properties of one file system) are about the machine and not the tree.
const KEPT_XATTRS: [&[u8]; 3] = [b"user.", b"trusted.", b"system.posix_acl_"];

/// The attributes of `name` in `dir`, without following it. By way of /proc, as no system call takes both.
fn xattrs(dir: &OwnedFd, name: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    use std::os::fd::AsRawFd;
    let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat();
    let path = std::ffi::OsString::from(std::ffi::OsStr::from_bytes(&path));
    let unsupported = |error: &io::Error| error.raw_os_error() == Some(libc::ENOTSUP);
    let names = match xattr::list(&path) {
        Ok(names) => names,
        Err(error) if unsupported(&error) => return Ok(Default::default()),
        Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    };
    let mut found = BTreeMap::new();
    for name in names {
        let name_bytes = name.as_bytes();
        let belongs_to_the_host =
            !KEPT_XATTRS.iter().any(|kept| name_bytes.starts_with(kept)) && name_bytes != b"security.capability";
        if belongs_to_the_host {
            continue;
        }
        match xattr::get(&path, &name) {
            Ok(Some(value)) => drop(found.insert(name.as_bytes().to_vec(), value)),
            Ok(None) => {}
            Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }
    Ok(found)
}
