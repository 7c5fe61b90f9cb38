//! Why a connection between nodes did not come about, in words for whoever reads the log.

use std::{
    collections::HashMap,
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustls::{AlertDescription, CertificateError};

use super::identity::IdentityError;
use crate::once::Once;

const BROKEN_OFF: &str = "broken off";
const TOO_SLOW: &str = "too slow";

/// Why, and the word under which it is said once only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub kind: &'static str,
    pub text: String,
}

impl Cause {
    pub fn new(kind: &'static str, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// It ended the handshake without a word.
    pub fn broken_off(error: &io::Error) -> Self {
        Self::new(BROKEN_OFF, format!("it broke the handshake off: {error}"))
    }

    pub fn too_slow(patience: Duration) -> Self {
        Self::new(TOO_SLOW, format!("it shows no certificate within {patience:?}"))
    }

    /// It says nothing of certificates.
    fn is_of_network(&self) -> bool {
        [BROKEN_OFF, TOO_SLOW].contains(&self.kind)
    }
}

/// What TLS or the certificates say of a failure; `None` for one of the network alone.
pub fn cause(error: &io::Error) -> Option<Cause> {
    let mut next: Option<&(dyn Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(of_tls(error));
        }
        if let Some(error) = error.downcast_ref::<IdentityError>() {
            return Some(of_identity(error));
        }
        // An `io::Error` inside another one has its own inner error as what it wraps, not as its source.
        next = match error.downcast_ref::<io::Error>() {
            Some(inner) => inner.get_ref().map(|inner| inner as _),
            None => error.source(),
        };
    }
    None
}

fn of_tls(error: &rustls::Error) -> Cause {
    match error {
        rustls::Error::NoCertificatesPresented => Cause::new("no certificate", "it shows no certificate"),
        rustls::Error::InvalidCertificate(error) => of_certificate(error),
        rustls::Error::InvalidMessage(_) => Cause::new(
            "no TLS",
            "it does not speak TLS; is `insecure` set in [tls] of its configuration, or is it no node at all?",
        ),
        rustls::Error::AlertReceived(alert) => Cause::new(alert.as_str().unwrap_or("alert"), of_alert(*alert)),
        other => Cause::new("TLS", other.to_string()),
    }
}

fn of_certificate(error: &CertificateError) -> Cause {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            Cause::new("expired", "its certificate has ended: give it a new one with `ha-manager ca issue`")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Cause::new("not yet", "its certificate is not valid yet: compare the nodes' clocks")
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            Cause::new("stranger", "its certificate is not from this cluster's CA")
        }
        CertificateError::Other(other) => match other.0.downcast_ref::<IdentityError>() {
            Some(error) => of_identity(error),
            None => Cause::new("certificate", other.to_string()),
        },
        other => Cause::new("certificate", format!("its certificate is refused: {other}")),
    }
}

fn of_identity(error: &IdentityError) -> Cause {
    let kind = match error {
        IdentityError::Malformed => "malformed",
        IdentityError::Nameless | IdentityError::Authority => "no node",
        IdentityError::Ambiguous => "several nodes",
        IdentityError::Cluster { .. } => "cluster",
        IdentityError::Node { .. } => "node",
    };
    Cause::new(kind, error.to_string())
}

fn of_alert(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::UnknownCA => "it is not from its CA",
        AlertDescription::CertificateExpired => "it has ended",
        AlertDescription::CertificateRequired => "it shows none",
        _ => return format!("it refuses this node: {alert:?}; its log says why"),
    };
    format!("it refuses this node's certificate: {why}")
}

/// So long a refusal counts as the present state.
const LATELY: Duration = Duration::from_secs(60);
/// Addresses of which the last refusal is remembered: strangers may be many.
const MAX_ADDRESSES: usize = 256;

/// Connections that were refused, each peer and cause logged once.
#[derive(Debug)]
pub struct Refusals {
    /// The last cause for each address, for `status`.
    last: Mutex<HashMap<IpAddr, (Instant, String)>>,
    /// Apart: strangers may be many, this node's own peers are not.
    incoming: Once,
    outgoing: Once,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            last: Mutex::default(),
            incoming: Once::new("refused connections"),
            outgoing: Once::new("failed connections to peers"),
        }
    }
}

