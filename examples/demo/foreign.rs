//! A TLS client outside the mesh: presents a certificate of its own making, keeps the server's, and reports the
//! refusal, if any.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Result of a TLS visit.
#[derive(Debug)]
pub(crate) struct Visit {
    /// Serial number of the server's certificate.
    pub(crate) serial: String,
    /// The SPIFFE ID in it.
    pub(crate) identity: String,
    /// Reason of the refusal; `None` when the request was answered.
    pub(crate) refusal: Option<String>,
}

/// Connects to `address` by TLS with a certificate that claims to be order-service, and requests a user. The
/// certificate is self-signed; with `stolen`, the directory of the mesh's CA, it is signed by the root.
pub(crate) async fn visit(address: SocketAddr, stolen: Option<&Path>) -> Result<Visit> {
    let seen = Arc::new(Mutex::new(None));
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config(Arc::clone(&seen), stolen)?));
    let exchange = async {
        let tcp = TcpStream::connect(address).await?;
        let mut tls = connector
            .connect(ServerName::try_from("user-service")?, tcp)
            .await?;
        // With TLS 1.3 the refusal of a client certificate arrives with the first read.
        tls.write_all(b"GET /users/1 HTTP/1.1\r\nhost: user-service\r\n\r\n")
            .await?;
        let mut first = [0; 12];
        tls.read_exact(&mut first).await?;
        anyhow::Ok(())
    };
    let outcome = timeout(Duration::from_secs(5), exchange)
        .await
        .context("no answer in 5 s")?;
    let leaf = seen
        .lock()
        .ok()
        .and_then(|mut seen| seen.take())
        .context("no certificate seen")?;
    let (_, cert) = X509Certificate::from_der(&leaf)?;
    let names = webpki::EndEntityCert::try_from(&leaf)?;
    Ok(Visit {
        serial: cert.raw_serial_as_string(),
        identity: names
            .valid_uri_names()
            .next()
            .unwrap_or_default()
            .to_owned(),
        refusal: outcome.err().map(|error| format!("{error:#}")),
    })
}

fn config(
    seen: Arc<Mutex<Option<CertificateDer<'static>>>>,
    stolen: Option<&Path>,
) -> Result<ClientConfig> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    let name = "spiffe://cluster.local/ns/default/sa/order-service";
    params.subject_alt_names = vec![SanType::URI(name.try_into()?)];
    let cert = match stolen {
        None => params.self_signed(&key)?,
        Some(directory) => {
            let read = |name: &str| std::fs::read_to_string(directory.join(name));
            let root = KeyPair::from_pem(&read("root-key.pem")?)?;
            params.signed_by(
                &key,
                &Issuer::from_ca_cert_pem(&read("root-cert.pem")?, root)?,
            )?
        }
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Anyone {
        seen,
        provider: Arc::clone(&provider),
    });
    let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![cert.der().clone()], der)?;
    config.alpn_protocols = vec![b"istio-http/1.1".to_vec()];
    Ok(config)
}

/// Accepts any server's certificate, and keeps it.
#[derive(Debug)]
struct Anyone {
    seen: Arc<Mutex<Option<CertificateDer<'static>>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Ok(mut seen) = self.seen.lock() {
            *seen = Some(leaf.clone().into_owned());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
