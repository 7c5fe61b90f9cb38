//! `apply`: what a Compose file asks for, where its images come from, and what is refused, against real managers.

mod common;

use std::{fs, process::Command, time::SystemTime};

use common::{
    PATIENCE, cannot_run, checkpoint, count, kill_counter,
    operator::{counter_with, file, ok, phase, refused},
    state,
    watch::Described,
    with_counter,
};
use ha_lab::{
    cluster::Cluster,
    demo::{ADDRESS, Workload},
    images,
};
use serde_json::{Value, json};

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
fn a_wait_ends_when_all_run_are_healthy_and_are_protected_or_says_what_is_missing() {
    let name = "a_wait_ends_when_all_run_are_healthy_and_are_protected";
    let Some(cluster) = common::cluster(name, 2) else { return };
    let member = &cluster.members[0];
    let path = file(member, "app.yaml", &counter_with(|_| ()));
    let out = ok(member, &["apply", "-f", &path, "--wait", "--json"]);
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "{out}");
    let (one, container) = (&lines[0], &lines[0]["container"]);
    assert_eq!((&one["name"], &one["changed"]), (&json!("counter"), &json!(true)));
    assert_eq!((&container["phase"], &container["health"]), (&json!("running"), &json!("healthy")));
    // Protected: a power cut right now costs no more than what came since.
    assert!(container["last_snapshot"]["id"].is_string(), "{out}");
    assert!(!common::snapshots(&cluster).is_empty());
    // Where there is nothing to do, at any node, and for people.
    let at_the_other = file(&cluster.members[1], "app.yaml", &counter_with(|_| ()));
    let out = ok(&cluster.members[1], &["apply", "-f", &at_the_other, "--wait"]);
    assert!(out.contains("unchanged"), "{out}");
    // A check that never passes.
    let sick = counter_with(|service| {
        service["healthcheck"]["test"] = json!(["CMD", "/bin/counter", "--probe", "127.0.0.1:1"]);
        service["healthcheck"]["start_period"] = json!("1h");
        service["networks"] = json!({"default": {"ipv4_address": "10.77.1.61"}});
        service["container_name"] = json!("sick");
    });
    let path = file(member, "sick.yaml", &sick);
    let err = refused(member, &["apply", "-f", &path, "--wait", "--wait-timeout", "2s"], 1);
    assert!(err.contains("not ready after 2s: sick is ") && err.contains("not healthy (health: starting)"), "{err}");
    assert!(err.contains("--wait-timeout"), "{err}");
    assert!(!err.contains("waiting:"), "progress where nobody looks: {err}");
    refused(member, &["apply", "-f", &path, "--wait", "--wait-timeout", "soon"], 2);
    refused(member, &["apply", "-f", &path, "--wait-timeout", "2s"], 2);
    // One that ends: told at once, with its reason.
    let broken = counter_with(|service| {
        service["command"] = json!(["/bin/counter", "--listen", "10.77.1.99:7000"]);
        service["restart"] = json!("on-failure:1");
        service["annotations"] = json!({"io.ha-manager.state": "stateless", "io.ha-manager.recovery": "restart:1"});
        service["networks"] = json!({"default": {"ipv4_address": "10.77.1.62"}});
        service["container_name"] = json!("broken");
    });
    let path = file(member, "broken.yaml", &broken);
    let err = refused(member, &["apply", "-f", &path, "--wait", "--wait-timeout", "5m"], 1);
    assert!(err.contains("broken is failed (") && err.contains("the main process failed"), "{err}");
}

