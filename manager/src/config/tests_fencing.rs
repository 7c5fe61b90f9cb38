//! `pace`, `[lease]`, `quorum` and `[fence.NODE]`.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    read::PER_NODE,
    tests::{MINIMAL, documentation, parse, refused, refuses},
    *,
};

fn with(extra: &str) -> NodeConfig {
    parse(&format!("{MINIMAL}{extra}\n")).unwrap_or_else(|error| panic!("{extra:?} is refused:\n{error}"))
}

/// `probe_interval`, `probe_timeout`, `suspicion`, `short` and `long` in milliseconds.
fn times(config: &NodeConfig) -> [u128; 5] {
    let (membership, lease) = (&config.membership, &config.lease);
    [membership.probe_interval, membership.probe_timeout, membership.suspicion, lease.short, lease.long]
        .map(|time| time.as_millis())
}

#[test]
fn a_pace_sets_the_times_and_single_keys_override_it() {
    for (extra, expected) in [
        ("", [200, 150, 600, 1000, 15_000]),
        ("pace = \"lan\"", [200, 150, 600, 1000, 15_000]),
        ("pace = \"fast\"", [100, 75, 300, 500, 10_000]),
        ("pace = \"wan\"", [1000, 750, 3000, 5000, 60_000]),
        ("pace = \"fast\"\n[lease]\nlong = \"20s\"\n[membership]\nsuspicion = \"250ms\"", [100, 75, 250, 500, 20_000]),
        // Times that are not given follow those they depend on.
        ("[membership]\nsuspicion = \"4s\"", [200, 150, 4000, 4400, 22_000]),
        ("[lease]\nshort = \"10s\"", [200, 150, 600, 10_000, 50_000]),
    ] {
        assert_eq!(times(&with(extra)), expected, "{extra}");
    }
    assert_eq!(with("").pace, Pace::Lan);
}

#[test]
fn lease_times_that_break_a_rule_are_refused_with_the_rule() {
    refuses("pace = \"slow\"", "3:8", "\"slow\" is none of \"fast\", \"lan\", \"wan\"");
    refuses("[lease]\nshort = \"999ms\"", "4:9", "less than `suspicion` + 2 · `probe_interval` (1s)");
    refuses("[membership]\nsuspicion = \"2s\"\n[lease]\nshort = \"2s\"", "6:9", "(2s 400ms)");
    refuses("[lease]\nshort = \"2h\"", "4:9", "more than 1h");
    refuses("[lease]\nshort = \"4s\"\nlong = \"19s\"", "5:8", "less than 5 · `short` (20s)");
    refuses("pace = \"fast\"\n[lease]\nlong = \"4s\"", "5:8", "less than 5s");
    refuses("[lease]\nlong = \"25h\"", "4:8", "more than 1day");
    refuses("[lease]\nshorts = \"1s\"", "4:1", "did you mean `short`?");
    refuses("short = \"1s\"", "3:1", "`short` belongs in [lease]");
}

#[test]
fn no_lease_time_is_so_long_that_it_cannot_be_added_to_a_clock() {
    let config = with("[membership]\nprobe_interval = \"60s\"\nsuspicion = \"600s\"");
    assert_eq!(config.lease.short, Duration::from_secs(720));
    assert_eq!(config.lease.long, Duration::from_secs(3600));
    // What follows from a time that is refused itself is not said, too.
    refuses("[membership]\nsuspicion = \"1000h\"", "4:13", "not between 20ms and 10m");
    refuses("[membership]\nsuspicion = \"1000h\"\n[lease]\nlong = \"20s\"", "4:13", "not between 20ms and 10m");
    refuses("[lease]\nshort = \"1000h\"\nlong = \"20s\"", "4:9", "more than 1h");
}

#[test]
fn a_majority_needs_three_voters_and_voters_need_a_majority() {
    let config = with("quorum = \"majority\"\nvoters = [\"n3\", \"n1\", \"n2\"]");
    assert_eq!(config.quorum, Quorum::Majority);
    assert_eq!(config.voters.iter().map(NodeName::as_str).collect::<Vec<_>>(), ["n1", "n2", "n3"]);
    let config = with("");
    assert_eq!((config.quorum, config.voters.len()), (Quorum::Store, 0));
    refuses("quorum = \"all\"", "3:10", "\"all\" is none of \"store\", \"majority\"");
    refuses("quorum = \"majority\"", "3:10", "voters = [\"ha1\", \"ha2\", \"ha3\"]");
    refuses("quorum = \"majority\"\nvoters = [\"n1\", \"n2\"]", "4:10", "2 of at least 3");
    refuses("quorum = \"majority\"\nvoters = [\"n1\", \"n2\", \"n1\"]", "4:10", "n1 is named twice");
    refuses("quorum = \"majority\"\nvoters = [\"n1\", \"n2\", \"N3\"]", "4:10", "node name \"N3\"");
    refuses("voters = [\"n1\", \"n2\", \"n3\"]", "3:10", "only with quorum = \"majority\"");
    refuses("[lease]\nquorum = \"store\"", "4:1", "belongs at the top of the file");
}

#[test]
fn a_watchdog_device_is_a_path() {
    assert_eq!(with("watchdog_device = \"/dev/watchdog\"").watchdog_device, Some("/dev/watchdog".into()));
    assert_eq!(with("").watchdog_device, None);
    refuses("watchdog_device = \"watchdog\"", "3:19", "absolute path");
}

