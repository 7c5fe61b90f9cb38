//! What an operator types, against real managers: every command, its output and its exit code.

mod common;

use std::{
    fs,
    process::{Command, Output, Stdio},
    time::{Duration, SystemTime},
};

use common::{PATIENCE, cannot_run, checkpoint, count, state, with_counter};
use ha_lab::{
    clients::counter::Poller,
    cluster::{Cluster, Member},
    demo::{ADDRESS, Workload},
    images,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn run(member: &Member, args: &[&str]) -> Output {
    member.cli_command().unwrap().args(args).stdin(Stdio::null()).output().unwrap()
}

/// Standard output; the exit code has to be 0.
fn ok(member: &Member, args: &[&str]) -> String {
    let output = run(member, args);
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{args:?}: {}\n{out}\n{err}", output.status);
    out
}

/// Standard error; the exit code has to be `code`, and the text a sentence of this program.
fn refused(member: &Member, args: &[&str], code: i32) -> String {
    let output = run(member, args);
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
    assert!(code == 2 || err.contains("ha-manager: "), "{args:?}: {err:?}");
    err
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Writes a file beside the Compose files of `Member::apply` and returns its path.
fn file(member: &Member, name: &str, text: &str) -> String {
    let path = member.node.disk().join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn counter_with(change: impl FnOnce(&mut Value)) -> String {
    let mut compose: Value = serde_json::from_str(&Workload::Counter.compose(common::NEVER).unwrap()).unwrap();
    change(&mut compose["services"]["counter"]);
    compose.to_string()
}

fn phase(cluster: &Cluster, member: usize, name: &str) -> String {
    let container = cluster.members[member].container(name).unwrap_or_default();
    container.get("phase").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn notes(member: &Member, name: &str) -> String {
    member.container(name).unwrap_or_default().get("notes").map(ToString::to_string).unwrap_or_default()
}

#[test]
fn apply_does_what_the_difference_asks_for() {
    let Some(cluster) = with_counter("apply_does_what_the_difference_asks_for", 2) else { return };
    let [first, second] = &cluster.members[..] else { unreachable!() };
    let (_, id) = state(&cluster);
    let told = count(&cluster, 5);
    let same = Workload::Counter.compose(common::NEVER).unwrap();
    let path = file(first, "app.yaml", &same);
    let out = ok(first, &["apply", "-f", &path]);
    assert!(out.contains("unchanged"), "{out}");
    // At another node than its own: only when there is nothing to do.
    let out = ok(second, &["apply", "-f", &file(second, "app.yaml", &same)]);
    assert!(out.contains("unchanged"), "{out}");
    // Policy only: taken over live.
    let policy = counter_with(|service| service["annotations"]["io.ha-manager.state-sensitivity"] = json!("1s"));
    let err = refused(second, &["apply", "-f", &file(second, "policy.yaml", &policy)], 5);
    assert!(err.contains("runs on n1") && err.contains("move counter --to n2"), "{err}");
    let since = SystemTime::now();
    let out = ok(first, &["apply", "-f", &file(first, "policy.yaml", &policy)]);
    assert!(out.contains("goes on running"), "{out}");
    cluster.wait_for_event("checkpoint.committed", since, 2, PATIENCE).unwrap();
    assert_eq!(state(&cluster), (told, id.clone()));
    // Another program: only when it is said that the state may go.
    let other = counter_with(|service| service["environment"] = json!({"NEW": "1"}));
    let path = file(first, "other.yaml", &other);
    let err = refused(first, &["apply", "-f", &path], 5);
    assert!(err.contains("--recreate"), "{err}");
    assert_eq!(state(&cluster), (told, id.clone()));
    ok(first, &["apply", "-f", &path, "--recreate"]);
    let (now, new) = state(&cluster);
    assert!(now.value == 0 && new != id, "{now:?}");
}

#[test]
fn apply_names_the_line_of_what_is_wrong_and_changes_nothing() {
    let Some(cluster) = common::cluster("apply_names_the_line_of_what_is_wrong", 1) else { return };
    let member = &cluster.members[0];
    let bad = "services:\n  web:\n    image: /nowhere\n    comand: [a]\n    annotations:\n      io.ha-manager.state: statefull\n";
    let err = refused(member, &["apply", "-f", &file(member, "bad.yaml", bad)], 1);
    assert!(err.contains("bad.yaml:4") && err.contains("comand"), "{err}");
    assert!(err.contains("bad.yaml:6") && err.contains("stateless"), "{err}");
    let missing = "services:\n  web:\n    image: ./nowhere\n    command: [a]\n";
    let err = refused(member, &["apply", "-f", &file(member, "missing.yaml", missing)], 5);
    assert!(err.contains("nowhere") && err.contains("does not exist"), "{err}");
    let err = refused(member, &["apply", "-f", "/no/such/file.yaml"], 1);
    assert!(err.contains("/no/such/file.yaml"), "{err}");
    let outside = counter_with(|service| service["networks"] = json!({"default": {"ipv4_address": "192.0.2.9"}}));
    let err = refused(member, &["apply", "-f", &file(member, "outside.yaml", &outside)], 5);
    assert!(err.contains("192.0.2.9") && err.contains("10.77"), "{err}");
    let status = member.json(&["status"]).unwrap();
    assert_eq!(status["containers"], json!([]));
}

#[test]
fn what_others_depend_on_is_healthy_before_they_start() {
    let Some(cluster) = common::cluster("what_others_depend_on_is_healthy_before_they_start", 1) else { return };
    let image = images::cached("counter").unwrap();
    let counter = |address: &str| {
        json!({
            "image": image, "command": ["/bin/counter"], "networks": {"default": {"ipv4_address": address}},
            "healthcheck": {"test": ["CMD", "/bin/counter", "--probe", "127.0.0.1:7000"], "interval": "1s"},
            "annotations": {"io.ha-manager.state": "stateless"},
        })
    };
    let (mut after, before) = (counter("10.77.1.61"), counter("10.77.1.62"));
    after["depends_on"] = json!({"before": {"condition": "service_healthy"}});
    let compose = json!({"services": {"after": after, "before": before}}).to_string();
    cluster.members[0].apply(&compose).unwrap();
    cluster.wait("both", PATIENCE, |cluster| cluster.of_kind("container.started").len() == 2).unwrap();
    let order: Vec<String> = cluster.of_kind("container.started").into_iter().map(|event| event.container).collect();
    assert_eq!(order, ["before", "after"]);
    let (healthy, after) = (
        cluster
            .of_kind("health.changed")
            .into_iter()
            .find(|e| e.container == "before" && e.text("health") == Some("healthy")),
        cluster.of_kind("container.started").into_iter().find(|event| event.container == "after").unwrap(),
    );
    assert!(healthy.is_some_and(|healthy| healthy.at <= after.at), "it was not waited for");
}

/// An image as an OCI layout in `dir`, made with tar and sha256sum; returns manifest and blobs by digest.
fn layout(dir: &std::path::Path) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let aside = dir.join("aside");
        fs::write(&aside, bytes).unwrap();
        let sum = ha_lab::run(Command::new("sha256sum").arg(&aside)).unwrap();
        let digest = sum.split(' ').next().unwrap().to_owned();
        fs::rename(&aside, blobs.join(&digest)).unwrap();
        (format!("sha256:{digest}"), bytes.len())
    };
    let tar = dir.join("layer.tar");
    ha_lab::run(Command::new("tar").arg("-C").arg(images::cached("counter").unwrap()).arg("-cf").arg(&tar).arg("."))
        .unwrap();
    let (layer, layer_size) = put(&fs::read(&tar).unwrap());
    fs::remove_file(tar).unwrap();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": {"Cmd": ["/bin/counter"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    let (config, config_size) = put(config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size}],
    });
    let (manifest, size) = put(manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": size}]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn compose_of(image: &str) -> String {
    json!({"services": {"counter": {
        "image": image, "networks": {"default": {"ipv4_address": ADDRESS}},
        "annotations": {"io.ha-manager.state": "stateful", "io.ha-manager.state-sensitivity": common::NEVER},
    }}})
    .to_string()
}

#[test]
fn images_come_from_layouts_and_archives_beside_the_file_and_a_node_that_never_saw_them_takes_over() {
    let name = "images_come_from_layouts_and_archives";
    let Some(mut cluster) = common::cluster(name, 2) else { return };
    let disk = cluster.members[0].node.disk();
    layout(&disk.join("image"));
    let tar = |name: &str| {
        ha_lab::run(Command::new("tar").arg("-C").arg(disk.join("image")).arg("-cf").arg(disk.join(name)).arg("."))
            .unwrap()
    };
    tar("image.tar");
    for image in ["./image", "./image.tar"] {
        cluster.members[0].apply(&compose_of(image)).unwrap();
        assert_eq!(count(&cluster, 3).value, 3, "{image}");
        if image == "./image" {
            ok(&cluster.members[0], &["rm", "counter"]);
        }
    }
    checkpoint(&cluster);
    // Fetched ahead of need, into a directory of the node's own.
    let layers = cluster.members[1].node.disk().join("state/layers");
    cluster
        .wait("the layers at the peer", PATIENCE, |_| fs::read_dir(&layers).is_ok_and(|mut dir| dir.next().is_some()))
        .unwrap();
    let cut = cluster.members[0].power_cut().unwrap();
    // The source is gone as well.
    fs::remove_dir_all(disk.join("image")).unwrap();
    fs::remove_file(disk.join("image.tar")).unwrap();
    common::wait_until_serving(&cluster, cut.at);
    assert_eq!(state(&cluster).0.value, 3);
}

#[test]
fn an_image_comes_from_a_registry() {
    let name = "an_image_comes_from_a_registry";
    if cannot_run(name) {
        return;
    }
    if let Some(missing) = ["docker-registry", "curl"].into_iter().find(|program| !ha_lab::have(program)) {
        return ha_lab::skipped(name, &format!("{missing} not installed: run scripts/setup --tests"));
    }
    let cluster = Cluster::start(1, "").unwrap();
    let member = &cluster.members[0];
    member.node.exec("ip link set lo up").unwrap();
    let disk = member.node.disk();
    layout(&disk.join("image"));
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:5000\n",
        disk.join("registry").display()
    );
    let config = file(member, "registry.yml", &config);
    let log = fs::File::create(disk.join("registry.log")).unwrap();
    let mut registry = member.node.command("docker-registry").unwrap();
    let mut registry = registry.arg("serve").arg(config).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let curl = |args: &[&str]| {
        let mut command = member.node.command("curl").unwrap();
        ha_lab::run(command.args(["-sS", "-f"]).args(args))
    };
    cluster.wait("the registry", PATIENCE, |_| curl(&["http://127.0.0.1:5000/v2/"]).is_ok()).unwrap();
    let index: Value = serde_json::from_slice(&fs::read(disk.join("image/index.json")).unwrap()).unwrap();
    let top = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    for blob in fs::read_dir(disk.join("image/blobs/sha256")).unwrap().flatten() {
        let digest = format!("sha256:{}", blob.file_name().to_string_lossy());
        let data = format!("@{}", blob.path().display());
        if digest == top {
            continue;
        }
        let begun =
            curl(&["-X", "POST", "-D", "-", "-o", "/dev/null", "http://127.0.0.1:5000/v2/counter/blobs/uploads/"]);
        let begun = begun.unwrap();
        let place =
            begun.lines().find_map(|l| l.strip_prefix("Location: ").or(l.strip_prefix("location: "))).unwrap().trim();
        let url = if place.starts_with('/') { format!("http://127.0.0.1:5000{place}") } else { place.to_owned() };
        curl(&[
            "-X",
            "PUT",
            "-H",
            "Content-Type: application/octet-stream",
            "--data-binary",
            &data,
            &format!("{url}&digest={digest}"),
        ])
        .unwrap();
    }
    let manifest = format!("@{}", disk.join("image/blobs").join(top.replace(':', "/")).display());
    let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
    curl(&["-X", "PUT", "-H", kind, "--data-binary", &manifest, "http://127.0.0.1:5000/v2/counter/manifests/1"])
        .unwrap();
    let err = member.apply(&compose_of("127.0.0.1:5000/counter:none")).unwrap_err();
    assert!(format!("{err:#}").contains("counter:none"), "{err:#}");
    member.apply(&compose_of("127.0.0.1:5000/counter:1")).unwrap();
    assert_eq!(count(&cluster, 3).value, 3);
    registry.kill().unwrap();
    registry.wait().unwrap();
}

