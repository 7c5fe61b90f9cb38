//! What the agent does for its main process, with real processes.

mod common;

use common::{Agent, healthcheck, is_root, shell, skipped, wait_for};
use ha_proto::agent::{
    Health, Phase,
    RestartRule::{Always, No, OnFailure},
    State::{Stateful, Stateless},
    event::Kind,
};
use nix::sys::signal::Signal;

#[test]
fn output_goes_to_the_log_and_the_code_out() {
    let mut agent = Agent::start(&shell("echo $GREETING; echo oops >&2; printf unfinished; exit 7", Stateless, No));
    assert_eq!(agent.exit_code(), Some(7));
    let mut log = agent.channel.log();
    log.sort();
    assert_eq!(log, ["stderr F oops", "stdout F hello", "stdout F unfinished"]);
    let text = std::fs::read_to_string(agent.channel.dir.join("log")).unwrap();
    let stamp = text.split(' ').next().unwrap();
    assert!(stamp.len() == 24 && stamp.starts_with("20") && stamp.ends_with('Z'), "{stamp}");
}

#[test]
fn a_piece_of_a_line_is_shown_before_its_end() {
    let agent = Agent::start(&shell("printf 'name? '; sleep 3; echo x; exec sleep 1000", Stateless, No));
    agent.channel.wait_for_log("stdout P name? ");
    agent.channel.wait_for_log("stdout F x");
}

#[test]
fn a_stateless_process_is_restarted_until_the_agent_gives_up() {
    let agent = Agent::start(&shell("exit 3", Stateless, OnFailure));
    let mut seen = Vec::new();
    loop {
        let event = agent.channel.event();
        assert_eq!(event.seq, seen.len() as u64 + 1);
        let name = match event.kind.unwrap() {
            Kind::Started(_) => "started".to_owned(),
            Kind::ProcessEnded(end) => format!("ended {}", end.code),
            Kind::Restarting(r) => format!("restarting {} in {}", r.attempt, r.delay_ms),
            Kind::GaveUp(g) => format!("gave up {} {}", g.attempts, g.code),
            Kind::HealthChanged(_) => unreachable!(),
        };
        seen.push(name.clone());
        if name.starts_with("gave") {
            break;
        }
    }
    assert_eq!(
        seen.join(", "),
        "started, ended 3, restarting 1 in 50, started, ended 3, restarting 2 in 100, \
        started, ended 3, restarting 3 in 100, started, ended 3, gave up 3 3"
    );
    let status = agent.channel.status();
    assert_eq!((status.phase(), status.restarts, status.main_running), (Phase::GaveUp, 3, false));
    assert_eq!(status.recent.len(), seen.len());
    assert_eq!(
        agent
            .channel
            .ask(ha_proto::agent::request::Kind::Ping(ha_proto::agent::Ping { seen_seq: 10 }))
            .status
            .unwrap()
            .recent
            .len(),
        seen.len() - 10
    );
}

#[test]
fn a_restart_finds_nothing_left_of_the_process_before() {
    let dir = tempfile::tempdir().unwrap();
    // A lock stands for a port: a worker in a session of its own has inherited it.
    let script = format!(
        "cd {}; exec 9>lock; flock -n 9 || {{ echo busy; exit 9; }}; [ -e second ] && {{ echo second; exec sleep 1000; }}; \
         touch second; setsid sleep 1000 & kill -KILL $$",
        dir.path().display()
    );
    let config = shell(&script, Stateless, OnFailure);
    let Some(agent) = Agent::start_as_init("a_restart_finds_nothing_left…", &config) else { return };
    wait_for("the second start", || agent.channel.log().iter().any(|line| line.starts_with("stdout")).then_some(()));
    let lines: Vec<_> = agent.channel.log().into_iter().filter(|line| line.starts_with("stdout")).collect();
    assert_eq!(lines, ["stdout F second"]);
    assert_eq!(agent.channel.status().processes, 1);
}

#[test]
fn a_burst_of_short_lines_is_in_the_log() {
    let agent = Agent::start(&shell("seq 1 100000; exec sleep 1000", Stateless, No));
    let log = || std::fs::read_to_string(agent.channel.dir.join("log")).unwrap_or_default();
    wait_for("the last line", || {
        (log().contains(" 100000\n") || agent.channel.status().log_dropped_lines > 0).then_some(())
    });
    assert_eq!((log().lines().count(), agent.channel.status().log_dropped_lines), (100_000, 0));
}

