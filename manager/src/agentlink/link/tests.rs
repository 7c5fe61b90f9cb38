//! Against the real agent, built beside these tests, and against peers that are none.

use std::{
    fs,
    os::unix::fs::symlink,
    process::{Child, Command},
};

use ha_proto::agent::{Config, MAX_TEXT, Phase, Started, State, event};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::net::UnixListener;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn name() -> ContainerName {
    "test".parse().unwrap()
}

struct Agent {
    child: Child,
    main: u32,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.main > 1 {
            let _ = kill(Pid::from_raw(-self.main.cast_signed()), Signal::SIGKILL);
        }
    }
}

/// The agent on a channel directory with a path far beyond a socket's 108 bytes, which the agent sees by a short one.
async fn start(test: &str, dir: &tempfile::TempDir) -> Option<(Agent, AgentLink)> {
    let exe = std::env::current_exe().unwrap();
    let agent = exe.parent()?.parent()?.join("ha-agent");
    if !agent.exists() {
        println!("SKIPPED {test}: {} is not built; run cargo build -p ha-agent", agent.display());
        return None;
    }
    let long = dir.path().join("x".repeat(150));
    fs::create_dir(&long).unwrap();
    let short = dir.path().join("c");
    symlink(&long, &short).unwrap();
    let mut config = Config::new(vec!["/bin/sleep".into(), "1000".into()], State::Stateful);
    config.env = vec!["PATH=/bin".into()];
    ChannelDir::open(&long).unwrap().write_config(&config).unwrap();
    let link = AgentLink::open(&long, name()).unwrap();
    let child = Command::new(agent).arg("--channel").arg(&short).spawn().unwrap();
    let mut agent = Agent { child, main: 0 };
    for _ in 0..2000 {
        if let Ok(status) = link.ping(SECOND).await {
            agent.main = status.main_pid;
            return Some((agent, link));
        }
        time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the agent did not come up");
}

#[tokio::test]
async fn requests_events_and_an_agent_that_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let Some((agent, link)) = start("requests_events_and_an_agent_that_hangs", &dir).await else { return };
    let mut events = link.events().unwrap();
    let first = time::timeout(SECOND * 20, events.recv()).await.unwrap().unwrap();
    assert!(matches!(first.kind, Some(event::Kind::Started(Started { .. }))));
    assert!(link.check_now(SECOND).await.unwrap().check.is_none());
    link.quiesce(SECOND, SECOND).await.unwrap();

    // A manager that comes later learns from the status what was before it.
    let second = AgentLink::open(&dir.path().join("c").canonicalize().unwrap(), name()).unwrap();
    second.ping(SECOND * 5).await.unwrap();
    assert_eq!(second.events().unwrap().try_recv().unwrap(), first);

    let pid = Pid::from_raw(agent.child.id().cast_signed());
    kill(pid, Signal::SIGSTOP).unwrap();
    for _ in 0..3 {
        let began = Instant::now();
        let answer = second.ping(Duration::from_millis(100)).await;
        assert!(matches!(answer, Err(Error::Timeout(_))), "{answer:?}");
        assert!(began.elapsed() < SECOND * 5);
    }
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(second.ping(SECOND * 5).await.unwrap().phase(), Phase::Running);
    second.stop(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_socket_that_leads_elsewhere_and_answers_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let link = AgentLink::open(dir.path(), name()).unwrap();
    assert!(matches!(link.ping(SECOND).await, Err(Error::Unreachable(_))));
    let elsewhere = dir.path().join("elsewhere");
    let listener = UnixListener::bind(&elsewhere).unwrap();
    symlink(&elsewhere, dir.path().join("agent.sock")).unwrap();
    assert!(matches!(link.ping(SECOND).await, Err(Error::NotA { .. })));
    fs::remove_file(dir.path().join("agent.sock")).unwrap();
    fs::rename(&elsewhere, dir.path().join("agent.sock")).unwrap();
    for answer in [&[0xff; 8][..], &[0, 0, 0, 2, 0xff, 0xff], &[0, 0, 0, 0]] {
        let (asked, ()) = tokio::join!(link.ping(SECOND * 5), async {
            let (mut peer, _) = listener.accept().await.unwrap();
            peer.write_all(answer).await.unwrap();
        });
        assert!(matches!(asked, Err(Error::Protocol(_) | Error::Unreachable(_))), "{asked:?}");
    }
    let flood = std::os::unix::net::UnixDatagram::unbound().unwrap();
    flood.send_to(&[0xff; 1000], dir.path().join("manager.sock")).unwrap();
    let event = Event { seq: 1, incarnation: vec![1], kind: None, at_unix_ms: 0 };
    flood.send_to(&event.encode_to_vec(), dir.path().join("manager.sock")).unwrap();
    let mut events = link.events().unwrap();
    assert_eq!(time::timeout(SECOND * 20, events.recv()).await.unwrap().unwrap(), event);
}

#[tokio::test]
async fn a_container_that_writes_events_of_its_own_gets_little_of_the_managers_memory() {
    let dir = tempfile::tempdir().unwrap();
    let link = AgentLink::open(dir.path(), name()).unwrap();
    let mut events = link.events().unwrap();
    let socket = UnixDatagram::unbound().unwrap();
    let output = "é".repeat(30_000);
    let wild = Event {
        seq: 1,
        kind: Some(event::Kind::HealthChanged(ha_proto::agent::HealthChanged { health: 0, output })),
        ..Default::default()
    };
    socket.send_to(&wild.encode_to_vec(), dir.path().join("manager.sock")).await.unwrap();
    let Some(event::Kind::HealthChanged(change)) = events.recv().await.unwrap().kind else { panic!("another event") };
    assert!(change.output.len() <= MAX_TEXT && change.output.capacity() <= 2 * MAX_TEXT);
}
