//! Healthchecks that are in the way of a checkpoint, and some that cannot be ended.

mod common;

use std::{fs, process::Command};

use common::{Agent, healthcheck, is_root, shell, skipped, wait_for};
use ha_proto::agent::{Health, RestartRule::No, State::Stateful, event::Kind};

#[test]
fn a_checkpoint_breaks_a_slow_check_off_once_and_waits_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let [began, finish] = ["began", "finish"].map(|name| dir.path().join(name));
    let mut config = shell("exec sleep 1000", Stateful, No);
    let script = format!("echo x >> {}; while [ ! -e {} ]; do sleep 0.02; done", began.display(), finish.display());
    config.healthcheck = Some(healthcheck(&script));
    config.healthcheck.as_mut().unwrap().timeout_ms = 3_600_000;
    let agent = Agent::start(&config);
    let begun = |times: usize| {
        wait_for("a check", || (fs::read(&began).map_or(0, |text| text.len() / 2) >= times).then_some(()));
    };
    begun(1);
    // Nothing lets this check finish, and yet it is quiet.
    let quiet = agent.channel.quiesce(600_000);
    let status = quiet.status.unwrap();
    assert_eq!((quiet.error.as_str(), status.health(), status.failing_streak), ("", Health::Starting, 0));

    agent.channel.quiesce(0);
    begun(2);
    let quiet = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| agent.channel.quiesce(600_000));
        // Answered with the check broken off, it would still be Starting.
        fs::write(&finish, "").unwrap();
        waiting.join().unwrap()
    });
    assert_eq!(quiet.status.unwrap().health(), Health::Healthy);
}

#[test]
fn a_check_that_cannot_be_killed_is_judged_all_the_same() {
    const TEST: &str = "a_check_that_cannot_be_killed_is_judged_all_the_same";
    if !is_root() {
        return skipped(TEST, "taking a capability away needs root");
    }
    // Without CAP_KILL root cannot kill another user's processes: as good as a file system that hangs.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "setpriv"]);
    command.args(["--bounding-set", "-kill", "--inh-caps", "-kill", env!("CARGO_BIN_EXE_ha-agent"), "--channel"]);
    let mut config = shell("exec sleep 1000", Stateful, No);
    config.user = ha_proto::agent::User { uid: 65534, gid: 65534, groups: vec![] };
    config.healthcheck = Some(healthcheck("exec sleep 1000"));
    config.healthcheck.as_mut().unwrap().timeout_ms = 100;
    let agent = Agent::start_by(command, &config);
    let changed = |kind: &Kind| if let Kind::HealthChanged(h) = kind { Some(h.health()) } else { None };
    assert_eq!(agent.channel.event_of(changed), Health::Unhealthy);
    let status = agent.channel.status();
    assert!(status.failing_streak >= 2 && status.processes == 2, "{status:?}");

    let refused = agent.channel.quiesce(1000).error;
    assert!(refused.contains("a healthcheck was killed and does not end"), "{refused}");
    let check = agent.channel.check(60_000).check.unwrap();
    assert!(check.timed_out && !check.healthy && check.output.contains("does not end"), "{check:?}");
}
