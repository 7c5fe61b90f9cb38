//! The certificate that this node shows to its peers.

use chrono::Utc;

use super::Check;
use crate::{
    config::NodeConfig,
    tls::{self, Credentials, identity::Standing},
};

const ID: (&str, &str) = ("tls.certificate", "certificate");

pub(super) fn check(config: &NodeConfig) -> Check {
    if config.tls.insecure {
        let remedy = "make certificates with `ha-manager ca init` and `ca issue` (docs/tls.md) and take `insecure` out";
        return Check::warn(ID.0, ID.1, tls::INSECURE, remedy);
    }
    let dir = config.tls.dir.display();
    match Credentials::load(&config.tls.dir, &config.cluster, &config.node) {
        Ok(credentials) => judge(credentials.standing(Utc::now().timestamp()), credentials.remedy(), config),
        Err(error) => {
            let remedy = format!("`ha-manager ca issue {}` makes what belongs into {dir}", config.node);
            Check::fail(ID.0, ID.1, crate::chain(&error), remedy)
        }
    }
}

fn judge(standing: Standing, remedy: &str, config: &NodeConfig) -> Check {
    let found = match standing {
        Standing::Good { days } => {
            return Check::ok(ID.0, ID.1, format!("{} of {} for {days} days", config.node, config.cluster));
        }
        Standing::EndsSoon { days } => return Check::warn(ID.0, ID.1, format!("it ends in {days} days"), remedy),
        Standing::Ended { days } => format!("it has ended {days} days ago"),
        Standing::NotYet => return Check::fail(ID.0, ID.1, "it is not valid yet", "set this node's clock"),
    };
    Check::fail(ID.0, ID.1, found, remedy)
}
