//! What an operator reads: logs, events, status, exit codes, the doctor.

mod common;

use std::{
    fs,
    process::{Command, Stdio},
    time::SystemTime,
};

use common::{
    PATIENCE, cannot_run, checkpoint, count,
    operator::{counter_with, file, notes, ok, phase, refused, run, texts, walk},
    with_counter,
};
use ha_lab::{
    cluster::{Cluster, Member},
    demo::Workload,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A counter that prints a line for every increment, in a cluster of two.
fn with_printer(test: &str, config: &str) -> Option<Cluster> {
    if cannot_run(test) {
        return None;
    }
    let cluster = Cluster::start(2, config).unwrap();
    let command = ["/bin/counter", "--file", "/dev/stdout"].map(str::to_owned);
    cluster.members[0].apply(&Workload::Counter.compose_with(&command, Some(common::NEVER)).unwrap()).unwrap();
    Some(cluster)
}

/// The numbers a log says were counted, in its order; as a program's lines or as records with times and streams.
fn counted(log: &str) -> Vec<u64> {
    log.lines()
        .filter_map(|line| {
            let line = line.split_once(" stdout F ").map_or(line, |(_, text)| text);
            line.split_once(' ')?.0.parse().ok()
        })
        .collect()
}

#[test]
fn output_is_kept_over_checkpoint_restart_move_and_failover_and_can_be_followed() {
    let Some(mut cluster) = with_printer("output_is_kept", "") else { return };
    let followed = cluster.members[1].node.disk().join("followed");
    let mut follower = cluster.members[1].cli_command().unwrap();
    let mut follower = follower
        .args(["logs", "counter", "--follow"])
        .stdout(fs::File::create(&followed).unwrap())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let log = |member: &Member| counted(&ok(member, &["logs", "counter"]));
    let until = |cluster: &Cluster, last: u64| {
        let both = |cluster: &Cluster| {
            let followed = counted(&fs::read_to_string(&followed).unwrap_or_default());
            cluster.members.iter().filter(|m| m.node.is_on()).all(|m| log(m).last() == Some(&last))
                && followed.last() == Some(&last)
        };
        cluster.wait("the last line", PATIENCE, both).unwrap();
    };
    count(&cluster, 5);
    checkpoint(&cluster);
    until(&cluster, 5);
    let pid = cluster.members[0].node.processes("/bin/counter")[0];
    let since = SystemTime::now();
    ha_lab::run(Command::new("kill").arg("-9").arg(pid.to_string())).unwrap();
    common::wait_until_serving(&cluster, since);
    count(&cluster, 2);
    until(&cluster, 7);
    ok(&cluster.members[0], &["move", "counter", "--to", "n2"]);
    count(&cluster, 3);
    until(&cluster, 10);
    ok(&cluster.members[1], &["move", "counter", "--to", "n1"]);
    count(&cluster, 2);
    until(&cluster, 12);
    checkpoint(&cluster);
    // Longer than a segment waits for its upload.
    let shipped = || {
        walk(&cluster.lab.store().join("logs/counter"))
            .iter()
            // Not what is being written: under a name with `#` until it is whole.
            .filter(|path| !path.to_string_lossy().contains('#'))
            .any(|path| counted(&fs::read_to_string(path).unwrap_or_default()).last() == Some(&12))
    };
    cluster.wait("the log in the store", PATIENCE, |_| shipped()).unwrap();
    let cut = cluster.members[0].power_cut().unwrap();
    common::wait_until_serving(&cluster, cut.at);
    count(&cluster, 2);
    until(&cluster, 14);
    let all: Vec<u64> = (1..=14).collect();
    assert_eq!(log(&cluster.members[1]), all);
    assert_eq!(counted(&fs::read_to_string(&followed).unwrap()), all);
    ok(&cluster.members[1], &["rm", "counter"]);
    // A follower ends with the container.
    cluster.wait("the follower to end", PATIENCE, |_| follower.try_wait().unwrap().is_some()).unwrap();
    refused(&cluster.members[1], &["logs", "counter"], 4);
}

#[test]
fn output_is_followed_over_a_restart_of_the_owners_manager() {
    // A manager that is killed must not count as dead before it is back.
    let config = "membership.suspicion = \"60s\"";
    let Some(mut cluster) = with_printer("output_is_followed_over_a_restart_of_the_owners_manager", config) else {
        return;
    };
    let followed = cluster.members[1].node.disk().join("followed");
    let mut follower = cluster.members[1].cli_command().unwrap();
    let mut follower = follower
        .args(["logs", "counter", "-f"])
        .stdout(fs::File::create(&followed).unwrap())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let seen = |last: u64| move |text: String| counted(&text).last() == Some(&last);
    let text = || fs::read_to_string(&followed).unwrap_or_default();
    count(&cluster, 3);
    cluster.wait("three lines", PATIENCE, |_| seen(3)(text())).unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // The next one is an hour away: a manager killed within a checkpoint leaves the gate closed until it is back.
        checkpoint(&cluster);
        cluster.members[0].stop_manager(signal).unwrap();
        count(&cluster, 3);
        cluster.members[0].start_manager().unwrap();
        cluster.wait_for_all().unwrap();
    }
    count(&cluster, 1);
    cluster.wait("all lines", PATIENCE, |_| seen(10)(text())).unwrap();
    assert_eq!(counted(&text()), (1..=10).collect::<Vec<_>>());
    // Nor is the log in the store stuck behind a segment that the killed manager did not write down.
    let shipped = || {
        walk(&cluster.lab.store().join("logs/counter"))
            .iter()
            .any(|path| counted(&fs::read_to_string(path).unwrap_or_default()).last() == Some(&10))
    };
    cluster.wait("the log in the store", PATIENCE, |_| shipped()).unwrap();
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn events_are_seen_from_any_node_each_once_and_from_nodes_that_come_back() {
    let Some(mut cluster) = with_counter("events_are_seen_from_any_node", 2) else { return };
    let path = cluster.members[1].node.disk().join("events");
    let mut follower = cluster.members[1].cli_command().unwrap();
    let mut follower = follower
        .args(["events", "--follow", "--json"])
        .stdout(fs::File::create(&path).unwrap())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let of = |kind: &str| lines().iter().filter(|event| event["kind"] == kind && event["node"] == "n1").count();
    checkpoint(&cluster);
    cluster.wait("the commit", PATIENCE, |_| of("checkpoint.committed") >= 1).unwrap();
    cluster.members[0].stop_manager(Signal::SIGTERM).unwrap();
    cluster.members[0].start_manager().unwrap();
    cluster
        .wait("the peer to be followed again", PATIENCE, |_| of("container.adopted") == 1 && of("node.started") == 2)
        .unwrap();
    let all = lines();
    let mut texts: Vec<_> = all.iter().map(ToString::to_string).collect();
    texts.sort();
    let twice: Vec<_> = texts.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| &pair[0]).collect();
    assert!(twice.is_empty(), "shown twice: {twice:#?}");
    for event in &all {
        let keys: Vec<&str> = event.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 6, "{event}");
        assert!(event["detail"].is_object(), "{event}");
    }
    let text = ok(&cluster.members[1], &["events", "counter"]);
    assert!(text.lines().all(|line| line.contains(" counter ")) && text.contains("container.started"), "{text}");
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn status_says_what_its_reader_should_know() {
    let name = "status_says_what_its_reader_should_know";
    if cannot_run(name) {
        return;
    }
    let mut cluster = Cluster::start(2, "").unwrap();
    let shared = cluster.members[0].node.disk().join("shared").display().to_string();
    fs::create_dir(&shared).unwrap();
    let compose = counter_with(|service| service["volumes"] = json!([format!("{shared}:/shared")]));
    cluster.members[0].apply(&compose).unwrap();
    let text = ok(&cluster.members[1], &["status"]);
    assert!(text.contains("host bind") && text.contains(&shared), "{text}");
    let container = cluster.members[1].container("counter").unwrap();
    for key in ["name", "node", "epoch", "phase", "health", "state", "ipv4", "mac", "image", "notes", "pid"] {
        assert!(container.get(key).is_some(), "{key}: {container}");
    }
    // A document a second, until its reader has enough.
    let mut watch = cluster.members[0].cli_command().unwrap();
    let mut watch =
        watch.args(["status", "--json", "--watch"]).stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(watch.stdout.take().unwrap()));
    for line in lines.take(2) {
        let document: Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(document["cluster"], "lab");
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
    // Nothing can be written to the store on one node: what comes of it, seen from the other.
    let store = cluster.lab.store().display().to_string();
    let node = &cluster.members[0].node;
    node.exec(&format!("mount --bind {store} {store}")).unwrap();
    node.exec(&format!("mount -o remount,bind,ro {store}")).unwrap();
    refused(&cluster.members[1], &["checkpoint", "counter"], 1);
    assert!(notes(&cluster.members[1], "counter").contains("the last checkpoint failed"));
    node.exec(&format!("umount -l {store}")).unwrap();
    // A container whose owner stopped its manager is absent, not gone.
    cluster.members[0].stop_manager(Signal::SIGTERM).unwrap();
    cluster.wait("the note", PATIENCE, |cluster| notes(&cluster.members[1], "counter").contains("--force")).unwrap();
    assert_eq!(phase(&cluster, 1, "counter"), "unknown");
    refused(&cluster.members[1], &["checkpoint", "counter"], 5);
}

