//! `volumes` and `tmpfs` of a service.

use std::{
    collections::HashSet,
    path::{Component, Path, PathBuf},
};

use super::{
    cursor::Cursor,
    report::{Pos, Report, allowed, quoted},
};
use crate::spec::{Mount, MountSource, parse_bytes};

/// A use of a named volume, to be held against what the file declares.
pub(super) struct VolumeUse {
    pub(super) volume: String,
    pub(super) at: Pos,
    pub(super) path: String,
}

#[derive(Default)]
pub(super) struct Mounts {
    pub(super) mounts: Vec<Mount>,
    pub(super) uses: Vec<VolumeUse>,
    targets: HashSet<PathBuf>,
    volumes: HashSet<String>,
}

const LONG_KEYS: [&str; 5] = ["type", "source", "target", "read_only", "tmpfs"];
const TMPFS_HINT: &str = "a tmpfs takes `size` only, e.g. `/run:size=64m`";

impl Mounts {
    /// `volumes`: a list of short (`data:/var/lib/data:ro`) and long (a mapping) forms.
    pub(super) fn volumes(&mut self, cursor: &Cursor<'_>, report: &mut Report) {
        for item in cursor.items(report) {
            let mount = if item.is_map() { long(&item, report) } else { short(&item, report) };
            self.add(mount, &item, report);
        }
    }

    /// `tmpfs`: one path or a list, each with options after a colon.
    pub(super) fn tmpfs(&mut self, cursor: &Cursor<'_>, report: &mut Report) {
        if !cursor.is_list() {
            let mount = tmpfs(cursor, report);
            return self.add(mount, cursor, report);
        }
        for item in cursor.items(report) {
            let mount = tmpfs(&item, report);
            self.add(mount, &item, report);
        }
    }

    fn add(&mut self, mount: Option<Mount>, cursor: &Cursor<'_>, report: &mut Report) {
        let Some(mount) = mount else { return };
        if !self.targets.insert(mount.target.clone()) {
            return cursor.error(report, format!("a second mount on {:?}", mount.target));
        }
        if let MountSource::Volume { name } = &mount.source {
            if !self.volumes.insert(name.clone()) {
                return cursor.error(report, format!("the volume {} is mounted twice", quoted(name)));
            }
            self.uses.push(VolumeUse { volume: name.clone(), at: cursor.at(), path: cursor.path.clone() });
        }
        self.mounts.push(mount);
    }
}

fn short(item: &Cursor<'_>, report: &mut Report) -> Option<Mount> {
    let text = item.word(report)?;
    let mut parts = text.split(':');
    let (source, target, mode) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(source), Some(target), mode, None) => (source, target, mode),
        (Some(_), None, ..) => {
            item.error(report, "an anonymous volume would be lost at a failover; give it a name: `data:/path`");
            return None;
        }
        _ => {
            item.error(report, format!("{} is not of the form `source:target` or `source:target:ro`", quoted(&text)));
            return None;
        }
    };
    let read_only = match mode {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(mode) => {
            item.error(report, format!("{} is not a mode; allowed are `ro` and `rw`", quoted(mode)));
            return None;
        }
    };
    let source = if source.starts_with(['/', '.', '~']) {
        MountSource::HostBind { path: host_path(item, source, report)? }
    } else {
        MountSource::Volume { name: volume_name(item, source, report)? }
    };
    Some(Mount { source, target: target_path(item, target, report)?, read_only })
}

