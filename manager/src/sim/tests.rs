use std::path::{Path, PathBuf};

use super::{Scenario, command, play, run};

/// What every `cargo test` plays; `scripts/simulate` plays more.
const SEEDS: u64 = 300;

#[test]
fn no_seed_breaks_an_invariant() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let tally = play(0, SEEDS, threads, |_, _| {});
    assert_eq!(tally.seeds, SEEDS);
    if let Some(seed) = tally.bad.first() {
        let outcome = run(&Scenario::random(*seed));
        panic!("seed {seed} of {:?}: {:?}\n{}", tally.bad, outcome.violation, outcome.table());
    }
}

#[test]
fn a_seed_replays_byte_for_byte_and_another_does_not() {
    let played = |seed| {
        let outcome = run(&Scenario::random(seed));
        (outcome.table(), outcome.steps)
    };
    for seed in [1, 2, 3, 77] {
        assert_eq!(played(seed), played(seed), "seed {seed}");
        assert_ne!(played(seed), played(seed + 1000));
    }
    // From another thread, with other allocations.
    let elsewhere = std::thread::spawn(move || played(5));
    assert_eq!(elsewhere.join().unwrap(), played(5));
}

#[test]
fn every_scenario_file_ends_as_it_expects() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let mut table = Vec::new();
        if let Err(error) = command::file(&file, &mut table) {
            panic!("{}: {error}\n{}", file.display(), String::from_utf8_lossy(&table));
        }
    }
}

const SCENARIO: &str = r#"
nodes = 2

[[container]]
name = "db"
owner = "n1"

[[at]]
t = "10s"
power_cut = "n1"
"#;

#[test]
fn what_a_file_expects_is_checked() {
    for wrong in [
        "runs = \"n1\"\nat = \"30s\"",
        "runs = \"nobody\"\nat = \"5s\"",
        "failover_within = \"100ms\"\nafter = \"10s\"",
        "never_replaced = true",
    ] {
        let text = format!("{SCENARIO}\n[[expect]]\ncontainer = \"db\"\n{wrong}\n");
        let outcome = run(&Scenario::parse(&text, "x").unwrap());
        assert_eq!(outcome.violation.map(|violation| violation.law), Some("expect"), "{wrong}");
    }
    assert_eq!(run(&Scenario::parse(SCENARIO, "x").unwrap()).violation, None);
}

#[test]
fn a_word_that_is_not_known_is_refused_with_its_line() {
    let refused = |text: &str| Scenario::parse(text, "x.toml").unwrap_err().to_string();
    let unknown = refused(&SCENARIO.replace("power_cut", "power_off"));
    assert!(unknown.contains("x.toml") && unknown.contains("line 10") && unknown.contains("power_off"), "{unknown}");
    for (old, new, said) in [
        ("power_cut = \"n1\"", "power_cut = \"n3\"", "no node n3"),
        ("power_cut = \"n1\"", "loss = 101.0", "between 0 and 100"),
        ("power_cut = \"n1\"", "slow = \"n1\"", "belong together"),
        ("power_cut = \"n1\"", "clock_drift = { node = \"n1\", percent = 2.0 }", "between -1 and 1"),
        ("power_cut = \"n1\"", "", "without anything that happens"),
        ("nodes = 2", "nodes = 4000000000", "1 to 16 nodes"),
        ("t = \"10s\"", "t = \"10\"", "not a duration"),
        ("t = \"10s\"", "t = \"48h\"", "longer than a day"),
        ("\n[[at]]", "\n[[container]]\nname = \"db\"\nowner = \"n2\"\n\n[[at]]", "two containers are called db"),
        ("\n[[at]]", "\n[[expect]]\ncontainer = \"db\"\nruns = \"n2\"\nat = \"5h\"\n\n[[at]]", "after the end"),
    ] {
        let error = refused(&SCENARIO.replace(old, new));
        assert!(error.contains(said), "{new}: {error}");
    }
}
