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
