//! What has to be the same on every node, compared as far as the store has it.

use std::time::Duration;

use super::life::terms;
use crate::{config::NodeConfig, store::NodeRecord};

/// How the settings of the nodes that ever registered differ from this node's, a sentence each.
pub fn differences(config: &NodeConfig, records: &[NodeRecord]) -> Vec<String> {
    let own = terms(config).in_ms();
    let text = |(short, long): (u64, u64)| {
        let [short, long] = [short, long].map(|ms| humantime::format_duration(Duration::from_millis(ms)));
        format!("`lease.short` {short} and `lease.long` {long}")
    };
    let others = records.iter().filter(|record| record.node != config.node);
    let differing = others.filter_map(|record| Some((record, record.own_lease_ms.filter(|theirs| *theirs != own)?)));
    let lease = differing
        .map(|(record, theirs)| format!("{} goes by {}, this node by {}", record.node, text(theirs), text(own)));
    let unknown = config.voters.iter().filter(|voter| records.iter().all(|record| record.node != **voter));
    let voters = unknown.map(|voter| format!("the voter {voter} has never been in this cluster"));
    lease.chain(voters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_lease_times_and_voters_nobody_knows_are_named() {
        let record = |node: &str, lease| NodeRecord {
            node: node.parse().unwrap(),
            nonce: "x".into(),
            address: "192.0.2.1:7420".into(),
            bridge: None,
            own_lease_ms: lease,
            lease_ms: lease,
            at: chrono::Utc::now(),
        };
        let config = |extra: &str| {
            let text = format!("node = \"n1\"\nstore = \"file:///s\"\n{extra}\n[tls]\ninsecure = true\n");
            NodeConfig::parse(&text, "node.toml", "/ha-agent".into()).unwrap()
        };
        let own = Some((1000, 15_000));
        let same = [record("n1", Some((7, 7))), record("n2", own), record("n3", None)];
        assert_eq!(differences(&config(""), &same), Vec::<String>::new());
        let voters = "quorum = \"majority\"\nvoters = [\"n1\", \"n2\", \"n4\"]";
        let found = differences(&config(voters), &[record("n1", own), record("n2", Some((3000, 40_000)))]);
        assert_eq!(
            found,
            [
                "n2 goes by `lease.short` 3s and `lease.long` 40s, this node by `lease.short` 1s and `lease.long` 15s",
                "the voter n4 has never been in this cluster"
            ]
        );
    }
}
