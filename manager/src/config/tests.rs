use std::{collections::BTreeSet, fs, path::Path};

use proptest::prelude::*;

use super::{read::SECTIONS, *};

pub(super) const MINIMAL: &str = "node = \"ha1\"\nstore = \"file:///srv/ha-store\"\n";

/// With the section that has to be there, at the end, where it moves no other line.
pub(super) fn parse(text: &str) -> Result<NodeConfig, ConfigError> {
    let section = if text.contains("tls.") { "" } else { "[tls]\n" };
    parse_as_it_is(&format!("{text}\n{section}"))
}

fn parse_as_it_is(text: &str) -> Result<NodeConfig, ConfigError> {
    NodeConfig::parse(text, "node.toml", "/opt/ha-agent".into())
}

/// The messages of a text that has to be refused.
pub(super) fn refused(text: &str) -> Vec<String> {
    match parse(text) {
        Err(ConfigError::Invalid(problems)) => problems.iter().map(Problem::to_string).collect(),
        other => panic!("{text:?} gave {other:?}"),
    }
}

/// That the line `extra`, after the required keys, is refused at `place` with `part` in the message.
#[track_caller]
pub(super) fn refuses(extra: &str, place: &str, part: &str) {
    let found = refused(&format!("{MINIMAL}{extra}\n"));
    assert!(
        found.len() == 1 && found[0].starts_with(&format!("node.toml:{place}: ")) && found[0].contains(part),
        "{extra:?} gave {found:#?}"
    );
}

pub(super) fn documentation() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md")).unwrap()
}

#[test]
fn without_tls_both_ways_are_named() {
    let Err(error) = parse_as_it_is(MINIMAL) else { panic!("it was taken") };
    let said = error.to_string();
    assert!(said.starts_with("node.toml:1:1: `[tls]` is missing"), "{said}");
    assert!(said.contains("ha-manager ca init") && said.contains("insecure = true"), "{said}");
    let config = parse_as_it_is(&format!("{MINIMAL}[tls]\ninsecure = true\n")).unwrap();
    assert!(config.tls.insecure);
    let config = parse(MINIMAL).unwrap();
    assert_eq!((config.tls.insecure, config.tls.dir.as_path()), (false, Path::new("/etc/ha-manager/tls")));
}

#[test]
fn two_keys_are_enough() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.listen, "0.0.0.0:7420".parse().unwrap());
    assert_eq!(config.control_socket(), Path::new("/run/ha-manager/control.sock"));
    assert_eq!(config.agent, Path::new("/opt/ha-agent"));
    assert_eq!(config.network.default_gateway(), None);
}