#[test]
fn a_restore_puts_back_the_very_state_and_a_failover_after_it_goes_on_from_there() {
    let name = "a_restore_puts_back_the_very_state";
    let Some(mut cluster) = with_counter(name, 2) else { return };
    let mut states = vec![];
    for n in [3, 4] {
        states.push(count(&cluster, n));
        // On the node that does not own it: passed on.
        let out = ok(&cluster.members[1], &["checkpoint", "counter"]);
        assert!(out.contains("committed"), "{out}");
    }
    count(&cluster, 5);
    let listed: Value = serde_json::from_str(&ok(&cluster.members[1], &["snapshots", "counter", "--json"])).unwrap();
    let listed = listed.as_array().unwrap();
    let ids: Vec<&str> = listed.iter().filter_map(|snapshot| snapshot["id"].as_str()).collect();
    assert!(ids.len() >= 2, "{listed:?}");
    assert!(listed.iter().all(|s| s["stored_bytes"].as_u64() > Some(0) && s["frozen_ms"].as_f64() > Some(0.0)));
    let text = ok(&cluster.members[0], &["snapshots", "counter"]);
    assert!(text.contains(ids[0]) && text.contains("manual"), "{text}");
    let since = SystemTime::now();
    ok(&cluster.members[1], &["restore", "counter"]);
    assert_eq!(state(&cluster).0, states[1]);
    cluster.wait_for_event("checkpoint.committed", since, 1, PATIENCE).unwrap();
    let since = SystemTime::now();
    ok(&cluster.members[1], &["restore", "counter", "--snapshot", ids[1]]);
    assert_eq!(state(&cluster).0, states[0]);
    // The state that was chosen is the one that counts from here on.
    cluster.wait_for_event("checkpoint.committed", since, 1, PATIENCE).unwrap();
    let err = refused(&cluster.members[0], &["restore", "counter", "--snapshot", "e1-9999"], 4);
    assert!(err.contains("snapshots counter"), "{err}");
    let cut = cluster.members[0].power_cut().unwrap();
    common::wait_until_serving(&cluster, cut.at);
    assert_eq!(state(&cluster).0, states[0]);
}

