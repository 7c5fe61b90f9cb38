//! The kernel's version and the features no version number promises.

use std::{fs::File, os::unix::fs::FileExt};

use nix::sys::utsname::uname;

use super::{Check, sys};

/// With `pidfd_getfd`.
const OLDEST: (u32, u32) = (5, 6);

pub(super) fn checks() -> Vec<Check> {
    vec![version(), pidfd(), dirty_tracking()]
}

/// `(6, 18)` of `6.18.44-fc`.
fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn version() -> Check {
    const ID: (&str, &str) = ("kernel.version", "kernel");
    let remedy = format!("use Linux {}.{} or newer", OLDEST.0, OLDEST.1);
    let release = match uname() {
        Ok(name) => name.release().to_string_lossy().into_owned(),
        Err(error) => return Check::warn(ID.0, ID.1, format!("uname: {error}"), remedy),
    };
    match parse(&release) {
        Some(version) if version >= OLDEST => Check::ok(ID.0, ID.1, release),
        _ => Check::warn(ID.0, ID.1, release, remedy),
    }
}

fn pidfd() -> Check {
    const ID: (&str, &str) = ("kernel.pidfd", "pidfd");
    match sys::pidfd_getfd() {
        Ok(()) => Check::ok(ID.0, ID.1, "pidfd_open and pidfd_getfd work"),
        Err(error) => {
            Check::warn(ID.0, ID.1, error.to_string(), "use Linux 5.6 or newer, without a seccomp filter on it")
        }
    }
}

/// Whether pages written since a point in time can be told, either way.
fn dirty_tracking() -> Check {
    const ID: (&str, &str) = ("kernel.dirty-tracking", "dirty page tracking");
    let soft_dirty = soft_dirty();
    let wp_async = sys::userfaultfd_wp_async().and_then(|()| sys::pagemap_scan());
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let found = format!("soft-dirty {}, userfaultfd with PAGEMAP_SCAN {}", yes(soft_dirty), yes(wp_async.is_ok()));
    if soft_dirty || wp_async.is_ok() {
        return Check::ok(ID.0, ID.1, found);
    }
    let remedy =
        "use Linux 6.7 or newer, or one with CONFIG_MEM_SOFT_DIRTY; until then every checkpoint reads all memory";
    Check::warn(ID.0, ID.1, found, remedy)
}

/// Whether a page just written has the soft-dirty bit, which it has wherever the kernel keeps it.
fn soft_dirty() -> bool {
    let page = vec![1u8; 1];
    // The address is only a number here; the page holds it until the end of this function.
    let Ok(Some(page_size)) = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE) else { return false };
    let Ok(page_size) = u64::try_from(page_size) else { return false };
    let index = page.as_ptr() as u64 / page_size;
    let mut entry = [0; 8];
    let read = File::open("/proc/self/pagemap").and_then(|pagemap| pagemap.read_exact_at(&mut entry, index * 8));
    drop(page);
    read.is_ok() && u64::from_ne_bytes(entry) & (1 << 55) != 0
}

#[cfg(test)]
mod tests {
    #[test]
    fn releases_are_parsed() {
        assert_eq!(super::parse("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(super::parse("5.6"), Some((5, 6)));
        assert_eq!(super::parse("linux"), None);
    }
}
