mod documentation;
mod errors;
mod hostile;
mod roundtrip;

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use super::*;
use crate::spec::{
    Condition, Dependency, Healthcheck, Mount, MountSource, RecoveryPolicy, RecoveryStep, RestartPolicy, Rlimit,
    StateKind,
};

fn no_variables(_: &str) -> Option<String> {
    None
}

#[track_caller]
fn accepted(text: &str) -> ComposeFile {
    parse(text, "app.yaml", &no_variables).unwrap_or_else(|errors| panic!("refused:\n{errors}"))
}

/// The only container of a file with `service` as the body of the service `web`.
#[track_caller]
fn web(service: &str) -> ContainerSpec {
    let body: String = service.lines().map(|line| format!("    {line}\n")).collect();
    let mut file =
        accepted(&format!("services:\n  web:\n    image: /img\n{body}volumes: {{data: }}\nnetworks: {{lan: }}\n"));
    assert_eq!(file.containers.len(), 1);
    file.containers.remove(0)
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn an_image_is_enough_and_the_defaults_are_these() {
    let spec = web("");
    assert_eq!((spec.name.as_str(), spec.image.as_str()), ("web", "/img"));
    assert_eq!((spec.state, spec.keep), (StateKind::Stateless, 3));
    assert_eq!(spec.restart, RestartPolicy::OnFailure { max: None });
    assert_eq!(spec.recovery, RecoveryPolicy::stateless_default());
    assert_eq!((spec.entrypoint, spec.command, spec.healthcheck), (None, None, None));
}

#[test]
fn a_whole_service() {
    let spec = web(r#"container_name: front.1
entrypoint: [/bin/server, --verbose]
command: serve "two words"
environment: {A: "1", B: 1.10, C: ""}
volumes:
- data:/var/lib/data
- /srv/clips:/clips/:ro
- {type: tmpfs, target: /scratch, tmpfs: {size: 1048576}}
tmpfs: [/run, "/tmp:size=64m,ro"]
networks: {lan: {ipv4_address: 10.77.1.10}}
mac_address: 02:00:0a:4d:01:0a
hostname: front
user: 33:www-data
working_dir: /srv
healthcheck: {test: [CMD, /bin/true], interval: 2s, timeout: 500ms, retries: 2, start_period: 1m30s, start_interval: 3s}
restart: on-failure:5
ulimits: {nofile: 1024, core: {soft: 0, hard: -1}}
annotations:
  io.ha-manager.state: stateful
  io.ha-manager.state-sensitivity: 5s
  io.ha-manager.keep: 2
  io.ha-manager.keep-manual: 7
  io.ha-manager.recovery: restart:1, failover, older-snapshot, cold-start
  org.example/x: y"#);
    let mount = |source, target: &str, read_only| Mount { source, target: target.into(), read_only };
    let expected = ContainerSpec {
        name: "front.1".parse().unwrap(),
        image: "/img".into(),
        entrypoint: Some(strings(&["/bin/server", "--verbose"])),
        command: Some(strings(&["serve", "two words"])),
        environment: [("A", "1"), ("B", "1.10"), ("C", "")].map(|(k, v)| (k.into(), v.into())).into(),
        working_dir: Some("/srv".into()),
        user: Some("33:www-data".into()),
        hostname: Some("front".into()),
        mounts: vec![
            mount(MountSource::Volume { name: "data".into() }, "/var/lib/data", false),
            mount(MountSource::HostBind { path: PathBuf::from("/srv/clips") }, "/clips", true),
            mount(MountSource::Tmpfs { size_bytes: Some(1 << 20) }, "/scratch", false),
            mount(MountSource::Tmpfs { size_bytes: None }, "/run", false),
            mount(MountSource::Tmpfs { size_bytes: Some(64 << 20) }, "/tmp", true),
        ],
        network: crate::spec::NetworkSpec {
            ipv4: Some(Ipv4Addr::new(10, 77, 1, 10)),
            mac: Some("02:00:0a:4d:01:0a".parse().unwrap()),
        },
        healthcheck: Some(Healthcheck {
            argv: strings(&["/bin/true"]),
            interval: Duration::from_secs(2),
            timeout: Duration::from_millis(500),
            start_period: Duration::from_secs(90),
            start_interval: Some(Duration::from_secs(3)),
            retries: 2,
        }),
        depends_on: vec![],
        restart: RestartPolicy::OnFailure { max: Some(5) },
        rlimits: vec![
            Rlimit { name: "nofile".into(), soft: 1024, hard: 1024 },
            Rlimit { name: "core".into(), soft: 0, hard: u64::MAX },
        ],
        state: StateKind::Stateful { sensitivity: Duration::from_secs(5) },
        keep: 2,
        keep_manual: 7,
        recovery: RecoveryPolicy {
            steps: vec![
                RecoveryStep::Restart { max: 1 },
                RecoveryStep::Failover,
                RecoveryStep::OlderSnapshot { max: 2 },
                RecoveryStep::ColdStart,
            ],
        },
        annotations: [("org.example/x".into(), "y".into())].into(),
    };
    assert_eq!(spec, expected);
}

#[test]
fn lists_and_mappings_say_the_same() {
    assert_eq!(web("environment: {A: x=y, B: ''}").environment, web("environment: [A=x=y, B=]").environment);
    let list = web("annotations: [io.ha-manager.state-sensitivity=1s, a=b]");
    assert_eq!(list, web("annotations: {io.ha-manager.state-sensitivity: 1s, a: b}"));
    assert_eq!(web("networks: [lan]"), web("networks: {lan: }"));
    assert_eq!(web("tmpfs: /run"), web("tmpfs: [/run]"));
}

#[test]
fn a_sensitivity_alone_makes_a_container_stateful() {
    let spec = web("annotations: {io.ha-manager.state-sensitivity: 1s}");
    assert_eq!(spec.state, StateKind::Stateful { sensitivity: Duration::from_secs(1) });
    assert_eq!(spec.recovery, RecoveryPolicy::stateful_default());
}

#[test]
fn commands_can_be_cleared_or_left() {
    assert_eq!(web("command: []\nentrypoint: ''").command, Some(vec![]));
    assert_eq!(web("entrypoint: ''").entrypoint, Some(vec![]));
    assert_eq!(web("command:").command, None);
    assert_eq!(
        web("command: sh -c 'echo $$HOME; sleep 1'").command,
        Some(strings(&["sh", "-c", "echo $HOME; sleep 1"]))
    );
}

#[test]
fn every_form_of_a_health_test() {
    let argv = |test: &str| web(&format!("healthcheck: {{test: {test}}}")).healthcheck.map(|check| check.argv);
    assert_eq!(argv("[CMD, a, b]"), Some(strings(&["a", "b"])));
    assert_eq!(argv("[CMD-SHELL, a | b]"), Some(strings(&["/bin/sh", "-c", "a | b"])));
    assert_eq!(argv("a || exit 1"), Some(strings(&["/bin/sh", "-c", "a || exit 1"])));
    assert_eq!(argv("[NONE]"), None);
    assert_eq!(web("healthcheck: {disable: true}").healthcheck, None);
}

#[test]
fn words_yaml_1_1_takes_for_booleans_are_words() {
    assert_eq!(web("restart: no").restart, RestartPolicy::No);
    assert_eq!(web("hostname: on").hostname.as_deref(), Some("on"));
    assert_eq!(web("environment: {A: 'true', B: yes, C: 012}").environment["C"], "012");
}

#[test]
fn containers_come_after_what_they_depend_on_else_as_in_the_file() {
    let file = accepted(
        "services:\n  web: {image: /i, depends_on: {db: {condition: service_healthy}, log: }}\n  idle: {image: /i}\n  \
         log: {image: /i, container_name: logger}\n  db: {image: /i, depends_on: [log], healthcheck: {test: x}}\n",
    );
    let names: Vec<_> = file.containers.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names, ["idle", "logger", "db", "web"]);
    let web = &file.containers[3];
    let dependency = |name: &str, condition| Dependency { name: name.parse().unwrap(), condition };
    assert_eq!(web.depends_on, [dependency("db", Condition::Healthy), dependency("logger", Condition::Started)]);
    assert_eq!(file.containers[2].depends_on, [dependency("logger", Condition::Started)]);
}

#[test]
fn anchors_merges_and_extensions() {
    let file = accepted(
        "x-base: &base\n  image: /base\n  restart: always\n  x-note: anything\nname: shop\nservices:\n  a: {<<: *base}\n  \
         b:\n    <<: [{image: /first, user: \"1\"}, *base]\n    restart: \"no\"\n    x-other: {y: z}\n",
    );
    assert_eq!(file.project.as_deref(), Some("shop"));
    let [a, b] = &file.containers[..] else { panic!("{file:?}") };
    assert_eq!((a.image.as_str(), a.restart), ("/base", RestartPolicy::Always));
    assert_eq!((b.image.as_str(), b.restart, b.user.as_deref()), ("/first", RestartPolicy::No, Some("1")));
}

#[test]
fn variables_are_put_in_and_unset_ones_mentioned() {
    let lookup = |name: &str| (name == "DIR").then(|| "/img: [x]".to_owned());
    let text = "services:\n  web:\n    image: ${DIR}\n    command: [\"$$5\", \"a${NO}b\", \"${NO:-c}\"]\n";
    let file = parse(text, "app.yaml", &lookup).unwrap();
    assert_eq!(file.containers[0].image, "/img: [x]", "a value is never read as YAML");
    assert_eq!(file.containers[0].command, Some(strings(&["$5", "ab", "c"])));
    let warnings: Vec<_> = file.warnings.iter().map(Finding::to_string).collect();
    assert_eq!(warnings, ["app.yaml:4:22: services.web.command[1]: the variable NO is not set and taken as empty"]);
}

#[test]
fn an_environment_without_values_takes_the_shells() {
    let lookup = |name: &str| (name == "TOKEN").then(|| "$ecret".to_owned());
    let text =
        "services:\n  a: {image: /i, environment: [TOKEN, NO]}\n  b: {image: /i, environment: {TOKEN: , E: ''}}\n";
    let file = parse(text, "app.yaml", &lookup).unwrap();
    assert_eq!(file.containers[0].environment, [("TOKEN".into(), "$ecret".into())].into());
    assert_eq!(file.containers[1].environment["TOKEN"], "$ecret");
    let warnings: Vec<_> = file.warnings.iter().map(Finding::to_string).collect();
    assert!(
        warnings.len() == 1 && warnings[0].starts_with("app.yaml:2:39: services.a.environment[1]: has no value"),
        "{warnings:?}"
    );
}

#[test]
fn a_limit_of_restarts_that_does_not_count_is_mentioned() {
    let warnings = |annotations: &str| {
        let text = format!(
            "services:\n  web:\n    image: /i\n    restart: on-failure:2\n    annotations: {{{annotations}}}\n"
        );
        accepted(&text).warnings.iter().map(Finding::to_string).collect::<Vec<_>>()
    };
    assert!(warnings("").is_empty());
    let stateful = warnings("io.ha-manager.state-sensitivity: 1s");
    assert!(
        stateful.len() == 1
            && stateful[0].starts_with("app.yaml:4:14: services.web.restart: ")
            && stateful[0].contains("`restart:N` in io.ha-manager.recovery"),
        "{stateful:?}"
    );
}

#[test]
fn what_has_no_effect_is_mentioned() {
    let file = accepted(
        "version: '3.8'\nservices:\n  web: {image: /i, annotations: {io.ha-manager.keep: 1}}\nvolumes: {data: {driver: local}}\n",
    );
    let warnings: Vec<_> = file.warnings.iter().map(|finding| (finding.at.line, finding.path.as_str())).collect();
    assert_eq!(
        warnings,
        [(1, "version"), (3, "services.web.annotations[\"io.ha-manager.keep\"]"), (4, "volumes.data")]
    );
}

#[test]
fn a_volume_that_a_failover_would_lose_is_mentioned() {
    let with = |annotations: &str| {
        let text = format!(
            "services:\n  db:\n    image: /i\n    volumes: [\"data:/d\"]\n    annotations: {annotations}\nvolumes: {{data: }}\n"
        );
        let warnings = accepted(&text).warnings;
        warnings.iter().map(Finding::to_string).collect::<Vec<_>>()
    };
    assert_eq!(with("{io.ha-manager.state-sensitivity: 5s}"), Vec::<String>::new());
    let warned = with("{}");
    assert!(warned.len() == 1 && warned[0].starts_with("app.yaml:4:15: services.db.volumes[0]: `data`"), "{warned:?}");
    assert!(warned[0].contains("failover") && warned[0].contains("begins empty"), "{warned:?}");
}
