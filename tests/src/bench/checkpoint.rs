//! What one checkpoint costs a client: with the manager, and with the stock commands of runc.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};

use super::Figure;
use crate::{
    clients::{
        counter::{Poller, connect_patiently},
        newcomers::Newcomers,
    },
    cluster::Cluster,
    demo::{ADDRESS, Workload},
    images,
    lab::{Lab, NodeOptions},
    plain::{self, Plain},
};

/// How often the client asks.
const EVERY: Duration = Duration::from_micros(300);
/// How often a client comes anew.
const NEW_EVERY: Duration = Duration::from_millis(3);
/// Between two checkpoints, so that each is measured alone.
const REST: Duration = Duration::from_millis(300);
/// Longer than TCP waits before it sends anything again.
const ANSWERED: Duration = Duration::from_secs(5);

/// Runs `checkpoint` again and again beside a polling client; the longest gap of each, in milliseconds.
fn pauses(lab: &Lab, samples: usize, mut checkpoint: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    let address = format!("{ADDRESS}:7000").parse()?;
    let up = lab.on_client(move || connect_patiently(address, Duration::from_secs(30)).map(drop))?;
    up.join().unwrap_or_else(|_| anyhow::bail!("the client panicked"))?;
    let (poller, run) = Poller::new(address, EVERY, Duration::from_secs(5));
    let polling = lab.on_client(run)?;
    let mut gaps = Vec::new();
    // One more, not counted: the first finds caches cold.
    for sample in 0..=samples {
        std::thread::sleep(REST);
        let begin = Instant::now();
        checkpoint()?;
        // What a client had to send again shows only when its answer comes.
        let over = Instant::now();
        while poller.last().is_none_or(|answer| answer.instant <= over) {
            ensure!(over.elapsed() < ANSWERED, "the client was not answered within {ANSWERED:?} after a checkpoint");
            std::thread::sleep(Duration::from_millis(1));
        }
        let (gap, _) = poller.seen().longest_gap(begin).context("the client had no answers during a checkpoint")?;
        if sample > 0 {
            gaps.push(gap.as_secs_f64() * 1000.0);
        }
    }
    poller.stop();
    polling.join().unwrap_or_else(|_| anyhow::bail!("the client panicked"))?;
    let seen = poller.seen();
    ensure!(
        seen.wrong.is_empty() && seen.errors.is_empty(),
        "the client lost something: {:?} {:?}",
        seen.wrong,
        seen.errors
    );
    Ok(gaps)
}

/// A number of each of the last `samples` checkpoints' events.
fn committed(
    cluster: &Cluster,
    since: SystemTime,
    samples: usize,
) -> anyhow::Result<impl Fn(&str) -> Vec<f64> + use<>> {
    // The one that is not counted was committed, too.
    cluster.wait_for_event("checkpoint.committed", since, samples + 1, Duration::from_secs(10))?;
    let events = cluster.of_kind("checkpoint.committed");
    Ok(move |key: &str| {
        let all: Vec<f64> = events.iter().filter_map(|event| event.number(key)).collect();
        all[all.len().saturating_sub(samples)..].to_vec()
    })
}

/// By the manager, with the mounts that it gives a container by default.
///
/// # Errors
/// When the cluster, the container or a checkpoint fails.
pub(super) fn managed(samples: usize) -> anyhow::Result<Vec<Option<Figure>>> {
    let cluster = Cluster::start(2, "")?;
    // So long that no periodic checkpoint comes in between.
    cluster.members[0].apply(&Workload::Counter.compose("1h")?)?;
    let since = SystemTime::now();
    let gaps = pauses(&cluster.lab, samples, || cluster.members[0].cli(&["checkpoint", "counter"]).map(drop))?;
    let numbers = committed(&cluster, since, samples)?;
    Ok(vec![
        Figure::new("pause_ms/counter", "ms", &gaps),
        Figure::new("frozen_ms/counter", "ms", &numbers("frozen_ms")),
        Figure::new("checkpoint_wall_ms/counter", "ms", &numbers("wall_ms")),
        Figure::new("checkpoint_commit_ms/counter", "ms", &numbers("commit_ms")),
    ])
}

/// The same for clients that connect anew all the time, in a run of its own: they are load.
///
/// # Errors
/// As `managed`, or when a connection failed.
pub(super) fn newcomers(samples: usize) -> anyhow::Result<Vec<Option<Figure>>> {
    let cluster = Cluster::start(2, "")?;
    cluster.members[0].apply(&Workload::Counter.compose("1h")?)?;
    let address = format!("{ADDRESS}:7000").parse()?;
    let up = cluster.lab.on_client(move || connect_patiently(address, Duration::from_secs(30)).map(drop))?;
    up.join().unwrap_or_else(|_| anyhow::bail!("the client panicked"))?;
    let since = SystemTime::now();
    let newcomers = Newcomers::start(&cluster.lab, address, NEW_EVERY)?;
    let mut longest = Vec::new();
    for sample in 0..=samples {
        std::thread::sleep(REST);
        let begin = Instant::now();
        cluster.members[0].cli(&["checkpoint", "counter"])?;
        let took = newcomers.longest(begin, Instant::now())?;
        // As above, the first finds caches cold.
        if sample > 0 {
            longest.push(took.as_secs_f64() * 1000.0);
        }
    }
    let (_, errors) = newcomers.finish()?;
    ensure!(errors.is_empty(), "new connections failed: {errors:?}");
    let numbers = committed(&cluster, since, samples)?;
    Ok(vec![
        Figure::new("connect_pause_ms/counter", "ms", &longest),
        Figure::new("connect_frozen_ms/counter", "ms", &numbers("frozen_ms")),
    ])
}

/// By `runc pause`, `runc checkpoint` and `runc resume`, with CRIU's faster network lock.
///
/// # Errors
/// When the container or a checkpoint fails.
pub(super) fn stock(samples: usize) -> anyhow::Result<Vec<Option<Figure>>> {
    let lab = Lab::new()?;
    let node = lab.node(1, NodeOptions { bare_uplink: true })?;
    plain::prepare(&node)?;
    let mut container = Plain::new("stock", 50, &images::cached("counter")?, &["/bin/counter", "--ballast-mb", "4"]);
    container.address = format!("{ADDRESS}/16");
    container.start(&node)?;
    let (mut walls, mut number) = (Vec::new(), 0);
    let gaps = pauses(&lab, samples, || {
        number += 1;
        // Memory, as the manager's scratch directory is.
        let images = std::path::PathBuf::from(format!("/run/images-{number}"));
        let pause = container.checkpoint_inside(&node, &images)?;
        walls.push(pause.wall.as_secs_f64() * 1000.0);
        Ok(())
    })?;
    Ok(vec![
        Figure::new("stock_pause_ms/counter", "ms", &gaps),
        Figure::new("stock_wall_ms/counter", "ms", &walls[1..]),
    ])
}
