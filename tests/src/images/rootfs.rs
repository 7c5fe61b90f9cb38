//! Copies of installed programs with everything they load.

use std::{
    collections::{BTreeSet, hash_map::DefaultHasher},
    fs,
    hash::{Hash, Hasher},
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

/// A key for "made from these files by this recipe": paths, sizes, times and the recipe's own number.
pub fn key(recipe: u32, files: &[PathBuf]) -> anyhow::Result<String> {
    let mut hasher = DefaultHasher::new();
    recipe.hash(&mut hasher);
    for file in files {
        let meta = fs::metadata(file).with_context(|| format!("cannot find {}", file.display()))?;
        (file, meta.size(), meta.mtime()).hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Makes the directories that every container image has. As in Debian, /bin and its like are links into /usr: whether a
/// loader finds a library in /lib or in /usr/lib depends on the libc, and VLC looks for its plugins beside its library.
pub fn skeleton(root: &Path) -> anyhow::Result<()> {
    for dir in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(dir))?;
        symlink(Path::new("usr").join(dir), root.join(dir))?;
    }
    for dir in ["dev", "proc", "sys", "tmp", "run", "etc", "root", "data", "var/tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    Ok(())
}

/// Copies a file to the same path below `root`, following links.
pub fn copy(root: &Path, file: &Path) -> anyhow::Result<()> {
    let target = root.join(file.strip_prefix("/").unwrap_or(file));
    if target.exists() {
        return Ok(());
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(file, &target).with_context(|| format!("cannot copy {} to {}", file.display(), target.display()))?;
    Ok(())
}

/// The shared libraries that programs or libraries load, the loader included, under the names they are asked for by.
pub fn closure(files: &[PathBuf]) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for chunk in files.chunks(64) {
        // ldd fails as a whole when one of its files is not dynamic; what it found is printed all the same.
        let output = Command::new("ldd").args(chunk).output().context("cannot run ldd")?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            if line.contains("not found") {
                bail!("a library is missing: {}", line.trim());
            }
            let path = line.split_once("=> ").map_or(line, |(_, right)| right).trim();
            if let Some(path) = path.split(" (0x").next().filter(|path| path.starts_with('/') && !path.ends_with(':')) {
                found.insert(PathBuf::from(path));
            }
        }
    }
    Ok(found)
}
