//! The counter: one statically linked program and nothing else.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    path::Path,
    process::Command,
};

use anyhow::Context;

use super::rootfs;

const SOURCE: &str = include_str!("../workloads/counter.rs");

pub(super) fn key() -> String {
    let mut hasher = DefaultHasher::new();
    SOURCE.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

pub(super) fn make(root: &Path) -> anyhow::Result<()> {
    rootfs::skeleton(root)?;
    install(root, "bin/counter")
}

/// Compiles the program to `root`/`place`; other images have it as their healthcheck.
pub(super) fn install(root: &Path, place: &str) -> anyhow::Result<()> {
    let (source, program) = (root.join("counter.rs"), root.join(place));
    fs::write(&source, SOURCE)?;
    if let Some(parent) = program.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition=2024", "-O", "-Ctarget-feature=+crt-static", "-Cpanic=abort", "-Cstrip=symbols"]);
    crate::run(rustc.args(["--crate-name=counter", "-o"]).arg(&program).arg(&source))
        .context("cannot compile the counter statically (libc6-dev has the static libc)")?;
    fs::remove_file(source)?;
    Ok(())
}
