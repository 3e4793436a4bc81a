//! One endpoint: its address, its TLS, and its counters, shared by every worker.
//!
//! State: requests in flight, shortest idle close, retired, no HTTP/2 or no shared connections over its TLS; as long as
//! an assignment names the endpoint unchanged.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::outlier::Health;
use crate::intercept::passthrough_source;
use crate::observe::standard::Series;
use crate::tls::client::Connector;
use leno_rules::config::endpoints::Workload;

/// Next endpoint id, by which pools refer to endpoints.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// One endpoint of a cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique in this process.
    pub id: u64,
    /// Address that it listens on.
    pub address: SocketAddr,
    /// Load-balancing weight, relative to others.
    pub weight: u32,
    /// TLS towards its sidecar, if it has one.
    pub tls: Option<Arc<Connectors>>,
    /// Source address of connections to it; `None` leaves the choice to the system.
    pub source: Option<IpAddr>,
    /// Workload that it belongs to.
    pub workload: Workload,
    /// Metric series of requests to it.
    pub series: Option<Arc<Series>>,
    /// State of outlier detection.
    pub health: Health,
    /// The shortest time, in milliseconds, after which it closed an idle connection.
    idle_close: AtomicU32,
    in_flight: AtomicU32,
    /// True for an app that may still be starting: it was never reached.
    is_awaited: AtomicBool,
    retired: AtomicBool,
    http1_only: AtomicBool,
    no_multiplexing: AtomicBool,
}

/// TLS for one set of identities, by protocol.
#[derive(Debug)]
pub struct Connectors {
    /// For HTTP/1.
    pub http: Connector,
    /// For shared connections, with HTTP/1 as the fallback.
    pub shared: Connector,
    /// For HTTP/2, with HTTP/1 as the fallback.
    pub http2: Connector,
    /// For any other protocol.
    pub tcp: Connector,
}

impl Endpoint {
    /// A plaintext endpoint: the local app, or one without a sidecar.
    pub fn plain(address: SocketAddr, weight: u32) -> Endpoint {
        Endpoint::new(address, weight, None, Workload::default(), None)
    }

    /// The app at an address of this pod, reached from the source address that is never intercepted.
    pub fn passing(address: SocketAddr) -> Endpoint {
        Endpoint {
            source: Some(passthrough_source(address.ip())),
            ..Endpoint::plain(address, 1)
        }
    }

    /// An endpoint.
    pub fn new(
        address: SocketAddr,
        weight: u32,
        tls: Option<Arc<Connectors>>,
        workload: Workload,
        series: Option<Arc<Series>>,
    ) -> Endpoint {
        Endpoint {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            address,
            weight: weight.max(1),
            tls,
            source: None,
            workload,
            series,
            health: Health::default(),
            idle_close: AtomicU32::new(u32::MAX),
            in_flight: AtomicU32::new(0),
            is_awaited: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            http1_only: AtomicBool::new(false),
            no_multiplexing: AtomicBool::new(false),
        }
    }

    /// Marks it as the local app, which may still be starting.
    #[must_use]
    pub fn starting(self) -> Endpoint {
        self.is_awaited.store(true, Ordering::Relaxed);
        self
    }

    /// True while it may still be starting.
    pub fn is_awaited(&self) -> bool {
        self.is_awaited.load(Ordering::Relaxed)
    }

    /// Ends the wait for its start: it was reached, or the time is over.
    pub fn mark_started(&self) {
        self.is_awaited.store(false, Ordering::Relaxed);
    }

    /// Requests in flight on it.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Records that it closed a connection that was idle for `idle`.
    pub fn closed_after(&self, idle: Duration) {
        let millis = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
        self.idle_close.fetch_min(millis, Ordering::Relaxed);
    }

    /// Records that it left a connection open that was idle for `idle`: an earlier close after a shorter time no longer
    /// counts.
    pub fn open_after(&self, idle: Duration) {
        let millis = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
        if self.idle_close.load(Ordering::Relaxed) < millis {
            self.idle_close.store(millis, Ordering::Relaxed);
        }
    }

    /// True when a connection that was idle for `idle` is surely open still: for less than half the shortest time after
    /// which the endpoint closed one.
    pub fn idle_is_safe(&self, idle: Duration) -> bool {
        let shortest = Duration::from_millis(self.idle_close.load(Ordering::Relaxed).into());
        idle < shortest / 2
    }

    /// Records that its TLS negotiates no HTTP/2.
    pub fn mark_http1_only(&self) {
        self.http1_only.store(true, Ordering::Relaxed);
    }

    /// True when its TLS negotiates no HTTP/2.
    pub fn is_http1_only(&self) -> bool {
        self.http1_only.load(Ordering::Relaxed)
    }

    /// Records that its TLS negotiates no shared connections for HTTP/1.
    pub fn mark_no_multiplexing(&self) {
        self.no_multiplexing.store(true, Ordering::Relaxed);
    }

    /// True when each of its HTTP/1 connections carries one request at a time.
    pub fn no_multiplexing(&self) -> bool {
        self.no_multiplexing.load(Ordering::Relaxed)
    }

    /// Marks it as removed from all clusters: its idle connections are closed.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// True when no cluster names it any more.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    pub(super) fn enter(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_surely_open_for_half_as_long_as_the_shortest_that_was_closed() {
        let endpoint = Endpoint::plain(([127, 0, 0, 1], 1).into(), 1);
        let ms = Duration::from_millis;
        let open = |idle: u64| endpoint.idle_is_safe(ms(idle));
        assert!(open(3_600_000), "nothing was closed yet");
        endpoint.closed_after(ms(100));
        assert!(open(49) && !open(50));
        endpoint.closed_after(ms(300));
        assert!(open(49) && !open(50), "the shortest counts");
        endpoint.closed_after(ms(1));
        assert!(!open(1));
        endpoint.open_after(ms(200));
        assert!(
            open(99) && !open(100),
            "what it did before, it does no more"
        );
    }
}
