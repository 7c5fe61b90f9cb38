//! The channel directory by its descriptor: no path length matters (a socket's path ends at 108 bytes), no link is followed.

use std::{
    fs::{File, Permissions},
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

use ha_proto::agent::Config;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat, renameat},
    sys::stat::{Mode, SFlag, fstat, fstatat},
    unistd::{UnlinkatFlags, unlinkat},
};

use super::Error;

/// An open channel directory.
#[derive(Debug)]
pub struct ChannelDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl ChannelDir {
    /// Opens the directory and makes it root's alone.
    ///
    /// # Errors
    /// [`Error::Channel`] when it is missing or not a directory.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Channel { what: "open", name: ".", dir: path.to_owned(), source };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let dir = File::from(fd);
        dir.set_permissions(Permissions::from_mode(0o700)).map_err(failed)?;
        Ok(Self { fd: dir.into(), path: path.to_owned() })
    }

    /// Writes the configuration an agent reads at its start.
    ///
    /// # Errors
    /// [`Error::Config`] when it holds what cannot work, [`Error::Channel`] when it cannot be written.
    pub fn write_config(&self, config: &Config) -> Result<(), Error> {
        const NEW: &str = "agent.json.new";
        let text = config.to_json().map_err(Error::Config)?;
        self.remove(NEW)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.fd, NEW, flags, Mode::from_bits_truncate(0o600));
        let mut file = File::from(file.map_err(|e| self.error("create", NEW)(e.into()))?);
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(self.error("write", NEW))?;
        renameat(&self.fd, NEW, &self.fd, "agent.json").map_err(|e| self.error("rename", NEW)(e.into()))
    }

    /// Removes a file or socket, if it is there; never what a link points to.
    pub(super) fn remove(&self, name: &'static str) -> Result<(), Error> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EISDIR | Errno::EPERM) => unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)
                .map_err(|e| self.error("remove the directory", name)(e.into())),
            Err(error) => Err(self.error("remove", name)(error.into())),
        }
    }

    /// A path to bind a socket at. Binding follows no link: what exists is an error.
    pub(super) fn bind_path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
    }

    /// The socket `name`, pinned: connect to `/proc/self/fd/N` of what is returned.
    pub(super) fn socket(&self, name: &'static str) -> Result<OwnedFd, Error> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty()).map_err(|e| Error::Unreachable(e.into()))?;
        self.is_kind(&fd, name, SFlag::S_IFSOCK, "socket")?;
        Ok(fd)
    }

    /// A regular file to read; `None` when it does not exist.
    pub(super) fn file(&self, name: &'static str) -> Result<Option<File>, Error> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        // Looked at before: opening a device has effects. Opened without following, looked at again.
        match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(None),
            Ok(stat) if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG => {
                return Err(self.not_a(name, "regular file"));
            }
            _ => {}
        }
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => self.is_kind(&fd, name, SFlag::S_IFREG, "regular file").map(|()| Some(fd.into())),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ELOOP) => Err(self.not_a(name, "regular file")),
            Err(error) => Err(self.error("open", name)(error.into())),
        }
    }

    fn is_kind(&self, fd: &OwnedFd, name: &'static str, kind: SFlag, wanted: &'static str) -> Result<(), Error> {
        let stat = fstat(fd).map_err(|e| self.error("look at", name)(e.into()))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind {
            Ok(())
        } else {
            Err(self.not_a(name, wanted))
        }
    }

    fn not_a(&self, name: &'static str, wanted: &'static str) -> Error {
        Error::NotA { name, wanted, dir: self.path.clone() }
    }

    pub(super) fn error(&self, what: &'static str, name: &'static str) -> impl FnOnce(io::Error) -> Error {
        let dir = self.path.clone();
        move |source| Error::Channel { what, name, dir, source }
    }
}
