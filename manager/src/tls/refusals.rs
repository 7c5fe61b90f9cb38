//! Why a connection between nodes did not come about, in words for whoever reads the log.

use std::{error::Error, io, net::IpAddr};

use rustls::{AlertDescription, CertificateError};

use super::identity::IdentityError;
use crate::once::Once;

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

/// Connections that were refused, each peer and cause logged once.
#[derive(Debug)]
pub struct Refusals {
    /// Apart: strangers may be many, this node's own peers are not.
    incoming: Once,
    outgoing: Once,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { incoming: Once::new("refused connections"), outgoing: Once::new("failed connections to peers") }
    }
}

impl Refusals {
    /// Of another certificate than the present one: all may be said again.
    pub fn forget(&self) {
        self.incoming.forget();
        self.outgoing.forget();
    }

    /// One that came from `source`.
    pub fn incoming(&self, source: IpAddr, cause: &Cause) {
        if self.incoming.first(&format!("{source} {}", cause.kind)) {
            tracing::warn!(%source, cause = cause.text, "a connection was refused; this is not said again");
        }
    }

    /// One to `address`.
    pub fn outgoing(&self, address: &str, cause: &Cause) {
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
}
