//! The client role: mutual TLS that accepts only the identities that the endpoint may have.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use webpki::KeyUsage;

use super::verify::{Allowed, peer, signatures, verify};
use super::{Credentials, Peer, provider, server};
use crate::error;
use leno_http::stream::Stream;
use leno_rules::spiffe::SpiffeId;

/// TLS to any server, as the node's probes use it towards an app. It authenticates neither side.
///
/// # Errors
/// When the TLS library refuses its own configuration.
pub fn unverified() -> Result<Arc<ClientConfig>, String> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    // Nor is its certificate parsed: one that webpki refuses, such as X.509 v1, is accepted as well.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Opens mutual TLS to peers with given identities.
#[derive(Debug, Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    sni: ServerName<'static>,
}

impl Connector {
    /// A connector that accepts a peer with one of the identities in `allowed`, or with any of the trust domain when
    /// that is empty.
    ///
    /// # Errors
    /// When `sni` isn't a name, or the TLS library refuses its own configuration.
    pub fn new(
        credentials: &Arc<Credentials>,
        sni: &str,
        alpn: &[&[u8]],
        allowed: Vec<SpiffeId>,
    ) -> Result<Connector, String> {
        let verifier = Arc::new(Expected {
            credentials: Arc::clone(credentials),
            allowed,
        });
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(server::Current(Arc::clone(credentials))));
        config.alpn_protocols = alpn.iter().map(|&protocol| protocol.to_vec()).collect();
        // Resumption would skip the verifier; pooled connections make it rarely worth anything.
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(sni.to_owned())
            .map_err(|error| format!("{sni:?} is not a server name: {error}"))?;
        Ok(Connector {
            config: Arc::new(config),
            sni: name,
        })
    }

    /// The TLS configuration, for clients that bring their own transport.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// Makes the handshake on `tcp`.
    ///
    /// # Errors
    /// When it fails: the peer's identity isn't allowed, or the peer refuses us.
    pub async fn connect(&self, tcp: TcpStream) -> Result<(Stream, Peer), error::Error> {
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.config));
        let tls = connector
            .connect(self.sni.clone(), tcp)
            .await
            .map_err(|error| failure(&error))?;
        let leaf = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let missing = || error::Error::up(error::Kind::Tls, "the peer showed no certificate");
        let peer = peer(leaf.ok_or_else(missing)?)
            .map_err(|error| error::Error::up(error::Kind::Peer, error.to_string()))?;
        Ok((Stream::TlsClient(Box::new(tls)), peer))
    }
}

/// Distinguishes a rejected certificate from other failures of the handshake.
fn failure(error: &std::io::Error) -> error::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let kind = match inner {
        Some(Error::InvalidCertificate(_)) => error::Kind::Peer,
        _ => error::Kind::Tls,
    };
    let words = match inner {
        Some(Error::InvalidCertificate(CertificateError::Other(other))) => other.to_string(),
        _ => error.to_string(),
    };
    error::Error::up(kind, format!("TLS handshake failed: {words}"))
}

impl ResolvesClientCert for server::Current {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.identity()?.key))
    }

    fn has_certs(&self) -> bool {
        self.0.identity().is_some()
    }
}

/// Verifies that a server has one of the allowed identities, against the current roots.
#[derive(Debug)]
struct Expected {
    credentials: Arc<Credentials>,
    allowed: Vec<SpiffeId>,
}

impl ServerCertVerifier for Expected {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let allowed = match self.allowed.as_slice() {
            [] => Allowed::TrustDomain,
            ids => Allowed::Ids(ids),
        };
        verify(
            leaf,
            intermediates,
            &self.credentials.roots.load(),
            KeyUsage::server_auth(),
            now,
            &self.credentials.trust_domain,
            allowed,
        )
        .map_err(server::refusal)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}
