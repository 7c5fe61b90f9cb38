//! Half an hour in which nothing fails and every core is busy: whatever is taken over in it is a false failover.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use anyhow::ensure;

use super::Figure;
use crate::{cluster::Cluster, demo::Workload};

const WATCHED: Duration = Duration::from_secs(30 * 60);
/// Threads that do nothing but compute, for each core.
const BUSY_PER_CORE: usize = 2;

/// Until it goes every core has work.
struct Load(Arc<AtomicBool>, Vec<thread::JoinHandle<()>>);

impl Load {
    fn begin() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = thread::available_parallelism().map_or(2, usize::from);
        let spin = |stop: Arc<AtomicBool>| {
            move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        };
        let threads = (0..cores * BUSY_PER_CORE).map(|_| thread::spawn(spin(Arc::clone(&stop)))).collect();
        Self(stop, threads)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Two nodes, a container that is checkpointed every second, all cores busy.
///
/// # Errors
/// When the cluster does not come up, or no checkpoints are committed: then nothing was measured.
pub(super) fn measure() -> anyhow::Result<Vec<Option<Figure>>> {
    let cluster = Cluster::start(2, "")?;
    cluster.members[0].apply(&Workload::Counter.compose("1s")?)?;
    cluster.wait_for_event("checkpoint.committed", SystemTime::UNIX_EPOCH, 1, Duration::from_secs(60))?;
    let since = SystemTime::now();
    let load = Load::begin();
    thread::sleep(WATCHED);
    drop(load);
    let count =
        |kind: &str| cluster.of_kind(kind).into_iter().filter(|event| SystemTime::from(event.at) >= since).count();
    ensure!(
        count("checkpoint.committed") > 60,
        "hardly any checkpoint was committed: {}",
        count("checkpoint.committed")
    );
    println!(
        "  in {WATCHED:?}: {} checkpoints, {} suspicions, {} deaths, {} lapsed leases, {} claims",
        count("checkpoint.committed"),
        count("peer.suspected"),
        count("peer.dead"),
        count("lease.lapsed"),
        count("ownership.claimed"),
    );
    let false_failovers = count("ownership.claimed") + count("container.lost");
    Ok(vec![Figure::new("false_failovers_30min", "count", &[false_failovers as f64])])
}
