//! Writing an OCI bundle.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::spec::Rlimit;

use super::{defaults, rlimit};

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("mount target {target:?} is not usable: it has to be an absolute path without '.' or '..'")]
    MountTarget { target: PathBuf },
    #[error("mount source {source_path:?} is not usable: it has to exist on this node; create it or correct the path")]
    MountSource { source_path: PathBuf, source: io::Error },
    #[error("path {path:?} is not valid UTF-8, which a bundle needs")]
    Utf8 { path: PathBuf },
    #[error("ulimit {name:?} is unknown; allowed are {allowed}")]
    UnknownRlimit { name: String, allowed: String },
    #[error("ulimit {name}: the soft limit {soft} is above the hard limit {hard}")]
    RlimitOrder { name: String, soft: u64, hard: u64 },
    #[error(
        "ulimit {name}: {wanted} is above this host's hard limit {host}, which the manager may not raise; \
         lower the ulimit, raise the limit of the manager's service, or give it CAP_SYS_RESOURCE"
    )]
    RlimitAboveHost { name: String, wanted: u64, host: u64 },
}

/// The process a container starts with.
#[derive(Debug, Clone, Default)]
pub struct Process {
    pub argv: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute; `/` when empty.
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

/// A directory or file of the node, seen inside.
#[derive(Debug, Clone)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

/// Memory, in the images with the processes. Each one costs about 5 ms of every freeze.
#[derive(Debug, Clone)]
pub struct Tmpfs {
    pub target: PathBuf,
    pub size_bytes: Option<u64>,
    pub read_only: bool,
}

/// All a bundle is made from. Paths of the node may differ between nodes; the order and targets of `binds` and `tmpfs`
/// may not, since images refer to mounts by their targets.
#[derive(Debug, Clone)]
pub struct BundleSpec {
    /// An existing directory; `config.json` and the files below are written there.
    pub dir: PathBuf,
    /// Already mounted, usually an overlay's merged directory.
    pub rootfs: PathBuf,
    pub process: Process,
    pub hostname: String,
    /// Path of a named network namespace, fresh for every start and restore.
    pub netns: PathBuf,
    /// The cgroup, from the controllers' roots: `/ha-manager/web`.
    pub cgroups_path: String,
    /// The agent's directory (read-only at [`super::AGENT_BIN_DIR`]) when the container has an agent.
    pub agent_bin_dir: Option<PathBuf>,
    /// The channel's directory (writable at [`super::AGENT_CHANNEL_DIR`]).
    pub channel_dir: Option<PathBuf>,
    pub binds: Vec<Bind>,
    pub tmpfs: Vec<Tmpfs>,
    /// Contents of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Contents of `/etc/hosts`.
    pub hosts: String,
    pub rlimits: Vec<Rlimit>,
    /// Handed on unchanged, except that `org.criu.config` is always ours.
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// Writes `config.json`, `criu.conf`, `resolv.conf`, `hosts` and `hostname` into `spec.dir`, each replaced as a whole.
///
/// # Errors
/// What could not be written, or which part of the specification this host cannot give (see [`BundleError`]).
pub fn write_bundle(spec: &BundleSpec) -> Result<(), BundleError> {
    let config = config(spec)?;
    let files = [
        ("criu.conf", defaults::CRIU_CONF.to_owned()),
        ("resolv.conf", spec.resolv_conf.clone()),
        ("hosts", spec.hosts.clone()),
        ("hostname", format!("{}\n", spec.hostname)),
        ("config.json", format!("{config:#}\n")),
    ];
    for (name, contents) in files {
        let path = spec.dir.join(name);
        let temporary = spec.dir.join(format!(".{name}.new"));
        fs::write(&temporary, contents)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|source| BundleError::Write { path, source })?;
    }
    Ok(())
}

fn config(spec: &BundleSpec) -> Result<Value, BundleError> {
    let mut annotations = json!(spec.annotations);
    annotations["org.criu.config"] = json!(utf8(&spec.dir.join("criu.conf"))?);
    let cwd = if spec.process.cwd.is_empty() { "/" } else { &spec.process.cwd };
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "root": { "path": utf8(&spec.rootfs)?, "readonly": false },
        "process": {
            "terminal": false,
            "user": {
                "uid": spec.process.uid,
                "gid": spec.process.gid,
                "additionalGids": spec.process.additional_gids,
            },
            "args": spec.process.argv,
            "env": spec.process.env,
            "cwd": cwd,
            "capabilities": capabilities(),
            "rlimits": spec.rlimits.iter().map(rlimit::to_oci).collect::<Result<Vec<_>, _>>()?,
            "noNewPrivileges": false,
        },
        "mounts": mounts(spec)?,
        "annotations": annotations,
        "linux": {
            "cgroupsPath": spec.cgroups_path,
            "namespaces": [
                { "type": "pid" },
                { "type": "ipc" },
                { "type": "uts" },
                { "type": "mount" },
                { "type": "network", "path": utf8(&spec.netns)? },
            ],
            "resources": { "devices": devices() },
            "seccomp": defaults::seccomp(),
            "maskedPaths": defaults::MASKED_PATHS,
            "readonlyPaths": defaults::READONLY_PATHS,
        },
    }))
}

