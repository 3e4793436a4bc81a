//! Mutual TLS with SPIFFE identities: the credentials of a workload, and the two roles of a handshake.
//!
//! Invariant: no stream leaves this module before its peer's certificate was verified against the current roots and its
//! identity against those allowed. Certificates and roots are swapped under live configurations; connections stay.

pub mod client;
mod credentials;
pub mod server;
pub mod verify;

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use tokio::time::Instant;

pub use credentials::{Credentials, Identity};
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
