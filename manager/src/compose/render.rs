//! A Compose file that asks for the containers given: what tests hold against what was read.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};

use crate::spec::{
    Condition, ContainerSpec, Mount, MountSource, RecoveryPolicy, RecoveryStep, RestartPolicy, StateKind,
};

/// Text in which a variable would be one: a dollar sign is doubled.
fn text(text: &str) -> Value {
    json!(text.replace('$', "$$"))
}

fn list(words: &[String]) -> Value {
    Value::Array(words.iter().map(|word| text(word)).collect())
}

fn map(pairs: &BTreeMap<String, String>) -> Value {
    Value::Object(pairs.iter().map(|(name, value)| (name.clone(), text(value))).collect())
}

fn duration(duration: Duration) -> Value {
    json!(format!("{}.{:03}us", duration.as_micros(), duration.as_nanos() % 1000))
}

fn mount(mount: &Mount) -> Value {
    let mut value = match &mount.source {
        MountSource::Volume { name } => json!({"type": "volume", "source": name}),
        MountSource::HostBind { path } => json!({"type": "bind", "source": text(path.to_str().unwrap())}),
        MountSource::Tmpfs { size_bytes: None } => json!({"type": "tmpfs"}),
        MountSource::Tmpfs { size_bytes: Some(size) } => json!({"type": "tmpfs", "tmpfs": {"size": size}}),
    };
    value["target"] = text(mount.target.to_str().unwrap());
    value["read_only"] = json!(mount.read_only);
    value
}

fn restart(policy: RestartPolicy) -> String {
    match policy {
        RestartPolicy::No => "no".into(),
        RestartPolicy::Always => "always".into(),
        RestartPolicy::UnlessStopped => "unless-stopped".into(),
        RestartPolicy::OnFailure { max: None } => "on-failure".into(),
        RestartPolicy::OnFailure { max: Some(max) } => format!("on-failure:{max}"),
    }
}

fn recovery(policy: &RecoveryPolicy) -> String {
    let step = |step: &RecoveryStep| match step {
        RecoveryStep::Restart { max } => format!("restart:{max}"),
        RecoveryStep::Failover => "failover".into(),
        RecoveryStep::OlderSnapshot { max } => format!("older-snapshot:{max}"),
        RecoveryStep::ColdStart => "cold-start".into(),
    };
    policy.steps.iter().map(step).collect::<Vec<_>>().join(", ")
}

fn service(spec: &ContainerSpec) -> Value {
    let mut annotations = map(&spec.annotations);
    annotations["io.ha-manager.keep"] = json!(spec.keep);
    annotations["io.ha-manager.keep-manual"] = json!(spec.keep_manual);
    annotations["io.ha-manager.recovery"] = json!(recovery(&spec.recovery));
    match spec.state {
        StateKind::Stateless => annotations["io.ha-manager.state"] = json!("stateless"),
        StateKind::Stateful { sensitivity } => annotations["io.ha-manager.state-sensitivity"] = duration(sensitivity),
    }
    let mut value = json!({
        "image": text(&spec.image),
        "environment": map(&spec.environment),
        "volumes": spec.mounts.iter().map(mount).collect::<Vec<_>>(),
        "restart": restart(spec.restart),
        "annotations": annotations,
        "networks": {"default": {}},
        "ulimits": spec.rlimits.iter().map(|limit| {
            let hard = if limit.hard == u64::MAX { json!(-1) } else { json!(limit.hard) };
            (limit.name.clone(), json!({"soft": limit.soft, "hard": hard}))
        }).collect::<serde_json::Map<_, _>>(),
        "depends_on": spec.depends_on.iter().map(|needed| {
            let condition = match needed.condition {
                Condition::Started => "service_started",
                Condition::Healthy => "service_healthy",
            };
            (needed.name.to_string(), json!({"condition": condition}))
        }).collect::<serde_json::Map<_, _>>(),
    });
    if let Some(words) = &spec.entrypoint {
        value["entrypoint"] = list(words);
    }
    if let Some(words) = &spec.command {
        value["command"] = list(words);
    }
    for (key, word) in [("working_dir", &spec.working_dir), ("user", &spec.user), ("hostname", &spec.hostname)] {
        if let Some(word) = word {
            value[key] = text(word);
        }
    }
    if let Some(addr) = spec.network.ipv4 {
        value["networks"]["default"]["ipv4_address"] = json!(addr);
    }
    if let Some(mac) = spec.network.mac {
        value["mac_address"] = json!(mac);
    }
    if let Some(check) = &spec.healthcheck {
        let test: Vec<String> = [vec!["CMD".to_owned()], check.argv.clone()].concat();
        value["healthcheck"] = json!({
            "test": list(&test), "interval": duration(check.interval), "timeout": duration(check.timeout),
            "start_period": duration(check.start_period), "retries": check.retries,
        });
        if let Some(interval) = check.start_interval {
            value["healthcheck"]["start_interval"] = duration(interval);
        }
    }
    value
}

/// The file. As JSON it is YAML, too.
pub(crate) fn file(specs: &[ContainerSpec]) -> Value {
    let services: serde_json::Map<_, _> = specs.iter().map(|spec| (spec.name.to_string(), service(spec))).collect();
    let volumes: BTreeSet<_> = specs
        .iter()
        .flat_map(|spec| &spec.mounts)
        .filter_map(|mount| match &mount.source {
            MountSource::Volume { name } => Some(name.clone()),
            _ => None,
        })
        .collect();
    let volumes: serde_json::Map<_, _> = volumes.into_iter().map(|name| (name, Value::Null)).collect();
    json!({"services": services, "volumes": volumes})
}
