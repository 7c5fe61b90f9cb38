//! What a node shows and what it believes: its certificate and key, and the cluster's authorities.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::NoServerSessionStorage,
    version::TLS13,
};

use super::{
    files::{self, CA_CERT, FileError, NODE_CERT, NODE_KEY},
    identity::{self, Facts, IdentityError, Standing, Subject},
    verify::Verifier,
};
use crate::spec::NodeName;

/// Certificates in one file.
const MAX_CERTIFICATES: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path:?} holds no {what} in PEM form")]
    Nothing { path: PathBuf, what: &'static str },
    #[error("{path:?} holds more than {MAX_CERTIFICATES} certificates")]
    Many { path: PathBuf },
    #[error("{path:?}")]
    Identity { path: PathBuf, source: IdentityError },
    #[error("{path:?} is not the certificate of a CA")]
    NoAuthority { path: PathBuf },
    #[error("{path:?} is not signed by the CA in {ca:?}")]
    NotSigned { path: PathBuf, ca: PathBuf, source: rustls::Error },
    #[error("{path:?} and {key:?} cannot be used together")]
    Unfit { path: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("{path:?} cannot be used")]
    Authority { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}

/// Checked, and in the form that connections are made with.
#[derive(Debug)]
pub struct Credentials {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
    begins: i64,
    ends: i64,
    /// Of the authority that has signed it.
    authority_ends: i64,
}

impl Credentials {
    /// Reads the three files of a node. One that is not valid now is taken all the same: clocks are set, and what runs on this
    /// node is looked after meanwhile.
    ///
    /// # Errors
    /// With the file and what is wrong with it.
    pub fn load(dir: &Path, cluster: &str, node: &NodeName) -> Result<Self, CredentialsError> {
        let [ca, certificate, key] = [CA_CERT, NODE_CERT, NODE_KEY].map(|name| dir.join(name));
        let (authorities, chain) = (certificates(&ca)?, certificates(&certificate)?);
        let own = chain.first().ok_or_else(|| nothing(&certificate, "certificate"))?;
        let facts = read(&certificate, own)?;
        let named = identity::node_of(own, cluster).and_then(|certified| match certified == *node {
            true => Ok(()),
            false => Err(IdentityError::Node { certified, expected: node.clone() }),
        });
        named.map_err(|source| CredentialsError::Identity { path: certificate.clone(), source })?;

        let crypto = crate::crypto();
        let unusable =
            |source: Box<dyn std::error::Error + Send + Sync>| CredentialsError::Authority { path: ca.clone(), source };
        // Judged at its end: whether that has passed is another question.
        let then = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(facts.ends).unwrap_or(0)));
        let mut roots = RootCertStore::empty();
        let mut authority_ends = i64::MIN;
        for authority in authorities {
            let Facts { subject, ends, .. } = read(&ca, &authority)?;
            let Subject::Authority { cluster: theirs } = subject else {
                return Err(CredentialsError::NoAuthority { path: ca });
            };
            if theirs != cluster {
                let source = IdentityError::Cluster { ours: cluster.to_owned(), theirs };
                return Err(CredentialsError::Identity { path: ca, source });
            }
            let mut alone = RootCertStore::empty();
            alone.add(authority.clone()).map_err(|error| unusable(error.into()))?;
            let alone = Verifier::new(cluster.to_owned(), alone, Arc::clone(&crypto));
            if alone.is_ok_and(|alone| alone.check_server(own, &chain[1..], then).is_ok()) {
                authority_ends = authority_ends.max(ends);
            }
            roots.add(authority).map_err(|error| unusable(error.into()))?;
        }
        let verifier = Verifier::new(cluster.to_owned(), roots, crypto).map_err(|error| unusable(error.into()))?;
        let signed = verifier.check_server(own, &chain[1..], then);
        signed.map_err(|source| CredentialsError::NotSigned { path: certificate.clone(), ca: ca.clone(), source })?;

        let secret = PrivateKeyDer::from_pem_slice(&files::key(&key)?).map_err(|_| nothing(&key, "private key"))?;
        let unfit = |source| CredentialsError::Unfit { path: certificate.clone(), key: key.clone(), source };
        let (client, server) = configs(verifier, chain, secret).map_err(unfit)?;
        Ok(Self { client, server, begins: facts.begins, ends: facts.ends, authority_ends })
    }

    /// How this node comes by a certificate that lasts longer.
    pub fn remedy(&self) -> &'static str {
        if self.authority_ends <= self.ends { super::REPLACE } else { super::RENEW }
    }

    /// Where `now`, in seconds since 1970, is in the time that this node's certificate is valid.
    pub fn standing(&self, now: i64) -> Standing {
        Standing::at(now, self.begins, self.ends)
    }
}

fn nothing(path: &Path, what: &'static str) -> CredentialsError {
    CredentialsError::Nothing { path: path.to_owned(), what }
}

fn read(path: &Path, certificate: &CertificateDer<'_>) -> Result<Facts, CredentialsError> {
    identity::read(certificate).map_err(|source| CredentialsError::Identity { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let bytes = files::certificates(path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&bytes).take(MAX_CERTIFICATES + 1).collect();
    if found.len() > MAX_CERTIFICATES {
        return Err(CredentialsError::Many { path: path.to_owned() });
    }
    let found: Vec<_> = found.into_iter().collect::<Result<_, _>>().map_err(|_| nothing(path, "certificate"))?;
    if found.is_empty() { Err(nothing(path, "certificate")) } else { Ok(found) }
}

/// TLS 1.3 only. Without resumption: a certificate is looked at for every connection, and those are few and stay open.
fn configs(
    verifier: Verifier,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), rustls::Error> {
    let verifier = Arc::new(verifier);
    let mut client = ClientConfig::builder_with_provider(crate::crypto())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    client.resumption = Resumption::disabled();
    client.enable_sni = false;
    client.alpn_protocols = vec![b"h2".to_vec()];
    let mut server = ServerConfig::builder_with_provider(crate::crypto())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.alpn_protocols = vec![b"h2".to_vec()];
    Ok((Arc::new(client), Arc::new(server)))
}
