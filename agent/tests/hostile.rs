//! Peers and disks that do what they should not.

mod common;

use std::{
    fs,
    io::{Read, Write},
    process::Command,
    time::{Duration, Instant},
};

use common::{Agent, is_root, shell, skipped, wait_for};
use ha_proto::agent::{RestartRule::No, State::Stateful};
use nix::sys::signal::Signal;

fn sleeper() -> Agent {
    let agent = Agent::start(&shell("exec sleep 1000", Stateful, No));
    agent.channel.status();
    agent
}

#[test]
fn broken_messages_end_their_connection_and_nothing_else() {
    let agent = sleeper();
    let incarnation = agent.channel.status().incarnation;
    for message in [&[0xff; 64][..], &[0, 0, 0, 3, 0xff, 0xff, 0xff], &[0, 0, 0, 0, 9, 9, 9], &[0, 1, 0, 1]] {
        let mut stream = agent.channel.connect().unwrap();
        stream.write_all(message).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"", "{message:?}");
    }
    // An empty message is a request without a kind.
    assert!(agent.channel.connect().is_ok());
    assert_eq!(agent.channel.status().incarnation, incarnation);
}

#[test]
fn slow_senders_are_cut_off_and_do_not_keep_others_out() {
    let agent = sleeper();
    let began = Instant::now();
    let mut slow: Vec<_> = (0..20).map(|_| agent.channel.connect().unwrap()).collect();
    for stream in &mut slow {
        stream.write_all(&[0, 0, 1]).unwrap();
    }
    agent.channel.status();
    assert!(began.elapsed() < Duration::from_secs(15));
    let mut answer = Vec::new();
    let _ = slow[0].read_to_end(&mut answer);
    assert!(answer.is_empty() && began.elapsed() >= Duration::from_millis(900));
}

#[test]
fn the_socket_is_bound_again_when_its_file_is_lost() {
    let agent = sleeper();
    let socket = agent.channel.dir.join("agent.sock");
    fs::remove_file(&socket).unwrap();
    agent.channel.status();
    fs::remove_file(&socket).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    agent.channel.status();
}

#[test]
fn a_stopped_agent_answers_again_when_it_goes_on() {
    let agent = sleeper();
    agent.signal(Signal::SIGSTOP);
    let mut stream = agent.channel.connect().unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    stream.write_all(&[0, 0, 0, 0]).unwrap();
    assert!(stream.read(&mut [0; 1]).is_err(), "a stopped agent answered");
    agent.signal(Signal::SIGCONT);
    agent.channel.status();
}

struct Mount(std::path::PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_neither_blocks_the_main_process_nor_hides_the_loss() {
    if !is_root() {
        return skipped("a_full_disk…", "mounting a tmpfs needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m,mode=700", "hag"]).arg(&full).status();
    if !status.is_ok_and(|s| s.success()) {
        return skipped("a_full_disk…", "a tmpfs cannot be mounted here");
    }
    let _mount = Mount(full.clone());
    let done = dir.path().join("done");
    let line = "x".repeat(100);
    let script = format!(
        "i=0; while [ $i -lt 20000 ]; do echo {line}; i=$((i+1)); done; touch {}; exec sleep 1000",
        done.display()
    );
    let channel = common::Channel::new(&full, &shell(&script, Stateful, No));
    fs::write(full.join("filler"), vec![0; 768 * 1024]).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_ha-agent")).arg("--channel").arg(&full).spawn().unwrap();
    let mut agent = Agent::adopt(channel, child);
    let channel = &agent.channel;
    wait_for("the writer's end", || done.exists().then_some(()));
    wait_for("lost lines", || Some(channel.status().log_dropped_lines).filter(|n| *n > 0));
    fs::remove_file(full.join("filler")).unwrap();
    let notice =
        |line: &String| line.strip_prefix("agent F ")?.split_once(" log lines were lost here")?.0.parse::<u64>().ok();
    // The pipe may still have held lines when the writer ended, and lost some of those too: all are written or counted.
    let log = wait_for("every line", || {
        let log = channel.log();
        let written = log.iter().filter(|line| line.starts_with("stdout")).count() as u64;
        (written + log.iter().filter_map(notice).sum::<u64>() == 20_000).then_some(log)
    });
    assert_eq!(log.iter().filter_map(notice).sum::<u64>(), channel.status().log_dropped_lines);
    assert!(log.iter().all(|l| l.starts_with("agent") || l.len() == "stdout F ".len() + 100), "a torn line");
    channel.stop(0);
    agent.exit_code();
}
