//! Images in a registry, by the distribution protocol.

use std::{net::IpAddr, path::Path, time::Duration};

use futures_util::StreamExt;
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::{DigestError, OciDistributionError},
    secrets::RegistryAuth,
};
use tokio::io::AsyncWriteExt;

use super::{
    ImageError, Limits, credentials,
    layout::check_digest,
    limits::DOCUMENT_BYTES,
    manifest::Descriptor,
    progress::{Event, Progress},
};

const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Without a byte for this long, the transfer has failed.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// A transfer that breaks is begun again this often in all.
const ATTEMPTS: u32 = 3;
/// Progress is reported every so many bytes.
const REPORT_EVERY: u64 = 4 << 20;

pub struct Registry {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl Registry {
    /// Prepares a client; nothing is sent yet. Plain HTTP for this machine and where the caller says `insecure`.
    pub async fn connect(
        reference: &Reference,
        insecure: bool,
        docker_config: Option<&Path>,
    ) -> Result<Self, ImageError> {
        let host = reference.resolve_registry();
        let auth = match docker_config.map(Path::to_owned).or_else(credentials::default_path) {
            Some(path) => credentials::read(&path, host)?,
            None => RegistryAuth::Anonymous,
        };
        let protocol = if insecure || is_loopback(host) { ClientProtocol::Http } else { ClientProtocol::Https };
        crate::crypto();
        let client = Client::new(ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            ..ClientConfig::default()
        });
        client.store_auth_if_needed(host, &auth).await;
        Ok(Self { client, reference: reference.clone(), auth })
    }

    pub fn name(&self) -> String {
        self.reference.whole()
    }

    /// The index or manifest that the reference names.
    pub async fn top_manifest(&self) -> Result<Vec<u8>, ImageError> {
        let bytes = self.pull_manifest(&self.reference).await?;
        if let Some(digest) = self.reference.digest() {
            let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
            check_digest(&format!("manifest of {}", self.name()), &bytes, digits)?;
        }
        Ok(bytes)
    }

    /// A manifest by its digest. The caller verifies it.
    pub async fn manifest(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        self.pull_manifest(&self.reference.clone_with_digest(digest.to_owned())).await
    }

    async fn pull_manifest(&self, reference: &Reference) -> Result<Vec<u8>, ImageError> {
        let pulled = self.client.pull_manifest_raw(reference, &self.auth, &ACCEPTED).await;
        let (bytes, _) = pulled.map_err(|e| self.error("read the manifest of", e))?;
        if bytes.len() as u64 > DOCUMENT_BYTES {
            let what = format!("manifest of {}", self.name());
            return Err(ImageError::Limit { what, limit: DOCUMENT_BYTES, unit: "bytes" });
        }
        Ok(bytes.to_vec())
    }

    /// A small blob. The caller verifies it, and has checked that its announced size is acceptable.
    pub async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let mut stream = self.blob(descriptor).await.map_err(|e| self.error("read the configuration of", e))?;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| match self.damage(descriptor, &error) {
                Some(damage) => damage,
                None => self.error("read the configuration of", error.into()),
            })?;
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > descriptor.size {
                return Err(self.size(descriptor, bytes.len() as u64));
            }
        }
        Ok(bytes)
    }

    /// Pulls a layer to `to`. That it is what its digest says is verified when it is read.
    pub async fn pull_layer(
        &self,
        descriptor: &Descriptor,
        to: &Path,
        (layer, layers): (usize, usize),
        limits: &Limits,
        progress: &Progress,
    ) -> Result<(), ImageError> {
        if descriptor.size > limits.transfer_bytes {
            let what = format!("layer {} of {}", descriptor.digest, self.name());
            return Err(ImageError::Limit { what, limit: limits.transfer_bytes, unit: "bytes compressed" });
        }
        let report = |bytes| progress(Event::Pulling { layer, layers, bytes, of: descriptor.size });
        let mut attempt = 1;
        loop {
            match self.pull_once(descriptor, to, &report).await {
                Err(Pull::Broken(error)) if attempt < ATTEMPTS => {
                    let text = format!("layer {layer} of {layers}: the transfer broke ({error}) and begins again");
                    progress(Event::Note { text });
                    tokio::time::sleep(Duration::from_secs(1) * attempt).await;
                    attempt += 1;
                }
                Err(Pull::Broken(error)) => return Err(self.error("pull a layer of", error)),
                Err(Pull::Refused(error)) => return Err(error),
                Ok(()) => return Ok(()),
            }
        }
    }

    async fn pull_once(&self, descriptor: &Descriptor, to: &Path, report: &impl Fn(u64)) -> Result<(), Pull> {
        let io = |error| Pull::Refused(ImageError::io::<std::io::Error>("write", to)(error));
        let mut stream = self.blob(descriptor).await.map_err(|error| match error {
            OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => Pull::Broken(error),
            error => Pull::Refused(self.error("pull a layer of", error)),
        })?;
        let mut file = tokio::fs::File::create(to).await.map_err(io)?;
        let (mut bytes, mut reported) = (0, 0);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| match self.damage(descriptor, &error) {
                Some(damage) => Pull::Refused(damage),
                None => Pull::Broken(error.into()),
            })?;
            bytes += chunk.len() as u64;
            if bytes > descriptor.size {
                return Err(Pull::Refused(self.size(descriptor, bytes)));
            }
            file.write_all(&chunk).await.map_err(io)?;
            if bytes - reported >= REPORT_EVERY {
                report(bytes);
                reported = bytes;
            }
        }
        file.flush().await.map_err(io)?;
        if bytes != descriptor.size {
            return Err(Pull::Refused(self.size(descriptor, bytes)));
        }
        report(bytes);
        Ok(())
    }

    /// By its digest only: the further addresses that a descriptor may carry are not the registry the user named.
    async fn blob(
        &self,
        descriptor: &Descriptor,
    ) -> Result<impl futures_util::Stream<Item = std::io::Result<bytes::Bytes>> + Unpin + use<>, OciDistributionError>
    {
        Ok(self.client.pull_blob_stream(&self.reference, descriptor.digest.as_str()).await?.stream)
    }

    /// The client's stream ends with an error where the content is not what the digest says.
    fn damage(&self, descriptor: &Descriptor, error: &std::io::Error) -> Option<ImageError> {
        match error.get_ref()?.downcast_ref()? {
            DigestError::VerificationError { expected, actual } => {
                let what = format!("blob {} of {}", descriptor.digest, self.name());
                Some(ImageError::Digest { what, expected: expected.clone(), found: actual.clone() })
            }
            _ => None,
        }
    }

    fn size(&self, descriptor: &Descriptor, found: u64) -> ImageError {
        let what = format!("blob {} of {}", descriptor.digest, self.name());
        ImageError::Size { what, expected: descriptor.size, found }
    }

    fn error(&self, op: &'static str, source: OciDistributionError) -> ImageError {
        ImageError::Registry { op, reference: self.name(), source: Box::new(source) }
    }
}

enum Pull {
    /// On the way: another attempt may help.
    Broken(OciDistributionError),
    Refused(ImageError),
}

/// `localhost` or a loopback address, with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    #[test]
    fn plain_http_is_for_this_machine() {
        for yes in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000"] {
            assert!(super::is_loopback(yes), "{yes}");
        }
        for no in ["docker.io", "localhost.example.org:5000", "10.0.0.1:5000", "[fe80::1]:5000", "example.org:127"] {
            assert!(!super::is_loopback(no), "{no}");
        }
    }
}
