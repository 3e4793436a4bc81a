//! Idle upstream connections of one worker, the most recently used first.
//!
//! Invariant: what is handed out was open a moment ago, its peer's certificate is valid, and a cluster still names its
//! endpoint.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::balance::Endpoint;
use crate::http::h1::ClientHalf;

/// A connection is given up this long before a certificate that made it ends: the peer closes it then, and a request
/// must not meet that.
const BEFORE_EXPIRY: Duration = Duration::from_millis(500);

/// An upstream connection.
#[derive(Debug)]
pub struct Upstream {
    /// HTTP on it.
    pub half: ClientHalf,
    until: Option<Instant>,
    endpoint: Arc<Endpoint>,
}

impl Upstream {
    /// A fresh connection to `endpoint`; when it is mutual TLS, the certificates that made it are valid `until` then.
    pub fn new(
        half: ClientHalf,
        until: Option<Instant>,
        endpoint: &Arc<Endpoint>,
    ) -> Box<Upstream> {
        Box::new(Upstream {
            half,
            until,
            endpoint: Arc::clone(endpoint),
        })
    }

    fn is_usable(&mut self, now: Instant) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.until.is_none_or(|until| now + BEFORE_EXPIRY < until)
            && !self.endpoint.is_retired()
            && self.half.is_alive(&mut cx)
    }
}

/// Hashes the numbers of endpoints, which are ours: nobody can choose them to collide.
#[derive(Debug, Default)]
struct IdHasher(u64);

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

/// Idle connections of one endpoint, and since when they are, the latest last.
type Idle = Vec<(Instant, Box<Upstream>)>;

/// Idle connections by endpoint.
#[derive(Debug)]
pub struct Pool {
    idle: RefCell<HashMap<u64, Idle, BuildHasherDefault<IdHasher>>>,
    idle_timeout: Duration,
}

impl Pool {
    /// A pool that keeps a connection for `idle_timeout` at most.
    pub fn new(idle_timeout: Duration) -> Pool {
        Pool {
            idle: RefCell::default(),
            idle_timeout,
        }
    }

    /// An idle connection to `endpoint`, if there is a good one.
    pub fn take(&self, endpoint: &Endpoint, now: Instant) -> Option<Box<Upstream>> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&endpoint.id)?;
        while let Some((_, mut upstream)) = connections.pop() {
            if upstream.is_usable(now) {
                return Some(upstream);
            }
        }
        None
    }

    /// Keeps `upstream` for the next request, if it can take one.
    pub fn give_back(&self, mut upstream: Box<Upstream>) {
        if !upstream.half.is_reusable() || upstream.endpoint.is_retired() {
            return;
        }
        upstream.half.conn().rest();
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(upstream.endpoint.id).or_default();
        connections.push((Instant::now(), upstream));
    }

    /// Closes what has been idle for too long, or can't be used any more. Called every second or so.
    pub fn sweep(&self, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|_, connections| {
            connections.retain_mut(|(since, upstream)| {
                now.duration_since(*since) < self.idle_timeout && upstream.is_usable(now)
            });
            !connections.is_empty()
        });
    }
}
