//! With real programs.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use super::{super::AgentAction, *};

fn script(dir: &tempfile::TempDir, text: &str) -> FenceCommand {
    let path = dir.path().join("fence.sh");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    command(&[path.to_str().unwrap()])
}

fn command(argv: &[&str]) -> FenceCommand {
    FenceCommand {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        timeout: Duration::from_secs(60),
        agent: None,
    }
}

fn agent(mut command: FenceCommand, action: AgentAction, options: &[(&str, &str)]) -> FenceCommand {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    command.agent = Some(AgentOptions { action, options });
    command
}

fn n2() -> NodeName {
    "n2".parse().unwrap()
}

async fn failure(command: &FenceCommand) -> String {
    crate::chain(&command.run(&n2()).await.unwrap_err())
}

fn numbers(file: &Path) -> Vec<i32> {
    fs::read_to_string(file).unwrap_or_default().lines().filter_map(|line| line.trim().parse().ok()).collect()
}

fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

async fn wait_for(what: &str, mut happens: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !happens() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_program_learns_whom_it_is_to_switch_off() {
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let text = format!("echo \"$HA_FENCE_NODE $HA_FENCE_ACTION $1 [$(cat)]\" >{}", seen.display());
    let mut command = script(&dir, &text);
    command.argv.push("a b".into());
    command.run(&n2()).await.unwrap();
    assert_eq!(fs::read_to_string(seen).unwrap(), "n2 off a b []\n");
}

#[tokio::test]
async fn an_agent_gets_its_options_on_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let text = format!("{{ echo $HA_FENCE_ACTION; cat; }} >{}", seen.display());
    let options = [("ip", "10.0.0.9"), ("password", "pass word")];
    let command = agent(script(&dir, &text), AgentAction::Reboot, &options);
    command.run(&n2()).await.unwrap();
    assert_eq!(fs::read_to_string(seen).unwrap(), "reboot\naction=reboot\nip=10.0.0.9\npassword=pass word\n");
}

#[tokio::test]
async fn an_agent_that_does_not_read_its_options_is_judged_by_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(15_000);
    agent(script(&dir, "exec <&-; exit 0"), AgentAction::Off, &[("long", &long)]).run(&n2()).await.unwrap();
    let failed = agent(script(&dir, "exit 3"), AgentAction::Off, &[("long", &long)]);
    assert!(failure(&failed).await.contains("exit code 3"));
}

#[tokio::test]
async fn only_exit_code_0_is_success_and_what_was_printed_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let text = failure(&script(&dir, "echo out; echo cannot reach the power switch >&2; exit 1")).await;
    assert!(text.contains("exit code 1") && text.contains("cannot reach the power switch\nout"), "{text}");
    let text = failure(&script(&dir, "kill -TERM $$")).await;
    assert!(text.contains("signal 15") && text.contains("printed nothing"), "{text}");
}

#[tokio::test]
async fn secrets_are_in_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let options = [("password", "s3cret"), ("ip", "10.0.0.9")];
    let command = agent(script(&dir, "cat; echo login with s3cret failed >&2; exit 1"), AgentAction::Off, &options);
    let error = command.run(&n2()).await.unwrap_err();
    let text = format!("{} {error:?} {command:?}", crate::chain(&error));
    assert!(text.contains("10.0.0.9") && text.contains("login with *** failed") && !text.contains("s3cret"), "{text}");
    // Neither in part, where the beginning of the output is left out: from any byte on.
    for length in 4080..4110 {
        let text = format!(
            "head -c {length} /dev/zero | tr '\\0' x; echo; echo s3cret; head -c {length} /dev/zero | tr '\\0' y; echo; exit 1"
        );
        let error = failure(&agent(script(&dir, &text), AgentAction::Off, &options)).await;
        assert!(!error.contains("cret"), "{length}: {error}");
    }
}

