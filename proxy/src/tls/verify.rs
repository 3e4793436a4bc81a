//! SPIFFE checks, without IO: a certificate chains to a root, names exactly one workload of the trust domain, and that
//! workload is allowed here.

use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Peer, provider};
use leno_rules::spiffe::SpiffeId;

/// Methods that every verifier of ours has alike: the handshake's signatures, by the process's one crypto provider. Two
/// traits of rustls have them in common.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &rustls::pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = crate::tls::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, cert, signature, &algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &rustls::pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = crate::tls::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, cert, signature, &algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            let algorithms = crate::tls::provider().signature_verification_algorithms;
            algorithms.supported_schemes()
        }
    };
}
pub(crate) use signatures;

/// Reason that a peer's certificate isn't accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The chain doesn't lead to a root, or isn't valid now.
    #[error("certificate not valid: {0}")]
    Chain(String),
    /// It doesn't hold exactly one SPIFFE ID.
    #[error("certificate must hold exactly one SPIFFE ID, it holds {0}")]
    NotOneId(usize),
    /// Its URI is no SPIFFE ID of a mesh.
    #[error("{0}")]
    NotSpiffe(String),
    /// It belongs to another trust domain.
    #[error("identity {id} is not of trust domain {domain}")]
    ForeignDomain {
        /// Identity in the certificate.
        id: String,
        /// The domain that was expected.
        domain: String,
    },
    /// It belongs to a workload that isn't allowed here.
    #[error("identity {id} is not one of {allowed:?}")]
    NotAllowed {
        /// Identity in the certificate.
        id: String,
        /// Identities that are allowed.
        allowed: Vec<String>,
    },
}

/// Identities that the peer may have.
#[derive(Debug, Clone, Copy)]
pub enum Allowed<'a> {
    /// Any workload of the trust domain.
    TrustDomain,
    /// One of these workloads.
    Ids(&'a [SpiffeId]),
}

/// Verifies `leaf` and returns its SPIFFE ID.
///
/// # Errors
/// [`Rejected`], with the reason in words.
pub fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    usage: KeyUsage,
    now: UnixTime,
    domain: &str,
    allowed: Allowed<'_>,
) -> Result<SpiffeId, Rejected> {
    let chain = |error: webpki::Error| Rejected::Chain(error.to_string());
    let cert = EndEntityCert::try_from(leaf).map_err(chain)?;
    let algorithms = provider().signature_verification_algorithms;
    cert.verify_for_usage(
        algorithms.all,
        &roots.roots,
        intermediates,
        now,
        usage,
        None,
        None,
    )
    .map_err(chain)?;
    let id = spiffe_id(&cert)?;
    if id.trust_domain() != domain {
        return Err(Rejected::ForeignDomain {
            id: id.to_string(),
            domain: domain.to_owned(),
        });
    }
    match allowed {
        Allowed::Ids(ids) if !ids.contains(&id) => Err(Rejected::NotAllowed {
            id: id.to_string(),
            allowed: ids.iter().map(ToString::to_string).collect(),
        }),
        _ => Ok(id),
    }
}

fn spiffe_id(cert: &EndEntityCert<'_>) -> Result<SpiffeId, Rejected> {
    let mut names = cert.valid_uri_names();
    match (names.next(), names.count()) {
        (Some(name), 0) => SpiffeId::parse(name).map_err(Rejected::NotSpiffe),
        (None, _) => Err(Rejected::NotOneId(0)),
        (Some(_), more) => Err(Rejected::NotOneId(more + 1)),
    }
}

/// Identity, expiry and hash of a verified leaf.
///
/// # Errors
/// When the leaf holds no SPIFFE ID, or can't be read.
pub fn peer(leaf: &CertificateDer<'_>) -> Result<Peer, Rejected> {
    let cert = EndEntityCert::try_from(leaf).map_err(|error| Rejected::Chain(error.to_string()))?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
    let hash = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
    Ok(Peer {
        id: spiffe_id(&cert)?,
        not_after: validity(leaf)?.1,
        hash: hash.collect(),
    })
}

/// Validity of a certificate: start and end.
///
/// # Errors
/// When it can't be read.
pub fn validity(cert: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), Rejected> {
    let (_, cert) =
        X509Certificate::from_der(cert).map_err(|error| Rejected::Chain(error.to_string()))?;
    let at = |seconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    };
    let validity = cert.validity();
    Ok((
        at(validity.not_before.timestamp()),
        at(validity.not_after.timestamp()),
    ))
}

/// A certificate's serial number, in hexadecimal.
///
/// # Errors
/// When it can't be read.
pub fn serial(cert: &CertificateDer<'_>) -> Result<String, Rejected> {
    let (_, cert) =
        X509Certificate::from_der(cert).map_err(|error| Rejected::Chain(error.to_string()))?;
    Ok(cert.raw_serial_as_string().replace(':', ""))
}
