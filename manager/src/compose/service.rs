//! One entry of `services`.

use std::{collections::BTreeMap, path::Path};

use super::{
    annotations::{self, Annotations},
    cursor::Cursor,
    health,
    interpolate::Lookup,
    keys,
    mounts::{Mounts, VolumeUse},
    network::{self, Attachment},
    report::{Pos, Report, allowed, quoted},
    shell,
};
use crate::spec::{Condition, ContainerName, ContainerSpec, Mac, RestartPolicy, Rlimit, StateKind};

const STAYS_BEHIND: &str = "survives restarts on its node only: a stateless container has no snapshots, so after a failover \
     or a move it begins empty on the other node and is deleted on this one. `io.ha-manager.state: stateful` takes it \
     along; a host directory can be on storage that the nodes share";

/// A service on its own; what it says of others is checked once all are known.
pub(super) struct Service {
    /// Its key under `services`, which `depends_on` refers to.
    pub(super) key: String,
    pub(super) at: Pos,
    pub(super) path: String,
    pub(super) spec: ContainerSpec,
    pub(super) depends_on: Vec<Dependency>,
    pub(super) volumes: Vec<VolumeUse>,
    pub(super) attachments: Vec<Attachment>,
}

pub(super) struct Dependency {
    pub(super) service: String,
    pub(super) condition: Condition,
    pub(super) at: Pos,
    pub(super) path: String,
}

/// `None` when something essential is missing or wrong; what could be read was checked all the same.
pub(super) fn read(cursor: &Cursor<'_>, lookup: Lookup<'_>, report: &mut Report) -> Option<Service> {
    let at = cursor.key_at();
    let (mut name, mut image, mut entrypoint, mut command, mut hostname) = (None, None, None, None, None);
    let (mut user, mut working_dir, mut healthcheck, mut mac) = (None, None, None, None);
    let mut environment = BTreeMap::new();
    let (mut mounts, mut depends_on, mut rlimits) = (Mounts::default(), Vec::new(), Vec::new());
    let mut restart_at = None;
    let (mut attachments, mut restart) = (Vec::new(), RestartPolicy::OnFailure { max: None });
    let mut annotations = Annotations::default();
    let fields = cursor.fields(report);
    let has_name = fields.iter().any(|field| field.name() == "container_name");
    let has_image = fields.iter().any(|field| field.name() == "image");
    for field in &fields {
        match field.name() {
            "image" => image = field.word(report),
            "container_name" => name = field.parsed::<ContainerName>(report),
            "entrypoint" => entrypoint = argv(field, report),
            "command" => command = argv(field, report),
            "environment" => environment = variables(field, lookup, report),
            "working_dir" => working_dir = absolute(field, report),
            "user" => user = user_of(field, report),
            "hostname" => hostname = host_name(field, report),
            "volumes" => mounts.volumes(field, report),
            "tmpfs" => mounts.tmpfs(field, report),
            "networks" => attachments = network::attachments(field, report),
            "mac_address" => mac = field.parsed::<Mac>(report).map(|mac| (mac, field)),
            "healthcheck" => healthcheck = health::read(field, report),
            "depends_on" => depends_on = dependencies(field, report),
            "restart" => {
                restart = restart_policy(field, report).unwrap_or(restart);
                restart_at = Some(field);
            }
            "ulimits" => rlimits = limits(field, report),
            "annotations" => annotations = annotations::read(field, report),
            key => match keys::instead_in_service(key) {
                Some(instead) => field.unsupported(report, instead),
                None => field.unknown(report, &keys::SERVICE),
            },
        }
    }
    if !has_image {
        report.error(
            at,
            &cursor.path,
            "`image` is missing: a directory, an OCI layout or archive, or a registry reference",
        );
    }
    if !has_name {
        match cursor.name().parse::<ContainerName>() {
            Ok(parsed) => name = Some(parsed),
            Err(error) => report.error(at, &cursor.path, format!("{error}; or give it a `container_name`")),
        }
    }
    if let (Some(field), RestartPolicy::OnFailure { max: Some(_) }, StateKind::Stateful { .. }) =
        (restart_at, restart, annotations.state)
    {
        let message = "has a limit that does not count here: a stateful container is not restarted inside but from its snapshot, \
                       and `restart:N` in io.ha-manager.recovery bounds that";
        report.warning(field.at(), &field.path, message);
    }
    if matches!(annotations.state, StateKind::Stateless) {
        for volume in &mounts.uses {
            report.warning(volume.at, &volume.path, format!("{} {STAYS_BEHIND}", quoted(&volume.volume)));
        }
    }
    let network = network::combine(&attachments, mac, report);
    let spec = ContainerSpec {
        name: name?,
        image: image?,
        entrypoint,
        command,
        environment,
        working_dir,
        user,
        hostname,
        mounts: mounts.mounts,
        network,
        healthcheck,
        depends_on: Vec::new(),
        restart,
        rlimits,
        state: annotations.state,
        keep: annotations.keep,
        keep_manual: annotations.keep_manual,
        recovery: annotations.recovery,
        annotations: annotations.other,
    };
    let key = cursor.name().to_owned();
    Some(Service { key, at, path: cursor.path.clone(), spec, depends_on, volumes: mounts.uses, attachments })
}

