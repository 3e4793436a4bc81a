//! Mutual TLS with SPIFFE identities: the credentials of a workload, and the two roles of a handshake.
//!
//! Invariant: no stream leaves this module before its peer's certificate was verified against the current roots and its
//! identity against those allowed. Certificates and roots are swapped under live configurations; connections stay.

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
    /// HTTP/2 between sidecars of ours, whose streams carry requests of any version, marked when they came as HTTP/1.
    /// Others would take such a request for HTTP/2, which not every app behind them speaks. The number grows when the
    /// format changes: sidecars of two builds then share no connections, and lose nothing.
    pub const SHARED: &[u8] = b"leno-h2v2";
    /// HTTP/2 between sidecars.
    pub const HTTP2: &[u8] = b"istio-h2";
    /// HTTP/1.1 between sidecars.
    pub const HTTP1: &[u8] = b"istio-http/1.1";
    /// Any other protocol between sidecars, after an exchange of peer metadata.
    pub const EXCHANGE: &[u8] = b"istio-peer-exchange";
    /// Any other protocol between sidecars.
    pub const TCP: &[u8] = b"istio";
    /// Protocols that a server accepts, the best first. The common names come last: STRICT terminates every TLS, gRPC's
    /// library speaks mutual TLS by itself, and a foreign client's refusal should be about its certificate.
    pub const ACCEPTED: [&[u8]; 7] = [SHARED, HTTP2, HTTP1, EXCHANGE, TCP, b"h2", b"http/1.1"];
}

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

/// Authenticated peer of a TLS connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its verified identity.
    pub id: SpiffeId,
    /// Expiry of its certificate.
    pub not_after: SystemTime,
    /// SHA-256 of its certificate, in hexadecimal, as `x-forwarded-client-cert` carries it.
    pub hash: String,
}

impl Peer {
    /// Expiry of the peer's certificate: from then on its connections take no new request.
    pub fn expires(&self) -> Instant {
        expiry(self.not_after)
    }
}

/// The moment `not_after` on the clock that timers follow.
pub fn expiry(not_after: SystemTime) -> Instant {
    let left = not_after.duration_since(SystemTime::now());
    let now = Instant::now();
    // A certificate that outlives the clock's range counts as expired.
    now.checked_add(left.unwrap_or_default()).unwrap_or(now)
}

/// The one crypto provider of the process. Never rustls's global default: a library must not depend on it.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}
