//! Mutual TLS with SPIFFE identities: what a workload proves itself with, and the two roles of a handshake.
//!
//! Invariant: no stream leaves this module before its peer's certificate was verified against the current roots and its
//! identity against who is allowed. Certificates and roots are swapped under live configurations; connections stay.

pub mod client;
pub mod server;
pub mod verify;

use std::fmt;
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

/// A SPIFFE ID: `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// Reads a SPIFFE ID of the form that the mesh issues.
    ///
    /// # Errors
    /// The text as it was, when it is of another form.
    pub fn parse(text: &str) -> Result<SpiffeId, String> {
        let malformed = || format!("{text:?} is not spiffe://<domain>/ns/<ns>/sa/<account>");
        let rest = text.strip_prefix("spiffe://").ok_or_else(malformed)?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            [domain, "ns", namespace, "sa", account]
                if [domain, namespace, account]
                    .iter()
                    .all(|part| is_name(part)) =>
            {
                Ok(SpiffeId(text.into()))
            }
            _ => Err(malformed()),
        }
    }

    /// The ID of a service account.
    ///
    /// # Errors
    /// When a part holds a character that a SPIFFE ID can't.
    pub fn of(domain: &str, namespace: &str, account: &str) -> Result<SpiffeId, String> {
        SpiffeId::parse(&format!("spiffe://{domain}/ns/{namespace}/sa/{account}"))
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        self.part(2)
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.part(4)
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        self.part(6)
    }

    fn part(&self, index: usize) -> &str {
        self.0.split('/').nth(index).unwrap_or_default()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_name(part: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    !part.is_empty() && part.bytes().all(allowed)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_has_exactly_its_parts() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/order-service");
        let id = id.expect("valid");
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), "default");
        assert_eq!(id.service_account(), "order-service");
        for text in [
            "",
            "cluster.local/ns/default/sa/a",
            "https://cluster.local/ns/default/sa/a",
            "spiffe://cluster.local/ns/default/sa/",
            "spiffe://cluster.local/ns/default/sa/a/b",
            "spiffe://cluster.local/ns/default",
            "spiffe:///ns/default/sa/a",
            "spiffe://a/ns/b/sa/c?d",
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text}");
        }
    }
}