/// A list as it is, a string split into words; nothing at all leaves the image's.
fn argv(field: &Cursor<'_>, report: &mut Report) -> Option<Vec<String>> {
    if field.is_null() {
        return None;
    }
    if field.is_list() {
        return Some(field.strings(report));
    }
    let line = field.text(report)?;
    shell::split(&line).map_err(|error| field.error(report, error.to_string())).ok()
}

/// A name without a value takes that of the user's shell, and is left out where that has none, as Compose has it.
fn variables(field: &Cursor<'_>, lookup: Lookup<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for pair in field.pairs(report) {
        if pair.name.is_empty() || pair.name.contains(['=', '\0']) {
            report.error(pair.name_at, &pair.path, format!("{} is not a name of a variable", quoted(&pair.name)));
            continue;
        }
        match pair.value.or_else(|| lookup(&pair.name)) {
            Some(value) => drop(variables.insert(pair.name, value)),
            None => {
                let message = "has no value here and none in your shell, so the container does not get it";
                report.warning(pair.name_at, &pair.path, message);
            }
        }
    }
    variables
}

fn absolute(field: &Cursor<'_>, report: &mut Report) -> Option<String> {
    let path = field.word(report)?;
    if !Path::new(&path).is_absolute() {
        field.error(report, format!("{} is not an absolute path", quoted(&path)));
        return None;
    }
    Some(path)
}

fn user_of(field: &Cursor<'_>, report: &mut Report) -> Option<String> {
    let user = field.word(report)?;
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 32
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'$'))
    };
    let (name, group) = user.split_once(':').unwrap_or((&user, "0"));
    if !part(name) || !part(group) {
        field.error(report, format!("{} is not of the form `user` or `user:group`, names or numbers", quoted(&user)));
        return None;
    }
    Some(user)
}

/// RFC 1123, as Compose asks for.
fn host_name(field: &Cursor<'_>, report: &mut Report) -> Option<String> {
    let name = field.word(report)?;
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if name.len() > 63 || !name.split('.').all(label) {
        let message = format!(
            "{} is not a host name: letters, digits, `-` and dots between, at most 63 characters",
            quoted(&name)
        );
        field.error(report, message);
        return None;
    }
    Some(name)
}

