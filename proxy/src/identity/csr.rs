//! P-256 private key, its certificate signing request, and the rustls `CertifiedKey` that results.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::tls::provider;
use leno_rules::spiffe::SpiffeId;

/// A private key. It never leaves this process, but for the workload's own state directory.
pub(super) struct Key(KeyPair);

impl Key {
    /// A fresh key.
    pub(super) fn generate() -> Result<Key, String> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        key.map(Key).map_err(|error| error.to_string())
    }

    /// Parses a key that [`Key::pem`] wrote.
    pub(super) fn from_pem(pem: &str) -> Result<Key, String> {
        KeyPair::from_pem(pem)
            .map(Key)
            .map_err(|error| error.to_string())
    }

    /// The private key in PEM, for the state directory.
    pub(super) fn pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// The certificate signing request, in PEM. The CA decides the identity; the SAN here only informs a reader.
    pub(super) fn request(&self, id: &SpiffeId) -> Result<String, String> {
        let mut params = CertificateParams::default();
        let uri = id
            .as_str()
            .try_into()
            .map_err(|error: rcgen::Error| error.to_string())?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let request = params
            .serialize_request(&self.0)
            .and_then(|request| request.pem());
        request.map_err(|error| error.to_string())
    }

    /// The key with its chain, for rustls; an error unless the chain's leaf is for this key.
    pub(super) fn certified(
        self,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Arc<CertifiedKey>, String> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()));
        let certified = CertifiedKey::from_der(chain, der, &provider());
        certified.map(Arc::new).map_err(|error| error.to_string())
    }
}
