//! Writes the seeds: real inputs, made by the programs that make them, in the form of each target.
//!
//!   cargo run --manifest-path fuzz/Cargo.toml --example seeds

#[path = "seeds/agent.rs"]
mod agent;
#[path = "seeds/gossip.rs"]
mod gossip;
#[path = "seeds/manifest.rs"]
mod manifest;

use std::{fs, path::Path};

/// What the documentation shows, and the file that the parser's own tests read.
const COMPOSE: [&str; 3] = ["README.md", "docs/compose.md", "docs/images.md"];
const SAMPLE: &str = "manager/src/compose/tests/sample.yaml";
/// Every form of a variable.
const VARIABLES: &str = "# values\nexport A=1\nB='$A'\nC=\"${SET:-x}\\n\\$\" # more\n%%\nservices:\n  \"${A}x\":\n    \
    container_name: c${A:+2}\n    image: /${SET}/${NO:-${EMPTY:-d}}/$$x\n    environment: [A, B=$B, \"C=${C?set it}\"]\n    \
    command: [\"${LONG}\", *x, \"\\u00e9\\x1b\"]\n    entrypoint: sh -c 'a; b' \"c\\\"d\" e\\ f\n    tmpfs: [/run, '/x:size=1k,ro']\n";

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let pages = COMPOSE.map(|page| fs::read_to_string(root.join(page)).unwrap());
    let mut compose: Vec<Vec<u8>> = pages.iter().flat_map(|page| blocks(page)).map(|text| text.into_bytes()).collect();
    compose.push(fs::read(root.join(SAMPLE)).unwrap());
    compose.push(VARIABLES.replace(", *x", "").into_bytes());
    compose.push(VARIABLES.as_bytes().to_vec());
    for (target, seeds) in
        [("compose", compose), ("gossip", gossip::seeds()), ("manifest", manifest::seeds()), ("agent", agent::seeds())]
    {
        let dir = root.join("fuzz/corpus").join(target);
        fs::create_dir_all(&dir).unwrap();
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(dir.join(format!("seed-{number:02}")), seed).unwrap();
        }
        println!("{}: {} seeds", dir.display(), seeds.len());
    }
}

/// The YAML of a page.
fn blocks(page: &str) -> Vec<String> {
    page.split("```yaml\n")
        .skip(1)
        .filter_map(|block| block.split_once("```"))
        .map(|(yaml, _)| yaml.to_owned())
        .collect()
}