impl Refusals {
    /// Of another certificate than the present one: all may be said again.
    pub fn forget(&self) {
        self.incoming.forget();
        self.outgoing.forget();
        self.last().clear();
    }

    /// Why connections with this address did not come about, if one was refused in the minute before `now`. A name instead of an
    /// address is not looked up.
    pub fn lately(&self, address: &str, now: Instant) -> Option<String> {
        let address = address.parse::<SocketAddr>().ok()?.ip().to_canonical();
        let last = self.last();
        let (at, text) = last.get(&address)?;
        (now.saturating_duration_since(*at) < LATELY).then(|| text.clone())
    }

    fn note(&self, address: IpAddr, cause: &Cause, now: Instant) {
        // A node that is switched off in the middle of a handshake breaks it off, too.
        if cause.is_of_network() {
            return;
        }
        let (address, mut last) = (address.to_canonical(), self.last());
        if last.len() >= MAX_ADDRESSES {
            last.retain(|_, (at, _)| now.saturating_duration_since(*at) < LATELY);
        }
        if last.len() < MAX_ADDRESSES || last.contains_key(&address) {
            last.insert(address, (now, cause.text.clone()));
        }
    }

    fn last(&self) -> MutexGuard<'_, HashMap<IpAddr, (Instant, String)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that came from `source`.
    pub fn incoming(&self, source: IpAddr, cause: &Cause) {
        self.note(source, cause, Instant::now());
        if self.incoming.first(&format!("{source} {}", cause.kind)) {
            tracing::warn!(%source, cause = cause.text, "a connection was refused; this is not said again");
        }
    }

    /// One to `address`.
    pub fn outgoing(&self, address: &str, cause: &Cause) {
        if let Ok(address) = address.parse::<SocketAddr>() {
            self.note(address.ip(), cause, Instant::now());
        }
        if self.outgoing.first(&format!("{address} {}", cause.kind)) {
            tracing::warn!(address, cause = cause.text, "no connection to a peer; this is not said again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::OtherError;

    use super::*;

    #[test]
    fn a_cause_is_found_however_deep_it_is_wrapped() {
        let wrong = IdentityError::Cluster { ours: "a".into(), theirs: "b".into() };
        let tls = rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(wrong.clone()))));
        let deep = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls));
        for error in [deep, io::Error::other(wrong)] {
            let cause = cause(&error).unwrap();
            assert_eq!(
                (cause.kind, cause.text.as_str()),
                ("cluster", "the certificate is of cluster b, this node of a")
            );
        }
        let alert = |alert| cause(&io::Error::other(rustls::Error::AlertReceived(alert))).unwrap().kind;
        assert_ne!(alert(AlertDescription::UnknownCA), alert(AlertDescription::CertificateExpired));
        assert_eq!(cause(&io::ErrorKind::ConnectionRefused.into()), None);
        assert_eq!(cause(&io::Error::other("something else")), None);
    }

    #[test]
    fn the_last_refusal_of_an_address_counts_for_a_minute_and_there_is_an_end_to_addresses() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let stranger = of_certificate(&CertificateError::UnknownIssuer);
        refusals.note("::ffff:10.0.0.2".parse().unwrap(), &stranger, now);
        refusals.note("10.0.0.3".parse().unwrap(), &Cause::too_slow(LATELY), now);
        assert_eq!(refusals.lately("10.0.0.2:7420", now), Some(stranger.text.clone()));
        assert_eq!(refusals.lately("10.0.0.2:7420", now + LATELY), None);
        assert_eq!(refusals.lately("10.0.0.3:7420", now), None, "the network alone");
        assert_eq!(refusals.lately("n2.example:7420", now), None);
        for n in 0..1000_u32 {
            refusals.note(std::net::Ipv4Addr::from(n).into(), &stranger, now);
        }
        assert_eq!(refusals.last().len(), MAX_ADDRESSES);
        refusals.note("10.0.0.9".parse().unwrap(), &stranger, now + LATELY);
        assert_eq!(refusals.last().len(), 1, "old ones make room");
        refusals.forget();
        assert_eq!(refusals.lately("10.0.0.9:7420", now + LATELY), None);
    }
}
