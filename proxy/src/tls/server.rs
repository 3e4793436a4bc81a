//! The server role: mutual TLS that requires a certificate of the trust domain.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DistinguishedName, Error, OtherError, ServerConfig};
use tokio::time::timeout;
use webpki::KeyUsage;

use super::verify::{Allowed, peer, signatures, verify};
use super::{Credentials, Peer, Rejected, alpn, provider};
use crate::error;
use leno_http::stream::{PrefixedTcp, Stream};

/// Accepts mutual TLS.
#[derive(Debug, Clone)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    handshake: Duration,
}

/// Result of a handshake.
#[derive(Debug)]
pub struct Accepted {
    /// The decrypted stream.
    pub stream: Stream,
    /// The authenticated peer.
    pub peer: Peer,
}

impl Acceptor {
    /// An acceptor that presents `credentials`, as they are at each handshake.
    ///
    /// # Errors
    /// When the TLS library refuses its own configuration.
    pub fn new(credentials: &Arc<Credentials>, handshake: Duration) -> Result<Acceptor, Error> {
        let verifier = Arc::new(FromMesh(Arc::clone(credentials)));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Current(Arc::clone(credentials))));
        config.alpn_protocols = alpn::ACCEPTED.map(Vec::from).to_vec();
        // A resumed session would skip the verifier and keep an identity beyond its certificate's life.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Acceptor {
            config: Arc::new(config),
            handshake,
        })
    }

    /// Makes the handshake on `socket`.
    ///
    /// # Errors
    /// When it fails, of which an alert informs the peer, or when it takes too long.
    pub async fn accept(&self, socket: PrefixedTcp) -> Result<Accepted, error::Error> {
        let failed = |text: String| error::Error::down(error::Kind::Tls, text);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&self.config));
        let tls = timeout(self.handshake, acceptor.accept(socket))
            .await
            .map_err(|_| failed(format!("TLS handshake not done after {:?}", self.handshake)))?
            .map_err(|error| failed(format!("TLS handshake failed: {error}")))?;
        let connection = tls.get_ref().1;
        let leaf = connection.peer_certificates().and_then(<[_]>::first);
        let leaf = leaf.ok_or_else(|| failed("no client certificate".to_owned()))?;
        let peer = peer(leaf).map_err(|error| failed(error.to_string()))?;
        Ok(Accepted {
            stream: Stream::TlsServer(Box::new(tls)),
            peer,
        })
    }
}

/// Resolves to the current certificate.
#[derive(Debug)]
pub(super) struct Current(pub(super) Arc<Credentials>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.identity()?.key))
    }
}

/// Verifies that a client belongs to the trust domain, against the current roots.
#[derive(Debug)]
struct FromMesh(Arc<Credentials>);

impl ClientCertVerifier for FromMesh {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify(
            leaf,
            intermediates,
            &self.0.roots.load(),
            KeyUsage::client_auth(),
            now,
            &self.0.trust_domain,
            Allowed::TrustDomain,
        )
        .map_err(refusal)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

/// A rejection as a rustls error, which keeps its text in the handshake's error.
pub(crate) fn refusal(rejected: Rejected) -> Error {
    let other = OtherError(Arc::new(rejected));
    Error::InvalidCertificate(CertificateError::Other(other))
}
