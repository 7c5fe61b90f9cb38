//! `docs/compose.md` describes every key, and its examples are right.

use std::{fs, path::Path};

use super::{
    super::{annotations, keys},
    *,
};

fn documentation() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compose.md")).unwrap()
}

#[test]
fn every_key_has_a_row() {
    let documentation = documentation();
    for key in keys::SERVICE.iter().chain(&keys::TOP).chain(&annotations::KNOWN) {
        assert!(documentation.contains(&format!("\n| `{key}` |")), "docs/compose.md has no row for `{key}`");
    }
}

#[test]
fn every_example_is_accepted() {
    let documentation = documentation();
    let examples: Vec<&str> =
        documentation.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        accepted(example);
    }
    accepted(include_str!("sample.yaml"));
}

/// `docs/formats.md` describes what `apply --dry-run` prints and `apps/` in the store holds.
#[test]
fn every_key_of_a_specification_has_a_row() {
    let everything = accepted(
        r#"services:
  a:
    image: /i
    healthcheck: {test: x, start_interval: 1s}
    ulimits: {nofile: 1}
    volumes: ["data:/a", "/b:/b", {type: tmpfs, target: /c}]
    annotations: {io.ha-manager.state-sensitivity: 1s, io.ha-manager.recovery: "restart, failover, older-snapshot, cold-start"}
  b: {image: /i, depends_on: [a], restart: "on-failure:1"}
volumes: {data: }
"#,
    );
    let mut keys = std::collections::BTreeSet::new();
    for spec in &everything.containers {
        collect("", &serde_json::to_value(spec).unwrap(), &mut keys);
    }
    let formats = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats.md")).unwrap();
    let missing: Vec<_> = keys.iter().filter(|key| !formats.contains(&format!("`{key}`"))).collect();
    assert!(keys.len() > 35 && missing.is_empty(), "docs/formats.md has no row for {missing:?}");
}

fn collect(path: &str, value: &serde_json::Value, keys: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(&path, value, keys);
                keys.insert(path);
            }
        }
        serde_json::Value::Array(items) => {
            items.iter().for_each(|item| collect(&format!("{path}[]"), item, keys));
        }
        _ => {}
    }
}
