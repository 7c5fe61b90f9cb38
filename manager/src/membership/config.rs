//! The numbers of the protocol, each with its unit, default and what follows from it.

use std::time::Duration;

use super::suspicion;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("membership: {field} is {value}; it has to be {allowed}")]
    Range { field: &'static str, value: String, allowed: String },
}

/// How liveness is judged. [`Config::new`] gives the defaults; a cluster's nodes should agree on them.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The cluster's name. A message that carries another one is refused. 1 to 64 bytes.
    pub cluster: String,
    /// Between two rounds of probes, multiplied by our own ill health. Default 200 ms.
    pub probe_interval: Duration,
    /// How long a direct probe may take, and then again the indirect ones. Shorter than `probe_interval`, which keeps a
    /// call's deadline below the period. Default 150 ms.
    pub probe_timeout: Duration,
    /// Peers probed each round: everybody in each, up to so many, for leases hang on answers that are fresh. Default 8.
    pub probes_per_interval: usize,
    /// Peers asked to probe on our behalf after a direct probe failed. Default 3.
    pub indirect_probes: usize,
    /// From suspicion to death once enough peers agree, or when there is nobody to agree: `suspicion · max(1, log10 n)`.
    /// Default 600 ms.
    pub suspicion: Duration,
    /// What the suspicion time is multiplied by while nobody confirms it, although somebody could. Default 3.
    pub suspicion_factor: u32,
    /// Independent confirmations that bring the suspicion time down to `suspicion`. Default 2.
    pub confirmations: usize,
    /// The largest score of our own ill health: intervals and timeouts grow to `max_health + 1` times. Default 4.
    pub max_health: u32,
    /// How late our own timer may be before we hold ourselves for stalled and give everybody fresh deadlines.
    /// Default 150 ms.
    pub late_after: Duration,
    /// Between two attempts at dead peers and at seeds not met yet (three of each at most). Default 1 s.
    pub revive_interval: Duration,
    /// λ: a rumour rides on `⌈λ · log10(n + 1)⌉` messages of each node. Default 4.
    pub retransmit_factor: u32,
    /// After this long a dead or departed peer is forgotten. Default 24 h.
    pub forget_after: Duration,
    /// Peers kept at most; further names are ignored, and said so once. Default 1024.
    pub max_peers: usize,
}

impl Config {
    /// The defaults for a local network.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            probe_interval: Duration::from_millis(200),
            probe_timeout: Duration::from_millis(150),
            probes_per_interval: 8,
            indirect_probes: 3,
            suspicion: Duration::from_millis(600),
            suspicion_factor: 3,
            confirmations: 2,
            max_health: 4,
            late_after: Duration::from_millis(150),
            revive_interval: Duration::from_secs(1),
            retransmit_factor: 4,
            forget_after: Duration::from_secs(24 * 3600),
            max_peers: 1024,
        }
    }

    /// Refuses numbers the protocol cannot work with.
    ///
    /// # Errors
    /// Names the first field that is out of range and what is allowed.
    pub fn check(&self) -> Result<(), ConfigError> {
        let range =
            |field, value: String, allowed: &str| Err(ConfigError::Range { field, value, allowed: allowed.to_owned() });
        let ms = Duration::from_millis;
        if self.cluster.is_empty() || self.cluster.len() > 64 {
            return range("cluster", format!("{} bytes long", self.cluster.len()), "1 to 64 bytes long");
        }
        for (field, value, low, high) in [
            ("probe_interval", self.probe_interval, ms(20), ms(60_000)),
            ("probe_timeout", self.probe_timeout, ms(10), self.probe_interval.saturating_sub(ms(1))),
            ("suspicion", self.suspicion, self.probe_interval, ms(600_000)),
            ("late_after", self.late_after, ms(20), ms(60_000)),
            ("revive_interval", self.revive_interval, self.probe_interval, ms(600_000)),
            ("forget_after", self.forget_after, ms(60_000), Duration::from_secs(365 * 24 * 3600)),
        ] {
            if value < low || value > high {
                return range(field, format!("{value:?}"), &format!("between {low:?} and {high:?}"));
            }
        }
        for (field, value, low, high) in [
            ("probes_per_interval", self.probes_per_interval, 1, 16),
            ("indirect_probes", self.indirect_probes, 0, 16),
            ("suspicion_factor", self.suspicion_factor as usize, 1, 20),
            ("confirmations", self.confirmations, 0, 16),
            ("max_health", self.max_health as usize, 0, 16),
            ("retransmit_factor", self.retransmit_factor as usize, 1, 32),
            ("max_peers", self.max_peers, 1, 100_000),
        ] {
            if value < low || value > high {
                return range(field, value.to_string(), &format!("between {low} and {high}"));
            }
        }
        Ok(())
    }

    /// Names kept of those that this node was ever in contact with, in either set: twice as many as peers, since they are
    /// kept when the peers are forgotten.
    pub fn max_contacts(&self) -> usize {
        self.max_peers * 2
    }

    /// The longest time from a node's death to its being declared dead by a node that saw it alive, in a cluster of
    /// `nodes`, when no message is lost, timers are on time and the survivors' health is good:
    /// `(2⌈(n−1)/f⌉ − 1)·interval + timeout + [n > 2]·timeout + suspicion·max(1, log10 n)`.
    pub fn detection_bound(&self, nodes: usize) -> Duration {
        let peers = nodes.saturating_sub(1).max(1);
        let rounds = u32::try_from(2 * peers.div_ceil(self.probes_per_interval) - 1).unwrap_or(u32::MAX);
        let timeouts = if nodes > 2 { 2 } else { 1 };
        self.probe_interval.saturating_mul(rounds)
            + self.probe_timeout * timeouts
            + suspicion::least(self.suspicion, nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_their_promise() {
        let config = Config::new("c");
        config.check().unwrap();
        assert_eq!(config.detection_bound(2), Duration::from_millis(950));
        assert_eq!(config.detection_bound(3), Duration::from_millis(1100));
    }

    #[test]
    fn a_field_out_of_range_is_named() {
        let mut config = Config::new("c");
        config.probe_timeout = config.probe_interval;
        let text = config.check().unwrap_err().to_string();
        assert!(text.contains("probe_timeout is 200ms") && text.contains("199ms"), "{text}");
        assert!(Config::new("").check().is_err());
    }
}
