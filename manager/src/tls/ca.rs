//! The cluster's certificate authority, and the certificates it gives to nodes.
//!
//! Elliptic keys (P-256). A node's certificate serves both ends of a connection. Both begin a day early, for nodes whose
//! clocks differ.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use chrono::{DateTime, Datelike, Days, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::identity::{self, Subject};

/// A certificate and its private key, both as PEM.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// A new authority for `cluster`, which signs with a key of its own.
///
/// # Errors
/// From the making of keys.
pub fn authority(cluster: &str, now: DateTime<Utc>, days: u32) -> Result<Pair, rcgen::Error> {
    let subject = Subject::Authority { cluster: cluster.to_owned() };
    let mut params = params(&subject, &format!("ha-manager CA {cluster}"), now, end(now, days))?;
    // It signs nodes' certificates and no further authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    Ok(Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// A certificate for `subject`, signed by `ca` and ending with it at the latest.
///
/// # Errors
/// When `ca` is no authority's certificate with its key, and from the making of keys.
pub fn issue(ca: &Pair, subject: &Subject, now: DateTime<Utc>, days: u32) -> Result<Pair, rcgen::Error> {
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, KeyPair::from_pem(&ca.key)?)?;
    let der = CertificateDer::from_pem_slice(ca.certificate.as_bytes()).ok();
    let facts = der.and_then(|der| identity::read(&der).ok()).ok_or(rcgen::Error::CouldNotParseCertificate)?;
    let last = DateTime::from_timestamp(facts.ends, 0).ok_or(rcgen::Error::CouldNotParseCertificate)?;
    let name = match subject {
        Subject::Node { node, .. } => node.as_str(),
        Subject::Authority { cluster } => cluster,
    };
    let mut params = params(subject, name, now, end(now, days).min(last))?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    Ok(Pair { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
}

fn end(now: DateTime<Utc>, days: u32) -> DateTime<Utc> {
    now.checked_add_days(Days::new(u64::from(days) + 1)).unwrap_or(now)
}

fn params(
    subject: &Subject,
    name: &str,
    now: DateTime<Utc>,
    end: DateTime<Utc>,
) -> Result<CertificateParams, rcgen::Error> {
    let midnight = |at: DateTime<Utc>| {
        // Month and day are below 32.
        rcgen::date_time_ymd(at.year(), u8::try_from(at.month()).unwrap_or(1), u8::try_from(at.day()).unwrap_or(1))
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(subject.to_string().try_into()?)];
    params.not_before = midnight(now.checked_sub_days(Days::new(1)).unwrap_or(now));
    params.not_after = midnight(end);
    Ok(params)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tls::identity::IdentityError;

    pub fn node(cluster: &str, name: &str) -> Subject {
        Subject::Node { cluster: cluster.into(), node: name.parse().unwrap() }
    }

    fn der(pem: &str) -> Vec<u8> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
    }

    /// An authority and a node's certificate. Made once: keys take long in a debug build.
    pub fn der_of(cluster: &str, name: &str) -> (Vec<u8>, Vec<u8>) {
        static MADE: std::sync::OnceLock<(Vec<u8>, Vec<u8>)> = std::sync::OnceLock::new();
        let made = MADE.get_or_init(|| {
            let ca = authority(cluster, Utc::now(), 10).unwrap();
            let issued = issue(&ca, &node(cluster, name), Utc::now(), 5).unwrap();
            (der(&ca.certificate), der(&issued.certificate))
        });
        made.clone()
    }

    #[test]
    fn a_certificate_says_for_whom_and_how_long() {
        let (ca, issued) = der_of("lab", "n1");
        let facts = identity::read(&issued).unwrap();
        assert_eq!(facts.subject, node("lab", "n1"));
        let days = (facts.ends - Utc::now().timestamp()) / 86_400;
        assert!((4..=6).contains(&days) && facts.begins < Utc::now().timestamp(), "{facts:?}");
        assert_eq!(identity::node_of(&issued, "lab").unwrap().as_str(), "n1");
        assert_eq!(identity::node_of(&ca, "lab"), Err(IdentityError::Authority));
        let other = identity::node_of(&issued, "prod").unwrap_err();
        assert_eq!(other.to_string(), "the certificate is of cluster lab, this node of prod");
    }

    #[test]
    fn a_certificate_ends_with_its_authority() {
        let ca = authority("lab", Utc::now(), 10).unwrap();
        let issued = issue(&ca, &node("lab", "n1"), Utc::now(), 100).unwrap();
        let ends = |pem: &str| identity::read(&der(pem)).unwrap().ends;
        assert_eq!(ends(&issued.certificate), ends(&ca.certificate));
    }

    #[test]
    fn a_certificate_without_our_name_is_nobodys() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["n1.example".to_owned()]).unwrap();
        let plain = params.self_signed(&key).unwrap();
        assert_eq!(identity::read(plain.der()), Err(IdentityError::Nameless));
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        params.subject_alt_names = vec![uri("ha-manager://lab/node/n1"), uri("ha-manager://lab/node/n2")];
        assert_eq!(identity::read(params.self_signed(&key).unwrap().der()), Err(IdentityError::Ambiguous));
    }
}