#[test]
fn a_move_loses_nothing_keeps_idle_connections_and_goes_both_ways() {
    let Some(cluster) = with_counter("a_move_loses_nothing", 2) else { return };
    let address = format!("{ADDRESS}:7000").parse().unwrap();
    let (_, id) = state(&cluster);
    let idle = cluster.lab.on_client(move || ha_lab::clients::counter::connect_patiently(address, PATIENCE)).unwrap();
    let mut idle = idle.join().unwrap().unwrap();
    let (poller, work) = Poller::new(address, Duration::from_millis(2), Duration::from_secs(2));
    let polling = cluster.lab.on_client(work).unwrap();
    for (to, asked_at) in [("n2", 0), ("n1", 0), ("n2", 1)] {
        let before = poller.last().map_or(0, |answer| answer.state.value);
        cluster
            .wait("the client to count", PATIENCE, |_| poller.last().is_some_and(|a| a.state.value > before + 20))
            .unwrap();
        let out = ok(&cluster.members[asked_at], &["move", "counter", "--to", to]);
        assert!(out.contains(to), "{out}");
        cluster
            .wait("the owner", PATIENCE, |cluster| cluster.owner_of("counter") == Some(if to == "n1" { 0 } else { 1 }))
            .unwrap();
    }
    let before = poller.last().map_or(0, |answer| answer.state.value);
    cluster
        .wait("the client to count", PATIENCE, |_| poller.last().is_some_and(|a| a.state.value > before + 20))
        .unwrap();
    poller.stop();
    polling.join().unwrap().unwrap();
    let seen = poller.seen();
    // Every answer ever given is still true: numbers only go up, over reconnections too.
    assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
    let values: Vec<u64> = seen.answers.iter().map(|answer| answer.state.value).collect();
    assert!(values.is_sorted_by(|a, b| a < b), "an acknowledged increment was lost");
    let (last, same) = state(&cluster);
    assert!(last.is_genuine() && last.value >= *values.last().unwrap(), "{last:?}");
    assert_eq!(same, id);
    // Open since before the first move.
    assert_eq!(idle.get().unwrap(), last);
    let running: Vec<usize> = cluster.members.iter().map(|m| m.node.processes("/bin/counter").len()).collect();
    assert_eq!(running, [0, 1]);
}

