//! Identities: those that certificates prove, and those that they are issued for.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::labels;

/// The identity in a workload certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The whole SPIFFE ID.
    pub id: String,
    /// Its trust domain.
    pub domain: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub account: String,
    /// Its workload's labels, as its join token has them.
    pub labels: BTreeMap<String, String>,
    /// Expiry of the certificate.
    pub not_after: SystemTime,
}

impl Identity {
    /// Reads the identity from a verified certificate.
    ///
    /// # Errors
    /// When it holds anything but one SPIFFE ID of a mesh.
    pub fn of(leaf: &CertificateDer<'_>) -> Result<Identity, String> {
        let cert = EndEntityCert::try_from(leaf).map_err(|error| error.to_string())?;
        let names: Vec<&str> = cert.valid_uri_names().collect();
        let [id] = names.as_slice() else {
            return Err(format!("holds {} SPIFFE IDs, not one", names.len()));
        };
        let parts: Vec<&str> = id
            .strip_prefix("spiffe://")
            .unwrap_or_default()
            .split('/')
            .collect();
        let [domain, "ns", namespace, "sa", account] = parts.as_slice() else {
            return Err(format!(
                "{id} is not spiffe://<domain>/ns/<ns>/sa/<account>"
            ));
        };
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
        let ends = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Identity {
            id: (*id).to_owned(),
            domain: (*domain).to_owned(),
            namespace: (*namespace).to_owned(),
            account: (*account).to_owned(),
            labels: labels::of(&parsed)?,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(ends),
        })
    }
}

/// The workload that a token or a certificate is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bearer {
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub account: String,
    /// Its workload's labels.
    pub labels: BTreeMap<String, String>,
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
