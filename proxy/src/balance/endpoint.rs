//! One endpoint: its address, how it is spoken to, and its counters, shared by every worker.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::outlier::Health;
use crate::intercept::passing_to;
use crate::observe::standard::Series;
use crate::tls::client::Connector;
use leno_rules::config::endpoints::Workload;

/// Numbers endpoints, so that pools can name them.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// One endpoint of a cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique in this process.
    pub id: u64,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share relative to others.
    pub weight: u32,
    /// How it is spoken to when it has a sidecar.
    pub tls: Option<Arc<Connectors>>,
    /// Where connections to it come from, if that is not the system's choice.
    pub source: Option<IpAddr>,
    /// Whose it is.
    pub workload: Workload,
    /// Where requests to it are counted.
    pub series: Option<Arc<Series>>,
    /// How it has been doing.
    pub health: Health,
    /// The shortest time, in milliseconds, after which it closed an idle connection.
    idle_close: AtomicU32,
    in_flight: AtomicU32,
    /// Whether it is an app that may still be starting: it was never reached.
    is_awaited: AtomicBool,
    retired: AtomicBool,
    http1_only: AtomicBool,
    is_alone: AtomicBool,
}

/// The TLS of one set of identities, by what is carried.
#[derive(Debug)]
pub struct Connectors {
    /// For HTTP/1.
    pub http: Connector,
    /// For streams of HTTP/1, or HTTP/1 where they aren't known.
    pub shared: Connector,
    /// For HTTP/2, or HTTP/1 where it isn't known.
    pub http2: Connector,
    /// For any other protocol.
    pub tcp: Connector,
}

impl Endpoint {
    /// An endpoint that is spoken to in plaintext: the local app, or one without a sidecar.
    pub fn plain(address: SocketAddr, weight: u32) -> Endpoint {
        Endpoint::new(address, weight, None, Workload::default(), None)
    }

    /// The app at an address of this pod, reached from the address of which nothing is taken over.
    pub fn passing(address: SocketAddr) -> Endpoint {
        Endpoint {
            source: Some(passing_to(address.ip())),
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
            is_alone: AtomicBool::new(false),
        }
    }

    /// The app beside us, which may be starting still.
    #[must_use]
    pub fn awaited(self) -> Endpoint {
        self.is_awaited.store(true, Ordering::Relaxed);
        self
    }

    /// Whether it may still be starting.
    pub fn is_awaited(&self) -> bool {
        self.is_awaited.load(Ordering::Relaxed)
    }

    /// It was reached, or is waited for no longer.
    pub fn was_awaited(&self) {
        self.is_awaited.store(false, Ordering::Relaxed);
    }

    /// Requests that it is working on.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// It closed a connection that was idle for `idle`.
    pub fn closed_after(&self, idle: Duration) {
        let millis = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
        self.idle_close.fetch_min(millis, Ordering::Relaxed);
    }

    /// It had left a connection open that was idle for `idle`: what it did before, it does no more.
    pub fn open_after(&self, idle: Duration) {
        let millis = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
        if self.idle_close.load(Ordering::Relaxed) < millis {
            self.idle_close.store(millis, Ordering::Relaxed);
        }
    }

    /// Whether a connection that was idle for `idle` is surely open still: for less than half as long as the shortest
    /// after which the endpoint closed one.
    pub fn surely_open_after(&self, idle: Duration) -> bool {
        let shortest = Duration::from_millis(self.idle_close.load(Ordering::Relaxed).into());
        idle < shortest / 2
    }

    /// Its TLS knows no HTTP/2.
    pub fn refuses_http2(&self) {
        self.http1_only.store(true, Ordering::Relaxed);
    }

    /// Whether its TLS knows no HTTP/2.
    pub fn is_http1_only(&self) -> bool {
        self.http1_only.load(Ordering::Relaxed)
    }

    /// Its TLS knows no connections that HTTP/1 shares.
    pub fn refuses_to_share(&self) {
        self.is_alone.store(true, Ordering::Relaxed);
    }

    /// Whether each of its HTTP/1 connections carries one request at a time.
    pub fn is_alone(&self) -> bool {
        self.is_alone.load(Ordering::Relaxed)
    }

    /// No cluster names it any more: its idle connections are closed.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Whether no cluster names it any more.
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
        let open = |idle: u64| endpoint.surely_open_after(ms(idle));
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
