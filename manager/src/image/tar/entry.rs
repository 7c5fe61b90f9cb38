//! One entry of a layer, as the rest of the room sees it: a clean relative path, a kind, and what belongs to it.

use std::{collections::BTreeMap, fmt};

/// The longest path the kernel takes.
const PATH_MAX: usize = 4095;
const NAME_MAX: usize = 255;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative, without `.`, `..` or empty parts; empty for the root itself.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub meta: Meta,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Dir,
    File {
        size: u64,
    },
    /// Another name of an earlier entry; a path of the same form as [`Entry::path`].
    Hardlink(Vec<u8>),
    /// Any bytes: a symbolic link is only text until something follows it.
    Symlink(Vec<u8>),
    Char {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// The permission bits, with set-user-ID, set-group-ID and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Mtime,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mtime {
    pub sec: i64,
    pub nsec: u32,
}

/// What is wrong with an entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryFault {
    Absolute,
    DotDot,
    Name,
    TooLong,
    ThroughNonDirectory(String),
    HardlinkTarget(String),
    UnknownType(u8),
    Sparse,
    Duplicate,
    OverlayXattr(String),
    ZeroDevice,
    Whiteout,
    Header(&'static str),
    MissingParent,
    MountPoint,
    Changed,
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absolute => f.write_str("its path is absolute and would leave the image"),
            Self::DotDot => f.write_str("its path has a '..' and would leave the image"),
            Self::Name => f.write_str("its path has an unusable part (empty, '.', or with a NUL byte)"),
            Self::TooLong => f.write_str("its path is longer than the kernel allows (4095 bytes, 255 per part)"),
            Self::ThroughNonDirectory(what) => {
                write!(f, "it lies below {what:?}, which is not a directory in this layer")
            }
            Self::HardlinkTarget(target) => {
                write!(f, "it is a hard link to {target:?}, which is not an earlier file of the same layer")
            }
            Self::UnknownType(kind) => write!(f, "its type '{}' is not known", kind.escape_ascii()),
            Self::Sparse => f.write_str("it is a sparse file in a tar extension; write the layer without sparse files"),
            Self::Duplicate => f.write_str("it is there twice"),
            Self::OverlayXattr(name) => {
                write!(f, "its attribute {name:?} belongs to the overlay and is not for images")
            }
            Self::ZeroDevice => f.write_str("it is the character device 0:0, which an overlay takes for a deletion"),
            Self::Whiteout => f.write_str("it marks a deletion but names nothing"),
            Self::Header(what) => write!(f, "its header is wrong: {what}"),
            Self::MissingParent => f.write_str("its directory is not in the layer"),
            Self::MountPoint => f.write_str("it is a mount point; unmount it first, an image is one file system"),
            Self::Changed => f.write_str("it changed while it was read; nothing may write there during an import"),
        }
    }
}

/// Bytes of a path for people.
pub fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned()
}

/// Everything before the last `/`; `None` for the root.
pub fn parent(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    Some(path.iter().rposition(|b| *b == b'/').map_or(&[][..], |at| &path[..at]))
}

pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Splits into parent and last part. The root has none.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let dir = parent(path)?;
    Some((dir, &path[if dir.is_empty() { 0 } else { dir.len() + 1 }..]))
}

/// Checks a path of the stored form: relative and clean.
pub fn check_clean(path: &[u8]) -> Result<(), EntryFault> {
    if path.starts_with(b"/") {
        return Err(EntryFault::Absolute);
    }
    if path.len() > PATH_MAX {
        return Err(EntryFault::TooLong);
    }
    if path.is_empty() {
        return Ok(());
    }
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => return Err(EntryFault::Name),
            b".." => return Err(EntryFault::DotDot),
            part if part.contains(&0) => return Err(EntryFault::Name),
            part if part.len() > NAME_MAX => return Err(EntryFault::TooLong),
            _ => {}
        }
    }
    Ok(())
}

/// Brings a path as image builders write it (`./a/`, `/a`, `a//b`) into the stored form. `..` is never one they mean.
pub fn clean(path: &[u8]) -> Result<Vec<u8>, EntryFault> {
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    let path = parts.join(&b'/');
    check_clean(&path).map(|()| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_image_builders_become_clean_and_escapes_are_refused() {
        for (from, to) in [("./", ""), (".", ""), ("./a/b/", "a/b"), ("/etc//passwd", "etc/passwd"), ("a/./b", "a/b")] {
            assert_eq!(clean(from.as_bytes()).unwrap(), to.as_bytes(), "{from}");
        }
        for bad in ["..", "a/../b", "../../etc/passwd", "/../x"] {
            assert_eq!(clean(bad.as_bytes()), Err(EntryFault::DotDot), "{bad}");
        }
        assert_eq!(clean(b"a\0b"), Err(EntryFault::Name));
        assert_eq!(clean(&[b'x'; 256]), Err(EntryFault::TooLong));
        assert_eq!(check_clean(b"/a"), Err(EntryFault::Absolute));
        assert_eq!(check_clean(b"a/"), Err(EntryFault::Name));
        assert_eq!(check_clean(b"./a"), Err(EntryFault::Name));
    }

    #[test]
    fn parents() {
        assert_eq!(parent(b""), None);
        assert_eq!(parent(b"a"), Some(&b""[..]));
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
    }
}