fn capabilities() -> Value {
    json!({
        "bounding": defaults::CAPABILITIES,
        "effective": defaults::CAPABILITIES,
        "permitted": defaults::CAPABILITIES,
    })
}

/// No devices but the usual ones, which the runtime allows itself, and making nodes, which gives no access.
fn devices() -> Value {
    json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "access": "m" },
        { "allow": true, "type": "b", "access": "m" },
    ])
}

/// What is mounted inside another mount comes after it, or it would be buried. The order is the same on every node.
fn mounts(spec: &BundleSpec) -> Result<Vec<Value>, BundleError> {
    let mut mounts: Vec<(usize, Value)> = Vec::new();
    let depth = |target: &Path| target.components().count();
    for tmpfs in &spec.tmpfs {
        let mut options = vec!["nosuid".to_owned(), "nodev".to_owned(), "mode=1777".to_owned()];
        options.extend(tmpfs.size_bytes.map(|bytes| format!("size={bytes}")));
        options.extend(tmpfs.read_only.then(|| "ro".to_owned()));
        let mount = json!({
            "destination": target(&tmpfs.target)?, "type": "tmpfs", "source": "tmpfs", "options": options,
        });
        mounts.push((depth(&tmpfs.target), mount));
    }
    let ours = |source: PathBuf, target: &str, read_only| Bind { source, target: target.into(), read_only };
    let own_files = ["resolv.conf", "hosts", "hostname"];
    let mut binds: Vec<Bind> =
        own_files.iter().map(|name| ours(spec.dir.join(name), &format!("/etc/{name}"), true)).collect();
    for bind in &spec.binds {
        // The bundle's own files are written after this check; everything else has to be there by now.
        bind.source
            .symlink_metadata()
            .map_err(|source| BundleError::MountSource { source_path: bind.source.clone(), source })?;
        binds.push(bind.clone());
    }
    binds.extend(spec.agent_bin_dir.iter().map(|dir| ours(dir.clone(), super::AGENT_BIN_DIR, true)));
    binds.extend(spec.channel_dir.iter().map(|dir| ours(dir.clone(), super::AGENT_CHANNEL_DIR, false)));
    for bind in &binds {
        // Private: a mount made on the node later must not appear in the container, where a dump would trip over it.
        let mode = if bind.read_only { "ro" } else { "rw" };
        let mount = json!({
            "destination": target(&bind.target)?,
            "type": "bind",
            "source": utf8(&bind.source)?,
            "options": ["bind", "private", mode],
        });
        mounts.push((depth(&bind.target), mount));
    }
    mounts.sort_by_key(|(depth, _)| *depth);
    Ok(defaults::mounts().into_iter().chain(mounts.into_iter().map(|(_, mount)| mount)).collect())
}

fn target(path: &Path) -> Result<&str, BundleError> {
    use std::path::Component::{Normal, RootDir};
    let plain = path.components().all(|part| matches!(part, RootDir | Normal(_)));
    if !path.is_absolute() || !plain || path == Path::new("/") {
        return Err(BundleError::MountTarget { target: path.to_owned() });
    }
    utf8(path)
}

fn utf8(path: &Path) -> Result<&str, BundleError> {
    path.to_str().ok_or_else(|| BundleError::Utf8 { path: path.to_owned() })
}