#[test]
fn directories_that_are_not_given_follow_run_dir() {
    let config = parse(&format!("{MINIMAL}run_dir = \"/run/x\"\n")).unwrap();
    assert_eq!(
        (config.scratch.as_path(), config.runtime_root.as_path()),
        (Path::new("/run/x"), Path::new("/run/x/runc"))
    );
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_one() {
    refuses("[membership]\nprobe_intervall = \"1s\"", "4:1", "did you mean `probe_interval`?");
    refuses("[network]\nlisten = \"0.0.0.0:1\"", "4:1", "belongs at the top of the file");
    refuses("pool = \"10.0.0.0/8\"", "3:1", "`pool` belongs in [network]");
    refuses("[netwrk]\nbridge = \"ha0\"", "3:2", "did you mean `network`?");
    refuses("network = 3", "3:11", "write [network]");
}

#[test]
fn bad_values_are_refused_where_they_stand() {
    refuses("[membership]\nprobe_interval = \"1 parsec\"", "4:18", "e.g. \"250ms\"");
    refuses("[membership]\nprobe_interval = 5", "4:18", "found an integer");
    refuses("[membership]\nprobe_timeout = \"200ms\"", "4:17", "not below `probe_interval` (200ms)");
    refuses("[membership]\nsuspicion = \"100ms\"", "4:13", "not above `probe_interval`");
    refuses("[membership]\nprobe_interval = \"2m\"\nsuspicion = \"5m\"", "4:18", "not between 20ms and 1m");
    refuses("[membership]\nprobe_timeout = \"1ms\"", "4:17", "not between 10ms and 1m");
    refuses("[membership]\nsuspicion = \"11m\"", "4:13", "not between 20ms and 10m");
    refuses("[membership]\nindirect_probes = 17", "4:19", "from 0 to 16");
    refuses("[checkpoint]\ncompression_level = 0", "4:21", "from 1 to 19");
    refuses("[checkpoint]\nqueue_max_bytes = 5", "4:19", "e.g. \"64MiB\"");
    refuses("[checkpoint]\ntimeout = \"0\"", "4:11", "longer than 0");
    refuses("[checkpoint]\ntimeout = \"500ms\"", "4:11", "not above `min_interval`");
    refuses("[network]\nbridge = \"sixteen-letters-\"", "4:10", "at most 15 characters");
    refuses("[network]\nuplink = \"ha0\"", "4:10", "the bridge itself");
    refuses("[network]\npool = \"10.77.1.5/24\"", "4:8", "did you mean \"10.77.1.0/24\"?");
    refuses("[network]\naddress = \"10.78.0.1/16\"", "3:2", "10.77.1.0/24 is outside 10.78.0.0/16");
    refuses("[network]\naddress = \"10.77.0.0/16\"", "4:11", "not the address of a host");
    refuses("[network]\ngateway = \"10.1.0.1\"", "4:11", "not a host address of 10.77.1.0/24");
    refuses("cluster = \"A B\"", "3:11", "cluster name");
    refuses("listen = \"7420\"", "3:10", "0.0.0.0:7420");
    refuses("listen = \"0.0.0.0:0\"", "3:10", "fixed one");
    refuses("peers = [\"10.0.0.2\"]", "3:9", "host:port");
    refuses("peers = \"10.0.0.2:1\"", "3:9", "expected a list");
    refuses("advertise = \"0.0.0.0:7420\"", "3:13", "host:port");
    refuses("state_dir = \"var\"", "3:13", "absolute path");
    refuses("state_dir = \"/run/ha-manager/state\"", "3:13", "emptied by a reboot");
    refuses("state_dir = \"/var/a:b\"", "3:13", "overlay");
    refuses(&format!("run_dir = \"/{}\"", "x".repeat(95)), "3:11", "too long for the path of a socket");
    refuses("criu = \"./criu\"", "3:8", "absolute path");
    refuses("tls.insecure = 1", "3:16", "expected true or false, found an integer");
    refuses("tls.insecure = true\ntls.dir = \"/x\"", "3:16", "leave one of the two out");
}

#[test]
fn stores_that_cannot_be_reached_by_their_url_are_refused() {
    for (url, part) in [
        ("/srv/store", "did you mean \"file:///srv/store\"?"),
        ("file://srv/store", "three slashes"),
        ("file:///", "root directory"),
        ("s3:///prefix", "names no bucket"),
        ("http://x/y", "`http` is not known"),
        ("s3://me:secret@bucket/x", "must not contain credentials"),
    ] {
        let found = refused(&format!("node = \"ha1\"\nstore = \"{url}\"\n"));
        assert!(
            found.len() == 1 && found[0].starts_with("node.toml:2:9: ") && found[0].contains(part),
            "{url}: {found:?}"
        );
        assert!(!found[0].contains("secret"), "a password is repeated: {found:?}");
    }
}

#[test]
fn everything_wrong_is_reported_at_once_in_the_order_of_the_file() {
    let found = refused("listen = 5\nfoo = 1\n[checkpoint]\ntimeout = \"x\"\n[logs]\nmax_bytes = true\n");
    let starts: Vec<_> = found.iter().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(
        starts,
        ["node.toml:1:1", "node.toml:1:1", "node.toml:1:10", "node.toml:2:1", "node.toml:4:11", "node.toml:6:13"]
    );
}

#[test]
fn broken_syntax_has_a_place_too() {
    let found = refused("node = \"ha1\nstore = \"file:///x\"\n");
    assert!(found[0].starts_with("node.toml:1:"), "{found:?}");
    let found = refused(&format!("{MINIMAL}node = \"ha2\"\n"));
    assert!(found.iter().any(|line| line.starts_with("node.toml:3:1: ") && line.contains("duplicate")), "{found:?}");
}

#[test]
fn what_shows_only_in_use_is_refused_at_its_place_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    fs::write(&path, format!("{MINIMAL}[network]\n uplink = \"eth9\"\n")).unwrap();
    let shown = |section, key| ConfigError::refused(&path, section, key, "no").to_string();
    assert!(shown("", "store").ends_with("node.toml:2:9: `store`: no"), "{}", shown("", "store"));
    assert!(shown("network", "uplink").ends_with("node.toml:4:11: `uplink`: no"));
    assert!(shown("network", "bridge").ends_with("node.toml:3:2: `bridge`: no"), "a default is at its section");
    fs::remove_file(&path).unwrap();
    assert!(shown("", "store").ends_with("node.toml:1:1: `store`: no"));
}