fn long(item: &Cursor<'_>, report: &mut Report) -> Option<Mount> {
    let (mut kind, mut source, mut target, mut read_only, mut size) = (None, None, None, Some(false), None);
    for field in item.fields(report) {
        match field.name() {
            "type" => kind = Some((field.word(report)?, field)),
            "source" => source = Some((field.word(report)?, field)),
            "target" => {
                let text = field.word(report)?;
                target = Some(target_path(&field, &text, report)?);
            }
            "read_only" => read_only = field.boolean(report),
            "tmpfs" => size = Some((tmpfs_size(&field, report), field)),
            "bind" => {
                field.unsupported(report, "the directory has to be there on every node the container may move to")
            }
            "volume" => field.unsupported(report, "a volume starts empty and is mounted whole"),
            "consistency" => field.unsupported(report, "it has no meaning on Linux; leave it out"),
            _ => field.unknown(report, &LONG_KEYS),
        }
    }
    let Some((kind, kind_field)) = kind else {
        item.error(report, "`type` is missing; allowed are volume, bind and tmpfs");
        return None;
    };
    let Some(target) = target else {
        item.error(report, "`target` is missing: the path inside the container");
        return None;
    };
    if let Some((_, field)) = size.as_ref().filter(|_| kind != "tmpfs") {
        field.error(report, "is only for `type: tmpfs`");
        return None;
    }
    let source = match (kind.as_str(), source) {
        ("tmpfs", None) => MountSource::Tmpfs { size_bytes: size.and_then(|(size, _)| size) },
        ("tmpfs", Some((_, field))) => {
            field.error(report, "a tmpfs has no source");
            return None;
        }
        ("bind", Some((path, field))) => MountSource::HostBind { path: host_path(&field, &path, report)? },
        ("volume", Some((name, field))) => MountSource::Volume { name: volume_name(&field, &name, report)? },
        ("bind" | "volume", None) => {
            item.error(report, "`source` is missing: a host directory for a bind, a declared volume for a volume");
            return None;
        }
        (other, _) => {
            let message =
                format!("{} is not a type of mount; {}", quoted(other), allowed(other, &["volume", "bind", "tmpfs"]));
            kind_field.error(report, message);
            return None;
        }
    };
    Some(Mount { source, target, read_only: read_only? })
}

fn tmpfs_size(cursor: &Cursor<'_>, report: &mut Report) -> Option<u64> {
    let mut size = None;
    for field in cursor.optional_fields(report) {
        match field.name() {
            "size" => size = field.size(report),
            "mode" => field.unsupported(report, TMPFS_HINT),
            _ => field.unknown(report, &["size"]),
        }
    }
    size
}

fn tmpfs(cursor: &Cursor<'_>, report: &mut Report) -> Option<Mount> {
    let text = cursor.word(report)?;
    let (target, options) = text.split_once(':').unwrap_or((&text, ""));
    let (mut size_bytes, mut read_only) = (None, false);
    for option in options.split(',').filter(|_| !options.is_empty()) {
        match (option, option.strip_prefix("size=")) {
            (_, Some(size)) => match parse_bytes(size) {
                Ok(bytes) if bytes > 0 => size_bytes = Some(bytes),
                Ok(_) => cursor.error(report, "`size` must be larger than 0"),
                Err(error) => cursor.error(report, format!("`size`: {error}")),
            },
            ("ro", _) => read_only = true,
            ("rw", _) => read_only = false,
            _ => cursor.error(report, format!("the option {} is not supported: {TMPFS_HINT}", quoted(option))),
        }
    }
    Some(Mount { source: MountSource::Tmpfs { size_bytes }, target: target_path(cursor, target, report)?, read_only })
}

fn host_path(cursor: &Cursor<'_>, text: &str, report: &mut Report) -> Option<PathBuf> {
    let path = normal(text);
    if path.is_none() {
        let message = format!(
            "{}: a host directory has to be an absolute path without `..`: the same one on every node; for data that \
             moves with the container use a named volume",
            quoted(text)
        );
        cursor.error(report, message);
    }
    path
}

/// The path inside the container, in its normal form.
fn target_path(cursor: &Cursor<'_>, text: &str, report: &mut Report) -> Option<PathBuf> {
    let Some(path) = normal(text) else {
        cursor.error(report, format!("{} is not an absolute path without `..` inside the container", quoted(text)));
        return None;
    };
    let ours = |dir: &str| path.starts_with(dir);
    if path == Path::new("/") || path == Path::new("/dev") || ours("/proc") || ours("/sys") || ours("/.ha-manager") {
        cursor.error(report, format!("{path:?} cannot be mounted over: the container's own system is there"));
        return None;
    }
    Some(path)
}

fn normal(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let proper = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    // Rebuilt from its components: no doubled or trailing slashes, no `.`.
    if proper && text.len() < 4096 { Some(path.components().collect()) } else { None }
}

fn volume_name(cursor: &Cursor<'_>, text: &str, report: &mut Report) -> Option<String> {
    if !is_volume_name(text) {
        cursor.error(report, format!("{} is not the name of a volume: {VOLUME_NAMES}", quoted(text)));
        return None;
    }
    Some(text.to_owned())
}

pub(super) const VOLUME_NAMES: &str = "1 to 48 characters of a-z, A-Z, 0-9, '-', '_' and '.', the first a letter or digit (a host directory begins with `/`)";

/// A volume's name is part of paths.
pub(super) fn is_volume_name(text: &str) -> bool {
    (1..=48).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && text.as_bytes()[0].is_ascii_alphanumeric()
}
