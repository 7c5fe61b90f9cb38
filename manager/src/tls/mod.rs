//! How nodes know each other: TLS with certificates on both sides, or nothing where the configuration says so.
//!
//! The cluster has an authority of its own ([`ca`]), whose certificates bind a node's name to the cluster's ([`identity`]).
//! Both ends of every connection show one and check the other's ([`verify`]); addresses do not matter. What is said over a
//! connection is then held against the name in the certificate by whoever reads it (`membership::wire`): no node speaks for
//! another.

pub mod ca;
mod client;
mod conn;
mod credentials;
pub mod files;
pub mod identity;
mod refusals;
mod server;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod verify;

use std::sync::{Arc, PoisonError, RwLock};

pub use client::Pin;
pub use conn::{Caller, Conn};
pub use credentials::{Credentials, CredentialsError};
pub use server::Limits;

use self::{identity::Standing, refusals::Refusals};

/// Makes and takes this node's connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Security(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None`: open, without certificates.
    credentials: RwLock<Option<Arc<Credentials>>>,
    refusals: Arc<Refusals>,
}

impl Security {
    /// Connections are encrypted, and both sides show who they are.
    pub fn mutual(credentials: Credentials) -> Self {
        Self::new(Some(Arc::new(credentials)))
    }

    /// Neither: whoever reaches this node is believed.
    pub fn insecure() -> Self {
        Self::new(None)
    }

    fn new(credentials: Option<Arc<Credentials>>) -> Self {
        Self(Arc::new(Inner { credentials: RwLock::new(credentials), refusals: Arc::default() }))
    }

    /// From now on for new connections; those that are open go on.
    pub fn renew(&self, credentials: Credentials) {
        *self.0.credentials.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(credentials));
    }

    fn credentials(&self) -> Option<Arc<Credentials>> {
        self.0.credentials.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refusals(&self) -> Arc<Refusals> {
        Arc::clone(&self.0.refusals)
    }

    pub fn is_mutual(&self) -> bool {
        self.credentials().is_some()
    }

    /// What an operator should know, at `now` in seconds since 1970; `None` when all is well.
    pub fn trouble(&self, now: i64) -> Option<String> {
        let Some(credentials) = self.credentials() else { return Some(INSECURE.to_owned()) };
        trouble(credentials.standing(now))
    }
}

pub const INSECURE: &str =
    "peers are neither authenticated nor encrypted: `insecure = true` in [tls] of the configuration";

pub const RENEW: &str =
    "issue a new one with `ha-manager ca issue`, put it in place and reload (SIGHUP) or restart the manager";

/// What is wrong with a node's certificate, and the remedy.
fn trouble(standing: Standing) -> Option<String> {
    match standing {
        Standing::Good { .. } => None,
        Standing::EndsSoon { days } => Some(format!("this node's certificate ends in {days} days: {RENEW}")),
        Standing::Ended { days } => {
            Some(format!("this node's certificate has ended {days} days ago, and peers refuse it: {RENEW}"))
        }
        Standing::NotYet => Some(
            "this node's certificate is not valid yet, and peers refuse it: is this node's clock right?".to_owned(),
        ),
    }
}