#[test]
fn columns_count_characters() {
    refuses("peers = [\"äö\", 5]", "3:9", "expected a string");
    refuses("cluster = \"x\" # ä\nfoo = 1", "4:1", "unknown key `foo`");
}

#[test]
fn candidates_leave_out_what_is_taken() {
    let network = NetworkConfig {
        address: Some("10.77.1.1/29".parse().unwrap()),
        pool: "10.77.1.0/29".parse().unwrap(),
        gateway: Some([10, 77, 1, 6].into()),
        ..NetworkConfig::default()
    };
    let last: Vec<_> = network.candidates().map(|addr| addr.octets()[3]).collect();
    assert_eq!(last, [2, 3, 4, 5]);
}

#[test]
fn a_file_is_read_and_a_missing_or_huge_one_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    assert!(matches!(NodeConfig::load(&path), Err(ConfigError::Read { .. })));
    fs::write(&path, format!("{MINIMAL}[tls]\n")).unwrap();
    assert_eq!(NodeConfig::load(&path).unwrap().node.as_str(), "ha1");
    fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    assert!(matches!(NodeConfig::load(&path), Err(ConfigError::TooLarge { .. })));
}

/// `section.key` of every leaf of the struct, taken from the struct itself.
fn keys_of_the_struct() -> BTreeSet<String> {
    let value = serde_json::to_value(parse(MINIMAL).unwrap()).unwrap();
    let mut keys = BTreeSet::new();
    for (name, value) in value.as_object().unwrap() {
        match value.as_object() {
            Some(section) => keys.extend(section.keys().map(|key| format!("{name}.{key}"))),
            None => drop(keys.insert(name.clone())),
        }
    }
    keys
}

#[test]
fn the_keys_allowed_are_the_keys_of_the_struct() {
    let allowed = SECTIONS
        .iter()
        .flat_map(|(section, keys)| {
            keys.iter().map(move |key| if section.is_empty() { (*key).to_owned() } else { format!("{section}.{key}") })
        })
        .collect::<BTreeSet<_>>();
    assert_eq!(allowed, keys_of_the_struct());
}

#[test]
fn every_key_is_documented() {
    let documentation = documentation();
    for key in keys_of_the_struct() {
        assert!(documentation.contains(&format!("\n| `{key}` |")), "docs/configuration.md has no row for `{key}`");
    }
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let documentation = documentation();
    let (_, rest) = documentation.split_once("<!-- every default -->\n```toml\n").unwrap();
    let (example, _) = rest.split_once("\n```").unwrap();
    let documented =
        parse_as_it_is(example).unwrap_or_else(|error| panic!("the documented defaults are refused:\n{error}"));
    let expected = NodeConfig { agent: "/usr/local/lib/ha-manager/ha-agent".into(), ..parse(MINIMAL).unwrap() };
    assert_eq!(documented, expected);
    for key in keys_of_the_struct() {
        let name = key.rsplit('.').next().unwrap();
        let line = |prefix: &str| example.lines().any(|line| line.starts_with(&format!("{prefix}{name} = ")));
        assert!(line("") || line("# "), "the example leaves out `{key}`");
    }
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "(.|\n){0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_value_of_any_key_is_answered(section in 0..SECTIONS.len(), key in 0usize..14, value in "[0-9\"\\[\\]{}a-z/:.=, -]{0,30}") {
        let (name, keys) = SECTIONS[section];
        let header = if name.is_empty() { String::new() } else { format!("[{name}]\n") };
        let text = format!("{MINIMAL}{header}{} = {value}\n", keys[key % keys.len()]);
        if let Err(ConfigError::Invalid(problems)) = parse(&text) {
            prop_assert!(!problems.is_empty(), "refused without a reason: {}", text);
        }
    }
}
