use std::{fs, path::PathBuf};

use super::*;
use crate::config::NodeConfig;

fn config(extra: &str) -> NodeConfig {
    let text = format!("node = \"ha1\"\nstore = \"file:///srv/ha-store\"\n{extra}\n[tls]\ninsecure = true\n");
    NodeConfig::parse(&text, "node.toml", "/nonexistent/ha-agent".into()).unwrap()
}

/// Says why a test cannot run here; the caller returns.
fn skipped(test: &str, without: &[&str]) -> bool {
    let found = |program: &str| {
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
    };
    let missing: Vec<&str> = without.iter().copied().filter(|program| !found(program)).collect();
    let why = match (nix::unistd::geteuid().is_root(), missing.is_empty()) {
        (false, _) => "not root".to_owned(),
        (true, false) => format!("{} not installed", missing.join(", ")),
        (true, true) => return false,
    };
    println!("SKIPPED {test}: {why}");
    true
}

fn check<'a>(checks: &'a [Check], id: &str) -> &'a Check {
    checks.iter().find(|check| check.id == id).unwrap_or_else(|| panic!("no check {id}"))
}

#[test]
fn every_check_has_one_id_and_trouble_has_a_remedy() {
    let checks = run(&config(""), Path::new("node.toml"));
    let mut ids: Vec<_> = checks.iter().map(|check| check.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), checks.len());
    for check in &checks {
        assert!(!check.found.is_empty() && !check.found.contains('\n'), "{check:?}");
        let trouble = matches!(check.verdict, Verdict::Warn | Verdict::Fail);
        assert_eq!(check.remedy.is_some(), trouble, "{check:?}");
    }
    assert_eq!(check(&checks, "agent").verdict, Verdict::Fail);
    assert_eq!(exit_code(&checks), 1);
}

#[test]
fn a_process_with_a_connection_is_dumped_and_restored_and_nothing_stays() {
    if skipped("a_process_with_a_connection_is_dumped_and_restored_and_nothing_stays", &["criu", "unshare", "perl"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let found = trial::run("criu", dir.path()).unwrap_or_else(|error| panic!("{}", tool::chain(&error)));
    assert!(found.contains("dumped and restored"), "{found}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "images were left behind");
    let ours = dir.path().to_string_lossy().into_owned();
    let left: Vec<PathBuf> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| fs::read(path.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&ours)))
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "processes were left behind");
}

