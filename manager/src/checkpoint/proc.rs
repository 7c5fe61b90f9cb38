//! What `/proc` tells of a container's processes. Everything may vanish between two reads: what is gone is left out.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The process and everything below it, parents first.
pub(super) fn descendants(init: i32) -> Vec<i32> {
    let mut found = vec![init];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        for thread in numbers(&format!("/proc/{pid}/task")) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).unwrap_or_default();
            found.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    found
}

/// Every process whose PID namespace is the one of `init`.
pub(super) fn in_pid_namespace_of(init: i32) -> Vec<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(ours) = namespace(init) else { return Vec::new() };
    numbers("/proc").into_iter().filter(|pid| namespace(*pid).as_ref() == Some(&ours)).collect()
}

/// Open descriptors.
pub(super) fn descriptors(pid: i32) -> Vec<i32> {
    numbers(&format!("/proc/{pid}/fd"))
}

/// Mapped files whose names are gone: each range, as it is called in `map_files`, and what the kernel calls the file.
pub(super) fn removed_mappings(pid: i32) -> Vec<(String, String)> {
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let lines = maps.split(|byte| *byte == b'\n').filter(|line| line.ends_with(b" (deleted)"));
    let parts = lines.filter_map(|line| {
        let range = line.split(|byte| *byte == b' ').next()?;
        let name = line.get(line.iter().position(|byte| *byte == b'/')?..)?;
        Some((String::from_utf8_lossy(range).into_owned(), String::from_utf8_lossy(name).into_owned()))
    });
    parts.collect()
}

fn numbers(dir: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A field of `/proc/PID/status`.
pub(super) fn status_field(pid: i32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// `R`, `S`, `T` (stopped by a signal), `t` (by a tracer) …
pub(super) fn state(pid: i32) -> Option<char> {
    status_field(pid, "State")?.chars().next()
}

/// Who traces the process, if anybody this PID namespace can see.
pub(super) fn tracer(pid: i32) -> Option<i32> {
    status_field(pid, "TracerPid")?.parse().ok().filter(|tracer| *tracer > 0)
}

/// The program's name, for messages.
pub(super) fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned())
}

/// The inode that names one of a process's namespaces.
pub(super) fn namespace_inode(pid: i32, kind: &str) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    bracketed(&link, kind)
}

/// The number in `kind:[number]`.
pub(super) fn bracketed(link: &Path, kind: &str) -> Option<u64> {
    link.to_str()?.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

/// One line of `/proc/PID/mountinfo`, as far as it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountLine {
    pub id: u32,
    pub device: (u32, u32),
    pub target: PathBuf,
    pub kind: String,
}

pub(super) fn mounts(pid: i32) -> Vec<MountLine> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<MountLine> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ');
    let id = front.next()?.parse().ok()?;
    let device = front.nth(1)?.split_once(':')?;
    let target = PathBuf::from(unescape(front.nth(1)?));
    let kind = back.split(' ').next()?.to_owned();
    Some(MountLine { id, device: (device.0.parse().ok()?, device.1.parse().ok()?), target, kind })
}

/// Undoes the kernel's `\040`.
fn unescape(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((&first, rest)) = bytes.split_first() {
        let octal = rest.get(..3).filter(|_| first == b'\\').and_then(|code| std::str::from_utf8(code).ok());
        match octal.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                bytes = &rest[3..];
            }
            None => {
                plain.push(first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_line_is_taken_apart_whatever_its_optional_fields() {
        let line = r"36 35 98:0 /mnt1 /mnt\040two rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let mount = parse_mount(line).unwrap();
        assert_eq!((mount.id, mount.device, mount.kind.as_str()), (36, (98, 0), "ext3"));
        assert_eq!(mount.target, Path::new("/mnt two"));
        assert_eq!(parse_mount("not a mount line"), None);
    }

    #[test]
    fn our_own_process_is_found_with_its_children() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let me = std::process::id() as i32;
        let found = descendants(me);
        let in_namespace = in_pid_namespace_of(me);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found[0], me);
        assert!(found.contains(&(child.id() as i32)));
        assert!(in_namespace.contains(&me) && in_namespace.contains(&(child.id() as i32)));
    }
}
