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
    let shell = |script: &str| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", script]);
        shell
    };
    let done = command::run(shell("echo out; echo err >&2; exit 3"), command::Output::Captured, long).unwrap().unwrap();
    assert_eq!((done.status.code(), done.stdout.trim(), done.stderr.trim()), (Some(3), "out", "err"));
    let started = std::time::Instant::now();
    // Its child would hold the test up if only the shell were killed.
    let late = command::run(shell("sleep 600 & wait"), command::Output::Captured, Duration::from_millis(200)).unwrap();
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

fn script(dir: &std::path::Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_container_the_runtime_cannot_delete_is_cleared_away_all_the_same() {
    let name = "a_container_the_runtime_cannot_delete_is_cleared_away_all_the_same";
    let hierarchies = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let Some(hierarchy) = hierarchies.into_iter().find(|dir| dir.join("cgroup.controllers").exists()) else {
        return println!("SKIPPED {name}: no cgroup v2 hierarchy");
    };
    let cgroup = hierarchy.join(format!("ha-rt-{}", std::process::id()));
    if let Err(error) = fs::create_dir(&cgroup) {
        return println!("SKIPPED {name}: no cgroup can be made: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(&dir);
    spec.cgroups_path = format!("/{}", cgroup.file_name().unwrap().to_str().unwrap());
    write_bundle(&spec).unwrap();
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
    let broken = script(dir.path(), "runtime", "#!/bin/sh\necho its state cannot be read >&2\nexit 1\n");
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("c")).unwrap();
    let cleared = Runc::new(broken, &root, "criu").clear("c", dir.path(), Duration::from_secs(60));
    // Ours to reap; without it nothing here would end the test's child if clearing did not.
    let _ = child.kill();
    let status = child.wait().unwrap();
    let gone = !cgroup.exists();
    let _ = fs::remove_dir(&cgroup);
    assert!(cleared.is_ok(), "{cleared:?}");
    assert!(gone && !root.join("c").exists() && !status.success());
}

#[test]
fn a_restore_uses_the_criu_that_is_configured() {
    let dir = tempfile::tempdir().unwrap();
    let criu = script(dir.path(), "criu-4.2", "#!/bin/sh\nexit 0\n");
    let said = dir.path().join("said");
    // The failure makes it be called again, to clean up.
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *' restore '*) readlink -f \"$(command -v criu)\"; echo \"$@\";; esac >>{}\nexit 1\n",
        said.display()
    );
    let runtime = script(dir.path(), "runtime", &text);
    let runc = Runc::new(runtime, dir.path().join("root"), &criu);
    let long = Duration::from_secs(60);
    runc.restore("c", dir.path(), dir.path(), dir.path(), long).unwrap_err();
    let said = fs::read_to_string(&said).unwrap();
    assert_eq!(said.lines().next(), fs::canonicalize(criu).unwrap().to_str(), "{said}");
    assert!(!said.contains("--criu"), "newer runtimes do not know the option: {said}");
}
