//! An upstream connection, as it is kept between requests.

use std::hash::Hasher;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use leno_http::peers::Up;
use leno_rules::config::cluster::Connections;
use tokio::time::Instant;

use crate::balance::Endpoint;

/// A connection is given up this long before a certificate of its handshake expires: the peer closes it then, and a
/// request must not meet that.
pub(super) const BEFORE_EXPIRY: Duration = Duration::from_millis(500);

/// An upstream connection.
#[derive(Debug)]
pub struct Upstream {
    /// HTTP on it, as the client.
    pub half: Up,
    /// Its local address.
    pub local: Option<SocketAddr>,
    until: Option<Instant>,
    pub(super) endpoint: Arc<Endpoint>,
    uses: Connections,
}

impl Upstream {
    /// A connection from `local` to `endpoint`, or a stream of one, used as `uses` allows; with mutual TLS, the
    /// certificates of its handshake are valid `until` then.
    pub fn new(
        half: Up,
        (until, local): (Option<Instant>, Option<SocketAddr>),
        endpoint: &Arc<Endpoint>,
        uses: Connections,
    ) -> Box<Upstream> {
        Box::new(Upstream {
            half,
            local,
            until,
            endpoint: Arc::clone(endpoint),
            uses,
        })
    }

    /// True when it is usable now, after being idle for `idle`. Records in the endpoint that it stayed open, or closed.
    pub(super) fn is_usable(
        &mut self,
        idle: Duration,
        now: Instant,
        idle_timeout: Duration,
    ) -> bool {
        let expires = self.until.is_some_and(|until| until <= now + BEFORE_EXPIRY);
        let idle_timeout = self.uses.idle_timeout.unwrap_or(idle_timeout);
        if expires || idle >= idle_timeout || self.endpoint.is_retired() {
            return false;
        }
        let Up::H1(half) = &mut self.half else {
            return false;
        };
        let is_alive = half.is_alive(&mut Context::from_waker(Waker::noop()));
        match is_alive {
            true => self.endpoint.open_after(idle),
            false => self.endpoint.closed_after(idle),
        }
        is_alive
    }

    /// True once it has carried the requests that it may. A sidecar at the other end applies that limit for its app
    /// itself.
    pub(super) fn is_worn_out(&self) -> bool {
        let max = self
            .uses
            .max_requests
            .filter(|_| self.endpoint.tls.is_none());
        max.is_some_and(|max| self.half.requests_sent() >= u64::from(max))
    }
}

/// Hashes endpoint ids, which are ours: no client can choose them to collide.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // An odd constant spreads consecutive numbers over the bits that the table looks at.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
