//! This node's certificate over the manager's life: read at the start, read again on SIGHUP, and watched as it comes to its end.

use std::time::Duration;

use anyhow::Context;
use chrono::Utc;

use crate::{
    config::NodeConfig,
    tls::{Credentials, Security},
};

/// What is wrong with the certificate is said again after this long.
const REMIND_EVERY: Duration = Duration::from_secs(86_400);

pub(super) fn security(config: &NodeConfig) -> anyhow::Result<Security> {
    Ok(if config.tls.insecure { Security::insecure() } else { Security::mutual(credentials(config)?) })
}

fn credentials(config: &NodeConfig) -> anyhow::Result<Credentials> {
    let (dir, cluster, node) = (&config.tls.dir, &config.cluster, &config.node);
    Credentials::load(dir, cluster, node).with_context(|| {
        format!(
            "this node's certificate cannot be used: `ha-manager ca issue {node}` makes one for {} (`dir` of [tls] in the \
             configuration)",
            dir.display()
        )
    })
}

pub(super) fn say_trouble(security: &Security) {
    if let Some(trouble) = security.trouble(Utc::now().timestamp()) {
        tracing::warn!("{trouble}");
    }
}

/// Never returns.
pub(super) async fn remind(security: Security) {
    loop {
        tokio::time::sleep(REMIND_EVERY).await;
        say_trouble(&security);
    }
}

/// Takes new files for the connections to come; with such as cannot be used, or are not valid while the present ones are, it goes on as before.
pub(super) fn renew(security: &Security, config: &NodeConfig) {
    if config.tls.insecure {
        tracing::info!("SIGHUP: there are no certificates to read again");
        return;
    }
    match credentials(config) {
        Ok(credentials) => {
            if let Err(worse) = security.renew(credentials, Utc::now().timestamp()) {
                tracing::warn!("SIGHUP: the certificate stays as it was: {worse}");
                return;
            }
            tracing::info!("SIGHUP: the certificate was read again");
            say_trouble(security);
        }
        Err(error) => tracing::warn!("SIGHUP: the certificate stays as it was: {error:#}"),
    }
}
