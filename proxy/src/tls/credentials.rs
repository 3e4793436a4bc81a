//! Credentials of this workload: its certificate, and the roots that it trusts.
//!
//! State: one identity and one set of roots, for the life of the process; replaced, never removed.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use leno_rules::spiffe::SpiffeId;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use webpki::KeyUsage;

use super::verify::{self, Rejected};

/// A certificate of this workload with its key.
#[derive(Debug)]
pub struct Identity {
    /// Signing key and chain, for rustls.
    pub key: Arc<CertifiedKey>,
    /// SPIFFE ID in the certificate.
    pub id: SpiffeId,
    /// Serial number, in hexadecimal.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// Identity and trusted roots of this workload. Shared by every handshake; swapped when either changes.
#[derive(Debug)]
pub struct Credentials {
    pub(super) identity: ArcSwapOption<Identity>,
    changed: watch::Sender<u64>,
    pub(super) roots: ArcSwap<RootCertStore>,
    pub(super) trust_domain: String,
}

impl Credentials {
    /// Credentials without an identity yet: every handshake fails until one is set.
    pub fn new(trust_domain: &str) -> Arc<Credentials> {
        Arc::new(Credentials {
            identity: ArcSwapOption::empty(),
            changed: watch::Sender::new(0),
            roots: ArcSwap::from_pointee(RootCertStore::empty()),
            trust_domain: trust_domain.to_owned(),
        })
    }

    /// The current identity.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.load_full()
    }

    /// Sets the identity that new handshakes use.
    pub fn set_identity(&self, identity: Identity) {
        self.identity.store(Some(Arc::new(identity)));
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits until there is an identity.
    pub async fn ready(&self) {
        // The sender lives in `self`: waiting can't fail.
        let _ = self.changed.subscribe().wait_for(|count| *count > 0).await;
    }

    /// Sets the roots that new handshakes trust, in place of all earlier ones.
    ///
    /// # Errors
    /// When there is none, or one of them isn't a certificate; nothing changes then.
    pub fn set_roots(&self, roots: &[CertificateDer<'_>]) -> Result<(), String> {
        let mut store = RootCertStore::empty();
        for root in roots {
            let added = store.add(root.clone().into_owned());
            added.map_err(|error| format!("not a root certificate: {error}"))?;
        }
        if store.is_empty() {
            return Err("no root certificate".to_owned());
        }
        self.roots.store(Arc::new(store));
        Ok(())
    }

    /// Verifies a chain of our own before it is used.
    ///
    /// # Errors
    /// When a peer would refuse it.
    pub fn verify_own(
        &self,
        chain: &[CertificateDer<'_>],
        allowed: verify::Allowed<'_>,
    ) -> Result<SpiffeId, Rejected> {
        let empty = || Rejected::Chain("the chain is empty".to_owned());
        let (leaf, intermediates) = chain.split_first().ok_or_else(empty)?;
        let (roots, now) = (self.roots.load(), UnixTime::now());
        let usage = KeyUsage::client_auth();
        verify::verify(
            leaf,
            intermediates,
            &roots,
            usage,
            now,
            &self.trust_domain,
            allowed,
        )
    }

    /// The trust domain that peers must belong to.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }
}
