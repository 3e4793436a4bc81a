//! State of a worker thread: the part that all workers share, its own connection pool and random numbers.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::directory::Directory;
use crate::drain::Watch;
use crate::error::Error;
use crate::observe::labels::Party;
use crate::observe::metrics::Metrics;
use crate::observe::standard::Series;
use crate::observe::{LogContext, Observer, RequestStats};
use crate::snapshot::apps::Apps;
use crate::tls::Credentials;
use crate::tls::server::Acceptor;
use crate::upstream::pool::Pool;
use leno_http::h1::{HeadLimits, Timeouts};
use leno_http::head::Head;
use leno_http::upgrade::Upgrades;

/// State that all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The running configuration.
    pub directory: Arc<Directory>,
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// Access log, spans and failures.
    pub observer: Observer,
    /// Our certificate, and the roots of trust.
    pub credentials: Arc<Credentials>,
    /// Acceptor of mutual TLS.
    pub acceptor: Acceptor,
    /// Phases of shutdown.
    pub watch: Watch,
    /// Limits on heads and trailers.
    pub limits: HeadLimits,
    /// Timeouts of peers.
    pub timeouts: Timeouts,
    /// Protocols that requests may switch to.
    pub upgrades: Upgrades,
    /// Timeout of protocol detection.
    pub detection: Duration,
    /// This workload, for metrics.
    pub me: Party,
    /// Addresses that we listen on: requests to them would loop.
    pub own_addresses: Vec<SocketAddr>,
    /// True with traffic interception: outbound connections are looked up for their original destination.
    pub intercepts: bool,
    /// The apps behind ports that no flag names.
    pub apps: Apps,
    /// Series of requests without a known destination.
    pub unknown: Arc<Series>,
}

/// State of one worker.
#[derive(Debug)]
pub struct Worker {
    /// State that all workers share.
    pub shared: Arc<Shared>,
    /// Upstream connections: idle ones, and shared ones.
    pub pool: Rc<Pool>,
    rng: RefCell<fastrand::Rng>,
}

impl Worker {
    /// A worker.
    pub fn new(shared: Arc<Shared>, pool: Pool) -> Worker {
        Worker {
            shared,
            pool: Rc::new(pool),
            rng: RefCell::new(fastrand::Rng::new()),
        }
    }

    /// Runs `with` on this worker's random number generator.
    pub fn random<T>(&self, with: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        with(&mut self.rng.borrow_mut())
    }

    /// Reports a request that ends without heads to report: one that couldn't be read, or a refused CONNECT.
    pub fn report_headless(
        &self,
        stats: &RequestStats,
        log_context: LogContext<'_>,
        error: &Error,
    ) {
        let (none, dice) = (Head::default(), || self.random(|rng| rng.u64(..)));
        let observer = &self.shared.observer;
        observer.report_request(stats, log_context, (&none, &none), Some(error), dice);
    }

    /// A random number, uniform over `u32`.
    pub fn random_u32(&self) -> u32 {
        self.random(|rng| rng.u32(..))
    }
}
