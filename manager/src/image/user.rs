//! Who a container's processes are: `USER` of the image or `user:` of the application, looked up in the image's own
//! /etc/passwd and /etc/group. Those files are the image's, so they are bounded, and links in them stay inside it.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{ImageError, convert::OPAQUE};

const FILE_MAX: u64 = 16 << 20;
const LINE_MAX: u64 = 64 << 10;
/// The largest ID that image tools accept.
const ID_MAX: u32 = i32::MAX as u32;
/// The kernel's bound on the groups of a process.
const GROUPS_MAX: usize = 65_536;

/// The identity of a container's processes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserIds {
    pub uid: u32,
    pub gid: u32,
    /// Further groups the user is in; none when a group was given.
    pub groups: Vec<u32>,
}

/// Resolves `name[:group]` or `uid[:gid]` against a root file system: either one mounted directory, or its layers, bottom
/// first. Empty is root. Blocking.
pub fn resolve_user(rootfs: &[PathBuf], user: &str) -> Result<UserIds, ImageError> {
    let refuse = |reason: String| ImageError::User { user: user.to_owned(), reason };
    let (who, group) = user.split_once(':').map_or((user, None), |(who, group)| (who, Some(group)));
    if group.is_some_and(|group| group.is_empty() || group.contains(':')) {
        return Err(refuse("the form is name[:group] or uid[:gid]".to_owned()));
    }
    let who = if who.is_empty() { "0" } else { who };
    let lines = |file| read_lines(rootfs, file).map_err(|e| refuse(format!("{file} of the image cannot be read: {e}")));

    let number = id(who);
    let entry = lines("etc/passwd")?.iter().find_map(|line| Account::parse(line).filter(|a| a.is(who, number)));
    let (name, uid, gid) = match (entry, number) {
        (Some(account), _) => (Some(account.name), account.uid, account.gid),
        (None, Some(uid)) => (None, uid, 0),
        (None, None) if who.bytes().all(|b| b.is_ascii_digit()) => {
            return Err(refuse(format!("user IDs go to {ID_MAX}")));
        }
        (None, None) => return Err(refuse(format!("there is no {who:?} in the image's /etc/passwd"))),
    };
    if group.is_none() && name.is_none() {
        return Ok(UserIds { uid, gid, groups: Vec::new() });
    }
    let groups: Vec<Group> = lines("etc/group")?.iter().filter_map(|line| Group::parse(line)).collect();
    let Some(group) = group else {
        let is_member = |g: &Group| g.gid != gid && name.as_ref().is_some_and(|name| g.members.contains(name));
        let mut extra: Vec<u32> = groups.iter().filter(|g| is_member(g)).map(|g| g.gid).collect();
        extra.sort_unstable();
        extra.dedup();
        extra.truncate(GROUPS_MAX);
        return Ok(UserIds { uid, gid, groups: extra });
    };
    let gid = match (groups.iter().find(|g| g.name == group), id(group)) {
        (Some(found), _) => found.gid,
        (None, Some(gid)) => gid,
        (None, None) => return Err(refuse(format!("there is no {group:?} in the image's /etc/group"))),
    };
    Ok(UserIds { uid, gid, groups: Vec::new() })
}

fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= ID_MAX)
}

struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Account {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        Some(Self { name, uid: id(fields.nth(1)?)?, gid: id(fields.next()?)? })
    }

    /// A name wins over a number that reads the same.
    fn is(&self, who: &str, number: Option<u32>) -> bool {
        self.name == who || number == Some(self.uid)
    }
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Group {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        let gid = id(fields.nth(1)?)?;
        let members =
            fields.next().unwrap_or_default().split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
        Some(Self { name, gid, members })
    }
}

/// The lines of a file of the image; none when there is no such file.
fn read_lines(rootfs: &[PathBuf], name: &str) -> io::Result<Vec<String>> {
    let Some(file) = find(rootfs, name)? else { return Ok(Vec::new()) };
    if file.metadata()?.len() > FILE_MAX {
        return Err(io::Error::other("it is over 16 MiB"));
    }
    let mut reader = BufReader::new(file.take(FILE_MAX));
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        if reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(lines);
        }
        lines.push(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned());
    }
}

enum Look {
    File(File),
    /// Hidden here: layers below do not count.
    Gone,
    /// Not in this layer.
    Below,
}

/// As the overlay would find it: the topmost layer that says something about the file.
fn find(rootfs: &[PathBuf], name: &str) -> io::Result<Option<File>> {
    for layer in rootfs.iter().rev() {
        match look(layer, name)? {
            Look::File(file) => return Ok(Some(file)),
            Look::Gone => return Ok(None),
            Look::Below => {}
        }
    }
    Ok(None)
}

