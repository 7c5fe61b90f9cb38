//! The file as a whole: its top level, and what services say of each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    ComposeFile,
    cursor::Cursor,
    interpolate::Lookup,
    keys,
    mounts::{VOLUME_NAMES, is_volume_name},
    network,
    report::{Pos, Report, allowed, quoted},
    service::{self, Service},
    tree::Node,
};
use crate::spec::{Condition, ContainerSpec, Dependency};

const MAX_SERVICES: usize = 256;

/// What the top level declares.
#[derive(Default)]
struct Declared {
    volumes: Vec<(String, Pos, String)>,
    networks: Vec<String>,
    /// Every key under `services`, those with errors included.
    services: Vec<String>,
}

/// `None` when there is an error in the report.
pub(super) fn read(root: &Node, lookup: Lookup<'_>, report: &mut Report) -> Option<ComposeFile> {
    let (mut declared, mut services, mut project, mut has_services) = (Declared::default(), Vec::new(), None, false);
    let root = Cursor::root(root);
    for field in root.fields(report) {
        match field.name() {
            "version" => {
                report.warning(field.key_at(), &field.path, "is obsolete and has no effect");
            }
            "name" => project = project_name(&field, report),
            "services" => {
                has_services = true;
                for entry in field.entries(report) {
                    if declared.services.len() == MAX_SERVICES {
                        report.error(entry.key_at(), &field.path, format!("has more than {MAX_SERVICES} services"));
                        break;
                    }
                    declared.services.push(entry.name().to_owned());
                    services.extend(service::read(&entry, lookup, report));
                }
                if field.is_map() && declared.services.is_empty() {
                    field.error(report, "is empty; a file has at least one service");
                }
            }
            "volumes" => declared.volumes = volumes(&field, report),
            "networks" => declared.networks = network::declared(&field, report),
            key => match keys::instead_at_top(key) {
                Some(instead) => field.unsupported(report, instead),
                None => field.unknown(report, &keys::TOP),
            },
        }
    }
    if !has_services && root.is_map() {
        root.error(report, "`services` is missing");
    }
    check_unique(&services, report);
    check_volumes(&services, &declared, report);
    check_networks(&services, &declared, report);
    resolve_dependencies(&mut services, &declared, report);
    let containers = ordered(services, report);
    if report.has_errors() { None } else { Some(ComposeFile { project, containers, warnings: Vec::new() }) }
}

fn project_name(field: &Cursor<'_>, report: &mut Report) -> Option<String> {
    let name = field.word(report)?;
    let ok = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if !ok {
        let message = "may have a-z, 0-9, '-' and '_', the first a letter or digit";
        field.error(report, format!("{} is not the name of a project: it {message}", quoted(&name)));
    }
    ok.then_some(name)
}

fn volumes(field: &Cursor<'_>, report: &mut Report) -> Vec<(String, Pos, String)> {
    let mut volumes = Vec::new();
    for entry in field.entries(report) {
        let at = entry.key_at();
        if !is_volume_name(entry.name()) {
            report.error(at, &entry.path, format!("is not usable as the name of a volume: {VOLUME_NAMES}"));
        }
        for option in entry.optional_fields(report) {
            match option.name() {
                "driver" => {
                    if option.word(report).is_some_and(|driver| driver != "local") {
                        option.unsupported(report, "the only driver is `local`: volumes are kept in snapshots");
                    }
                }
                "driver_opts" | "external" | "name" | "labels" => {
                    option.unsupported(report, "a volume belongs to its container and moves with it");
                }
                _ => option.unknown(report, &["driver"]),
            }
        }
        volumes.push((entry.name().to_owned(), at, entry.path.clone()));
    }
    volumes
}

/// No two containers have one name or one address.
fn check_unique(services: &[Service], report: &mut Report) {
    let mut first: HashMap<String, &str> = HashMap::new();
    for service in services {
        let spec = &service.spec;
        let claims = [
            Some(format!("the container name `{}`", spec.name)),
            spec.network.ipv4.map(|addr| format!("the address {addr}")),
            spec.network.mac.map(|mac| format!("the MAC address {mac}")),
        ];
        for claim in claims.into_iter().flatten() {
            if let Some(other) = first.get(&claim) {
                report.error(
                    service.at,
                    &service.path,
                    format!("has {claim}, which the service {} has already", quoted(other)),
                );
            } else {
                first.insert(claim, &service.key);
            }
        }
    }
}

