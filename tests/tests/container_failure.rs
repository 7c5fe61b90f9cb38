//! A process, a container or its agent fails: recovery on the same node.

mod common;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::SystemTime};

use common::{
    NEVER, PATIENCE, cannot_run, checkpoint, client, count, kill_counter, scene, state, wait_until_serving,
    watch::{AGENT, COUNTER, Described, Watched},
};
use ha_lab::run;
use nix::sys::signal::Signal;

const PLAIN: [&str; 3] = [COUNTER, "--ballast-mb", "4"];

/// Counts, checkpoints, counts on, lets it fail, and expects the checkpoint's state on the same node.
fn comes_back(test: &str, program: &str, how: Signal, scope: &str) {
    let Some(watched) = Watched::start(test, 2, &Described::stateful(&PLAIN)) else { return };
    let cluster = &watched.cluster;
    let (_, id) = state(cluster);
    let saved = count(cluster, 10);
    checkpoint(cluster);
    count(cluster, 5);
    let since = SystemTime::now();
    watched.signal(0, program, how);
    wait_until_serving(cluster, since);
    assert_eq!(state(cluster), (saved, id));
    assert_eq!(count(cluster, 5).value, 15);
    assert_eq!(cluster.owner_of("counter"), Some(0));
    assert_eq!(cluster.members[0].node.processes(COUNTER).len(), 1);
    let lost = watched.events("container.lost");
    assert_eq!(lost.iter().map(|event| event.text("scope").unwrap()).collect::<Vec<_>>(), [scope], "{lost:#?}");
    assert_eq!(watched.steps(), ["restart"]);
    watched.finish();
}

#[test]
fn a_stateful_process_that_is_killed_comes_back_with_its_state() {
    comes_back("a_stateful_process_that_is_killed_comes_back_with_its_state", COUNTER, Signal::SIGKILL, "process");
}

#[test]
fn a_container_that_is_killed_comes_back_with_its_state() {
    comes_back("a_container_that_is_killed_comes_back_with_its_state", AGENT, Signal::SIGKILL, "container");
}

#[test]
fn an_agent_that_hangs_is_noticed() {
    comes_back("an_agent_that_hangs_is_noticed", AGENT, Signal::SIGSTOP, "container");
}

#[test]
fn a_stateless_process_that_is_killed_is_started_again_inside_its_container() {
    let name = "a_stateless_process_that_is_killed_is_started_again_inside_its_container";
    let Some(watched) = Watched::start(name, 1, &Described::stateless(&PLAIN)) else { return };
    let cluster = &watched.cluster;
    let (_, id) = state(cluster);
    let agent = cluster.members[0].node.processes(AGENT);
    watched.signal(0, COUNTER, Signal::SIGKILL);
    cluster.wait("another process", common::PATIENCE, |cluster| client(cluster, |c| c.id()) != id).unwrap();
    assert_eq!(cluster.members[0].node.processes(AGENT), agent, "the container was replaced");
    assert_eq!(watched.events("process.restarting").len(), 1);
    assert_eq!(watched.events("recovery.started"), []);
    watched.finish();
}

/// CRIU; but once, when the file `hang` is there, one that hangs with the counter in its hands and cannot be ended.
const HANGING_CRIU: &str = r#"#!/usr/bin/perl
if ($ARGV[0] ne "swrk" || !unlink("HANG")) { exec "CRIU", @ARGV }
# Once it is asked to dump: whoever it traces then is not refused by name.
my $asked = ""; vec($asked, 3, 1) = 1; select($asked, undef, undef, undef);
if (fork() == 0) {
    # setsid, ptrace(PTRACE_SEIZE), ptrace(PTRACE_INTERRUPT)
    syscall(112);
    for my $pid (map { m{^/proc/(\d+)/comm$} } glob("/proc/[0-9]*/comm")) {
        open(my $comm, "<", "/proc/$pid/comm") or next;
        next if <$comm> ne "counter\n";
        syscall(101, 0x4206, $pid + 0, 0, 0);
        syscall(101, 0x4207, $pid + 0, 0, 0);
    }
}
sleep 600;
"#;

#[test]
fn a_dump_that_leaves_a_process_standing_is_recovered_from() {
    let name = "a_dump_that_leaves_a_process_standing_is_recovered_from";
    if cannot_run(name) {
        return;
    }
    if !cfg!(target_arch = "x86_64") || !Path::new("/usr/bin/perl").exists() {
        return ha_lab::skipped(name, "it needs perl, and knows the system calls of x86-64 only");
    }
    let dir = tempfile::tempdir().unwrap();
    let (hang, script) = (dir.path().join("hang"), dir.path().join("hanging-criu"));
    let criu = run(std::process::Command::new("sh").args(["-c", "command -v criu"])).unwrap();
    let text =
        HANGING_CRIU.replace("HANG", &hang.display().to_string()).replace("\"CRIU\"", &format!("\"{}\"", criu.trim()));
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!("criu = \"{}\"\ncheckpoint.timeout = \"5s\"", script.display());
    let Some((cluster, before)) = scene(name, 1, &config, NEVER) else { return };
    let (_, id) = state(&cluster);
    let saved = count(&cluster, 10);
    checkpoint(&cluster);
    count(&cluster, 5);
    fs::write(&hang, "").unwrap();
    let since = SystemTime::now();
    cluster.members[0].cli(&["checkpoint", "counter"]).unwrap_err();
    let lost = cluster.wait_for_event("container.lost", since, 1, PATIENCE).unwrap();
    assert_eq!(lost.text("scope"), Some("container"), "{lost:?}");
    wait_until_serving(&cluster, since);
    assert_eq!(state(&cluster), (saved, id.clone()));
    // The next dump is an ordinary one, and so is what follows.
    checkpoint(&cluster);
    let since = SystemTime::now();
    kill_counter(&cluster, 0);
    wait_until_serving(&cluster, since);
    assert_eq!(state(&cluster), (saved, id));
    // Its hold has ended with the process; it is the test's to end.
    for pid in cluster.members[0].node.processes("/usr/bin/perl") {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    }
    before.check_after_removal(&cluster);
}
