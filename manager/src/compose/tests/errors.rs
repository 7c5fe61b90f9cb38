//! Each refusal with its place, its path and its remedy.

use super::{super::keys, *};

fn refused(text: &str) -> Vec<Finding> {
    match parse(text, "app.yaml", &no_variables) {
        Ok(file) => panic!("accepted: {file:?}"),
        Err(errors) => errors.findings,
    }
}

/// That `line` in the service `web` is refused once, at `column` of it, at `path` below the service.
#[track_caller]
fn refuses(line: &str, column: usize, path: &str, part: &str) {
    let found =
        refused(&format!("services:\n  web:\n    image: /img\n    {line}\nvolumes: {{data: }}\nnetworks: {{lan: }}\n"));
    let [finding] = &found[..] else { panic!("{line:?} gave {found:#?}") };
    let place = (finding.at.line, finding.at.column, finding.path.as_str());
    let path = format!("services.web{path}");
    assert_eq!(place, (4, column, path.as_str()), "{line:?}: {finding}");
    assert!(finding.message.contains(part), "{line:?}: {finding}");
}

/// That a whole file is refused once.
#[track_caller]
fn refuses_file(text: &str, line: usize, column: usize, path: &str, part: &str) {
    let found = refused(text);
    let [finding] = &found[..] else { panic!("{text:?} gave {found:#?}") };
    assert_eq!((finding.at.line, finding.at.column, finding.path.as_str()), (line, column, path), "{finding}");
    assert!(finding.message.contains(part), "{finding}");
}

#[test]
fn keys() {
    refuses("imagee: x", 5, ".imagee", "did you mean `image`?");
    refuses("healthcheck: {test: x, intervall: 1s}", 28, ".healthcheck.intervall", "did you mean `interval`?");
    refuses("ulimits: {nofiles: 3}", 15, ".ulimits.nofiles", "did you mean `nofile`?");
    refuses("networks: {lan: {ip: 1}}", 22, ".networks.lan.ip", "ipv4_address");
    refuses(
        "volumes: [{type: volume, source: data, target: /d, colour: red}]",
        56,
        ".volumes[0].colour",
        "allowed here",
    );
}

#[test]
fn keys_of_compose_that_are_not_supported_say_what_to_use() {
    refuses("ports: [\"80:80\"]", 5, ".ports", "ipv4_address");
    refuses("build: .", 5, ".build", "OCI layout");
    refuses("deploy: {replicas: 2}", 5, ".deploy", "one service is one container");
    refuses("networks: {lan: {aliases: [x]}}", 22, ".networks.lan.aliases", "no name service");
    for key in keys::SERVICE {
        assert_eq!(keys::instead_in_service(key), None, "{key} is both supported and not");
    }
}

#[test]
fn values() {
    refuses("image2: x", 5, ".image2", "unknown key");
    refuses("restart: sometimes", 14, ".restart", "unless-stopped");
    refuses("restart: on-failure:0", 14, ".restart", "on-failure:3");
    refuses("mac_address: 03:00:00:00:00:01", 18, ".mac_address", "multicast");
    refuses("networks: {lan: {ipv4_address: 10.77.1}}", 36, ".networks.lan.ipv4_address", "IPv4");
    refuses("networks: {lan: {ipv4_address: 224.0.0.1}}", 36, ".networks.lan.ipv4_address", "host");
    refuses("networks: {wan: }", 16, ".networks.wan", "not declared");
    refuses("networks: [lan, default]", 21, ".networks[1]", "second network");
    refuses("hostname: a_b", 15, ".hostname", "host name");
    refuses("user: a b", 11, ".user", "user:group");
    refuses("working_dir: srv", 18, ".working_dir", "absolute");
    refuses("container_name: Web", 21, ".container_name", "a-z");
    refuses("healthcheck: {test: [RUN, x]}", 25, ".healthcheck.test", "CMD-SHELL");
    refuses("healthcheck: {test: [CMD, '', x]}", 25, ".healthcheck.test", "names no program");
    refuses("healthcheck: {test: [CMD]}", 25, ".healthcheck.test", "CMD-SHELL");
    refuses("healthcheck: {test: []}", 25, ".healthcheck.test", "CMD-SHELL");
    refuses("healthcheck: {interval: 1s}", 18, ".healthcheck", "`test` is missing");
    refuses("healthcheck: {test: x, interval: 5}", 38, ".healthcheck.interval", "250ms");
    refuses("healthcheck: {test: x, timeout: 0s}", 37, ".healthcheck.timeout", "at least 1ms");
    refuses("healthcheck: {test: x, retries: 0}", 37, ".healthcheck.retries", "from 1 to 1000");
    refuses("healthcheck: {test: x, disable: no}", 37, ".healthcheck.disable", "true or false");
    refuses("ulimits: {nofile: {soft: 2, hard: 1}}", 23, ".ulimits.nofile", "above");
    refuses("ulimits: {nofile: {soft: 2}}", 23, ".ulimits.nofile", "both");
    refuses("ulimits: {nofile: many}", 23, ".ulimits.nofile", "-1 for none");
    refuses("command: echo a; reboot", 14, ".command", "means something to a shell");
    refuses("command: {a: b}", 14, ".command", "found a mapping");
    refuses("command: [sleep, true]", 22, ".command[1]", "put it in quotes");
    refuses("environment: {\"A=\": 1}", 19, ".environment[\"A=\"]", "not a name");
    refuses("environment: [A=1, A=2]", 24, ".environment[1]", "twice");
    refuses("environment: {A: $5}", 22, ".environment.A", "$$");
    refuses("depends_on: [db]", 18, ".depends_on[0]", "there is no service `db`");
    refuses("hostname: !!binary aGk=", 24, ".hostname", "the tag");
}

