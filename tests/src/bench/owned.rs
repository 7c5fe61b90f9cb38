//! From the power cut of a node to its container being owned elsewhere, often enough for the worst of it to show.

use std::path::Path;

use super::Figure;
use crate::demo::{Play, Workload, play};

/// How often the power is cut.
const CUTS: usize = 20;

/// # Errors
/// When a failover does not come to its end.
pub(super) fn measure(dir: &Path) -> anyhow::Result<Vec<Option<Figure>>> {
    let play_of = Play { sensitivity: "2s".to_owned(), ..Play::new(Workload::Counter) };
    let mut owned = Vec::new();
    for _ in 0..CUTS {
        let report = play(&play_of, dir, |_| ())?.report;
        owned.push(report.detect_ms + report.own_ms);
    }
    owned.sort_by(f64::total_cmp);
    // Of twenty the greatest: the nearest rank.
    let rank = (owned.len() * 99).div_ceil(100) - 1;
    let p99 = owned.get(rank).copied().into_iter().collect::<Vec<_>>();
    Ok(vec![Figure::new("detect_to_owned_ms", "ms", &owned), Figure::new("detect_to_owned_p99_ms", "ms", &p99)])
}