#[test]
fn a_move_that_cannot_be_is_refused_or_leaves_the_container_where_it_was() {
    let Some(mut cluster) = with_counter("a_move_that_cannot_be", 3) else { return };
    let told = count(&cluster, 5);
    let (_, id) = state(&cluster);
    let err = refused(&cluster.members[0], &["move", "counter", "--to", "n9"], 4);
    assert!(err.contains("n9"), "{err}");
    refused(&cluster.members[0], &["move", "counter", "--to", "n1"], 5);
    let cut = cluster.members[2].power_cut().unwrap();
    let dead = |cluster: &Cluster| {
        cluster
            .events()
            .iter()
            .any(|e| e.node == "n1" && e.kind == "peer.dead" && e.at >= chrono::DateTime::<chrono::Utc>::from(cut.at))
    };
    cluster.wait("n1 to hold n3 for dead", PATIENCE, dead).unwrap();
    let err = refused(&cluster.members[0], &["move", "counter", "--to", "n3"], 5);
    assert!(err.contains("dead"), "{err}");
    assert_eq!(state(&cluster), (told, id.clone()));
    // A target that looks well and cannot.
    let (criu, broken) = (ha_lab::which("criu").unwrap(), ha_lab::which("false").unwrap());
    cluster.members[1].node.exec(&format!("mount --bind {} {}", broken.display(), criu.display())).unwrap();
    let err = refused(&cluster.members[0], &["move", "counter", "--to", "n2"], 1);
    assert!(err.contains("goes on here"), "{err}");
    assert_eq!(state(&cluster), (told, id));
    assert_eq!(cluster.owner_of("counter"), Some(0));
    checkpoint(&cluster);
}

