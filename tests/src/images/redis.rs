//! Redis, as Debian installs it.

use std::{fs, path::Path, path::PathBuf};

use anyhow::Context;

use super::{counter, rootfs};

fn program() -> anyhow::Result<PathBuf> {
    let found = crate::which("redis-server").context("redis-server is not installed: scripts/setup --tests")?;
    Ok(fs::canonicalize(found)?)
}

pub(super) fn key() -> anyhow::Result<String> {
    Ok(format!("{}-{}", rootfs::key(2, &[program()?])?, counter::key()))
}

pub(super) fn make(root: &Path) -> anyhow::Result<()> {
    rootfs::skeleton(root)?;
    let program = program()?;
    for library in rootfs::closure(std::slice::from_ref(&program))? {
        rootfs::copy(root, &library)?;
    }
    // Debian's redis-server is a link to redis-check-rdb: the name it runs under decides what it is.
    fs::copy(&program, root.join("bin/redis-server"))?;
    counter::install(root, "bin/probe")
}