fn dependencies(field: &Cursor<'_>, report: &mut Report) -> Vec<Dependency> {
    if field.is_list() {
        let items = field.items(report);
        let dependency = |item: &Cursor<'_>, service| Dependency {
            service,
            condition: Condition::Started,
            at: item.at(),
            path: item.path.clone(),
        };
        return items.iter().filter_map(|item| Some(dependency(item, item.word(report)?))).collect();
    }
    let mut found = Vec::new();
    for entry in field.entries(report) {
        let at = entry.key_at();
        let mut wanted = Condition::Started;
        for option in entry.optional_fields(report) {
            match option.name() {
                "condition" => wanted = condition(&option, report).unwrap_or(wanted),
                // Compose's defaults may be said.
                "required" if option.boolean(report) == Some(false) => {
                    option.unsupported(report, "a service that is not required is left out of `depends_on`");
                }
                "restart" if option.boolean(report) == Some(true) => {
                    option.unsupported(report, "a container is not restarted because another one was");
                }
                "required" | "restart" => {}
                _ => option.unknown(report, &["condition", "required", "restart"]),
            }
        }
        found.push(Dependency { service: entry.name().to_owned(), condition: wanted, at, path: entry.path.clone() });
    }
    found
}

fn condition(option: &Cursor<'_>, report: &mut Report) -> Option<Condition> {
    let word = option.word(report)?;
    match word.as_str() {
        "service_started" => return Some(Condition::Started),
        "service_healthy" => return Some(Condition::Healthy),
        "service_completed_successfully" => {
            option.unsupported(report, "containers are kept running, so none is waited for to end");
        }
        _ => {
            let known = ["service_started", "service_healthy"];
            option.error(report, format!("{} is not a condition; {}", quoted(&word), allowed(&word, &known)));
        }
    }
    None
}

fn restart_policy(field: &Cursor<'_>, report: &mut Report) -> Option<RestartPolicy> {
    let word = field.word(report)?;
    let max = |count: &str| super::cursor::whole_number(count).and_then(|count| u32::try_from(count).ok());
    match (word.as_str(), word.strip_prefix("on-failure:")) {
        ("no", _) => Some(RestartPolicy::No),
        ("always", _) => Some(RestartPolicy::Always),
        ("unless-stopped", _) => Some(RestartPolicy::UnlessStopped),
        ("on-failure", _) => Some(RestartPolicy::OnFailure { max: None }),
        (_, Some(count)) if max(count).is_some_and(|count| count > 0) => {
            Some(RestartPolicy::OnFailure { max: max(count) })
        }
        _ => {
            let known = ["no", "always", "on-failure", "on-failure:3", "unless-stopped"];
            field.error(report, format!("{} is not a restart policy; {}", quoted(&word), allowed(&word, &known)));
            None
        }
    }
}

const LIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

fn limits(field: &Cursor<'_>, report: &mut Report) -> Vec<Rlimit> {
    let mut limits = Vec::new();
    for entry in field.fields(report) {
        if !LIMITS.contains(&entry.name()) {
            entry.unknown(report, &LIMITS);
            continue;
        }
        let (mut soft, mut hard) = (None, None);
        if entry.is_map() {
            for side in entry.fields(report) {
                match side.name() {
                    "soft" => soft = limit(&side, report),
                    "hard" => hard = limit(&side, report),
                    _ => side.unknown(report, &["soft", "hard"]),
                }
            }
        } else {
            soft = limit(&entry, report);
            hard = soft;
        }
        match (soft, hard) {
            (Some(soft), Some(hard)) if soft > hard => entry.error(report, "`soft` is above `hard`"),
            (Some(soft), Some(hard)) => limits.push(Rlimit { name: entry.name().to_owned(), soft, hard }),
            _ if entry.is_map() => entry.error(report, "both `soft` and `hard` have to be given"),
            _ => {}
        }
    }
    limits
}

/// -1 is no limit.
fn limit(cursor: &Cursor<'_>, report: &mut Report) -> Option<u64> {
    let word = cursor.word(report)?;
    if word == "-1" {
        return Some(u64::MAX);
    }
    let number = super::cursor::whole_number(&word);
    if number.is_none() {
        cursor.error(report, format!("{} is not a limit: a whole number, or -1 for none", quoted(&word)));
    }
    number
}
