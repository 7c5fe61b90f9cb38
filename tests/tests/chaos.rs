//! A short session of random faults. What a failure means and how it is followed up: docs/testing.md.

use std::process::{Command, Stdio};

use ha_lab::{cluster::why_no_cluster, skipped};
use serde_json::Value;

/// Ten faults within 49 s: managers killed and frozen, a power cut, nodes isolated (one for longer than the store's signs of
/// life are waited for), unplugged, mute, without the store, with a flapping link.
const SEED: &str = "439";
const FAULTS: &str = "10";

fn chaos(seed: &str, args: &[&str]) -> (String, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ha-lab"));
    command.args(["chaos", "--seed", seed, "--faults", FAULTS]).args(args).stderr(Stdio::inherit());
    let output = command.output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.code())
}

#[test]
fn ten_faults_leave_one_owner_its_state_and_nothing_behind() {
    if let Some(why) = why_no_cluster() {
        return skipped("ten_faults_leave_one_owner_its_state_and_nothing_behind", &why);
    }
    let (out, code) = chaos(SEED, &[]);
    let figures: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let bad: Vec<&str> =
        ["double_owner", "state_lost", "stuck", "leftovers"].into_iter().filter(|key| figures[key] != 0).collect();
    assert!(bad.is_empty(), "{bad:?}:\n{out}");
    assert_eq!(figures["faults"], 10, "{out}");
    assert!(figures["failovers"].as_u64().unwrap() > 0, "the faults moved nothing: {out}");
    assert_eq!(code, Some(0), "{out}");
}

#[test]
fn a_seed_is_a_schedule() {
    let (plan, code) = chaos(SEED, &["--plan"]);
    assert_eq!((plan.lines().count(), code), (10, Some(0)), "{plan}");
    assert_eq!(chaos(SEED, &["--plan"]).0, plan);
    assert_ne!(chaos("1", &["--plan"]).0, plan);
}