#[test]
fn exit_codes_are_as_the_help_says() {
    let Some(cluster) = with_counter("exit_codes_are_as_the_help_says", 1) else { return };
    let member = &cluster.members[0];
    let help = ok(member, &["--help"]);
    for code in 0..=5 {
        assert!(help.contains(&format!("\n  {code}  ")), "{help}");
    }
    for command in ["checkpoint", "snapshots", "logs", "events", "rm", "restore"] {
        let err = refused(member, &[command, "nobody"], 4);
        assert!(err.contains("nobody"), "{err}");
    }
    refused(member, &["move", "nobody", "--to", "n1"], 4);
    refused(member, &["checkpoint", "Not a name"], 5);
    refused(member, &["events", "Not a name"], 5);
    refused(member, &["frobnicate"], 2);
    refused(member, &["man", "frobnicate"], 2);
    refused(member, &["apply", "-f", "/nowhere.yaml"], 1);
    for command in [&["status"][..], &["checkpoint", "counter"], &["events"], &["rm", "counter"]] {
        let err = refused(member, &[&["--socket", "/nowhere.sock"][..], command].concat(), 3);
        assert!(
            err.contains("/nowhere.sock") && err.contains("No such file") && err.contains("ha-manager run"),
            "{err}"
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let text = ok(member, &["completions", shell]);
        assert!(text.contains("snapshots") && text.contains("recreate"), "{shell}");
    }
    let page = ok(member, &["man"]);
    assert!(page.contains(".TH ha-manager 1") && page.contains("Exit codes"), "{page}");
    let page = ok(member, &["man", "restore"]);
    assert!(page.contains("force") && page.contains("snapshot"), "{page}");
}

#[test]
fn the_doctor_says_what_the_node_and_its_store_can_do() {
    let Some(cluster) = common::cluster("the_doctor_says_what_the_node_and_its_store_can_do", 1) else { return };
    let member = &cluster.members[0];
    let config = member.node.disk().join("node.toml");
    let output = run(member, &["doctor", "--json", "--config", &config.display().to_string()]);
    let (out, err) = texts(&output);
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    let checks = report["checks"].as_array().unwrap();
    let store = checks.iter().find(|check| check["id"].as_str().is_some_and(|id| id.starts_with("store"))).unwrap();
    assert_eq!(store["verdict"], "ok", "{store}");
    for check in checks {
        let bad = matches!(check["verdict"].as_str(), Some("fail" | "warn"));
        assert!(!bad || check["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "no remedy: {check}");
    }
    assert_eq!(output.status.code().map(i64::from), report["exit_code"].as_i64());
    let output = run(member, &["doctor", "--config", &config.display().to_string()]);
    assert!(texts(&output).0.contains("store"));
    // What is lost without a capability is found by trying, and said.
    let gate = checks.iter().find(|check| check["id"] == "network.gate").unwrap();
    assert_eq!(gate["verdict"], "ok", "{gate}");
    let without_net_raw = {
        let mut doctor = member.node.command("setpriv").unwrap();
        doctor.args(["--bounding-set", "-net_raw", "--"]).arg(ha_lab::cluster::manager_program().unwrap());
        let output = doctor.args(["doctor", "--json", "--config"]).arg(&config).output().unwrap();
        let report: Value = serde_json::from_str(&texts(&output).0).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["id"] == "network.gate").unwrap().clone()
    };
    assert_eq!(without_net_raw["verdict"], "warn", "{without_net_raw}");
    assert!(without_net_raw["found"].as_str().unwrap().contains("dropped"), "{without_net_raw}");
    assert!(without_net_raw["remedy"].as_str().unwrap().contains("CAP_NET_RAW"), "{without_net_raw}");
    let text = fs::read_to_string(&config).unwrap();
    let bad = file(member, "bad.toml", &format!("colour = \"red\"\n{text}"));
    let err = refused(member, &["doctor", "--config", &bad], 1);
    assert!(err.contains("bad.toml") && err.contains("colour"), "{err}");
    // A store that is not there.
    let store = cluster.lab.store().display().to_string();
    let away = file(member, "away.toml", &text.replace(&store, "/proc/nowhere"));
    let output = run(member, &["doctor", "--json", "--config", &away]);
    let report: Value = serde_json::from_str(&texts(&output).0).unwrap();
    let store = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["id"].as_str().is_some_and(|id| id.starts_with("store")));
    assert_eq!(store.unwrap()["verdict"], "fail");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_watch_outlives_the_manager_and_a_log_that_cannot_be_written_is_an_error() {
    let Some(mut cluster) = with_printer("a_watch_outlives_the_manager", "") else { return };
    count(&cluster, 3);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut logs = cluster.members[0].cli_command().unwrap();
    let output =
        logs.args(["logs", "counter"]).stdin(Stdio::null()).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let (_, err) = texts(&output);
    assert!(output.status.code() == Some(1) && err.contains("cannot write to standard output"), "{output:?}");

    let seen = cluster.members[0].node.disk().join("seen");
    let mut watch = cluster.members[0].cli_command().unwrap();
    let mut watch = watch
        .args(["status", "--json", "--watch"])
        .stdout(fs::File::create(&seen).unwrap())
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let lines = || fs::read_to_string(&seen).unwrap_or_default().lines().count();
    cluster.wait("a status", PATIENCE, |_| lines() > 0).unwrap();
    cluster.members[0].stop_manager(Signal::SIGTERM).unwrap();
    let before = lines();
    cluster.members[0].start_manager().unwrap();
    let gone_on = cluster.wait("a status of the next manager", PATIENCE, |_| lines() > before + 1);
    watch.kill().unwrap();
    watch.wait().unwrap();
    gone_on.unwrap();
}