/// Every named volume is declared, and used by one service: it is part of that container's snapshots.
fn check_volumes(services: &[Service], declared: &Declared, report: &mut Report) {
    let mut users: HashMap<&str, &str> = HashMap::new();
    let known: BTreeSet<&str> = declared.volumes.iter().map(|(name, ..)| name.as_str()).collect();
    for service in services {
        for volume in &service.volumes {
            let name = volume.volume.as_str();
            if !known.contains(name) {
                let message = format!(
                    "the volume {0} is not declared; add `volumes: {{{name}: }}` at the top level",
                    quoted(name)
                );
                report.error(volume.at, &volume.path, message);
            }
            if let Some(other) = users.insert(name, &service.key) {
                let message = format!(
                    "the volume {} is used by the service {} too; a volume belongs to one container, so that it \
                     can move with it",
                    quoted(name),
                    quoted(other)
                );
                report.error(volume.at, &volume.path, message);
            }
        }
    }
    for (name, at, path) in &declared.volumes {
        if !users.contains_key(name.as_str()) {
            report.warning(*at, path, "is declared, but no service uses it");
        }
    }
}

fn check_networks(services: &[Service], declared: &Declared, report: &mut Report) {
    for attachment in services.iter().flat_map(|service| &service.attachments) {
        let name = attachment.network.as_str();
        if name != "default" && !declared.networks.iter().any(|declared| declared == name) {
            let message =
                format!("the network {} is not declared; add it to `networks` at the top level", quoted(name));
            report.error(attachment.at, &attachment.path, message);
        }
    }
}

/// Fills `depends_on` of each spec with container names.
fn resolve_dependencies(services: &mut [Service], declared: &Declared, report: &mut Report) {
    let known: BTreeMap<String, _> = services
        .iter()
        .map(|service| (service.key.clone(), (service.spec.name.clone(), service.spec.healthcheck.is_some())))
        .collect();
    for service in services {
        let mut seen = BTreeSet::new();
        for dependency in &service.depends_on {
            let (name, wanted) = (dependency.service.as_str(), &dependency.path);
            match known.get(name) {
                _ if !seen.insert(name) => {
                    report.error(dependency.at, wanted, format!("{} is named twice", quoted(name)))
                }
                Some((_, false)) if dependency.condition == Condition::Healthy => {
                    let message = format!("`service_healthy`, but the service {} has no healthcheck", quoted(name));
                    report.error(dependency.at, wanted, message);
                }
                Some((container, _)) => {
                    let condition = dependency.condition;
                    service.spec.depends_on.push(Dependency { name: container.clone(), condition });
                }
                // It is there, and has errors of its own.
                None if declared.services.iter().any(|declared| declared == name) => {}
                None if report.is_full() => report.error(dependency.at, wanted, ""),
                None => {
                    let services: Vec<&str> = declared.services.iter().map(String::as_str).collect();
                    let message = format!("there is no service {}; {}", quoted(name), allowed(name, &services));
                    report.error(dependency.at, wanted, message);
                }
            }
        }
    }
}

/// Dependencies first, otherwise as in the file. What is left over depends on itself.
fn ordered(mut services: Vec<Service>, report: &mut Report) -> Vec<ContainerSpec> {
    let mut order: Vec<ContainerSpec> = Vec::new();
    loop {
        let placed: BTreeSet<_> = order.iter().map(|spec| spec.name.clone()).collect();
        let ready = |service: &Service| service.spec.depends_on.iter().all(|needed| placed.contains(&needed.name));
        let Some(next) = services.iter().position(ready) else { break };
        order.push(services.remove(next).spec);
    }
    // Only some of the rest are the cycle; the others wait for it.
    if let Some(cycle) = cycle(&services) {
        let start = cycle[0];
        let names: Vec<_> = cycle.iter().chain([&start]).take(16).map(|service| quoted(&service.key)).collect();
        let message = format!("`depends_on` goes in a circle: {}", names.join(" → "));
        report.error(start.at, &start.path, message);
    }
    order
}

/// Follows the dependencies of services none of which is free of them until one comes again.
fn cycle(stuck: &[Service]) -> Option<Vec<&Service>> {
    let mut way = vec![stuck.first()?];
    loop {
        let last = way.last()?;
        let next =
            stuck.iter().find(|service| last.spec.depends_on.iter().any(|needed| needed.name == service.spec.name))?;
        if let Some(start) = way.iter().position(|service| service.key == next.key) {
            return Some(way.split_off(start));
        }
        way.push(next);
    }
}
