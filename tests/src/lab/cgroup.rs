//! The control groups of a node: one directory in every hierarchy the machine has, version 1, 2 or both.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::Context;

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount_point: PathBuf,
    /// Version 1: the controllers or name that identify it in `mount -o`. Version 2: `None`.
    pub v1_options: Option<String>,
}

/// The hierarchies that are mounted here.
///
/// # Errors
/// When /proc is not readable.
pub fn hierarchies() -> anyhow::Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(parse(&text))
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(mount_point), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
        let v1_options = match right.next() {
            Some("cgroup") => Some(
                right
                    .nth(1)
                    .unwrap_or_default()
                    .split(',')
                    .filter(|word| {
                        !matches!(*word, "rw" | "ro" | "xattr" | "clone_children") && !word.contains("release")
                    })
                    .collect::<Vec<_>>()
                    .join(","),
            ),
            Some("cgroup2") => None,
            _ => continue,
        };
        let hierarchy = Hierarchy { mount_point: PathBuf::from(mount_point), v1_options };
        if !found.iter().any(|known| known.mount_point == hierarchy.mount_point) {
            found.push(hierarchy);
        }
    }
    found
}

/// The machine has the unified hierarchy alone, at /sys/fs/cgroup.
pub fn unified_only(all: &[Hierarchy]) -> bool {
    all.iter().all(|h| h.v1_options.is_none())
}

/// Creates the group `name` at the top of every hierarchy.
///
/// # Errors
/// With the directory that could not be made.
pub fn create(name: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let dir = hierarchy.mount_point.join(name);
        fs::create_dir(&dir).with_context(|| format!("cannot create the control group {}", dir.display()))?;
        // A cpuset of version 1 starts empty and takes no process until it is filled.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if hierarchy.v1_options.is_some() && dir.join(file).exists() {
                let value = fs::read_to_string(hierarchy.mount_point.join(file))?;
                fs::write(dir.join(file), value.trim())?;
            }
        }
    }
    Ok(())
}

/// The `cgroup.procs` files by which a process joins the group `name`, or the place in it where its first process sits:
/// in version 2 a group with controllers for its children takes no process itself.
///
/// # Errors
/// When /proc is not readable.
pub fn doors(name: &str) -> anyhow::Result<Vec<PathBuf>> {
    let all = hierarchies()?;
    let unified = unified_only(&all);
    let door = |h: &Hierarchy| {
        let group = h.mount_point.join(name);
        let leaf = group.join("init");
        let place = if unified && leaf.is_dir() { leaf } else { group };
        place.join("cgroup.procs")
    };
    Ok(all.iter().map(door).collect())
}

/// Moves the calling process through the doors. Writes only: usable between fork and exec.
///
/// # Errors
/// The first door that refused.
pub fn join(doors: &[PathBuf]) -> io::Result<()> {
    doors.iter().try_for_each(|door| fs::write(door, "0"))
}

/// Mounts this cgroup namespace's own view of the hierarchies under /sys/fs/cgroup, which must be a fresh sysfs.
///
/// # Errors
/// With the hierarchy that could not be mounted.
pub fn mount_inside(all: &[Hierarchy]) -> anyhow::Result<()> {
    use nix::mount::{MsFlags, mount};
    let root = Path::new("/sys/fs/cgroup");
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if unified_only(all) {
        mount(Some("cgroup2"), root, Some("cgroup2"), quiet, None::<&str>).context("cannot mount cgroup2")?;
        // The first process moves aside so that the groups of containers may have controllers.
        fs::create_dir(root.join("init"))?;
        fs::write(root.join("init/cgroup.procs"), "0")?;
        for controller in fs::read_to_string(root.join("cgroup.controllers"))?.split_whitespace() {
            let line = format!("+{controller}");
            fs::write(root.join("cgroup.subtree_control"), &line).with_context(|| format!("cannot enable {line}"))?;
        }
        return Ok(());
    }
    mount(Some("tmpfs"), root, Some("tmpfs"), quiet, Some("mode=755")).context("cannot mount /sys/fs/cgroup")?;
    for hierarchy in all {
        let Some(name) = hierarchy.mount_point.file_name() else { continue };
        let target = root.join(name);
        fs::create_dir_all(&target)?;
        let (kind, options) = match &hierarchy.v1_options {
            Some(options) => ("cgroup", Some(options.as_str())),
            None => ("cgroup2", None),
        };
        mount(Some(kind), &target, Some(kind), quiet, options)
            .with_context(|| format!("cannot mount {kind} {} at {}", options.unwrap_or(""), target.display()))?;
    }
    Ok(())
}

/// Lets everybody in the group `name` and below go on, in every hierarchy with a version 1 freezer.
///
/// # Errors
/// When /proc is not readable.
pub fn thaw(name: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let mut groups = vec![hierarchy.mount_point.join(name)];
        while let Some(group) = groups.pop() {
            if group.join("freezer.state").exists() {
                // A group that has just gone has nobody in it.
                let _ = fs::write(group.join("freezer.state"), "THAWED");
                let entries = fs::read_dir(&group).into_iter().flatten().flatten();
                groups.extend(entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
            }
        }
    }
    Ok(())
}

/// Removes the group `name` and everything below it, in every hierarchy. Processes that were just killed leave their
/// groups a moment after their parent has reaped them, hence the patience.
///
/// # Errors
/// With the groups that are still there.
pub fn remove(name: &str) -> anyhow::Result<()> {
    let mut left = Vec::new();
    for hierarchy in hierarchies()? {
        let dir = hierarchy.mount_point.join(name);
        let gone = (0..100).any(|attempt| {
            if attempt > 0 {
                thread::sleep(Duration::from_millis(10));
            }
            remove_tree(&dir)
        });
        if !gone {
            left.push(dir.display().to_string());
        }
    }
    anyhow::ensure!(left.is_empty(), "control groups that cannot be removed: {}", left.join(", "));
    Ok(())
}

fn remove_tree(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return !dir.exists() };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    fs::remove_dir(dir).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_unified_machines_are_told_apart() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      31 30 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
                      33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let all = parse(hybrid);
        let options: Vec<_> = all.iter().map(|h| h.v1_options.as_deref()).collect();
        assert_eq!(options, [Some("memory"), Some("name=systemd"), None]);
        assert!(!unified_only(&all));
        assert!(unified_only(&parse("30 25 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n")));
    }
}
