//! What a real agent sends: every kind of event, and answers to every request.

use ha_proto::agent::{
    CheckResult, Event, GaveUp, HealthChanged, ProcessEnded, Reply, Restarting, Started, Status, event::Kind,
};
use prost::Message;

pub fn seeds() -> Vec<Vec<u8>> {
    let end = ProcessEnded {
        code: 139,
        signal: 11,
        not_started: String::new(),
        last_output: vec!["one".to_owned(), "two\x1b[31m".to_owned()],
        ran_ms: 15_000,
    };
    let failed = ProcessEnded { code: 127, not_started: "/bin/x: no such file".to_owned(), ..ProcessEnded::default() };
    let kinds = [
        Kind::Started(Started { main_pid: 2 }),
        Kind::ProcessEnded(end.clone()),
        Kind::ProcessEnded(failed),
        Kind::Restarting(Restarting { attempt: 1, delay_ms: 100 }),
        Kind::HealthChanged(HealthChanged { health: 4, output: "refused\n\nfor good\n".to_owned() }),
        Kind::GaveUp(GaveUp { attempts: 10, code: 1 }),
    ];
    let numbered = (1..).zip(kinds);
    let events: Vec<_> = numbered
        .map(|(seq, kind)| Event { seq, incarnation: vec![7; 16], kind: Some(kind), at_unix_ms: 1_700_000_000_000 })
        .collect();
    let status = Status {
        incarnation: vec![7; 16],
        main_running: true,
        main_pid: 2,
        restarts: 1,
        health: 3,
        failing_streak: 0,
        health_output: "ok".to_owned(),
        processes: 3,
        recent: events.clone(),
        phase: 1,
        last_end: Some(end),
        log_dropped_lines: 5,
    };
    let check =
        CheckResult { healthy: false, code: 1, timed_out: true, took_ms: 12, output: "no\nanswer\n".to_owned() };
    let replies = [
        Reply { nonce: 1, status: Some(status.clone()), ..Reply::default() },
        Reply { nonce: 2, check: Some(check), ..Reply::default() },
        Reply { nonce: 3, error: "no healthcheck is configured\n".to_owned(), ..Reply::default() },
    ];
    let mut seeds: Vec<Vec<u8>> = events.iter().map(|event| step(0, &event.encode_to_vec())).collect();
    seeds.push(seeds.concat());
    seeds.extend(replies.iter().map(|reply| step(1, &framed(reply))));
    // A status that brings what the datagrams did, and a container put back to an earlier one.
    let again = Reply { nonce: 9, status: Some(Status { incarnation: vec![8; 16], ..status }), ..Reply::default() };
    seeds.push([seeds[6].clone(), step(1, &framed(&replies[0])), step(255, &framed(&again))].concat());
    seeds
}

fn framed(reply: &Reply) -> Vec<u8> {
    let body = reply.encode_to_vec();
    [&(body.len() as u32).to_be_bytes()[..], &body].concat()
}

fn step(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind][..], &(bytes.len() as u16).to_le_bytes(), bytes].concat()
}