#[test]
fn what_rm_removes_is_gone_and_the_name_and_address_are_free() {
    let name = "what_rm_removes_is_gone";
    if cannot_run(name) {
        return;
    }
    let cluster = Cluster::start(2, "").unwrap();
    let census = || cluster.members.iter().map(|m| m.node.census().unwrap()).collect::<Vec<_>>();
    let with_volume = counter_with(|service| service["volumes"] = json!(["data:/data"]));
    let mut with_volume: Value = serde_json::from_str(&with_volume).unwrap();
    with_volume["volumes"] = json!({"data": {}});
    let compose = with_volume.to_string();
    let before = census();
    for _ in 0..2 {
        cluster.members[0].apply(&compose).unwrap();
        count(&cluster, 3);
        checkpoint(&cluster);
        // Asked for at the other node.
        ok(&cluster.members[1], &["rm", "counter"]);
        let err = refused(&cluster.members[1], &["rm", "counter"], 4);
        assert!(err.contains("counter"), "{err}");
        for (member, before) in cluster.members.iter().zip(&before) {
            let left = || {
                let left = before.left_behind(&member.node.census().unwrap());
                // Shared by all containers, and there for the next one.
                let common = |line: &&String| {
                    !line.ends_with("/ha-manager")
                        && !line.starts_with("mount /run/netns ")
                        && !line.starts_with("process")
                };
                left.iter().filter(common).cloned().collect::<Vec<_>>()
            };
            assert_eq!(left(), Vec::<String>::new(), "{}", member.node.name());
            let state = member.node.disk().join("state/containers");
            let there =
                fs::read_dir(state).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
            assert!(there.is_empty(), "{there:?}");
        }
        let store = cluster.lab.store();
        for kind in ["snapshots/counter", "logs/counter"] {
            let left: Vec<_> = walk(&store.join(kind));
            assert!(left.is_empty(), "{left:?}");
        }
        assert!(walk(&store.join("addresses")).is_empty());
        assert_eq!(cluster.members[1].json(&["status"]).unwrap()["containers"], json!([]));
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

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
    node.exec(&format!("umount {store}")).unwrap();
    // A container whose owner stopped its manager is absent, not gone.
    cluster.members[0].stop_manager(Signal::SIGTERM).unwrap();
    cluster.wait("the note", PATIENCE, |cluster| notes(&cluster.members[1], "counter").contains("--force")).unwrap();
    assert_eq!(phase(&cluster, 1, "counter"), "unknown");
    refused(&cluster.members[1], &["checkpoint", "counter"], 5);
}

#[test]
fn a_container_of_a_stopped_manager_is_claimed_only_when_it_is_silent() {
    let Some(mut cluster) = with_counter("a_container_of_a_stopped_manager", 2) else { return };
    let told = count(&cluster, 5);
    checkpoint(&cluster);
    let (_, id) = state(&cluster);
    let err = refused(&cluster.members[1], &["restore", "counter", "--snapshot", "nonsense"], 5);
    assert!(err.contains("nonsense"), "{err}");
    cluster.members[0].stop_manager(Signal::SIGTERM).unwrap();
    cluster
        .wait("n1 to have left", PATIENCE, |cluster| notes(&cluster.members[1], "counter").contains("stopped"))
        .unwrap();
    let err = refused(&cluster.members[1], &["restore", "counter"], 5);
    assert!(err.contains("n1") && err.contains("--force"), "{err}");
    // It runs on there, so force is refused as well, and nothing changes.
    let err = refused(&cluster.members[1], &["restore", "counter", "--force"], 5);
    assert!(err.contains("answers at") && err.contains("Nothing was changed"), "{err}");
    assert_eq!(state(&cluster), (told, id.clone()));
    // With its cable out it is silent; when it is back, what it runs is out of date and goes.
    cluster.members[0].node.link_down().unwrap();
    ok(&cluster.members[1], &["restore", "counter", "--force"]);
    assert_eq!(state(&cluster), (told, id.clone()));
    let told = count(&cluster, 5);
    cluster.members[0].start_manager().unwrap();
    cluster.wait("the old copy to go", PATIENCE, |c| c.members[0].node.processes("/bin/counter").is_empty()).unwrap();
    cluster.members[0].node.link_up().unwrap();
    cluster.wait_for_all().unwrap();
    assert_eq!(state(&cluster), (told, id));
    assert_eq!(cluster.owner_of("counter"), Some(1));
}

#[test]
fn a_dead_owners_container_without_failover_waits_for_its_operator() {
    let name = "a_dead_owners_container_without_failover_waits_for_its_operator";
    let Some(mut cluster) = common::cluster(name, 2) else { return };
    let compose = counter_with(|service| service["annotations"]["io.ha-manager.recovery"] = json!("restart"));
    cluster.members[0].apply(&compose).unwrap();
    let told = count(&cluster, 5);
    checkpoint(&cluster);
    let cut = cluster.members[0].power_cut().unwrap();
    cluster.wait_for_event("peer.dead", cut.at, 1, PATIENCE).unwrap();
    for command in [
        &["restore", "counter"][..],
        &["checkpoint", "counter"],
        &["rm", "counter"],
        &["move", "counter", "--to", "n2"],
    ] {
        let err = refused(&cluster.members[1], command, 5);
        assert!(err.contains("dead") && err.contains("--force"), "{err}");
    }
    ok(&cluster.members[1], &["logs", "counter"]);
    assert!(ok(&cluster.members[1], &["status"]).contains("--force"));
    refused(&cluster.members[1], &["restore", "counter", "--force", "--snapshot", "e1-9999"], 4);
    ok(&cluster.members[1], &["restore", "counter", "--force"]);
    assert_eq!(state(&cluster).0, told);
    checkpoint(&cluster);
}

#[test]
fn exit_codes_are_as_the_help_says() {
    let Some(cluster) = with_counter("exit_codes_are_as_the_help_says", 1) else { return };
    let member = &cluster.members[0];
    let help = ok(member, &["--help"]);
    for code in 0..=5 {
        assert!(help.contains(&format!("\n  {code}  ")), "{help}");
    }
    for command in ["checkpoint", "snapshots", "logs", "rm", "restore"] {
        let err = refused(member, &[command, "nobody"], 4);
        assert!(err.contains("nobody"), "{err}");
    }
    refused(member, &["move", "nobody", "--to", "n1"], 4);
    refused(member, &["checkpoint", "Not a name"], 5);
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
