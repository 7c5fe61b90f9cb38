//! Whether this node's CPU can run what another node's CPU ran.
//!
//! A program finds out once what its CPU can do (`AVX-512`, say) and keeps using it. CRIU describes a CPU in
//! `cpuinfo.img`; the description travels in the manifest and among the images; a node that lacks a feature refuses the snapshot before anything
//! of it is fetched.

use std::{
    fs, io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    dump::DumpError,
    logs,
    rpc::{self, kind},
    swrk::{Swrk, SwrkError},
};

/// The file's name among the images.
pub const CPUINFO: &str = "cpuinfo.img";

#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    #[error("cannot {operation} {path:?}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("CRIU could not describe or compare the CPU")]
    Swrk { source: SwrkError },
    #[error("this node's CPU lacks what the images need: {lines}; restore them on a node with such a CPU")]
    Incompatible { lines: String },
}

impl From<CpuError> for DumpError {
    fn from(error: CpuError) -> Self {
        DumpError::Cpu { source: Box::new(error) }
    }
}

/// Describes this node's CPU; the contents of [`CPUINFO`].
pub fn describe(criu: &Path, timeout: Duration) -> Result<Vec<u8>, CpuError> {
    let dir = scratch()?;
    let result = ask(criu, kind::CPUINFO_DUMP, "CPUINFO_DUMP", dir.path(), timeout).and_then(|()| {
        let path = dir.path().join(CPUINFO);
        fs::read(&path).map_err(|source| CpuError::Io { operation: "read", path, source })
    });
    drop(dir);
    result
}

/// Compares this node's CPU with the one described in `cpuinfo`.
///
/// # Errors
/// [`CpuError::Incompatible`] names the features that are missing.
pub fn check(criu: &Path, cpuinfo: &[u8], timeout: Duration) -> Result<(), CpuError> {
    let dir = scratch()?;
    let path = dir.path().join(CPUINFO);
    fs::write(&path, cpuinfo).map_err(|source| CpuError::Io { operation: "write", path, source })?;
    ask(criu, kind::CPUINFO_CHECK, "CPUINFO_CHECK", dir.path(), timeout).map_err(|error| match error {
        CpuError::Swrk { source: SwrkError::Refused { .. } } => {
            let lines = logs::decisive_lines(&dir.path().join("cpuinfo.log"));
            CpuError::Incompatible { lines: lines.unwrap_or_else(|| "CRIU gave no reason".to_owned()) }
        }
        other => other,
    })
}

fn ask(criu: &Path, kind: i32, what: &'static str, dir: &Path, timeout: Duration) -> Result<(), CpuError> {
    let open = fs::File::open(dir).map_err(|source| CpuError::Io {
        operation: "open the directory",
        path: dir.to_owned(),
        source,
    })?;
    let opts = rpc::Opts {
        images_dir_fd: open.as_raw_fd(),
        log_level: Some(1),
        log_file: Some("cpuinfo.log".to_owned()),
        ..Default::default()
    };
    let request = rpc::Request { kind, opts: Some(opts), ..Default::default() };
    let swrk = Swrk::spawn(criu).map_err(|source| CpuError::Swrk { source })?;
    swrk.ask(what, &request, timeout).map(drop).map_err(|source| CpuError::Swrk { source })
}

/// A directory of ours that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays in the temporary directory does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn scratch() -> Result<Scratch, CpuError> {
    let template = std::env::temp_dir().join("ha-cpuinfo-XXXXXX");
    nix::unistd::mkdtemp(&template).map(Scratch).map_err(|errno| CpuError::Io {
        operation: "create",
        path: template,
        source: errno.into(),
    })
}
