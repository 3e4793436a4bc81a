//! Mutual TLS with SPIFFE identities: what a workload proves itself with, and the two roles of a handshake.
//!
//! Invariant: no stream leaves this module before its peer's certificate was verified against the current roots and its
//! identity against who is allowed. Certificates and roots are swapped under live configurations; connections stay.

pub mod client;
pub mod server;
pub mod verify;

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio::time::Instant;
use webpki::KeyUsage;

use leno_rules::spiffe::SpiffeId;
pub use verify::Rejected;

/// ALPN protocols between sidecars, as Istio names them.
pub mod alpn {
    /// HTTP/2 between sidecars of ours, whose streams carry requests of any version: each says whether it came as HTTP/1. To
    /// others such a request would seem to have come as HTTP/2, which not every app behind them speaks. The number goes up when what
    /// they say to each other changes: sidecars of two builds then share no connections, and lose nothing.
    pub const SHARED: &[u8] = b"leno-h2v2";
    /// HTTP/2 between sidecars.
    pub const HTTP2: &[u8] = b"istio-h2";
    /// HTTP/1.1 between sidecars.
    pub const HTTP1: &[u8] = b"istio-http/1.1";
    /// Any other protocol between sidecars, which first say who they are.
    pub const EXCHANGE: &[u8] = b"istio-peer-exchange";
    /// Any other protocol between sidecars.
    pub const TCP: &[u8] = b"istio";
    /// Protocols that callees accept, the best first. Everybody's names last: STRICT terminates every TLS, gRPC's library speaks mutual
    /// TLS by itself, and a foreign client's refusal should be about its certificate.
    pub const ACCEPTED: [&[u8]; 7] = [SHARED, HTTP2, HTTP1, EXCHANGE, TCP, b"h2", b"http/1.1"];
}

/// A certificate of this workload with its key.
#[derive(Debug)]
pub struct Identity {
    /// What rustls signs with.
    pub key: Arc<CertifiedKey>,
    /// Who it says we are.
    pub id: SpiffeId,
    /// Serial number, in hexadecimal.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// What this workload proves itself with, and whom it trusts. Shared by every handshake; swapped when either changes.
#[derive(Debug)]
pub struct Credentials {
    identity: ArcSwapOption<Identity>,
    changed: watch::Sender<u64>,
    roots: ArcSwap<RootCertStore>,
    trust_domain: String,
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

    /// New handshakes use this identity from now on.
    pub fn set_identity(&self, identity: Identity) {
        self.identity.store(Some(Arc::new(identity)));
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits until there is an identity.
    pub async fn ready(&self) {
        // The sender lives in `self`: waiting can't fail.
        let _ = self.changed.subscribe().wait_for(|count| *count > 0).await;
    }

    /// New handshakes trust these roots, and no others, from now on.
    ///
    /// # Errors
    /// When one of them isn't a certificate; nothing changes then.
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

    /// Checks a chain of our own before it is used.
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

/// Who is at the other end of a TLS connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its verified identity.
    pub id: SpiffeId,
    /// When its certificate ends.
    pub not_after: SystemTime,
    /// SHA-256 of its certificate, in hexadecimal, as `x-forwarded-client-cert` carries it.
    pub hash: String,
}

impl Peer {
    /// When the peer's certificate ends: from then on its connections take no new request.
    pub fn expires(&self) -> Instant {
        expiry(self.not_after)
    }
}

/// The moment `not_after` by the clock that timers follow.
pub fn expiry(not_after: SystemTime) -> Instant {
    let left = not_after.duration_since(SystemTime::now());
    let now = Instant::now();
    // A certificate that outlives the clock's range never ends as far as this process can see.
    now.checked_add(left.unwrap_or_default()).unwrap_or(now)
}

/// The one cryptography of the process. Never rustls's global default: a library must not depend on it.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}
