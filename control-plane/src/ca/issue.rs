//! Issuing: template, signature, and a check of the signed certificate.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::Identity;
use super::labels;
use super::root::{BACKDATE, Root, provider};

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

pub(super) fn pem(der: &CertificateDer<'_>) -> String {
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