#[test]
fn an_unchanged_file_brings_up_what_has_failed() {
    let name = "an_unchanged_file_brings_up_what_has_failed";
    let Some(cluster) = common::cluster(name, 2) else { return };
    let [first, second] = &cluster.members[..] else { unreachable!() };
    // Nothing brings it up by itself.
    let text =
        |keep: &str| Described::stateful(&["/bin/counter"]).recovery("restart:1").annotation("keep", keep).text();
    let failed = || cluster.wait("it to be failed", PATIENCE, |c| phase(c, 0, "counter") == "failed").unwrap();
    let brought_up = |keep: &str| {
        let since = SystemTime::now();
        let out = ok(first, &["apply", "-f", &file(first, "app.yaml", &text(keep))]);
        assert!(out.contains("runs on n1 again"), "{out}");
        // Not killed in the middle of the checkpoint that follows.
        cluster.wait_for_event("checkpoint.committed", since, 1, PATIENCE).unwrap();
        state(&cluster).0
    };
    first.apply(&text("3")).unwrap();
    let told = count(&cluster, 3);
    checkpoint(&cluster);
    kill_counter(&cluster, 0);
    cluster.wait_for_event("recovery.serving", SystemTime::UNIX_EPOCH, 1, PATIENCE).unwrap();
    kill_counter(&cluster, 0);
    failed();
    let err = refused(second, &["apply", "-f", &file(second, "app.yaml", &text("3"))], 5);
    assert!(err.contains("failed on n1") && err.contains("restore counter"), "{err}");
    assert_eq!(brought_up("3"), told);
    // With another policy, too.
    kill_counter(&cluster, 0);
    failed();
    assert_eq!(brought_up("4"), told);
    // Begun anew only when that is said.
    kill_counter(&cluster, 0);
    failed();
    let path = file(first, "app.yaml", &text("4"));
    ok(first, &["apply", "-f", &path, "--recreate"]);
    assert_eq!(state(&cluster).0.value, 0);
    // And what runs is left alone.
    let out = ok(first, &["apply", "-f", &path, "--recreate"]);
    assert!(out.contains("unchanged"), "{out}");
}

#[test]
fn a_failed_stateless_container_keeps_its_volumes_when_it_is_applied_again() {
    let name = "a_failed_stateless_container_keeps_its_volumes";
    let described = Described::stateless(&["/bin/counter", "--listen", "10.77.1.99:7000"]).volume("data", "/data");
    let described = described.without_healthcheck().restart("on-failure:1").recovery("restart:1").text();
    let Some(cluster) = common::cluster(name, 1) else { return };
    let member = &cluster.members[0];
    let failed = || cluster.wait("it to be failed", PATIENCE, |c| phase(c, 0, "counter") == "failed").unwrap();
    member.apply(&described).unwrap();
    failed();
    let kept = member.node.disk().join("state/containers/counter/volumes/data/kept");
    fs::write(&kept, "1").unwrap();
    let since = SystemTime::now();
    let out = ok(member, &["apply", "-f", &file(member, "app.yaml", &described)]);
    assert!(out.contains("from image"), "{out}");
    cluster.wait_for_event("recovery.exhausted", since, 1, PATIENCE).unwrap();
    assert_eq!(fs::read_to_string(&kept).unwrap(), "1");
}

