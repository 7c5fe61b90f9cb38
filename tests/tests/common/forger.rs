//! Clients of the peer port that are not what they say, or nothing at all.

use std::{io, sync::Arc, time::Duration};

use ha_lab::cluster::Cluster;
use ha_manager::tls::ca::Pair;
use ha_proto::{
    control::StatusRequest,
    peer::{Envelope, PingReply, PingRequest, peer_client::PeerClient},
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::{Code, Status, transport::Channel};

pub const PORT: &str = "10.77.0.1:7420";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const LONG: Duration = Duration::from_secs(30);

/// Runs `work` on the client's side of the network.
pub fn outside<T, F>(cluster: &Cluster, work: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(work()))
    };
    cluster.lab.on_client(run).unwrap().join().unwrap().unwrap()
}

/// Believes every server.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ha_manager::crypto().signature_verification_algorithms.supported_schemes()
    }
}

/// Whether the peer port answers one that shows this certificate, or none.
pub async fn is_served(shown: Option<Pair>) -> bool {
    let config =
        ClientConfig::builder_with_provider(ha_manager::crypto()).with_safe_default_protocol_versions().unwrap();
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match shown {
        Some(pair) => {
            let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            config.with_client_auth_cert(vec![certificate], key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(PORT).await.unwrap();
    let name = ServerName::try_from("nobody").unwrap();
    let talk = async {
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.write_all(PREFACE).await?;
        stream.flush().await?;
        stream.read(&mut [0; 64]).await
    };
    answered(tokio::time::timeout(LONG, talk).await.expect("it is held for good"))
}

/// Whether the peer port answers HTTP/2 without TLS.
pub async fn is_served_plainly() -> bool {
    let mut stream = TcpStream::connect(PORT).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    let mut head = [0; 16];
    let read = tokio::time::timeout(LONG, stream.read(&mut head)).await.expect("it is held for good");
    // An alert of TLS is no answer.
    answered(read) && head[0] != 21
}

fn answered(read: io::Result<usize>) -> bool {
    read.is_ok_and(|n| n > 0)
}

/// A ping with whatever envelope, over a channel that may be authenticated.
pub async fn ping(channel: Channel, envelope: Option<Envelope>) -> Result<PingReply, Status> {
    PeerClient::new(channel).ping(PingRequest { envelope, seq: 1 }).await.map(tonic::Response::into_inner)
}

/// A message of another kind where a ping belongs.
pub async fn nonsense(channel: Channel) -> Status {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<StatusRequest, PingReply>::default();
    let path = "/ha.peer.v1.Peer/Ping".parse().unwrap();
    let answer = client.unary(tonic::Request::new(StatusRequest { local: true }), path, codec).await;
    answer.map(|_| Status::new(Code::Ok, "it was taken")).unwrap_or_else(|status| status)
}