#[tokio::test]
async fn one_that_hangs_is_killed_with_all_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let text = format!("echo begun; echo $$ >>{0}; sh -c 'echo $$ >>{0}; sleep 1000' & sleep 1000", pids.display());
    let mut command = script(&dir, &text);
    command.timeout = Duration::from_millis(1500);
    let text = failure(&command).await;
    assert!(text.contains("1s 500ms") && text.contains("begun"), "{text}");
    let pids = numbers(&pids);
    assert_eq!(pids.len(), 2, "the machine was too slow to start two programs");
    wait_for("both are gone", || !pids.iter().any(|pid| runs(*pid))).await;
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let text = format!("echo $$ >>{0}; sh -c 'echo $$ >>{0}; sleep 1000' & sleep 1000", pids.display());
    let command = script(&dir, &text);
    let call = tokio::spawn(async move { command.run(&n2()).await });
    wait_for("both run", || numbers(&pids).len() == 2).await;
    call.abort();
    let pids = numbers(&pids);
    wait_for("both are gone", || !pids.iter().any(|pid| runs(*pid))).await;
}

#[tokio::test]
async fn one_that_prints_without_end_is_not_held_up_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let text = "i=0; head -c 10000000 /dev/zero | tr '\\0' 'x'; echo; echo the last word; exit 7";
    let error = failure(&script(&dir, text)).await;
    assert!(error.contains("exit code 7") && error.ends_with("the last word"), "{}", crate::cut(&error, 300));
    assert!(error.len() < 2 * KEPT, "{}", error.len());
    let error = failure(&script(&dir, "head -c 100000 /dev/zero | tr '\\0' 'x'; exit 7")).await;
    assert!(error.contains("too long to show"), "{}", crate::cut(&error, 300));
}

#[tokio::test]
async fn one_that_leaves_somebody_with_its_output_has_ended_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let text = format!("setsid sh -c 'echo $$ >{}; exec sleep 1000' & echo told; exit 1", pid.display());
    let error = failure(&script(&dir, &text)).await;
    assert!(error.contains("told"), "{error}");
    wait_for("it said who it is", || numbers(&pid).len() == 1).await;
    nix::sys::signal::kill(Pid::from_raw(numbers(&pid)[0]), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn what_cannot_be_started_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = failure(&command(&["/no/such/program"])).await;
    assert!(
        text.contains("/no/such/program") && text.contains("[fence.n2]") && text.contains("No such file"),
        "{text}"
    );
    let plain = script(&dir, "exit 0");
    fs::set_permissions(&plain.argv[0], fs::Permissions::from_mode(0o600)).unwrap();
    assert!(failure(&plain).await.contains("ermission denied"));
    assert!(failure(&command(&[])).await.contains("is empty"));
    let bad = agent(script(&dir, "exit 0"), AgentAction::Off, &[("ip", "a\nb")]);
    assert!(failure(&bad).await.contains("more than one line"));
}

/// A ClusterLabs agent, as Debian installs it.
fn fence_dummy() -> Option<PathBuf> {
    ["/usr/sbin/fence_dummy", "/sbin/fence_dummy"].map(PathBuf::from).into_iter().find(|path| path.is_file())
}

#[tokio::test]
async fn a_real_fence_agent_is_understood() {
    let Some(path) = fence_dummy() else {
        println!("SKIPPED a_real_fence_agent_is_understood: there is no fence_dummy (a package of the fence-agents)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let status = dir.path().join("status");
    fs::write(&status, "on").unwrap();
    let path = path.to_str().unwrap();
    let options = [("type", "file"), ("status_file", status.to_str().unwrap())];
    agent(command(&[path]), AgentAction::Off, &options).run(&n2()).await.unwrap();
    assert_eq!(fs::read_to_string(&status).unwrap().trim(), "off");
    agent(command(&[path]), AgentAction::Reboot, &options).run(&n2()).await.unwrap();
    assert_eq!(fs::read_to_string(&status).unwrap().trim(), "on");
    let failed = agent(command(&[path]), AgentAction::Off, &[("type", "fail"), ("password", "s3cret")]);
    let text = failure(&failed).await;
    assert!(text.contains("exit code") && !text.contains("s3cret"), "{text}");
}
