//! Every kind of event the code emits is in docs/events.md with its keys, and the other way round.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The code of the rooms that emit events, tests left out.
fn sources() -> Vec<String> {
    let dirs = ["src/node", "src/recovery", "src/api"].map(here);
    let files = dirs.iter().flat_map(|dir| fs::read_dir(dir).unwrap()).map(|entry| entry.unwrap().path());
    let rust = files.filter(|path| path.extension().is_some_and(|ext| ext == "rs"));
    rust.map(|path| fs::read_to_string(path).unwrap())
        .map(|text| text.split("#[cfg(test)]").next().unwrap_or_default().to_owned())
        .collect()
}

/// String literals that look like a kind: two words with a dot between.
fn kinds(source: &str) -> BTreeSet<String> {
    let word = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let file = |end: &str| ["json", "jsonl", "toml", "yaml", "tmp", "sock", "rs"].contains(&end);
    let literals = source.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| line.split('"'));
    literals
        .filter(|text| text.split_once('.').is_some_and(|(a, b)| word(a) && word(b) && !file(b)))
        .map(str::to_owned)
        .collect()
}

/// Kind → the text of its keys' column.
fn documented() -> BTreeMap<String, String> {
    let text = fs::read_to_string(here("../docs/events.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    rows.filter(|(kind, _)| kind.contains('.'))
        .map(|(kind, rest)| (kind.to_owned(), rest.split_once('|').map_or("", |(_, keys)| keys).to_owned()))
        .collect()
}

#[test]
fn every_kind_the_code_emits_is_documented_and_no_other() {
    let emitted: BTreeSet<String> = sources().iter().flat_map(|source| kinds(source)).collect();
    assert!(emitted.len() > 30, "the search finds too little: {emitted:?}");
    let documented: BTreeSet<String> = documented().into_keys().collect();
    let missing: Vec<_> = emitted.difference(&documented).collect();
    assert!(missing.is_empty(), "not in docs/events.md: {missing:?}");
    let stale: Vec<_> = documented.difference(&emitted).collect();
    assert!(stale.is_empty(), "in docs/events.md, but nothing emits it: {stale:?}");
}

#[test]
fn the_keys_of_details_written_beside_their_kind_are_documented() {
    let documented = documented();
    let mut seen = 0;
    for source in sources() {
        for call in source.split(".event(").skip(1).chain(source.split(".emit(").skip(1)) {
            let call = call.split_once(";\n").map_or(call, |(call, _)| call);
            let Some(kind) = call.split('"').find(|text| documented.contains_key(*text)) else { continue };
            let Some((_, detail)) = call.split_once("json!({") else { continue };
            let detail = detail.split("})").next().unwrap_or_default();
            let keys = detail.split('"').skip(1).step_by(2);
            for key in keys {
                seen += 1;
                assert!(documented[kind].contains(&format!("`{key}`")), "{kind}: `{key}` is not in docs/events.md");
            }
        }
    }
    assert!(seen > 15, "the search finds too little: {seen}");
}
