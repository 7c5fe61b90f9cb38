//! The machine's hardware watchdog (`/dev/watchdog`): resets the machine when it is not written to in time.
//!
//! It covers what the watchdog process cannot: a kernel that hangs, the process's own end, and containers that can be neither
//! frozen nor killed.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::Path,
    time::Duration,
};

/// Assumed of a device that does not say.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Fixed by the kernel: anything else on closing means that the machine is to be reset.
const DISARM: &[u8] = b"V";
const PET: &[u8] = b"\0";

nix::ioctl_read!(
    /// `WDIOC_GETTIMEOUT`, in seconds.
    get_timeout,
    b'W',
    7,
    libc::c_int
);

#[derive(Debug)]
pub(super) struct Device {
    file: File,
    interval: u64,
    /// When it is to be written to next, in nanoseconds of CLOCK_MONOTONIC.
    next: u64,
    warning: Option<String>,
}

impl Device {
    /// From here on the machine is reset when [`Device::pet`] is not called.
    ///
    /// # Errors
    /// It does not exist, or somebody else has it open.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        if file.metadata()?.file_type().is_file() {
            return Err(io::Error::other("it is a file, not a device"));
        }
        let (timeout, warning) = match timeout_of(&file) {
            Ok(timeout) => (timeout, None),
            Err(error) => {
                let what = format!("{} does not say its timeout ({error}): taken for 15 s", path.display());
                (TIMEOUT, Some(what))
            }
        };
        Ok(Self { file, interval: interval(timeout), next: 0, warning })
    }

    /// What is odd about it, once.
    pub fn take_warning(&mut self) -> Option<String> {
        self.warning.take()
    }

    pub fn next(&self) -> u64 {
        self.next
    }

    /// Writes to it when it is time.
    ///
    /// # Errors
    /// The device's. It is tried again after the interval.
    pub fn pet(&mut self, now: u64) -> io::Result<()> {
        if now < self.next {
            return Ok(());
        }
        self.next = now.saturating_add(self.interval);
        self.file.write_all(PET)
    }

    /// Nothing is reset from here on (but by a driver that was loaded with `nowayout`).
    ///
    /// # Errors
    /// The device's: the machine will be reset.
    pub fn disarm(mut self) -> io::Result<()> {
        self.file.write_all(DISARM)
    }
}

fn timeout_of(file: &File) -> io::Result<Duration> {
    if !file.metadata()?.file_type().is_char_device() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut seconds: libc::c_int = 0;
    // SAFETY: the kernel writes one int, to a variable that outlives the call; the descriptor is open.
    #[allow(unsafe_code)]
    unsafe { get_timeout(file.as_raw_fd(), &raw mut seconds) }?;
    u64::try_from(seconds)
        .ok()
        .filter(|s| *s > 0)
        .map(Duration::from_secs)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{seconds} s")))
}

/// A third: two attempts may be late.
fn interval(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_nanos() / 3).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, path::PathBuf};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn fake(dir: &tempfile::TempDir) -> (PathBuf, File) {
        let path = dir.path().join("watchdog");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        (path, reader)
    }

    fn heard(reader: &mut File) -> Vec<u8> {
        let mut bytes = [0; 64];
        match reader.read(&mut bytes) {
            Ok(length) => bytes[..length].to_vec(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn it_is_petted_every_third_of_its_time_and_told_farewell() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut reader) = fake(&dir);
        let mut device = Device::open(&path).unwrap();
        let warning = device.take_warning().unwrap();
        assert!(warning.contains("taken for 15 s"), "{warning}");
        assert_eq!(device.next(), 0, "at once");
        let second = 1_000_000_000;
        let mut at = |device: &mut Device, seconds: u64| {
            device.pet(seconds * second).unwrap();
            heard(&mut reader)
        };
        assert_eq!(at(&mut device, 100), PET);
        assert_eq!(device.next(), 105 * second);
        assert_eq!(at(&mut device, 104), b"");
        assert_eq!(at(&mut device, 105), PET);
        assert_eq!(at(&mut device, 120), PET, "one that is late is one");
        device.disarm().unwrap();
        assert_eq!(heard(&mut reader), DISARM);
    }

    #[test]
    fn what_is_not_there_or_a_mere_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Device::open(&dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(Device::open(&file).unwrap_err().to_string().contains("not a device"));
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }

    #[test]
    fn a_device_that_is_no_watchdog_is_taken_with_a_warning() {
        let mut device = Device::open(Path::new("/dev/null")).unwrap();
        assert!(device.take_warning().is_some() && device.take_warning().is_none());
    }
}
