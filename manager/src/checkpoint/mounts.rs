//! Which of a container's mounts CRIU has to leave alone, named as runc will name them at the restore.

use std::{fs, path::Path};

use serde::Deserialize;

use super::{dump::DumpError, rpc::ExtMount};

/// The parts of a bundle's `config.json` that a dump needs.
#[derive(Debug)]
pub(super) struct Config {
    pub rootfs: String,
    binds: Vec<String>,
    masked: Vec<String>,
}

#[derive(Deserialize)]
struct Raw {
    root: RawRoot,
    #[serde(default)]
    mounts: Vec<RawMount>,
    #[serde(default)]
    linux: RawLinux,
}

#[derive(Deserialize)]
struct RawRoot {
    path: String,
}

#[derive(Deserialize)]
struct RawMount {
    destination: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    options: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLinux {
    #[serde(default)]
    masked_paths: Vec<String>,
}

pub(super) fn read_config(bundle: &Path) -> Result<Config, DumpError> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).map_err(|source| DumpError::Io { operation: "read", path: path.clone(), source })?;
    parse(&text).map_err(|error| DumpError::Bundle { path, reason: error.to_string() })
}

fn parse(text: &[u8]) -> serde_json::Result<Config> {
    let raw: Raw = serde_json::from_slice(text)?;
    let is_bind = |mount: &RawMount| {
        mount.kind == "bind" || mount.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"))
    };
    let binds = raw.mounts.into_iter().filter(is_bind).map(|mount| mount.destination).collect();
    Ok(Config { rootfs: raw.root.path, binds, masked: raw.linux.masked_paths })
}

impl Config {
    /// Binds under their own target; masked files, which are binds of `/dev/null`, under that name.
    pub fn external_mounts(&self, init_pid: i32) -> Vec<ExtMount> {
        let bind = |target: &String| ExtMount { key: target.clone(), val: target.clone() };
        let masked = self.masked.iter().filter(|path| {
            fs::symlink_metadata(format!("/proc/{init_pid}/root{path}")).is_ok_and(|meta| !meta.is_dir())
        });
        let mask = |path: &String| ExtMount { key: path.clone(), val: "/dev/null".to_owned() };
        self.binds.iter().map(bind).chain(masked.map(mask)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_told_from_other_mounts_by_type_or_option() {
        let config = parse(
            br#"{"root":{"path":"/r"},"mounts":[
                {"destination":"/a","type":"bind","source":"/x","options":["ro"]},
                {"destination":"/b","source":"/x","options":["rbind"]},
                {"destination":"/c","type":"tmpfs","source":"tmpfs"}],
                "linux":{"maskedPaths":["/proc/kcore"]}}"#,
        )
        .unwrap();
        assert_eq!((config.rootfs.as_str(), config.binds), ("/r", vec!["/a".to_owned(), "/b".to_owned()]));
        assert_eq!(config.masked, ["/proc/kcore"]);
    }
}
