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

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

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

    /// From `now` on for new connections; those that are open go on. What was refused before is said again.
    ///
    /// # Errors
    /// When peers would refuse the new one and believe the one there is: that one stays.
    pub fn renew(&self, credentials: Credentials, now: i64) -> Result<(), Worse> {
        let mut current = self.0.credentials.write().unwrap_or_else(PoisonError::into_inner);
        let good = current.as_ref().is_some_and(|current| current.standing(now).is_good());
        match credentials.standing(now) {
            Standing::NotYet if good => return Err(Worse::NotYet),
            Standing::Ended { days } if good => return Err(Worse::Ended { days }),
            _ => *current = Some(Arc::new(credentials)),
        }
        self.0.refusals.forget();
        Ok(())
    }

    fn credentials(&self) -> Option<Arc<Credentials>> {
        self.0.credentials.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refusals(&self) -> Arc<Refusals> {
        Arc::clone(&self.0.refusals)
    }

    /// Why connections with a peer's address were refused in the last minute, if one was.
    pub fn refused_lately(&self, address: &str) -> Option<String> {
        self.0.refusals.lately(address, Instant::now())
    }

    pub fn is_mutual(&self) -> bool {
        self.credentials().is_some()
    }

    /// What an operator should know, at `now` in seconds since 1970; `None` when all is well.
    pub fn trouble(&self, now: i64) -> Option<String> {
        let Some(credentials) = self.credentials() else { return Some(INSECURE.to_owned()) };
        trouble(credentials.standing(now), credentials.remedy())
    }
}

pub const INSECURE: &str =
    "peers are neither authenticated nor encrypted: `insecure = true` in [tls] of the configuration";

pub const RENEW: &str =
    "issue a new one with `ha-manager ca issue`, put it in place and reload (SIGHUP) or restart the manager";

/// For a certificate that no new one of the same authority would outlast.
pub const REPLACE: &str = "the authority ends too: docs/tls.md, Another authority";

/// A new certificate that is not taken in place of a good one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Worse {
    #[error("the new one has ended {days} days ago: was the right file copied?")]
    Ended { days: i64 },
    #[error("the new one is not valid yet: compare this node's clock with that of the machine that issued it")]
    NotYet,
}

/// What is wrong with a node's certificate, and the remedy.
fn trouble(standing: Standing, remedy: &str) -> Option<String> {
    match standing {
        Standing::Good { .. } => None,
        Standing::EndsSoon { days } => Some(format!("this node's certificate ends in {days} days: {remedy}")),
        Standing::Ended { days } => {
            Some(format!("this node's certificate has ended {days} days ago, and peers refuse it: {remedy}"))
        }
        Standing::NotYet => Some(
            "this node's certificate is not valid yet, and peers refuse it: is this node's clock right?".to_owned(),
        ),
    }
}
