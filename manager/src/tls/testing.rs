//! Authorities and nodes' certificates for tests.

use chrono::{DateTime, Days, Utc};

use super::{
    Credentials, CredentialsError, Security,
    ca::{self, Pair},
    files,
    identity::Subject,
};

pub struct Authority {
    cluster: String,
    pub pair: Pair,
}

impl Authority {
    pub fn of(cluster: &str) -> Self {
        Self { cluster: cluster.to_owned(), pair: ca::authority(cluster, Utc::now(), 100).unwrap() }
    }

    pub fn issue(&self, node: &str, now: DateTime<Utc>) -> Pair {
        let subject = Subject::Node { cluster: self.cluster.clone(), node: node.parse().unwrap() };
        ca::issue(&self.pair, &subject, now, 50).unwrap()
    }

    pub fn credentials(&self, node: &str) -> Credentials {
        self.load(node, &self.issue(node, Utc::now())).unwrap()
    }

    /// A certificate that ended some days ago.
    pub fn expired(&self, node: &str) -> Credentials {
        let then = Utc::now().checked_sub_days(Days::new(60)).unwrap();
        self.load(node, &self.issue(node, then)).unwrap()
    }

    pub fn load(&self, node: &str, pair: &Pair) -> Result<Credentials, CredentialsError> {
        let dir = tempfile::tempdir().unwrap();
        files::write_node(dir.path(), Some(&self.pair.certificate), pair, false).unwrap();
        Credentials::load(dir.path(), &self.cluster, &node.parse().unwrap())
    }

    pub fn node(&self, node: &str) -> Security {
        Security::mutual(self.credentials(node))
    }
}
