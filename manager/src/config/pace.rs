//! The times that belong together: how soon a silent node is noticed, and how long an owner may count on its containers.

use std::time::Duration;

use serde::Serialize;

use super::{
    MembershipConfig,
    read::Reader,
    values::{duration, one_of, whole_number},
};

/// `pace`: presets of `[membership]` and `[lease]`, of which single keys may be given another value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// Nodes on one switch, with time to spare: a death is noticed in half a second.
    Fast,
    /// A local network.
    #[default]
    Lan,
    /// Round trips of hundreds of milliseconds.
    Wan,
}

/// `[lease]`. The same on every node: a taker waits these times out, an owner counts on a little less of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseConfig {
    /// How long a peer's answer proves that this peer has not taken over. At least `suspicion` + 2 · `probe_interval`.
    #[serde(with = "humantime_serde")]
    pub short: Duration,
    /// How long a sign of life in the store proves it of every peer. At least 5 · `short`, and 5 s.
    #[serde(with = "humantime_serde")]
    pub long: Duration,
}

const LONGEST_SHORT: Duration = Duration::from_secs(3600);
const LEAST_LONG: Duration = Duration::from_secs(5);
const LONGEST_LONG: Duration = Duration::from_secs(24 * 3600);

impl Pace {
    pub(super) const NAMES: &[(&'static str, Self)] = &[("fast", Self::Fast), ("lan", Self::Lan), ("wan", Self::Wan)];

    pub fn membership(self) -> MembershipConfig {
        let [interval, timeout, suspicion] = match self {
            Self::Fast => [100, 75, 300],
            Self::Lan => [200, 150, 600],
            Self::Wan => [1000, 750, 3000],
        };
        MembershipConfig {
            probe_interval: Duration::from_millis(interval),
            probe_timeout: Duration::from_millis(timeout),
            suspicion: Duration::from_millis(suspicion),
            indirect_probes: 3,
        }
    }

    pub fn lease(self) -> LeaseConfig {
        let (short, long) = match self {
            Self::Fast => (500, 10_000),
            Self::Lan => (1000, 15_000),
            Self::Wan => (5000, 60_000),
        };
        LeaseConfig { short: Duration::from_millis(short), long: Duration::from_millis(long) }
    }
}

impl Default for MembershipConfig {
    fn default() -> Self {
        Pace::default().membership()
    }
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Pace::default().lease()
    }
}

pub(super) fn pace(r: &mut Reader<'_>) -> Pace {
    r.take("", "pace", |value| one_of(value, Pace::NAMES)).unwrap_or_default()
}

pub(super) fn membership(r: &mut Reader<'_>, pace: Pace) -> MembershipConfig {
    let default = pace.membership();
    let config = MembershipConfig {
        probe_interval: r.take("membership", "probe_interval", duration).unwrap_or(default.probe_interval),
        probe_timeout: r.take("membership", "probe_timeout", duration).unwrap_or(default.probe_timeout),
        suspicion: r.take("membership", "suspicion", duration).unwrap_or(default.suspicion),
        indirect_probes: r
            .take("membership", "indirect_probes", |value| whole_number(value, 0..17))
            .map_or(default.indirect_probes, |number| number as u32),
    };
    let shown = humantime::format_duration;
    let interval = config.probe_interval;
    for (key, value, low, high) in [
        ("probe_interval", interval, Duration::from_millis(20), Duration::from_secs(60)),
        ("probe_timeout", config.probe_timeout, Duration::from_millis(10), Duration::from_secs(60)),
        ("suspicion", config.suspicion, Duration::from_millis(20), Duration::from_secs(600)),
    ] {
        if value < low || value > high {
            let place = r.place("membership", key);
            r.problem(place, format!("`{key}`: {} is not between {} and {}", shown(value), shown(low), shown(high)));
        }
    }
    if config.probe_timeout >= interval {
        let place = r.place("membership", "probe_timeout");
        let message = format!(
            "`probe_timeout`: {} is not below `probe_interval` ({}); a probe has to be over before the next one",
            shown(config.probe_timeout),
            shown(interval)
        );
        r.problem(place, message);
    }
    if config.suspicion <= interval {
        let place = r.place("membership", "suspicion");
        let message = format!(
            "`suspicion`: {} is not above `probe_interval` ({}); a suspected node could not refute in time",
            shown(config.suspicion),
            shown(interval)
        );
        r.problem(place, message);
    }
    config
}

/// A time that is not given follows those it depends on, so that who is patient with slow peers need not know of leases.
pub(super) fn lease(r: &mut Reader<'_>, pace: Pace, membership: &MembershipConfig) -> LeaseConfig {
    let default = pace.lease();
    let least_short = membership.suspicion.saturating_add(membership.probe_interval.saturating_mul(2));
    let (given_short, given_long) = (r.take("lease", "short", duration), r.take("lease", "long", duration));
    let short = given_short.unwrap_or(default.short.max(least_short));
    let least_long = short.saturating_mul(5).max(LEAST_LONG);
    let long = given_long.unwrap_or(default.long.max(least_long));
    let shown = humantime::format_duration;
    let mut refuse = |key: &str, message: String| {
        let place = r.place("lease", key);
        r.problem(place, format!("`{key}`: {message}"));
    };
    // A time that is not given keeps the rules, and what follows from one that is refused itself is not said, too.
    if given_short.is_some() && short > LONGEST_SHORT {
        refuse("short", format!("{} is more than {}", shown(short), shown(LONGEST_SHORT)));
    } else if given_short.is_some() && short < least_short {
        let rule = format!("`suspicion` + 2 · `probe_interval` ({})", shown(least_short));
        let why = "a node would lose its containers before its peers know whether it is dead";
        refuse("short", format!("{} is less than {rule}; {why}", shown(short)));
    } else if given_long.is_none() || short > LONGEST_SHORT {
        // Nothing of its own to say.
    } else if long > LONGEST_LONG {
        refuse("long", format!("{} is more than {}", shown(long), shown(LONGEST_LONG)));
    } else if long < least_long {
        let rule = if least_long > LEAST_LONG {
            format!("5 · `short` ({})", shown(least_long))
        } else {
            shown(LEAST_LONG).to_string()
        };
        let why = "several signs of life have to fit into it, however slow the store is";
        refuse("long", format!("{} is less than {rule}; {why}", shown(long)));
    }
    LeaseConfig { short, long }
}