#[test]
fn mounts() {
    refuses("volumes: [\"data\"]", 15, ".volumes[0]", "anonymous");
    refuses("volumes: [\"./x:/y\"]", 15, ".volumes[0]", "absolute path");
    refuses("volumes: [\"/x/../y:/y\"]", 15, ".volumes[0]", "absolute path");
    refuses("volumes: [\"data:y\"]", 15, ".volumes[0]", "inside the container");
    refuses("volumes: [\"data:/y:z\"]", 15, ".volumes[0]", "`ro` and `rw`");
    refuses("volumes: [\"data:/y:ro:x\"]", 15, ".volumes[0]", "source:target");
    refuses("volumes: [\"dat:/y\"]", 15, ".volumes[0]", "not declared");
    refuses("volumes: [\"data:/y\", \"/x:/y/\"]", 26, ".volumes[1]", "second mount");
    refuses("volumes: [\"data:/y\", \"data:/z\"]", 26, ".volumes[1]", "mounted twice");
    refuses("volumes: [\"data:/\"]", 15, ".volumes[0]", "mounted over");
    refuses("volumes: [\"data:/proc/x\"]", 15, ".volumes[0]", "mounted over");
    refuses("volumes: [\"data:/.ha-manager/bin\"]", 15, ".volumes[0]", "mounted over");
    refuses("volumes: [{type: npipe, source: a, target: /b}]", 22, ".volumes[0].type", "volume, bind, tmpfs");
    refuses("volumes: [{type: bind, target: /b}]", 15, ".volumes[0]", "`source` is missing");
    refuses("volumes: [{type: tmpfs, source: a, target: /b}]", 37, ".volumes[0].source", "no source");
    refuses("volumes: [{type: bind, source: /a, target: /b, tmpfs: {size: 1}}]", 59, ".volumes[0].tmpfs", "only for");
    refuses("tmpfs: \"/run:mode=755\"", 12, ".tmpfs", "size=64m");
    refuses("tmpfs: \"/run:size=lots\"", 12, ".tmpfs", "64MiB");
}

#[test]
fn annotations() {
    let ours = |key: &str| format!(".annotations[\"io.ha-manager.{key}\"]");
    refuses("annotations: {io.ha-manager.stat: x}", 19, &ours("stat"), "did you mean `io.ha-manager.state`?");
    refuses("annotations: {io.ha-manager.state: maybe}", 40, &ours("state"), "neither");
    refuses("annotations: {io.ha-manager.state: stateful}", 40, &ours("state"), "state-sensitivity");
    refuses("annotations: {io.ha-manager.state-sensitivity: 5}", 52, &ours("state-sensitivity"), "250ms");
    refuses("annotations: {io.ha-manager.state-sensitivity: 10ms}", 52, &ours("state-sensitivity"), "below 100ms");
    refuses(
        "annotations: [io.ha-manager.state=stateless, io.ha-manager.state-sensitivity=1s]",
        50,
        ".annotations[1]",
        "contradicts",
    );
    refuses("annotations: {io.ha-manager.keep: 0}", 39, &ours("keep"), "from 1 to 1000");
    refuses("annotations: {io.ha-manager.keep-manual: all}", 46, &ours("keep-manual"), "from 1 to 1000");
    for (recovery, part) in [
        ("\"\"", "a step is empty"),
        ("restart, , failover", "a step is empty"),
        ("reboot", "restart, failover"),
        ("restart:0", "from 1 to 100"),
        ("failover:2", "takes no limit"),
        ("restart:1, restart:2", "comes twice"),
        ("cold-start, failover", "the last step"),
        ("older-snapshot", "has no snapshots"),
    ] {
        refuses(
            &format!("annotations: [\"io.ha-manager.recovery={}\"]", recovery.trim_matches('"')),
            19,
            ".annotations[0]",
            part,
        );
    }
}

