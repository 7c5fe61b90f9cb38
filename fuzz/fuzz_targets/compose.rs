//! What a person writes: a Compose file and its `.env`, in front of a line `%%`, both with variables.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
    time::Duration,
};

use ha_manager::{
    compose::{self, ComposeErrors, ComposeFile, Finding, dotenv},
    fuzzing::{agent_config, render_compose},
    spec::{Condition, ContainerSpec, ImageConfig, MountSource, RecoveryStep, StateKind},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (env, text) = text.split_once("%%\n").unwrap_or(("", text));
    let variables = match dotenv::parse(env, ".env", &shell) {
        Ok((variables, warnings)) => {
            legible(&warnings);
            variables
        }
        Err(errors) => return refused(&errors),
    };
    let lookup = |name: &str| shell(name).or_else(|| variables.get(name).cloned());
    match compose::parse(text, "app.yaml", &lookup) {
        Ok(file) => accepted(&file),
        Err(errors) => refused(&errors),
    }
});

fn shell(name: &str) -> Option<String> {
    match name {
        "SET" => Some("value".to_owned()),
        "EMPTY" => Some(String::new()),
        "LONG" => Some("long ".repeat(2000)),
        _ => None,
    }
}

fn refused(errors: &ComposeErrors) {
    assert!(!errors.findings.is_empty(), "refused without a reason");
    legible(&errors.findings);
}

/// One line each that a terminal shows and does not obey, and not many.
fn legible(findings: &[Finding]) {
    assert!(findings.len() <= 100);
    for finding in findings {
        let line = finding.to_string();
        assert!(line.len() < 16 << 10, "{} bytes", line.len());
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}

fn accepted(file: &ComposeFile) {
    legible(&file.warnings);
    let specs = &file.containers;
    unique(specs);
    for (index, spec) in specs.iter().enumerate() {
        sound(spec);
        for needed in &spec.depends_on {
            let other = specs[..index].iter().find(|other| other.name == needed.name);
            let other = other.expect("each container comes after those it depends on");
            assert!(needed.condition == Condition::Started || other.healthcheck.is_some());
        }
        // The form in which the store holds it.
        let stored = serde_json::to_string(spec).unwrap();
        assert_eq!(serde_json::from_str::<ContainerSpec>(&stored).unwrap(), *spec);
    }
    let rendered = render_compose(specs);
    match compose::parse(&rendered, "rendered.yaml", &|_| None) {
        Ok(again) => assert_eq!(again.containers, *specs, "{rendered}"),
        // Aliases and variables may make a file longer than one may be.
        Err(_) if rendered.len() > 1 << 20 => {}
        Err(errors) => panic!("{errors}\n{rendered}"),
    }
}

fn unique(specs: &[ContainerSpec]) {
    let distinct = |claims: Vec<String>| assert_eq!(claims.iter().collect::<BTreeSet<_>>().len(), claims.len());
    distinct(specs.iter().map(|spec| spec.name.to_string()).collect());
    distinct(specs.iter().filter_map(|spec| spec.network.ipv4).map(|addr| addr.to_string()).collect());
    distinct(specs.iter().filter_map(|spec| spec.network.mac).map(|mac| mac.to_string()).collect());
    let mounts = specs.iter().flat_map(|spec| &spec.mounts);
    let volumes = mounts.filter_map(|mount| match &mount.source {
        MountSource::Volume { name } => Some(name.clone()),
        _ => None,
    });
    distinct(volumes.collect());
}

/// What `docs/compose.md` promises of every container that was accepted.
fn sound(spec: &ContainerSpec) {
    let mut targets = BTreeSet::new();
    for mount in &spec.mounts {
        proper(&mount.target);
        assert!(targets.insert(&mount.target), "two mounts in one place");
        assert!(!["/", "/dev"].iter().any(|ours| mount.target == Path::new(ours)));
        assert!(!["/proc", "/sys", "/.ha-manager"].iter().any(|ours| mount.target.starts_with(ours)));
        match &mount.source {
            MountSource::HostBind { path } => proper(path),
            MountSource::Tmpfs { size_bytes } => assert_ne!(*size_bytes, Some(0)),
            MountSource::Volume { name } => assert!(!name.is_empty() && name.len() <= 48 && !name.contains('/')),
        }
    }
    assert!((1..=1000).contains(&spec.keep) && (1..=1000).contains(&spec.keep_manual));
    assert!(spec.rlimits.iter().all(|limit| limit.soft <= limit.hard));
    let rlimits: BTreeMap<_, _> = spec.rlimits.iter().map(|limit| (&limit.name, limit)).collect();
    assert_eq!(rlimits.len(), spec.rlimits.len());
    let steps = &spec.recovery.steps;
    assert!(!steps.is_empty() && steps.iter().rev().skip(1).all(|step| *step != RecoveryStep::ColdStart));
    match spec.state {
        StateKind::Stateful { sensitivity } => assert!(sensitivity >= Duration::from_millis(100)),
        StateKind::Stateless => assert!(!steps.iter().any(|step| matches!(step, RecoveryStep::OlderSnapshot { .. }))),
    }
    // What its agent would refuse is refused before there is a container, whatever the image is.
    let image = ImageConfig { cmd: vec!["/program".into()], ..ImageConfig::default() };
    if let Some(config) = agent_config(spec, &image) {
        config.validate().unwrap_or_else(|error| panic!("{error}: {spec:#?}"));
    }
}

/// Absolute, without `..`, and in the one form that compares.
fn proper(path: &Path) {
    assert!(path.is_absolute() && !path.components().any(|part| part == Component::ParentDir), "{path:?}");
    assert_eq!(path.components().collect::<std::path::PathBuf>().as_os_str(), path.as_os_str());
}
