//! Whom a certificate is for: one URI among its alternative names.
//!
//! ```text
//! ha-manager://CLUSTER/node/NODE      a node's
//! ha-manager://CLUSTER/ca             the authority's
//! ```
//!
//! No address and no host name is in it, so that a node keeps its certificate wherever it is reached.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::fmt;

use x509_parser::{extensions::GeneralName, prelude::parse_x509_certificate};

use crate::spec::NodeName;

const SCHEME: &str = "ha-manager://";
const DAY: i64 = 86_400;
/// So long before a certificate's end it is said.
const EARLY_DAYS: i64 = 30;

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Authority { cluster: String },
    Node { cluster: String, node: NodeName },
}

impl Subject {
    fn parse(uri: &str) -> Option<Self> {
        let (cluster, rest) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        // A cluster's name follows the rule of a node's.
        let cluster = cluster.parse::<NodeName>().ok()?.into();
        match rest.strip_prefix("node/") {
            Some(node) => Some(Self::Node { cluster, node: node.parse().ok()? }),
            None => (rest == "ca").then_some(Self::Authority { cluster }),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority { cluster } => write!(f, "{SCHEME}{cluster}/ca"),
            Self::Node { cluster, node } => write!(f, "{SCHEME}{cluster}/node/{node}"),
        }
    }
}

/// Why a certificate, however well signed, is not one of this cluster's nodes'.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate cannot be read")]
    Malformed,
    #[error("the certificate names no node of a cluster (no URI of the form {SCHEME}CLUSTER/node/NODE)")]
    Nameless,
    #[error("the certificate names more than one node")]
    Ambiguous,
    #[error("the certificate is of cluster {theirs}, this node of {ours}")]
    Cluster { ours: String, theirs: String },
    #[error("the certificate is a CA's, not a node's")]
    Authority,
    #[error("the certificate is of node {certified}, {expected} was expected")]
    Node { certified: NodeName, expected: NodeName },
}

/// What a certificate says of itself. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub subject: Subject,
    pub begins: i64,
    pub ends: i64,
}

/// Reads a certificate; whether it is to be believed is another question.
pub fn read(der: &[u8]) -> Result<Facts, IdentityError> {
    let (rest, certificate) = parse_x509_certificate(der).map_err(|_| IdentityError::Malformed)?;
    if !rest.is_empty() {
        return Err(IdentityError::Malformed);
    }
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Malformed)?;
    let names = names.ok_or(IdentityError::Nameless)?.value;
    let mut ours = names.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
        _ => None,
    });
    let uri = ours.next().ok_or(IdentityError::Nameless)?;
    if ours.next().is_some() {
        return Err(IdentityError::Ambiguous);
    }
    let subject = Subject::parse(uri).ok_or(IdentityError::Nameless)?;
    let validity = certificate.validity();
    Ok(Facts { subject, begins: validity.not_before.timestamp(), ends: validity.not_after.timestamp() })
}

/// Whether a certificate is for this public key (SubjectPublicKeyInfo).
pub fn is_of_key(der: &[u8], public: &[u8]) -> bool {
    parse_x509_certificate(der).is_ok_and(|(_, certificate)| certificate.public_key().raw == public)
}

/// The node of `cluster` that a certificate is for.
pub fn node_of(der: &[u8], cluster: &str) -> Result<NodeName, IdentityError> {
    match read(der)?.subject {
        Subject::Node { cluster: theirs, node } if theirs == cluster => Ok(node),
        Subject::Node { cluster: theirs, .. } => Err(IdentityError::Cluster { ours: cluster.to_owned(), theirs }),
        Subject::Authority { .. } => Err(IdentityError::Authority),
    }
}

/// The node that a verified certificate is for.
pub fn certified(der: impl AsRef<[u8]>) -> Result<NodeName, IdentityError> {
    match read(der.as_ref())?.subject {
        Subject::Node { node, .. } => Ok(node),
        Subject::Authority { .. } => Err(IdentityError::Authority),
    }
}

/// Where `now` is in the time that certificates are valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    NotYet,
    Good { days: i64 },
    EndsSoon { days: i64 },
    Ended { days: i64 },
}

impl Standing {
    /// Peers believe it now.
    pub fn is_good(self) -> bool {
        matches!(self, Self::Good { .. } | Self::EndsSoon { .. })
    }

    pub fn at(now: i64, begins: i64, ends: i64) -> Self {
        if now < begins {
            Self::NotYet
        } else if now > ends {
            Self::Ended { days: (now - ends) / DAY }
        } else if ends - now < EARLY_DAYS * DAY {
            Self::EndsSoon { days: (ends - now) / DAY }
        } else {
            Self::Good { days: (ends - now) / DAY }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(cluster: &str, name: &str) -> Subject {
        Subject::Node { cluster: cluster.into(), node: name.parse().unwrap() }
    }

    #[test]
    fn a_name_is_read_as_it_was_written() {
        for subject in [node("lab", "n1"), node("a.b", "c_d-e.f"), Subject::Authority { cluster: "x".into() }] {
            assert_eq!(Subject::parse(&subject.to_string()), Some(subject));
        }
        assert_eq!(node("lab", "n1").to_string(), "ha-manager://lab/node/n1");
    }

    #[test]
    fn other_spellings_name_nobody() {
        for bad in [
            "",
            "ha-manager://",
            "ha-manager://lab",
            "ha-manager://lab/",
            "ha-manager://lab/node/",
            "ha-manager://lab/node/N1",
            "ha-manager://lab/node/n1/x",
            "ha-manager://lab/node/n1?x",
            "ha-manager:///node/n1",
            "ha-manager://LAB/node/n1",
            "ha-manager://lab/ca/",
            "HA-MANAGER://lab/node/n1",
            "https://lab/node/n1",
        ] {
            assert_eq!(Subject::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_end_is_said_thirty_days_ahead() {
        let at = |now| Standing::at(now, 10 * DAY, 100 * DAY);
        assert_eq!(at(10 * DAY - 1), Standing::NotYet);
        assert_eq!(at(10 * DAY), Standing::Good { days: 90 });
        assert_eq!(at(70 * DAY), Standing::Good { days: 30 });
        assert_eq!(at(70 * DAY + 1), Standing::EndsSoon { days: 29 });
        assert_eq!(at(100 * DAY), Standing::EndsSoon { days: 0 });
        assert_eq!(at(102 * DAY), Standing::Ended { days: 2 });
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn a_damaged_certificate_is_answered(at in 0usize..2000, byte: u8) {
            let (_, mut der) = crate::tls::ca::tests::der_of("lab", "n1");
            let at = at % der.len();
            der[at] = byte;
            let _ = node_of(&der, "lab");
            let _ = read(&der[..at]);
        }
    }
}
