//! The containers of a session: three counters, one on each node at first, two with state and one without.

use std::net::SocketAddr;

use serde_json::json;

use crate::images;

/// A counter that is watched.
#[derive(Debug, Clone, Copy)]
pub struct Container {
    pub name: &'static str,
    ipv4: &'static str,
    /// How often its state is kept; none for a stateless one.
    sensitivity: Option<&'static str>,
}

/// In the order of the nodes that they are begun on.
pub const ALL: [Container; 3] = [
    Container { name: "tally", ipv4: "10.77.1.51", sensitivity: Some("1s") },
    Container { name: "ledger", ipv4: "10.77.1.52", sensitivity: Some("3s") },
    Container { name: "echo", ipv4: "10.77.1.53", sensitivity: None },
];

impl Container {
    pub fn is_stateful(&self) -> bool {
        self.sensitivity.is_some()
    }

    /// # Errors
    /// Never: the addresses are constants.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(format!("{}:7000", self.ipv4).parse()?)
    }

    /// The Compose file. The recovery may be repeated as often as a long session needs, and never goes to an older snapshot:
    /// that would be a loss here.
    ///
    /// # Errors
    /// When the image cannot be built.
    pub fn compose(&self) -> anyhow::Result<String> {
        let annotations = match self.sensitivity {
            Some(sensitivity) => json!({
                "io.ha-manager.state": "stateful",
                "io.ha-manager.state-sensitivity": sensitivity,
                "io.ha-manager.recovery": "restart:100, failover",
            }),
            None => json!({
                "io.ha-manager.state": "stateless",
                "io.ha-manager.recovery": "restart:100, failover, cold-start",
            }),
        };
        let service = json!({
            "image": images::cached("counter")?,
            "command": ["/bin/counter", "--ballast-mb", "4"],
            "networks": { "default": { "ipv4_address": self.ipv4 } },
            "healthcheck": {
                "test": ["CMD", "/bin/counter", "--probe", "127.0.0.1:7000"],
                "interval": "1s",
                "timeout": "2s",
                "retries": 3,
            },
            "restart": "always",
            "annotations": annotations,
        });
        Ok(json!({ "services": { self.name: service } }).to_string())
    }
}
