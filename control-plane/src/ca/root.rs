//! The root: a key that only its owner may read, and a self-signed certificate.
//!
//! Files: `root-key.pem` (0600) and `root-cert.pem`, made on first use, for ten years.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Backdating of certificates, for clocks that are late; as Istio's.
pub(super) const BACKDATE: Duration = Duration::from_secs(120);
/// Lifetime of a root: ten years, as Istio's.
const LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The root of trust.
pub struct Root {
    key_pem: String,
    pem: String,
    der: CertificateDer<'static>,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root")
            .field("fingerprint", &self.fingerprint())
            .finish()
    }
}

impl Root {
    /// Reads the root from `directory`, or makes one there.
    ///
    /// # Errors
    /// When a file can't be read or written, or others may read the key.
    pub fn open(directory: &Path, trust_domain: &str) -> Result<Root, String> {
        let (key, cert) = (
            directory.join("root-key.pem"),
            directory.join("root-cert.pem"),
        );
        fs::create_dir_all(directory).map_err(|error| at(directory, &error))?;
        // `leno serve` and a first `leno token` may start at once: one of them makes the root.
        let lock = directory.join("lock");
        let held = fs::File::create(&lock).map_err(|error| at(&lock, &error))?;
        held.lock().map_err(|error| at(&lock, &error))?;
        if !key.exists() && !cert.exists() {
            let (key_pem, pem) = create(trust_domain)?;
            write_secret(&key, &key_pem)?;
            fs::write(&cert, pem).map_err(|error| at(&cert, &error))?;
            tracing::info!(directory = %directory.display(), "root created");
        }
        let mode = fs::metadata(&key)
            .map_err(|error| at(&key, &error))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            let path = key.display();
            return Err(format!(
                "{path}: others may read it (mode {:o}); it must be 0600",
                mode & 0o777
            ));
        }
        let key_pem = fs::read_to_string(&key).map_err(|error| at(&key, &error))?;
        let pem = fs::read_to_string(&cert).map_err(|error| at(&cert, &error))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|error| at(&cert, &error))?;
        let root = Root { key_pem, pem, der };
        root.issuer()?;
        Ok(root)
    }

    /// The certificate, in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// SHA-256 of the certificate, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let digest = digest(&SHA256, &self.der);
        digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The issuer that signs certificates.
    pub(super) fn issuer(&self) -> Result<Issuer<'static, KeyPair>, String> {
        let key = KeyPair::from_pem(&self.key_pem).map_err(|error| format!("root key: {error}"))?;
        Issuer::from_ca_cert_der(&self.der, key).map_err(|error| format!("root: {error}"))
    }

    /// The key, for signing tokens.
    pub(super) fn key(&self) -> Result<KeyPair, String> {
        KeyPair::from_pem(&self.key_pem).map_err(|error| format!("root key: {error}"))
    }
}

fn create(trust_domain: &str) -> Result<(String, String), String> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain);
    params
        .distinguished_name
        .push(DnType::CommonName, "Leno root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + LIFE).into();
    let cert = params
        .self_signed(&key)
        .map_err(|error| error.to_string())?;
    Ok((key.serialize_pem(), cert.pem()))
}

/// Writes a file that only its owner may read, by rename.
pub(super) fn write_secret(path: &Path, text: &str) -> Result<(), String> {
    let next = path.with_extension("next");
    let written = || {
        let _ = fs::remove_file(&next);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&next)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, path)
    };
    written().map_err(|error: std::io::Error| at(path, &error))
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

/// The one cryptography provider of the process.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}