#[test]
fn dependencies() {
    let on = |options: &str| {
        format!(
            "services:\n  a: {{image: /i}}\n  b:\n    image: /i\n    depends_on:\n      a: {{{options}}}\nvolumes: {{}}\n"
        )
    };
    accepted(&on("condition: service_started, required: true, restart: false"));
    refuses_file(&on("when: now"), 6, 11, "services.b.depends_on.a.when", "condition, required");
    refuses_file(&on("condition: service_well"), 6, 22, "services.b.depends_on.a.condition", "service_healthy");
    refuses_file(&on("required: false"), 6, 11, "services.b.depends_on.a.required", "left out of");
    refuses_file(&on("restart: true"), 6, 11, "services.b.depends_on.a.restart", "not supported");
    let completed = "condition: service_completed_successfully";
    refuses_file(&on(completed), 6, 11, "services.b.depends_on.a.condition", "kept running");
}

#[test]
fn between_services() {
    let two =
        |a: &str, b: &str| format!("services:\n  a: {{image: /i, {a}}}\n  b: {{image: /i, {b}}}\nvolumes: {{v: }}\n");
    let mount = "volumes: [\"v:/v\"]";
    refuses_file(&two(mount, mount), 3, 28, "services.b.volumes[0]", "belongs to one container");
    refuses_file(&two("user: x", "container_name: a"), 3, 3, "services.b", "the container name `a`");
    let address = "networks: {default: {ipv4_address: 10.0.0.9}}";
    refuses_file(&two(address, address), 3, 3, "services.b", "the address 10.0.0.9");
    let mac = "mac_address: 02:00:00:00:00:01";
    refuses_file(&two(mac, mac), 3, 3, "services.b", "the MAC address");
    refuses_file(
        &two("depends_on: {b: {condition: service_healthy}}", "user: x"),
        2,
        31,
        "services.a.depends_on.b",
        "no healthcheck",
    );
    refuses_file(&two("depends_on: [b]", "depends_on: [a]"), 2, 3, "services.a", "circle: `a` → `b` → `a`");
    refuses_file(&two("user: x", "depends_on: [b]"), 3, 3, "services.b", "circle: `b` → `b`");
    let tail = "services:\n  c: {image: /i, depends_on: [a]}\n  a: {image: /i, depends_on: [b]}\n  b: {image: /i, depends_on: [a]}\n";
    refuses_file(tail, 3, 3, "services.a", "circle: `a` → `b` → `a`");
}

#[test]
fn the_top_of_the_file() {
    refuses_file("", 1, 1, "", "is empty");
    refuses_file("# nothing\n", 1, 1, "", "is empty");
    refuses_file("- a\n", 1, 1, "", "expected a mapping, found a list");
    refuses_file("name: x\n", 1, 1, "", "`services` is missing");
    refuses_file("services: {}\n", 1, 11, "services", "at least one");
    refuses_file("services:\n  web: {image: /i}\nservice: {}\n", 3, 1, "service", "did you mean `services`?");
    refuses_file("services:\n  web: {image: /i}\nsecrets: {}\n", 3, 1, "secrets", "not supported");
    refuses_file("services:\n  web: {image: /i}\nname: A\n", 3, 7, "name", "project");
    refuses_file("services:\n  web: {}\n", 2, 3, "services.web", "`image` is missing");
    refuses_file("services:\n  Web: {image: /i}\n", 2, 3, "services.Web", "container_name");
    refuses_file("services:\n  web: {image: /i}\n---\na: b\n", 3, 1, "", "second document");
    refuses_file(
        "services:\n  web: {image: /i}\nvolumes: {d: {external: true}}\n",
        3,
        15,
        "volumes.d.external",
        "moves with it",
    );
    refuses_file(
        "services:\n  web: {image: /i}\nnetworks: {n: {ipam: {}}}\n",
        3,
        16,
        "networks.n.ipam",
        "network.pool",
    );
}

#[test]
fn the_syntax() {
    let found = refused("services:\n  web: {image: /i\n");
    assert!(found.len() == 1 && found[0].message.starts_with("is not YAML: "), "{found:?}");
    refuses_file(
        "services:\n  web: {image: /i, image: /j}\n",
        2,
        20,
        "services.web.image",
        "given twice; first on line 2",
    );
    refuses_file("services:\n  ? [a]\n  : b\n", 2, 5, "services", "a key has to be");
    refuses_file("services: &a\n  web: *a\n", 2, 8, "services.web", "inside what it stands for");
    refuses_file("services:\n  web: {image: /i, <<: 3}\n", 2, 24, "services.web[\"<<\"]", "takes a mapping");
}

#[test]
fn everything_is_reported_at_once_in_the_order_of_the_file() {
    let found = refused(
        "services:\n  web:\n    ports: []\n    restart: x\n    volumes:\n      - data:/d\n      - ./y:/y\n  db:\n    imagee: /i\nfoo: 1\n",
    );
    let lines: Vec<_> = found.iter().map(|finding| finding.at.line).collect();
    assert_eq!(lines, [2, 3, 4, 7, 8, 9, 10], "{found:#?}");
}

#[test]
fn a_finding_reads_like_a_compilers() {
    let errors = parse("services:\n  web: {image: /i, restart: x}\n", "app.yaml", &no_variables).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "app.yaml:2:29: services.web.restart: `x` is not a restart policy; allowed here: no, always, on-failure, \
         on-failure:3, unless-stopped"
    );
}
