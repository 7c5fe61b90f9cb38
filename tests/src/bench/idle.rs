//! What a manager costs while nothing happens.

use std::{
    fs, thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;

use super::Figure;
use crate::{cluster::Cluster, demo::Workload};

/// Within one interval of 30 s, after the checkpoint at its start.
const WATCHED: Duration = Duration::from_secs(20);

/// Processor seconds of a process, its children excluded.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(") ").context("an odd /proc/PID/stat")?.1.split(' ').collect();
    let ticks: u64 =
        fields.get(11..13).context("a short /proc/PID/stat")?.iter().filter_map(|f| f.parse::<u64>().ok()).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(ticks as f64 / per_second as f64)
}

fn resident_mb(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kb: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kb / 1024.0)
}

/// Two nodes, one container at an interval of 30 s.
///
/// # Errors
/// When the cluster or its first checkpoint fails.
pub(super) fn measure() -> anyhow::Result<Vec<Option<Figure>>> {
    let cluster = Cluster::start(2, "")?;
    let since = SystemTime::now();
    cluster.members[0].apply(&Workload::Counter.compose("30s")?)?;
    cluster.wait_for_event("checkpoint.committed", since, 1, Duration::from_secs(60))?;
    // What follows a commit (the one before is deleted) is the checkpoint's, not idleness.
    thread::sleep(Duration::from_secs(2));
    let pids = cluster.members.iter().map(|member| member.manager_pid()).collect::<anyhow::Result<Vec<_>>>()?;
    let before = pids.iter().map(|pid| cpu_seconds(*pid)).collect::<anyhow::Result<Vec<_>>>()?;
    let start = Instant::now();
    thread::sleep(WATCHED);
    let seconds = start.elapsed().as_secs_f64();
    let mut percents = Vec::new();
    for (pid, before) in pids.iter().zip(before) {
        percents.push((cpu_seconds(*pid)? - before) / seconds * 100.0);
    }
    let resident = pids.iter().map(|pid| resident_mb(*pid)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(vec![Figure::new("idle_cpu_percent", "%", &percents), Figure::new("idle_rss_mb", "MB", &resident)])
}
