//! The certificate authority: workload identities, and the certificates that prove them.
//!
//! Invariant: a certificate's name is decided here, from the identity that the caller proved; a request only brings a
//! key. Every signed certificate is checked again before it leaves.

pub mod issue;
pub mod labels;
pub mod root;
pub mod service_account;
pub mod token;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer, X509Certificate};

use issue::Subject;
use root::Root;
use service_account::ServiceAccounts;
use token::Ledger;

/// Default lifetime of workload certificates; a request may ask for less.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);

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

/// True for a text that can be a part of a SPIFFE ID.
pub fn is_name(part: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    !part.is_empty() && part.bytes().all(allowed)
}

/// A certificate authority.
#[derive(Debug)]
pub struct Ca {
    root: Root,
    trust_domain: String,
    own_id: String,
    max_ttl: Duration,
    own: ArcSwapOption<CertifiedKey>,
    /// Hosts of the control plane, for clients that verify hosts instead of SPIFFE IDs.
    hosts: OnceLock<Vec<SanType>>,
    /// Verifier of service account tokens, if they are accepted.
    service_accounts: Option<ServiceAccounts>,
    ledger: Mutex<Ledger>,
    directory: PathBuf,
}

impl Ca {
    /// Opens the CA in `directory`, or creates it there on first use.
    ///
    /// # Errors
    /// When its files can't be read, written or trusted.
    pub fn open(directory: &Path, trust_domain: &str, max_ttl: Duration) -> Result<Ca, String> {
        if !is_name(trust_domain) {
            return Err(format!("{trust_domain:?} is not a trust domain"));
        }
        let ca = Ca {
            root: Root::open(directory, trust_domain)?,
            own_id: format!("spiffe://{trust_domain}/ns/leno-system/sa/leno"),
            trust_domain: trust_domain.to_owned(),
            max_ttl,
            own: ArcSwapOption::empty(),
            hosts: OnceLock::new(),
            service_accounts: None,
            ledger: Mutex::new(Ledger::open(directory)?),
            directory: directory.to_owned(),
        };
        ca.renew_own()?;
        Ok(ca)
    }

    /// Accepts a cluster's service account tokens as well.
    ///
    /// # Errors
    /// When the cluster's key set can't be read.
    pub fn with_service_accounts(mut self, of: ServiceAccounts) -> Result<Ca, String> {
        of.is_readable()?;
        self.service_accounts = Some(of);
        Ok(self)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The control plane's own SPIFFE ID.
    pub fn own_id(&self) -> &str {
        &self.own_id
    }

    /// The directory of its files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Expiry of the root certificate, in seconds since 1970; 0 when it can't be parsed.
    pub fn root_ends(&self) -> i64 {
        let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(self.root.pem().as_bytes()) else {
            return 0;
        };
        let parsed = pem.parse_x509();
        parsed.map_or(0, |certificate| {
            certificate.validity().not_after.timestamp()
        })
    }

    /// Its root, in PEM.
    pub fn root_pem(&self) -> &str {
        self.root.pem()
    }

    /// Its root, to verify against.
    pub fn root_store(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates([self.root.der().clone()]);
        store
    }

    /// The control plane's own certificate.
    pub fn own_certificate(&self) -> Option<Arc<CertifiedKey>> {
        self.own.load_full()
    }

    /// Adds `localhost`, and `address` unless it is unspecified, to the control plane's own certificate, for clients
    /// that verify hosts instead of SPIFFE IDs, such as gRPC's library.
    ///
    /// # Errors
    /// When the certificate can't be signed anew.
    pub fn listens_at(&self, address: IpAddr) -> Result<(), String> {
        let localhost = "localhost"
            .try_into()
            .map_err(|e: rcgen::Error| e.to_string())?;
        let named = (!address.is_unspecified()).then_some(SanType::IpAddress(address));
        let hosts = named.into_iter().chain([SanType::DnsName(localhost)]);
        let _ = self.hosts.set(hosts.collect());
        self.renew_own()
    }

    /// Gives the control plane a fresh certificate of its own.
    ///
    /// # Errors
    /// When it can't be signed.
    pub fn renew_own(&self) -> Result<(), String> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())?;
        let leaf = issue::sign(
            &self.root,
            &key,
            &Subject {
                id: &self.own_id,
                hosts: self.hosts.get().map_or(&[], Vec::as_slice),
                labels: &BTreeMap::new(),
            },
            self.max_ttl,
            SystemTime::now(),
        )?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // The root goes along: at first contact a proxy knows only its fingerprint.
        let chain = vec![leaf, self.root.der().clone()];
        let own = CertifiedKey::from_der(chain, der, &provider()).map_err(|e| e.to_string())?;
        self.own.store(Some(Arc::new(own)));
        Ok(())
    }

    /// Renews the control plane's own certificate for ever, at half its lifetime.
    pub async fn keep_own(self: Arc<Ca>) {
        loop {
            tokio::time::sleep(self.max_ttl / 2).await;
            if let Err(error) = self.renew_own() {
                tracing::error!(error, "the control plane's own certificate was not renewed");
            }
        }
    }
}

/// The one cryptography provider of the process.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

#[cfg(test)]
mod tests;