fn look(layer: &Path, name: &str) -> io::Result<Look> {
    let root = fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let open = |path: &str, flags: OFlags| {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), inside)
    };
    // Not blocking on a pipe, and not touching a device: looked at before it is opened for reading.
    let handle = match open(name, OFlags::PATH) {
        Ok(handle) => handle,
        Err(Errno::NOENT) => return Ok(if hides_below(&root, name)? { Look::Gone } else { Look::Below }),
        Err(Errno::NOTDIR) => return Ok(Look::Gone),
        Err(errno) => return Err(errno.into()),
    };
    let stat = fs::fstat(&handle)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Look::File(open(name, OFlags::RDONLY | OFlags::NONBLOCK)?.into())),
        FileType::CharacterDevice if stat.st_rdev == 0 => Ok(Look::Gone),
        _ => Err(io::Error::other("it is not a regular file")),
    }
}

/// Whether this layer, though without the file, hides those below.
fn hides_below(root: &impl std::os::fd::AsFd, name: &str) -> io::Result<bool> {
    // A link whose target is in another layer: only the mounted whole can tell.
    if let Ok(stat) = fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW)
        && FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
    {
        return Err(io::Error::other("it is a link into another layer; look it up in the mounted root file system"));
    }
    let Some((dir, _)) = name.rsplit_once('/') else { return Ok(false) };
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let dir = match fs::openat2(root, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), inside)
    {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    };
    let mut value = [0; 1];
    Ok(matches!(fs::fgetxattr(&dir, OPAQUE, &mut value[..]), Ok(1)) && value == *b"y")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn image(passwd: &str, group: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        fs::write(dir.path().join("etc/group"), group).unwrap();
        dir
    }

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\n::\nweb:x:33:34::/:/x\n1000:x:7:8::/:\nx:x:99999999999:1::/:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nssl:x:90:web,other\nlog:x:91:other,web\nbad:x:no:web\n";

    #[test]
    fn names_and_numbers_are_resolved_inside_the_image() {
        let image = image(PASSWD, GROUP);
        let dirs = [image.path().to_owned()];
        let ids = |user: &str| resolve_user(&dirs, user).map(|u| (u.uid, u.gid, u.groups)).map_err(|e| e.to_string());
        assert_eq!(ids(""), Ok((0, 0, vec![])));
        assert_eq!(ids("web"), Ok((33, 34, vec![90, 91])));
        assert_eq!(ids("33"), Ok((33, 34, vec![90, 91])));
        assert_eq!(ids("web:ssl"), Ok((33, 90, vec![])));
        assert_eq!(ids("web:7"), Ok((33, 7, vec![])));
        assert_eq!(ids("12345"), Ok((12345, 0, vec![])));
        assert_eq!(ids("12345:12"), Ok((12345, 12, vec![])));
        assert_eq!(ids("1000"), Ok((7, 8, vec![])), "a name of digits is a name first");
        for bad in ["nobody", "web:nogroup", "web:", "web:a:b", "4294967295", "99999999999", "-1", "+5", "x"] {
            assert!(ids(bad).unwrap_err().contains(&format!("{bad:?}")), "{bad}");
        }
    }

    #[test]
    fn an_image_without_the_files_takes_numbers_only() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        assert_eq!(resolve_user(&dirs, "5:6").unwrap(), UserIds { uid: 5, gid: 6, groups: vec![] });
        assert!(resolve_user(&dirs, "web").is_err());
    }

    #[test]
    fn layers_are_looked_through_from_the_top() {
        let lower = image("web:x:1:1::/:\n", "");
        let upper = image("web:x:2:2::/:\n", "");
        let empty = tempfile::tempdir().unwrap();
        let dirs = [&lower, &upper, &empty].map(|dir| dir.path().to_owned());
        assert_eq!(resolve_user(&dirs, "web").unwrap().uid, 2);
        fs::remove_file(upper.path().join("etc/passwd")).unwrap();
        assert_eq!(resolve_user(&dirs, "web").unwrap().uid, 1);
        if !crate::image::testing::needs_root("layers_are_looked_through_from_the_top (deletions)") {
            return;
        }
        xattr::set(upper.path().join("etc"), "trusted.overlay.opaque", b"y").unwrap();
        assert!(resolve_user(&dirs, "web").is_err());
        xattr::remove(upper.path().join("etc"), "trusted.overlay.opaque").unwrap();
        let path = upper.path().join("etc/passwd");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        assert!(resolve_user(&dirs, "web").is_err());
    }

    #[test]
    fn links_and_pipes_do_not_lead_out_or_hang() {
        let image = image(PASSWD, GROUP);
        let dirs = [image.path().to_owned()];
        let passwd = image.path().join("etc/passwd");
        fs::rename(&passwd, image.path().join("real")).unwrap();
        std::os::unix::fs::symlink("/real", &passwd).unwrap();
        assert_eq!(resolve_user(&dirs, "web").unwrap().uid, 33, "an absolute link counts from the image's root");
        fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("../../../../../../../../../etc/hostname", &passwd).unwrap();
        assert!(resolve_user(&dirs, "web").is_err());
        fs::remove_file(&passwd).unwrap();
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(resolve_user(&dirs, "web").unwrap_err().to_string().contains("regular file"));
    }
}
