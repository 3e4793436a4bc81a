//! Issuing: template, signature, and a check of the signed certificate.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    IsCa, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::root::Root;
use super::{Bearer, Ca, Identity, labels, provider};

/// Backdating of certificates, for clocks that are late; as Istio's.
pub(super) const BACKDATE: Duration = Duration::from_secs(120);
/// Shortest lifetime that is issued.
const MIN_TTL: Duration = Duration::from_secs(2);
/// Largest signing request, in bytes.
const MAX_CSR: usize = 16 * 1024;

impl Ca {
    /// Signs the request `csr` (PEM) for `bearer`, for `ttl`; zero asks for the longest. Returns the chain in PEM, the leaf
    /// first, and the request's public key.
    ///
    /// # Errors
    /// When the request isn't one, or doesn't prove that its sender holds the key.
    pub fn issue(&self, bearer: &Bearer, csr: &str, ttl: Duration) -> Result<Issued, String> {
        if csr.len() > MAX_CSR {
            return Err(format!(
                "the signing request is larger than {MAX_CSR} bytes"
            ));
        }
        let request = CertificateSigningRequestParams::from_pem(csr)
            .map_err(|error| format!("not a signing request that proves its key: {error}"))?;
        let ttl = match ttl.is_zero() {
            true => self.max_ttl,
            false => ttl.clamp(MIN_TTL, self.max_ttl),
        };
        let subject = Subject {
            id: &self.id_of(bearer),
            hosts: &[],
            labels: &bearer.labels,
        };
        let leaf = sign(
            &self.root,
            &request.public_key,
            &subject,
            ttl,
            SystemTime::now(),
        )?;
        Ok(Issued {
            chain: vec![pem(&leaf), self.root.pem().to_owned()],
            public_key: request.public_key.der_bytes().to_vec(),
        })
    }

    /// The SPIFFE ID of a bearer.
    pub fn id_of(&self, bearer: &Bearer) -> String {
        let (namespace, account) = (&bearer.namespace, &bearer.account);
        format!("spiffe://{}/ns/{namespace}/sa/{account}", self.trust_domain)
    }

    /// The public key of a request, without signing it.
    ///
    /// # Errors
    /// When it isn't a signing request.
    pub fn public_key(&self, csr: &str) -> Result<Vec<u8>, String> {
        let request = CertificateSigningRequestParams::from_pem(csr);
        let request = request.map_err(|error| format!("not a signing request: {error}"))?;
        Ok(request.public_key.der_bytes().to_vec())
    }
}

/// A certificate that was issued.
#[derive(Debug)]
pub struct Issued {
    /// The chain in PEM, the leaf first.
    pub chain: Vec<String>,
    /// The key that it certifies.
    pub public_key: Vec<u8>,
}

/// The subject of a certificate.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    /// The SPIFFE ID.
    pub(super) id: &'a str,
    /// Hosts at which the subject is reached.
    pub(super) hosts: &'a [SanType],
    /// The workload's labels.
    pub(super) labels: &'a BTreeMap<String, String>,
}

/// Signs a certificate for `key`, and checks the result.
pub(super) fn sign(
    root: &Root,
    key: &impl PublicKeyData,
    subject: &Subject<'_>,
    ttl: Duration,
    now: SystemTime,
) -> Result<CertificateDer<'static>, String> {
    let mut params = CertificateParams::default();
    // An empty subject makes the alternative name critical, as X.509-SVID requires.
    params.distinguished_name = DistinguishedName::new();
    let uri = subject
        .id
        .try_into()
        .map_err(|error: rcgen::Error| error.to_string())?;
    params.subject_alt_names = [&[SanType::URI(uri)], subject.hosts].concat();
    params.custom_extensions = labels::extension(subject.labels)?.into_iter().collect();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ttl).min(ends(root.der())?).into();
    let signed = params
        .signed_by(key, &root.issuer()?)
        .map_err(|error| error.to_string())?;
    let leaf = signed.der().clone();
    check(root, &leaf, subject, ttl, now)?;
    Ok(leaf)
}

/// Verifies the signed certificate as a peer will: whatever the template held, only one that passes may leave.
fn check(
    root: &Root,
    leaf: &CertificateDer<'_>,
    subject: &Subject<'_>,
    ttl: Duration,
    now: SystemTime,
) -> Result<(), String> {
    let wrong = |what: &str| format!("the signed certificate is wrong: {what}");
    let anchor = webpki::anchor_from_trusted_cert(root.der()).map_err(|e| wrong(&e.to_string()))?;
    let cert = EndEntityCert::try_from(leaf).map_err(|error| wrong(&error.to_string()))?;
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    cert.verify_for_usage(
        provider().signature_verification_algorithms.all,
        &[anchor],
        &[],
        UnixTime::since_unix_epoch(since),
        KeyUsage::client_auth(),
        None,
        None,
    )
    .map_err(|error| wrong(&error.to_string()))?;
    let identity = Identity::of(leaf).map_err(|error| wrong(&error))?;
    if identity.id != subject.id {
        return Err(wrong("its name"));
    }
    if identity.labels != *subject.labels {
        return Err(wrong("its labels"));
    }
    if identity.not_after > (now + ttl).min(ends(root.der())?) + Duration::from_secs(1) {
        return Err(wrong("its life"));
    }
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| wrong(&error.to_string()))?;
    match parsed.is_ca() {
        true => Err(wrong("it could sign others")),
        false => Ok(()),
    }
}

fn ends(cert: &CertificateDer<'_>) -> Result<SystemTime, String> {
    let (_, cert) = X509Certificate::from_der(cert).map_err(|error| error.to_string())?;
    let ends = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(ends))
}

fn pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len())
        .step_by(64)
        .filter_map(|at| text.get(at..(at + 64).min(text.len())))
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}
