//! Upstream connections of one worker: idle ones, the most recently used first, and those that many requests share.
//!
//! Invariant: a connection that is handed out was open a moment ago, its peer's certificate is valid, and a cluster
//! still names its endpoint.
//!
//! Bounded by time alone: `--upstream-idle-timeout`, the certificates' end, a retired endpoint; swept each second.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::connection::{IdHasher, Upstream};
use super::shared::SharedConnections;
use crate::balance::Endpoint;
use leno_http::clock;
use leno_http::h1::LastHead;
use leno_http::peers::Up;

/// Idle connections of one endpoint, each with the time since which it is idle, the latest last.
type Idle = Vec<(Instant, Box<Upstream>)>;

/// Idle connections by endpoint, and shared ones.
#[derive(Debug)]
pub struct Pool {
    idle: RefCell<HashMap<u64, Idle, BuildHasherDefault<IdHasher>>>,
    idle_timeout: Duration,
    before: RefCell<LastHead>,
    /// Connections that many requests share.
    pub shared: Rc<SharedConnections>,
}

impl Pool {
    /// A pool that keeps an idle connection for `idle_timeout` at most.
    pub fn new(idle_timeout: Duration) -> Pool {
        Pool {
            idle: RefCell::default(),
            idle_timeout,
            before: RefCell::default(),
            shared: Rc::default(),
        }
    }

    /// An idle connection to `endpoint`, if there is a usable one. For a request that can't be sent again only one that
    /// is surely open, since a request that meets a connection that is just being closed is lost.
    pub fn take(
        &self,
        endpoint: &Endpoint,
        now: Instant,
        is_repeatable: bool,
    ) -> Option<Box<Upstream>> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&endpoint.id)?;
        while let Some((since, mut upstream)) = connections.pop() {
            let idle_for = now.duration_since(since);
            if !is_repeatable && !endpoint.idle_is_safe(idle_for) {
                // The others are idle for longer still.
                connections.push((since, upstream));
                return None;
            }
            if upstream.is_usable(idle_for, now, self.idle_timeout) {
                return Some(upstream);
            }
        }
        None
    }

    /// A stream to `endpoint`, if a shared connection has room for one.
    pub fn stream(
        &self,
        endpoint: &Arc<Endpoint>,
        now: Instant,
        is_repeatable: bool,
    ) -> Option<Box<Upstream>> {
        self.shared
            .take(endpoint, now, self.idle_timeout, is_repeatable)
    }

    /// Keeps `upstream` for the next request, if it can take one.
    pub fn give_back(&self, mut upstream: Box<Upstream>) {
        let is_done = upstream.endpoint.is_retired() || upstream.is_worn_out();
        // A stream is used once; its connection is shared anyway.
        let Up::H1(half) = &mut upstream.half else {
            return;
        };
        if is_done || !half.is_reusable() {
            // Mostly another connection takes its place, and begins with its last head.
            self.before
                .borrow_mut()
                .clone_from(half.conn_ref().last_head());
            return;
        }
        half.conn().release();
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(upstream.endpoint.id).or_default();
        connections.push((clock::now(), upstream));
    }

    /// Gives a new connection the last head of a closed one, which its own first head probably repeats.
    pub fn prime_last_head(&self, upstream: &mut Upstream) {
        if let Up::H1(half) = &mut upstream.half {
            half.conn()
                .set_last_head(self.before.borrow().for_connection());
        }
    }

    /// Closes connections that were idle for too long, or are no longer usable. Called every second or so.
    pub fn sweep(&self, now: Instant) {
        self.shared.sweep(now, self.idle_timeout);
        let mut idle = self.idle.borrow_mut();
        idle.retain(|_, connections| {
            connections.retain_mut(|(since, upstream)| {
                let idle = now.duration_since(*since);
                upstream.is_usable(idle, now, self.idle_timeout)
            });
            !connections.is_empty()
        });
    }
}
