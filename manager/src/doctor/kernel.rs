//! The kernel's version and the features no version number promises.

use nix::sys::utsname::uname;

use super::{Check, sys};

/// With `pidfd_getfd`.
const OLDEST: (u32, u32) = (5, 6);

pub(super) fn checks() -> Vec<Check> {
    vec![version(), pidfd()]
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

#[cfg(test)]
mod tests {
    #[test]
    fn releases_are_parsed() {
        assert_eq!(super::parse("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(super::parse("5.6"), Some((5, 6)));
        assert_eq!(super::parse("linux"), None);
    }
}
