//! Whether this node itself is the one that is cut off.
//!
//! A node whose cable is pulled holds its peers for dead, and may still reach the store by another way. What it then took
//! over it would take from a living node, and nobody could reach it here. So a node without a carrier takes nothing
//! over, nor right after its carrier came back: until its peers have been heard again, what it holds of them is old.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Longer than a peer that is there takes to be heard again.
const SETTLE: Duration = Duration::from_secs(10);

/// The configured uplink; without one nothing is known and nothing held back.
#[derive(Debug)]
pub(super) struct Uplink {
    dir: Option<PathBuf>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// The kernel's count of carriers lost and found: a short loss between two looks is seen by it.
    changes: Option<u64>,
    unsettled_until: Option<Instant>,
}

impl Uplink {
    pub fn new(link: Option<&str>) -> Self {
        let dir = link.map(|link| PathBuf::from("/sys/class/net").join(link));
        let changes = dir.as_ref().and_then(|dir| changes(dir));
        Self { dir, seen: Mutex::new(Seen { changes, unsettled_until: None }) }
    }

    /// Whether the uplink carries anything now; true where none is configured.
    pub fn has_carrier(&self) -> bool {
        let Some(dir) = &self.dir else { return true };
        match fs::read_to_string(dir.join("carrier")) {
            Ok(carrier) => carrier.trim() != "0",
            // Switched off: the kernel then refuses the question.
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => false,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Why this node must not take anything over just now; `None` when it may. To be asked regularly.
    pub fn cut_off(&self, now: Instant) -> Option<String> {
        let dir = self.dir.as_ref()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = changes(dir);
        let carrier = self.has_carrier();
        if !carrier || changes != seen.changes {
            (seen.changes, seen.unsettled_until) = (changes, Some(now + SETTLE));
        }
        let link = dir.file_name().unwrap_or_default().to_string_lossy();
        if !carrier {
            return Some(format!("the uplink {link} has no carrier: this node is cut off"));
        }
        if seen.unsettled_until.is_some_and(|until| now < until) {
            return Some(format!("the uplink {link} lost its carrier a moment ago"));
        }
        None
    }
}

fn changes(dir: &Path) -> Option<u64> {
    fs::read_to_string(dir.join("carrier_changes")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(carrier: &str, changes: &str) -> (tempfile::TempDir, Uplink) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("carrier"), carrier).unwrap();
        fs::write(dir.path().join("carrier_changes"), changes).unwrap();
        let seen = Mutex::new(Seen { changes: super::changes(dir.path()), unsettled_until: None });
        let uplink = Uplink { dir: Some(dir.path().to_owned()), seen };
        (dir, uplink)
    }

    #[test]
    fn without_a_carrier_and_for_a_while_after_nothing_is_taken_over() {
        let (dir, uplink) = uplink("1\n", "2\n");
        let now = Instant::now();
        assert_eq!(uplink.cut_off(now), None);
        fs::write(dir.path().join("carrier"), "0\n").unwrap();
        fs::write(dir.path().join("carrier_changes"), "3\n").unwrap();
        assert!(uplink.cut_off(now).is_some_and(|why| why.contains("no carrier")));
        fs::write(dir.path().join("carrier"), "1\n").unwrap();
        fs::write(dir.path().join("carrier_changes"), "4\n").unwrap();
        assert!(uplink.cut_off(now + Duration::from_secs(60)).is_some());
        assert!(uplink.cut_off(now + Duration::from_secs(69)).is_some());
        assert_eq!(uplink.cut_off(now + Duration::from_secs(71)), None);
    }

    #[test]
    fn a_loss_between_two_looks_counts() {
        let (dir, uplink) = uplink("1\n", "2\n");
        fs::write(dir.path().join("carrier_changes"), "4\n").unwrap();
        assert!(uplink.cut_off(Instant::now()).is_some());
    }

    #[test]
    fn a_node_without_an_uplink_is_not_held_back() {
        assert_eq!(Uplink::new(None).cut_off(Instant::now()), None);
    }
}