#[test]
fn a_criu_that_fails_is_quoted_and_nothing_stays() {
    if skipped("a_criu_that_fails_is_quoted_and_nothing_stays", &["unshare"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let error = trial::run("false", dir.path()).map(|_| ()).unwrap_err();
    assert!(tool::chain(&error).starts_with("criu check failed"), "{}", tool::chain(&error));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn without_criu_what_needs_it_does_not_apply() {
    let checks = criu::checks("/nonexistent/criu", Path::new("/tmp"));
    assert_eq!(check(&checks, "criu.version").verdict, Verdict::Fail);
    assert!(check(&checks, "criu.version").found.contains("not installed"));
    assert_eq!(check(&checks, "criu.trial").verdict, Verdict::NotApplicable);
}

#[test]
fn an_overlay_leaves_no_mount_and_no_directory() {
    if skipped("an_overlay_leaves_no_mount_and_no_directory", &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let check = disk::overlay(&dir.path().join("not/there/yet"));
    let ours = dir.path().to_str().unwrap();
    assert!(check.found.contains("not there yet"), "{check:?}");
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(ours));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    if check.verdict != Verdict::Ok {
        println!("SKIPPED an_overlay_leaves_no_mount_and_no_directory (that it mounts): {}", check.found);
    }
}

#[test]
fn links_are_made_outside_this_network_namespace() {
    if skipped("links_are_made_outside_this_network_namespace", &[]) {
        return;
    }
    let checks = network::checks();
    assert_eq!(check(&checks, "network.links").verdict, Verdict::Ok, "{checks:?}");
    let gate = check(&checks, "network.gate");
    assert!(gate.verdict == Verdict::Ok && gate.found.contains("hands it over"), "{gate:?}");
    assert!(!Path::new("/sys/class/net/ha-trial").exists());
    assert!(!Path::new("/sys/class/net/ha-doctor").exists());
}

#[test]
fn what_a_takeover_needs_of_the_kernel_and_of_criu_is_tried() {
    if skipped("what_a_takeover_needs_of_the_kernel_and_of_criu_is_tried", &["criu"]) {
        return;
    }
    let checks = run(&config(""), Path::new("node.toml"));
    let destroy = check(&checks, "network.sock-destroy");
    if destroy.verdict == Verdict::Ok {
        assert!(destroy.found.contains("ends a connection"), "{destroy:?}");
    } else {
        println!("SKIPPED what_a_takeover_needs_of_the_kernel_and_of_criu_is_tried, sock-destroy: {}", destroy.found);
    }
    // The same at every call: operators compare it between nodes.
    let key = &check(&checks, "criu.cpu").found;
    assert!(key.split(' ').next().is_some_and(|key| key.len() == 12), "{key}");
    assert_eq!(check(&run(&config(""), Path::new("node.toml")), "criu.cpu").found, *key);
}

#[test]
fn an_uplink_has_to_be_there() {
    assert_eq!(network::uplink(None).verdict, Verdict::NotApplicable);
    assert_eq!(network::uplink(Some("lo")).verdict, Verdict::Ok);
    assert_eq!(network::uplink(Some("no-such-link")).verdict, Verdict::Fail);
}

#[test]
fn a_tool_that_does_not_end_is_ended() {
    let error = tool::run("sleep", &["600"], std::time::Duration::from_millis(50)).map(|_| ()).unwrap_err();
    assert!(matches!(error, tool::ToolError::Timeout { .. }), "{error}");
}

#[test]
fn output_is_kept_and_bounded() {
    let output =
        tool::run("sh", &["-c", "echo out; echo err >&2; exit 3"], std::time::Duration::from_secs(10)).unwrap();
    assert_eq!((output.code, output.text.as_str(), output.last_line().as_str()), (3, "out\nerr\n", "err"));
    let much = tool::run("head", &["-c", "1000000", "/dev/zero"], std::time::Duration::from_secs(10)).unwrap();
    assert_eq!(much.text.len(), 64 << 10);
}

#[test]
fn only_failures_make_the_exit_code_1() {
    let ok = Check::ok("a", "A", "fine");
    let warn = Check::warn("b", "B", "slow", "hurry");
    let none = Check::not_applicable("c", "C", "nothing");
    let fail = Check::fail("d", "D", "broken", "mend it");
    assert_eq!(exit_code(&[ok.clone(), warn.clone(), none.clone()]), 0);
    let all = [ok, warn, none, fail];
    assert_eq!(exit_code(&all), 1);
    let text = render_text(&all);
    assert_eq!(
        text,
        "ok    A  fine\nWARN  B  slow\n         → hurry\nn/a   C  nothing\nFAIL  D  broken\n         → mend it\n\
         1 ok, 1 warnings, 1 failures, 1 not applicable\n"
    );
    let json = render_json(&all);
    assert_eq!((&json["exit_code"], &json["checks"][2]["verdict"]), (&1.into(), &"not-applicable".into()));
}

#[test]
fn fencing_commands_are_to_be_there_and_their_passwords_to_be_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (file, agent) = (dir.path().join("node.toml"), dir.path().join("fence_x"));
    let with_options = format!("[fence.ha2]\nagent = \"{}\"\noptions = {{ password = \"p\" }}", agent.display());
    let mode = |path: &Path, mode| {
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    assert_eq!(fence::check(&config(""), &file).verdict, Verdict::NotApplicable);
    let found = fence::check(&config(&with_options), &file);
    assert_eq!(found.verdict, Verdict::Warn);
    assert!(found.found.contains("[fence.ha2]") && found.found.contains("fence_x"), "{found:?}");
    mode(&agent, 0o644);
    assert!(fence::check(&config(&with_options), &file).found.contains("not an executable file"));
    mode(&agent, 0o755);
    mode(&file, 0o640);
    let found = fence::check(&config(&with_options), &file);
    assert_eq!(found.remedy, Some(format!("chmod 600 {}", file.display())), "{found:?}");
    mode(&file, 0o600);
    assert_eq!(fence::check(&config(&with_options), &file).verdict, Verdict::Ok);
    mode(&file, 0o644);
    let command = format!("[fence.ha2]\ncommand = [\"{}\"]", agent.display());
    assert_eq!(fence::check(&config(&command), &file).verdict, Verdict::Ok, "no password is in it");
}
