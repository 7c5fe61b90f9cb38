//! Figures, not tests: `cargo test --release -p ha-manager --lib checkpoint::tests::figures -- --ignored --nocapture`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::lab::{Lab, alone, skipped};

fn median(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
    format!("median {:.1}, min {:.1}, max {:.1} (n = {})", at(0.5), at(0.0), at(1.0), values.len())
}

#[test]
#[ignore = "measures; run it alone on a quiet machine"]
fn what_a_dump_costs() {
    if skipped("what_a_dump_costs") {
        return;
    }
    let _alone = alone();
    for megabytes in [0, 4, 64, 256] {
        let lab = Lab::new();
        let mut place = lab.place();
        let pid = place.start();
        let mut client = lab.client();
        client.ask(&format!("fill {megabytes}"));
        place.dump(pid);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        // The longest time a client waited for an answer, per dump.
        let poller = std::thread::spawn(move || {
            let mut gaps = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let asked = Instant::now();
                client.ask("incr");
                gaps.push((asked, asked.elapsed()));
                std::thread::sleep(Duration::from_micros(300));
            }
            gaps
        });
        let (mut frozen, mut wall, mut gate, mut capture, mut spans) = (vec![], vec![], vec![], vec![], vec![]);
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let mut images = None;
        for _ in 0..15 {
            let started = Instant::now();
            let (request, report) = place.dump(pid);
            spans.push((started, Instant::now()));
            frozen.push(milliseconds(report.frozen));
            gate.push(milliseconds(report.gate_closed.unwrap()));
            wall.push(milliseconds(report.wall));
            capture.push(milliseconds(report.capture.frozen));
            if let Some(old) = images.replace(request) {
                let old: crate::checkpoint::DumpRequest = old;
                std::fs::remove_dir_all(old.images.parent().unwrap()).unwrap();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, Ordering::Relaxed);
        let gaps = poller.join().unwrap();
        let longest = |(start, end): &(Instant, Instant)| {
            let within = gaps.iter().filter(|(asked, took)| asked <= end && *asked + *took >= *start);
            within.map(|(_, took)| milliseconds(*took)).fold(0.0, f64::max)
        };
        let mut gap: Vec<f64> = spans.iter().map(longest).collect();
        println!("{megabytes} MiB filled, ms:");
        println!("  frozen      {}", median(&mut frozen));
        println!("  client gap  {}", median(&mut gap));
        println!("  gate closed {}", median(&mut gate));
        println!("  wall        {}", median(&mut wall));
        println!("  capture     {}", median(&mut capture));
        place.destroy();
        let mut there = lab.place();
        let started = Instant::now();
        there.restore(&images.unwrap());
        lab.client().ask("get");
        println!("  restore incl. namespace link, overlay, first answer: {:.1}", milliseconds(started.elapsed()));
    }
}
