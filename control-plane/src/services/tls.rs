//! TLS on port 15012. The client certificate is optional: without a valid one a proxy can only request one from the
//! CA, with a token.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use leno_proto::tonic::transport::server::Connected;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use webpki::{EndEntityCert, KeyUsage};

use crate::ca::{Ca, Identity, provider};

/// Timeout of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that wait for tonic after their handshake.
const BACKLOG: usize = 64;

/// The peer of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its verified identity; none when it presented no certificate.
    pub identity: Option<Identity>,
}

/// A TLS connection that tonic serves.
#[derive(Debug)]
pub struct Incoming {
    tls: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connected for Incoming {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// Accepts TLS connections until `ended`; each handshake runs in a task of its own.
///
/// # Errors
/// When rustls rejects the configuration.
pub fn accept(
    listener: TcpListener,
    ca: &Arc<Ca>,
    mut ended: watch::Receiver<bool>,
) -> Result<ReceiverStream<io::Result<Incoming>>, Error> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(ca)?));
    let (out, incoming) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = ended.wait_for(|ended| *ended) => return,
            };
            let Ok((tcp, address)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (acceptor, out) = (acceptor.clone(), out.clone());
            tokio::spawn(async move {
                let _ = tcp.set_nodelay(true);
                match timeout(HANDSHAKE, acceptor.accept(tcp)).await {
                    Ok(Ok(tls)) => {
                        let leaf = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
                        let identity = leaf.and_then(|leaf| Identity::of(leaf).ok());
                        let peer = Peer { identity };
                        let _ = out.send(Ok(Incoming { tls, peer })).await;
                    }
                    Ok(Err(error)) => tracing::info!(%address, %error, "TLS handshake failed"),
                    Err(_) => tracing::info!(%address, "TLS handshake took too long"),
                }
            });
        }
    });
    Ok(ReceiverStream::new(incoming))
}

fn tls(ca: &Arc<Ca>) -> Result<ServerConfig, Error> {
    let verifier = Arc::new(MeshClientVerifier {
        roots: ca.root_store(),
        domain: ca.trust_domain().to_owned(),
    });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Current(Arc::clone(ca))));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The control plane's current certificate.
#[derive(Debug)]
struct Current(Arc<Ca>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.own_certificate()
    }
}

/// Verifies a client's certificate, if it presents one, against the mesh's roots and trust domain.
#[derive(Debug)]
struct MeshClientVerifier {
    roots: RootCertStore,
    domain: String,
}

impl ClientCertVerifier for MeshClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let refuse = |error: String| Error::General(format!("client certificate: {error}"));
        let cert = EndEntityCert::try_from(leaf).map_err(|error| refuse(error.to_string()))?;
        let algorithms = provider().signature_verification_algorithms;
        cert.verify_for_usage(
            algorithms.all,
            &self.roots.roots,
            intermediates,
            now,
            KeyUsage::client_auth(),
            None,
            None,
        )
        .map_err(|error| refuse(error.to_string()))?;
        let identity = Identity::of(leaf).map_err(refuse)?;
        match identity.domain == self.domain {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(refuse(format!(
                "{} is of another trust domain",
                identity.id
            ))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
