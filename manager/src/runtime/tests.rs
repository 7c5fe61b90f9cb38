use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use super::*;
use crate::spec::Rlimit;

fn spec(dir: &tempfile::TempDir) -> BundleSpec {
    BundleSpec {
        dir: dir.path().to_owned(),
        rootfs: "/srv/root".into(),
        process: Process { argv: vec!["/bin/true".into()], ..Default::default() },
        hostname: "web".into(),
        netns: "/run/netns/ha-web".into(),
        cgroups_path: "/ha-manager/web".into(),
        agent_bin_dir: Some("/srv/agent".into()),
        channel_dir: Some("/srv/channel".into()),
        binds: vec![],
        tmpfs: vec![Tmpfs { target: "/cache".into(), size_bytes: Some(4096), read_only: false }],
        resolv_conf: "nameserver 10.77.0.1\n".into(),
        hosts: "127.0.0.1 localhost\n".into(),
        rlimits: vec![Rlimit { name: "nofile".into(), soft: 100, hard: 200 }],
        annotations: BTreeMap::from([("org.criu.config".into(), "/somewhere/else".into())]),
    }
}

fn written(spec: &BundleSpec) -> serde_json::Value {
    write_bundle(spec).unwrap();
    serde_json::from_slice(&fs::read(spec.dir.join("config.json")).unwrap()).unwrap()
}

#[test]
fn a_bundle_has_what_a_restore_elsewhere_relies_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = written(&spec(&dir));
    // Ours, whatever the user's annotations say: CRIU runs as root with what is in there.
    let conf = dir.path().join("criu.conf");
    assert_eq!(config["annotations"]["org.criu.config"], conf.to_str().unwrap());
    assert!(conf.exists() && dir.path().join("hostname").exists());
    let targets: Vec<&str> =
        config["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
    assert_eq!(
        targets,
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/sys",
            "/cache",
            "/etc/resolv.conf",
            "/etc/hosts",
            "/etc/hostname",
            AGENT_BIN_DIR,
            AGENT_CHANNEL_DIR
        ]
    );
    assert_eq!(config["process"]["rlimits"][0]["type"], "RLIMIT_NOFILE");
    assert_eq!(config["process"]["terminal"], false);
    // A second node differs in paths only.
    let other = tempfile::tempdir().unwrap();
    let text = |config: &serde_json::Value, dir: &tempfile::TempDir| {
        config.to_string().replace(dir.path().to_str().unwrap(), "DIR")
    };
    assert_eq!(text(&config, &dir), text(&written(&spec(&other)), &other));
}

#[test]
fn a_mount_inside_another_comes_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(&dir);
    let bind = |target: &str| Bind { source: dir.path().to_owned(), target: target.into(), read_only: false };
    spec.binds = vec![bind("/a/b"), bind("/a"), bind("/etc"), bind("/app"), bind("/etc/hosts")];
    spec.tmpfs = vec![Tmpfs { target: "/app/tmp".into(), size_bytes: None, read_only: false }];
    let config = written(&spec);
    let targets: Vec<&str> =
        config["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
    for (inner, outer) in [("/app/tmp", "/app"), ("/a/b", "/a"), ("/etc/hosts", "/etc"), ("/etc/hostname", "/etc")] {
        let at = |target: &str| targets.iter().position(|t| *t == target).unwrap();
        assert!(at(inner) > at(outer), "{inner} is buried under {outer}: {targets:?}");
    }
    // The user's own file is over ours.
    let hosts = config["mounts"].as_array().unwrap().iter().rfind(|m| m["destination"] == "/etc/hosts").unwrap();
    assert_eq!(hosts["source"], dir.path().to_str().unwrap());
}

#[test]
fn what_the_host_cannot_give_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut BundleSpec)| {
        let mut spec = spec(&dir);
        change(&mut spec);
        let error = write_bundle(&spec).unwrap_err();
        assert!(!dir.path().join("config.json").exists(), "nothing is written: {error}");
        error
    };
    let limit = |name: &str, soft, hard| vec![Rlimit { name: name.into(), soft, hard }];
    let error = refused(&|spec| spec.rlimits = limit("nofiles", 1, 1));
    assert!(matches!(&error, BundleError::UnknownRlimit { .. }) && error.to_string().contains("nofile, "), "{error}");
    assert!(matches!(refused(&|spec| spec.rlimits = limit("nofile", 2, 1)), BundleError::RlimitOrder { .. }));
    if may_raise_limits() {
        println!("SKIPPED what_the_host_cannot_give_is_refused_by_name, limits: this process has CAP_SYS_RESOURCE");
    } else {
        let error = refused(&|spec| spec.rlimits = limit("nofile", 10, u64::MAX - 1));
        assert!(matches!(error, BundleError::RlimitAboveHost { .. }), "{error}");
    }
    for target in ["relative", "/", "/a/../b"] {
        let bind = Bind { source: "/".into(), target: PathBuf::from(target), read_only: true };
        let error = refused(&|spec| spec.binds = vec![bind.clone()]);
        assert!(matches!(error, BundleError::MountTarget { .. }), "{target}: {error}");
    }
    let bind = Bind { source: "/no/such/thing".into(), target: "/x".into(), read_only: true };
    assert!(matches!(refused(&|spec| spec.binds = vec![bind.clone()]), BundleError::MountSource { .. }));
}

#[test]
fn a_program_is_given_its_time_and_no_more() {
    let long = Duration::from_secs(60);
    let done = command::run("sh", &["-c", "echo out; echo err >&2; exit 3"], command::Output::Captured, long)
        .unwrap()
        .unwrap();
    assert_eq!((done.status.code(), done.stdout.trim(), done.stderr.trim()), (Some(3), "out", "err"));
    let started = std::time::Instant::now();
    // Its child would hold the test up if only the shell were killed.
    let late =
        command::run("sh", &["-c", "sleep 600 & wait"], command::Output::Captured, Duration::from_millis(200)).unwrap();
    assert!(late.is_none() && started.elapsed() < long);
}

#[test]
fn the_end_of_a_process_is_seen() {
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let watch = ExitWatch::new(child.id() as i32).unwrap();
    assert!(!watch.wait(Duration::from_millis(10)).unwrap());
    watch.signal(libc::SIGKILL).unwrap();
    assert!(watch.wait(Duration::from_secs(60)).unwrap());
    child.wait().unwrap();
    assert_eq!(ExitWatch::new(child.id() as i32).unwrap_err().raw_os_error(), Some(libc::ESRCH));
}
