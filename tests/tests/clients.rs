//! The demo's clients, judged before the manager is: over a failover by hand with plain runc and CRIU.

use std::time::{Duration, SystemTime};

use ha_lab::{
    demo::{ADDRESS, Verdict, Workload},
    have, images,
    lab::{Lab, NodeOptions},
    plain::{self, Plain},
    skipped, why_no_nodes,
};

fn fail_over_by_hand(workload: Workload, needs: &[&str]) -> Option<Verdict> {
    let name = format!("the_clients_of_{}_judge_a_failover", workload.name());
    let missing = needs.iter().find(|program| !have(program)).map(|program| format!("{program} not installed"));
    if let Some(why) = why_no_nodes().or(missing) {
        skipped(&name, &why);
        return None;
    }
    let lab = Lab::new().unwrap();
    let mut one = lab.node(1, NodeOptions { bare_uplink: true }).unwrap();
    let two = lab.node(2, NodeOptions { bare_uplink: true }).unwrap();
    plain::prepare(&one).unwrap();
    plain::prepare(&two).unwrap();
    let command = workload.command();
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut container = Plain::new("judged", 50, &images::cached(workload.name()).unwrap(), &words);
    container.address = format!("{ADDRESS}/16");
    container.start(&one).unwrap();
    let mut client = workload.client(&lab).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let frozen_at = SystemTime::now();
    let images = lab.store().join("images");
    container.checkpoint(&one, &images).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let cut = one.power_cut().unwrap();
    container.restore(&two, &images).unwrap();
    client.wait_until_back(&cut).unwrap();
    let verdict = client.verdict(&cut, frozen_at).unwrap();
    println!("{}: {verdict:#?}", workload.name());
    assert!(verdict.session_kept, "{verdict:#?}");
    assert!(verdict.gap > Duration::from_millis(50) && verdict.gap < Duration::from_secs(10), "{verdict:#?}");
    assert!(verdict.first.unwrap() > cut.at);
    Some(verdict)
}

#[test]
fn the_clients_of_counter_judge_a_failover() {
    fail_over_by_hand(Workload::Counter, &[]);
}

#[test]
fn the_clients_of_redis_judge_a_failover() {
    fail_over_by_hand(Workload::Redis, &["redis-server"]);
}

#[test]
fn the_clients_of_vlc_judge_a_failover() {
    fail_over_by_hand(Workload::Vlc, &["vlc", "ffmpeg"]);
}
