//! The cluster's certificate authority, and the certificates it gives to nodes.
//!
//! Elliptic keys (P-256). A node's certificate serves both ends of a connection. Both begin a day early, for nodes whose
//! clocks differ.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use chrono::{DateTime, Datelike, Days, NaiveTime, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::identity::{self, Subject};

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("the key belongs to none of the certificates")]
    Unfit,
    #[error("the authority has ended on {}: make another one (docs/tls.md, Another authority)", .on.date_naive())]
    Ended { on: DateTime<Utc> },
    #[error(transparent)]
    Making(#[from] rcgen::Error),
}

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

/// The certificate that belongs to the key of `ca`, among those of a file that may hold several.
///
/// # Errors
/// When there is none.
pub fn own_certificate(ca: &Pair) -> Result<CertificateDer<'static>, CaError> {
    let public = KeyPair::from_pem(&ca.key)?.subject_public_key_info();
    let mut all = CertificateDer::pem_slice_iter(ca.certificate.as_bytes()).filter_map(Result::ok);
    all.find(|der| identity::is_of_key(der, &public)).ok_or(CaError::Unfit)
}

/// A certificate for `subject`, signed by the one of `ca` that belongs to its key, and ending with it at the latest.
///
/// # Errors
/// When the key belongs to no certificate, when the authority has ended, and from the making of keys.
pub fn issue(ca: &Pair, subject: &Subject, now: DateTime<Utc>, days: u32) -> Result<Pair, CaError> {
    let der = own_certificate(ca)?;
    let issuer = Issuer::from_ca_cert_der(&der, KeyPair::from_pem(&ca.key)?)?;
    let facts = identity::read(&der).map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
    let last = DateTime::from_timestamp(facts.ends, 0).ok_or(rcgen::Error::CouldNotParseCertificate)?;
    // A certificate ends at midnight.
    if last.date_naive().and_time(NaiveTime::MIN).and_utc() <= now {
        return Err(CaError::Ended { on: last });
    }
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
    fn an_authority_that_has_ended_signs_nothing() {
        let then = Utc::now().checked_sub_days(Days::new(30)).unwrap();
        let ca = authority("lab", then, 10).unwrap();
        let said = issue(&ca, &node("lab", "n1"), Utc::now(), 5).map(drop).unwrap_err().to_string();
        assert!(said.contains("has ended on") && said.contains("Another authority"), "{said}");
        issue(&ca, &node("lab", "n1"), then, 5).unwrap();
    }

    #[test]
    fn the_certificate_of_the_key_signs_wherever_it_is_in_the_file() {
        let (old, new) = (authority("lab", Utc::now(), 10).unwrap(), authority("lab", Utc::now(), 20).unwrap());
        let both = Pair { certificate: format!("{}{}", old.certificate, new.certificate), key: new.key };
        assert_eq!(own_certificate(&both).unwrap().to_vec(), der(&new.certificate));
        let issued = issue(&both, &node("lab", "n1"), Utc::now(), 100).unwrap();
        let ends = |pem: &str| identity::read(&der(pem)).unwrap().ends;
        assert_eq!(ends(&issued.certificate), ends(&new.certificate));
        let mixed = Pair { certificate: old.certificate, key: both.key };
        assert!(matches!(issue(&mixed, &node("lab", "n1"), Utc::now(), 5), Err(CaError::Unfit)));
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
