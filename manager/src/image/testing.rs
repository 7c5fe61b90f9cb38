//! What this room's tests share.

use std::path::PathBuf;

/// Whether the test can run; says so when it cannot.
pub fn needs_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED {test}: it needs root (owners, devices, mounts)");
    }
    root
}

/// Unmounts at the end of a test, also of one that fails.
pub struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = super::umount_overlay(&self.0) {
            eprintln!("{error}");
        }
    }
}
