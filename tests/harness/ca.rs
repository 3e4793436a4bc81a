//! A certificate authority of a test's own: any name, any lifetime.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PublicKeyData, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A certificate authority.
pub struct Ca {
    key: KeyPair,
    /// Its root, in PEM.
    pub root_pem: String,
    root: CertificateDer<'static>,
}

/// A certificate chain with its key.
pub type Certified = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Ca {
    /// A new one.
    ///
    /// # Panics
    /// When the cryptography fails.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Ca {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("a root");
        Ca {
            root_pem: root.pem(),
            root: root.der().clone(),
            key,
        }
    }

    /// The CA of a control plane, stolen from its directory.
    ///
    /// # Panics
    /// When it can't be read.
    pub fn stolen(directory: &std::path::Path) -> Ca {
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).expect("a file");
        use rustls::pki_types::pem::PemObject;
        let root_pem = read("root-cert.pem");
        Ca {
            key: KeyPair::from_pem(&read("root-key.pem")).expect("a key"),
            root: CertificateDer::from_pem_slice(root_pem.as_bytes()).expect("PEM"),
            root_pem,
        }
    }

    /// Signs `key` as `name`, valid from an hour ago until `ends`, which may lie in the past.
    ///
    /// # Panics
    /// When the cryptography fails.
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        name: &str,
        ends: SystemTime,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(name.try_into().expect("ASCII"))];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
        params.not_after = ends.into();
        let issuer = Issuer::from_ca_cert_der(&self.root, &self.key).expect("an issuer");
        params
            .signed_by(key, &issuer)
            .expect("signed")
            .der()
            .clone()
    }

    /// A chain and a key for `name`.
    ///
    /// # Panics
    /// When the cryptography fails.
    pub fn certify(&self, name: &str, ends: SystemTime) -> Certified {
        let key = KeyPair::generate().expect("a key");
        let leaf = self.sign(&key, name, ends);
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        (vec![leaf, self.root.clone()], der)
    }

    /// Writes a certificate for `name`, its key and the root to `cert.pem`, `key.pem` and `root.pem`, for other programs.
    ///
    /// # Panics
    /// When they can't be written.
    pub fn write(&self, directory: &std::path::Path, name: &str) {
        let key = KeyPair::generate().expect("a key");
        let leaf = self.sign(&key, name, hour());
        for (file, text) in [
            ("cert.pem", pem(&leaf) + &self.root_pem),
            ("key.pem", key.serialize_pem()),
            ("root.pem", self.root_pem.clone()),
        ] {
            std::fs::write(directory.join(file), text).expect("written");
        }
    }

    /// The chain that answers a signing request, in PEM.
    ///
    /// # Panics
    /// When `csr` isn't a signing request.
    pub fn answer(&self, csr: &str, name: &str, ends: SystemTime) -> Vec<String> {
        let request = CertificateSigningRequestParams::from_pem(csr).expect("a request");
        let leaf = self.sign(&request.public_key, name, ends);
        vec![pem(&leaf), self.root_pem.clone()]
    }

    /// A TLS server configuration for `name` that requests no client certificate.
    ///
    /// # Panics
    /// When the cryptography fails.
    pub fn server(&self, name: &str) -> Arc<ServerConfig> {
        let (chain, key) = self.certify(name, hour());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

/// An hour from now.
pub fn hour() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

fn pem(der: &CertificateDer<'_>) -> String {
    // rcgen writes PEM only for a certificate that it has just signed.
    const TABLE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in der.chunks(48) {
        for chunk in line.chunks(3) {
            let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for i in 0..4 {
                let index = (bits >> (18 - 6 * i)) & 63;
                let padding = i > u32::try_from(chunk.len()).unwrap_or(3);
                text.push(if padding {
                    '='
                } else {
                    char::from(TABLE[index as usize])
                });
            }
        }
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Connects to `address` by TLS with this certificate; accepts any server.
///
/// # Errors
/// When the handshake fails.
///
/// # Panics
/// When nothing listens there.
pub async fn connect(
    address: std::net::SocketAddr,
    certified: Option<Certified>,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match certified {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .expect("a certificate"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|&protocol| protocol.to_vec()).collect();
    let tcp = TcpStream::connect(address).await.expect("connect");
    let name = ServerName::try_from("anyone").expect("a name");
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

/// The certificate of a server, which tells two of them apart.
///
/// # Panics
/// When the server presented none.
pub fn serial(tls: &TlsStream<TcpStream>) -> Vec<u8> {
    let leaf = &tls.get_ref().1.peer_certificates().expect("a certificate")[0];
    // The serial number is the first INTEGER after the version in TBSCertificate; the whole certificate tells two apart
    // just as well.
    leaf.to_vec()
}

/// Accepts any server's certificate.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