#[test]
fn a_node_is_fenced_by_a_command_or_by_an_agent() {
    let config = with(
        "[fence.ha2]\ncommand = [\"/usr/local/sbin/cut-power\", \"--outlet\", \"2\"]\n\
         [fence.\"ha.3\"]\nagent = \"/usr/sbin/fence_ipmilan\"\naction = \"reboot\"\ntimeout = \"1m\"\n\
         options = { ip = \"10.0.0.9\", password = \"hunter2\", empty = \"\" }",
    );
    let [ha2, ha3]: [NodeName; 2] = ["ha2", "ha.3"].map(|name| name.parse().unwrap());
    assert_eq!(config.fence.len(), 2);
    let words = ["/usr/local/sbin/cut-power", "--outlet", "2"].map(str::to_owned).to_vec();
    assert_eq!(config.fence[&ha2].method, FenceMethod::Command { command: words });
    assert_eq!(config.fence[&ha2].timeout, Duration::from_secs(30));
    assert_eq!(config.fence[&ha3].timeout, Duration::from_secs(60));
    let FenceMethod::Agent { agent, options, action } = &config.fence[&ha3].method else { panic!("{config:?}") };
    assert_eq!((agent.as_path(), *action), (std::path::Path::new("/usr/sbin/fence_ipmilan"), FenceAction::Reboot));
    assert_eq!(options.0["password"], "hunter2");
    let shown = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
    assert!(shown.contains("password") && !shown.contains("hunter2"), "{shown}");
    // The default action, and an agent that needs no options; the other way to write a part.
    let config = with("fence.ha2.agent = \"/usr/sbin/fence_dummy\"");
    let FenceMethod::Agent { options, action, .. } = &config.fence[&ha2].method else { panic!("{config:?}") };
    assert_eq!((options.0.len(), *action), (0, FenceAction::Off));
    assert!(with("[fence]").fence.is_empty());
}

#[test]
fn fencing_that_cannot_work_is_refused_where_it_stands() {
    let command = "command = [\"/bin/cut\"]";
    let agent = "agent = \"/usr/sbin/fence_x\"";
    refuses("[fence.ha2]", "3:8", "[fence.ha2] does not say how");
    refuses(&format!("[fence.ha2]\n{command}\n{agent}"), "4:11", "leave one of the two out");
    refuses(&format!("[fence.ha2]\n{command}\naction = \"off\""), "5:10", "is for an `agent`");
    refuses(&format!("[fence.ha2]\n{command}\noptions = {{}}"), "5:11", "is for an `agent`");
    refuses("[fence.ha2]\ncommand = \"/bin/cut\"", "4:11", "expected a list");
    refuses("[fence.ha2]\ncommand = []", "4:11", "is empty");
    refuses("[fence.ha2]\ncommand = [\"cut\"]", "4:11", "\"cut\" is not the absolute path");
    refuses("[fence.ha2]\nagent = \"fence_x\"", "4:9", "absolute path");
    refuses(&format!("[fence.ha2]\n{agent}\naction = \"on\""), "5:10", "\"on\" is none of \"off\", \"reboot\"");
    refuses(&format!("[fence.ha2]\n{agent}\noptions = \"ip\""), "5:11", "expected names and values");
    refuses(&format!("[fence.ha2]\n{agent}\noptions = {{ port = 1 }}"), "5:11", "`port` is not a string in quotes");
    refuses(&format!("[fence.ha2]\n{agent}\noptions = {{ action = \"off\" }}"), "5:11", "key of its own");
    refuses(&format!("[fence.ha2]\n{agent}\noptions = {{ \"a=b\" = \"c\" }}"), "5:11", "not the name of an option");
    refuses(&format!("[fence.ha2]\n{command}\ntimeout = \"999ms\""), "5:11", "not between 1s and 10m");
    refuses(&format!("[fence.ha2]\n{command}\ntimeout = \"11m\""), "5:11", "not between 1s and 10m");
    refuses(&format!("[fence.HA2]\n{command}"), "3:8", "node name \"HA2\"");
    refuses(
        &format!("[fence.ha2]\n{command}\ntimeuot = \"1s\""),
        "5:1",
        "allowed here: command, agent, options, action, timeout",
    );
    refuses(&format!("[fence]\n{command}"), "4:1", "write [fence.NODE] above it");
    refuses("fence = 3", "3:9", "write [fence.NODE]");
    refuses("[fnce.ha2]", "3:2", "did you mean `fence`?");
    let secret = refused(&format!("{MINIMAL}[fence.ha2]\n{agent}\noptions = {{ password = \"hunter2\\nx\" }}\n"));
    assert!(secret.len() == 1 && secret[0].contains("`password` has more than one line"), "{secret:?}");
    assert!(!secret[0].contains("hunter2"), "a password is repeated: {secret:?}");
}

#[test]
fn every_key_of_a_fenced_node_and_every_pace_is_documented() {
    let documentation = documentation();
    for key in PER_NODE.1 {
        assert!(documentation.contains(&format!("\n| `fence.NODE.{key}` |")), "no row for `fence.NODE.{key}`");
    }
    let shown = humantime::format_duration;
    for (name, pace) in Pace::NAMES {
        let (membership, lease) = (pace.membership(), pace.lease());
        let times =
            [membership.probe_interval, membership.probe_timeout, membership.suspicion, lease.short, lease.long];
        let cells = times.map(|time| shown(time).to_string()).join(" | ");
        assert!(documentation.contains(&format!("\n| `\"{name}\"` | {cells} | ")), "no row \"{name}\" with {cells}");
    }
}

proptest! {
    #[test]
    fn any_value_of_any_key_of_a_fenced_node_is_answered(key in 0..PER_NODE.1.len(), value in "[0-9\"\\[\\]{}a-z/:.=, -]{0,30}") {
        let text = format!("{MINIMAL}[fence.ha2]\n{} = {value}\n", PER_NODE.1[key]);
        if let Err(ConfigError::Invalid(problems)) = parse(&text) {
            prop_assert!(!problems.is_empty(), "refused without a reason: {}", text);
        }
    }
}