#[test]
fn a_stateful_process_is_reported_and_the_agent_stays() {
    let mut agent = Agent::start(&shell("echo out; printf 'last \\033[2Jwords' >&2; kill -SEGV $$", Stateful, Always));
    let end = agent.channel.event_of(|kind| if let Kind::ProcessEnded(end) = kind { Some(end.clone()) } else { None });
    assert_eq!((end.code, end.signal, end.not_started.as_str()), (139, 11, ""));
    assert_eq!(end.last_output, ["out", "last \u{fffd}[2Jwords"]);
    let status = agent.channel.status();
    assert_eq!((status.phase(), status.last_end), (Phase::Ended, Some(end)));
    assert!(agent.child.try_wait().unwrap().is_none(), "the agent left");
    agent.channel.stop(1000);
    assert_eq!(agent.exit_code(), Some(139));
}

#[test]
fn an_orderly_end_of_a_stateful_process_ends_the_container() {
    let mut agent = Agent::start(&shell("exit 0", Stateful, OnFailure));
    assert_eq!(agent.exit_code(), Some(0));
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let mut config = shell("", Stateless, No);
    config.argv = vec!["no-such-program".into()];
    let mut agent = Agent::start(&config);
    let end = agent.channel.event_of(|kind| if let Kind::ProcessEnded(end) = kind { Some(end.clone()) } else { None });
    assert!(end.not_started.contains("\"no-such-program\"") && end.not_started.contains("`command`"), "{end:?}");
    assert_eq!(agent.exit_code(), Some(127));
    let log = agent.channel.log();
    assert!(log[0].starts_with("agent F agent: cannot start \"no-such-program\" in \"/\" as user 0:0"), "{log:?}");
}

#[test]
fn what_cannot_be_executed_says_what_to_look_at() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    for (program, cwd, code, wanted) in [
        (file("plain", "text", 0o644), "/", 126, "may not be executed"),
        (file("script", "#!/no/such/interpreter\n", 0o755), "/", 127, "interpreter"),
        ("/bin/true".to_owned(), "/no/such/dir", 127, "`working_dir`"),
    ] {
        let mut config = shell("", Stateful, Always);
        (config.argv, config.cwd) = (vec![program.clone()], cwd.into());
        let agent = Agent::start(&config);
        let end =
            agent.channel.event_of(|kind| if let Kind::ProcessEnded(end) = kind { Some(end.clone()) } else { None });
        assert_eq!(end.code, code, "{end:?}");
        assert!(end.not_started.contains(wanted) && end.not_started.contains(&program), "{end:?}");
        assert_eq!(agent.channel.status().last_end, Some(end));
    }
}

#[test]
fn a_missing_configuration_is_an_error_with_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_ha-agent")).arg("--channel").arg(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("agent.json"));
}

#[test]
fn signals_are_forwarded_and_term_is_an_orderly_stop() {
    for init in [false, true] {
        let script = "trap 'echo usr1' USR1; trap 'echo hup' HUP; trap 'echo bye; exit 5' TERM; echo ready; \
                      while :; do sleep 0.02; done";
        let config = shell(script, Stateless, Always);
        let mut agent = if init {
            let Some(agent) = Agent::start_as_init("signals_are_forwarded (as PID 1)", &config) else { return };
            agent
        } else {
            Agent::start(&config)
        };
        agent.channel.wait_for_log("stdout F ready");
        // Behind `unshare` the agent is another process than the one that was started.
        let target = if init { child_of(agent.child.id()) } else { agent.pid() };
        for (signal, line) in [(Signal::SIGUSR1, "usr1"), (Signal::SIGHUP, "hup"), (Signal::SIGTERM, "bye")] {
            nix::sys::signal::kill(target, signal).unwrap();
            agent.channel.wait_for_log(&format!("stdout F {line}"));
        }
        assert_eq!(agent.exit_code(), Some(5));
    }
}

fn child_of(pid: u32) -> nix::unistd::Pid {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    nix::unistd::Pid::from_raw(children.trim().parse().unwrap())
}

