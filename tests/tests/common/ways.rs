//! Cutting the ways that a node has: to its peers, to everybody, to the store.

use std::fs;

use ha_lab::cluster::Cluster;

const HEARTBEATS: &str = r#"
table inet cut {
  chain in {
    type filter hook input priority 0;
    iifname != "lo" tcp dport 7420 drop
    iifname != "lo" tcp sport 7420 drop
  }
}
"#;
const EVERYTHING: &str = r#"
table netdev cut {
  chain in {
    type filter hook ingress device "uplink" priority 0; policy drop;
  }
  chain out {
    type filter hook egress device "uplink" priority 0; policy drop;
  }
}
"#;

/// Which packets a node gets.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    /// None between the managers; containers still answer.
    Heartbeats,
    /// None at all, and the carrier is there all the same.
    Everything,
}

impl Cut {
    fn rules(self) -> &'static str {
        match self {
            Cut::Heartbeats => HEARTBEATS,
            Cut::Everything => EVERYTHING,
        }
    }

    fn table(self) -> &'static str {
        match self {
            Cut::Heartbeats => "inet cut",
            Cut::Everything => "netdev cut",
        }
    }

    pub fn begin(self, cluster: &Cluster, member: usize) {
        let node = &cluster.members[member].node;
        let file = node.disk().join("cut.nft");
        fs::write(&file, self.rules()).unwrap();
        node.exec(&format!("nft -f {}", file.display())).unwrap();
    }

    pub fn end(self, cluster: &Cluster, member: usize) {
        cluster.members[member].node.exec(&format!("nft delete table {}", self.table())).unwrap();
    }
}

/// On a node another directory covers the store, as when its mount has gone.
pub fn cover_store(cluster: &Cluster, member: usize) {
    cluster.members[member].node.exec(&format!("mount -t tmpfs cover {}", cluster.lab.store().display())).unwrap();
}

/// From now on nobody finds the cover any more; a look that is under way may still be at it.
pub fn uncover_store(cluster: &Cluster, member: usize) {
    cluster.members[member].node.exec(&format!("umount -l {}", cluster.lab.store().display())).unwrap();
}
