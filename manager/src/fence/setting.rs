//! What a watchdog is started with.

use std::{ffi::OsString, path::PathBuf};

use crate::network::HOST_LINK_PREFIX;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Where the watchdog's socket and lock are. It must exist.
    pub run_dir: PathBuf,
    /// The parent of all containers' control groups, from the hierarchies' roots: `/ha-manager`.
    pub cgroup: PathBuf,
    /// How the names of the containers' host-side links begin.
    pub link_prefix: String,
    /// The hardware watchdog, e.g. `/dev/watchdog`.
    pub device: Option<PathBuf>,
    /// The program that is started as `EXE watchdog …`.
    pub exe: PathBuf,
}

impl Setting {
    /// This node's, with this very program as the watchdog.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            cgroup: "/ha-manager".into(),
            link_prefix: HOST_LINK_PREFIX.into(),
            device: None,
            // Also when the file has been replaced since.
            exe: "/proc/self/exe".into(),
        }
    }

    /// What `exe` is called with.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["watchdog".into()];
        let mut option = |name: &str, value: &OsString| words.extend([name.into(), value.clone()]);
        option("--run-dir", &self.run_dir.clone().into());
        option("--cgroup", &self.cgroup.clone().into());
        option("--link-prefix", &self.link_prefix.clone().into());
        if let Some(device) = &self.device {
            option("--device", &device.clone().into());
        }
        words
    }

    /// Tells a watchdog of another version or with other options from one that this setting would start. Where it is does not
    /// matter: that is how it was found.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        let device = self.device.as_ref().map_or(&b""[..], |device| device.as_os_str().as_encoded_bytes());
        let cgroup = self.cgroup.as_os_str().as_encoded_bytes();
        for part in [env!("CARGO_PKG_VERSION").as_bytes(), cgroup, self.link_prefix.as_bytes(), device] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_options_are_another_setting() {
        let one = Setting::new("/run/a");
        let device = Setting { device: Some("/dev/watchdog".into()), ..one.clone() };
        let prefix = Setting { link_prefix: "hx".into(), ..one.clone() };
        let group = Setting { cgroup: "/other".into(), ..one.clone() };
        let digests = [&one, &device, &prefix, &group].map(Setting::digest);
        assert!((1..4).all(|i| !digests[..i].contains(&digests[i])), "{digests:?}");
        assert_eq!(one.digest(), Setting::new("/run/b").digest());
    }

    #[test]
    fn the_command_line_understands_its_arguments() {
        use clap::Parser;
        let setting = Setting { device: Some("/dev/watchdog".into()), ..Setting::new("/run/a") };
        let words = std::iter::once("ha-manager".into()).chain(setting.arguments());
        let crate::cli::Command::Watchdog(args) = crate::cli::Cli::parse_from(words).command else { panic!() };
        let understood = Setting::from(args);
        assert_eq!(understood, setting);
    }
}