#[test]
fn the_address_of_a_node_is_no_containers() {
    let name = "the_address_of_a_node_is_no_containers";
    if cannot_run(name) {
        return;
    }
    let mut cluster = Cluster::without_managers(3, "").unwrap();
    // The third has not joined yet.
    cluster.members[0].start_manager().unwrap();
    cluster.members[1].start_manager().unwrap();
    let at =
        |address: &str| counter_with(|service| service["networks"] = json!({"default": {"ipv4_address": address}}));
    let member = &cluster.members[0];
    member.apply(&at("10.77.0.3")).unwrap();
    cluster.wait("it to run", PATIENCE, |cluster| phase(cluster, 0, "counter") == "running").unwrap();
    let pid = member.node.processes("/bin/counter");
    // Before anything is ended for it.
    for (address, node) in [("10.77.0.2", "node n2's"), ("10.77.0.1", "node n1's")] {
        let path = file(member, "app.yaml", &at(address));
        let err = refused(member, &["apply", "-f", &path, "--recreate"], 5);
        assert!(err.contains(address) && err.contains(node) && err.contains("counter"), "{err}");
    }
    let other = at("10.77.0.3").replace("\"counter\":{", "\"other\":{");
    let err = refused(member, &["apply", "-f", &file(member, "other.yaml", &other)], 5);
    assert!(err.contains("10.77.0.3") && err.contains("container \"counter\""), "{err}");
    assert_eq!(member.node.processes("/bin/counter"), pid);
    let joined = cluster.members[2].start_manager().unwrap_err().to_string();
    assert!(joined.contains("10.77.0.3") && joined.contains("container counter"), "{joined}");
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

#[test]
fn the_first_example_of_the_compose_page_works() {
    let name = "the_first_example_of_the_compose_page_works";
    if ha_lab::which("redis-server").is_none() {
        return ha_lab::skipped(name, "redis-server is not installed: run scripts/setup --tests");
    }
    let Some(cluster) = common::cluster(name, 2) else { return };
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/compose.md")).unwrap();
    let example = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert!(example.contains("image: /srv/images/redis\n"), "{example}");
    let image = images::cached("redis").unwrap();
    let compose = example.replace("/srv/images/redis", &image.display().to_string());
    let since = SystemTime::now();
    cluster.members[0].apply(&compose).unwrap();
    // Healthy, so that there is something to recover from.
    cluster
        .wait("a healthy snapshot of redis", PATIENCE, |cluster| {
            let of_redis = common::events_since(cluster, "checkpoint.committed", since);
            of_redis.iter().any(|event| event.container == "redis" && event.text("health") == Some("healthy"))
        })
        .unwrap();
}

#[test]
fn a_started_dependency_is_not_waited_for_until_it_is_healthy_and_what_came_before_an_error_stays() {
    let Some(cluster) = common::cluster("a_started_dependency_is_not_waited_for…", 1) else { return };
    let member = &cluster.members[0];
    let image = images::cached("counter").unwrap();
    // The image's place comes from `.env`; its check never passes.
    fs::write(member.node.disk().join(".env"), format!("IMAGE='{}'\n", image.display())).unwrap();
    let counter = |address: &str, needs: Value| {
        json!({
            "image": "${IMAGE}", "command": ["/bin/counter"], "networks": {"default": {"ipv4_address": address}},
            "healthcheck": {"test": ["CMD", "/bin/counter", "--probe", "127.0.0.1:1"], "start_period": "1h"},
            "annotations": {"io.ha-manager.state": "stateless"}, "depends_on": needs,
        })
    };
    let mut broken = counter("10.77.1.63", json!(["second"]));
    broken["image"] = json!("./nowhere");
    let compose = json!({"services": {
        "first": counter("10.77.1.61", json!([])), "second": counter("10.77.1.62", json!(["first"])), "broken": broken,
        "last": counter("10.77.1.64", json!(["broken"])),
    }});
    let err = refused(member, &["apply", "-f", &file(member, "app.yaml", &compose.to_string())], 5);
    assert!(err.contains("applied before that, and staying: first, second\nnot applied: last"), "{err}");
    let running = |name| member.container(name).is_some_and(|container| container["phase"] == "running");
    assert!(running("first") && running("second") && member.container("last").is_none());
}

#[test]
fn a_tmpfs_inside_a_volume_is_not_buried_and_comes_back_with_it() {
    let Some(cluster) = common::cluster("a_tmpfs_inside_a_volume_is_not_buried", 1) else { return };
    let member = &cluster.members[0];
    let mut compose: Value = serde_json::from_str(&counter_with(|service| {
        service["volumes"] = json!(["data:/app/data", "app:/app"]);
        service["tmpfs"] = json!("/app/tmp");
    }))
    .unwrap();
    compose["volumes"] = json!({"app": {}, "data": {}});
    member.apply(&compose.to_string()).unwrap();
    let inside = |path: &str| {
        let pid = member.node.processes("/bin/counter")[0];
        std::path::PathBuf::from(format!("/proc/{pid}/root{path}"))
    };
    let looks_right = || {
        let kind = ha_lab::run(Command::new("stat").args(["-f", "-c", "%T"]).arg(inside("/app/tmp"))).unwrap();
        assert_eq!(kind.trim(), "tmpfs");
        for path in ["/app/note", "/app/data/note", "/app/tmp/note"] {
            assert_eq!(fs::read_to_string(inside(path)).unwrap(), path);
        }
    };
    for path in ["/app/note", "/app/data/note", "/app/tmp/note"] {
        fs::write(inside(path), path).unwrap();
    }
    looks_right();
    let volume = |name: &str| member.node.disk().join("state/containers/counter/volumes").join(name).join("note");
    assert!(volume("app").exists() && volume("data").exists());
    checkpoint(&cluster);
    ok(member, &["restore", "counter"]);
    looks_right();
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
fn a_program_that_cannot_be_executed_fails_apply_by_its_name() {
    let name = "a_program_that_cannot_be_executed_fails_apply_by_its_name";
    if cannot_run(name) {
        return;
    }
    let cluster = Cluster::start(1, "").unwrap();
    let member = &cluster.members[0];
    let compose = counter_with(|service| service["command"] = json!(["/bin/nope"]));
    let said = refused(member, &["apply", "-f", &file(member, "nope.yaml", &compose)], 1);
    assert!(said.contains("/bin/nope") && said.contains("No such file"), "{said}");
    assert_eq!(phase(&cluster, 0, "counter"), "failed");
    // Mended, it is started.
    let compose = counter_with(|_| ());
    ok(member, &["apply", "-f", &file(member, "nope.yaml", &compose)]);
    cluster.wait("it to run", PATIENCE, |cluster| phase(cluster, 0, "counter") == "running").unwrap();
}
