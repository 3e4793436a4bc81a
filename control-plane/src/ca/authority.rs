//! The authority: its root, its own certificate, and the workload certificates that it issues.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rcgen::{
    CertificateSigningRequestParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::identity::Bearer;
use super::issue::{self, Issued, Subject, pem};
use super::labels::is_name;
use super::ledger::Ledger;
use super::root::{Root, provider};
use super::service_account::ServiceAccounts;

/// Default lifetime of workload certificates; a request may ask for less.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);

/// Shortest lifetime that is issued.
const MIN_TTL: Duration = Duration::from_secs(2);
/// Largest signing request, in bytes.
const MAX_CSR: usize = 16 * 1024;

/// A certificate authority.
#[derive(Debug)]
pub struct Ca {
    pub(super) root: Root,
    trust_domain: String,
    own_id: String,
    max_ttl: Duration,
    own: ArcSwapOption<CertifiedKey>,
    /// Hosts of the control plane, for clients that verify hosts instead of SPIFFE IDs.
    hosts: OnceLock<Vec<SanType>>,
    /// Verifier of service account tokens, if they are accepted.
    pub(super) service_accounts: Option<ServiceAccounts>,
    pub(super) ledger: Mutex<Ledger>,
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
        let leaf = issue::sign(
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

    /// Accepts a cluster's service account tokens as well.
    ///
    /// # Errors
    /// When the cluster's key set can't be read.
    pub fn with_service_accounts(mut self, of: ServiceAccounts) -> Result<Ca, String> {
        of.check_readable()?;
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
    pub fn set_listen_address(&self, address: IpAddr) -> Result<(), String> {
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