#[test]
fn who_does_not_heed_the_stop_is_killed_with_its_group() {
    let mut agent =
        Agent::start(&shell("trap '' TERM; sleep 1000 & echo $!; while :; do sleep 1000; done", Stateful, No));
    let sleeper = wait_for("the pid of the sleeper", || agent.channel.log().first().cloned());
    agent.channel.stop(50);
    assert_eq!(agent.exit_code(), Some(137));
    let sleeper = sleeper.rsplit(' ').next().unwrap().to_owned();
    wait_for("the end of the sleeper", || {
        let stat = std::fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn a_process_begins_with_no_signal_blocked_or_ignored_and_ends_by_its_stop_signal() {
    let mut config = shell("", Stateless, No);
    config.argv = ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"].map(str::to_owned).to_vec();
    // As under nohup.
    let mut ignoring = std::process::Command::new("sh");
    ignoring.args(["-c", "trap '' HUP USR1 QUIT; exec \"$0\" --channel \"$1\"", env!("CARGO_BIN_EXE_ha-agent")]);
    let mut agent = Agent::start_by(ignoring, &config);
    assert_eq!(agent.exit_code(), Some(0));
    assert_eq!(agent.channel.log(), ["stdout F SigBlk:\t0000000000000000", "stdout F SigIgn:\t0000000000000000"]);

    config.argv = ["sleep", "1000"].map(str::to_owned).to_vec();
    let mut agent = Agent::start(&config);
    agent.channel.stop(60_000);
    assert_eq!(agent.exit_code(), Some(143));
}

#[test]
fn orphans_are_reaped() {
    let script = "for i in 1 2 3 4 5 6 7 8 9; do (sleep 0.01 & sleep 0.01 &) ; done; echo ready; exec sleep 1000";
    let Some(agent) = Agent::start_as_init("orphans_are_reaped", &shell(script, Stateless, No)) else { return };
    agent.channel.wait_for_log("stdout F ready");
    wait_for("the end of the zombies", || (agent.channel.status().processes == 1).then_some(()));
}

#[test]
fn the_healthcheck_flips_and_counts() {
    let dir = tempfile::tempdir().unwrap();
    let flag = dir.path().join("well");
    let mut config = shell("exec sleep 1000", Stateful, No);
    config.healthcheck = Some(healthcheck(&format!("echo looked; test -e {}", flag.display())));
    let agent = Agent::start(&config);
    let changed =
        |kind: &Kind| if let Kind::HealthChanged(h) = kind { Some((h.health(), h.output.clone())) } else { None };
    assert_eq!(agent.channel.event_of(changed), (Health::Unhealthy, "looked".to_owned()));
    std::fs::write(&flag, "").unwrap();
    assert_eq!(agent.channel.event_of(changed).0, Health::Healthy);
    assert!(agent.channel.check(0).check.unwrap().healthy);
    std::fs::remove_file(&flag).unwrap();
    let check = agent.channel.check(0).check.unwrap();
    assert_eq!((check.healthy, check.code, check.output.as_str()), (false, 1, "looked"));
    assert_eq!(agent.channel.event_of(changed).0, Health::Unhealthy);
    assert_eq!(agent.channel.status().health_output, "looked");
}

#[test]
fn a_check_that_hangs_is_killed_and_a_quiesce_waits_for_it() {
    let mut config = shell("exec sleep 1000", Stateful, No);
    config.healthcheck = Some(healthcheck("yes | head -c 100000; sleep 1000"));
    config.healthcheck.as_mut().unwrap().interval_ms = 3_600_000;
    let agent = Agent::start(&config);
    let began = std::time::Instant::now();
    let check = agent.channel.check(300).check.unwrap();
    assert!(check.timed_out && !check.healthy && began.elapsed().as_secs() < 20);
    assert_eq!(check.output.len(), 4095, "4 KiB, without the line's end");

    let waiting = std::thread::scope(|scope| {
        let channel = &agent.channel;
        let checking = scope.spawn(move || channel.check(800));
        std::thread::sleep(std::time::Duration::from_millis(200));
        let began = std::time::Instant::now();
        channel.quiesce(10_000);
        let waited = began.elapsed();
        assert!(checking.join().unwrap().check.unwrap().timed_out);
        waited
    });
    assert!(waiting.as_millis() > 200, "the quiesce was answered while a check ran: {waiting:?}");
}

#[test]
fn processes_run_as_the_configured_user() {
    if !is_root() {
        return skipped("processes_run_as_the_configured_user", "changing the user needs root");
    }
    let mut config = shell("id -u; id -g; id -G; echo x > /dev/stdout; exec sleep 1000", Stateful, No);
    config.user = ha_proto::agent::User { uid: 65534, gid: 65533, groups: vec![7777] };
    config.healthcheck = Some(healthcheck("id -u"));
    let agent = Agent::start(&config);
    for line in ["65534", "65533", "65533 7777", "x"] {
        agent.channel.wait_for_log(&format!("stdout F {line}"));
    }
    assert_eq!(agent.channel.check(0).check.unwrap().output, "65534");
}
