//! What a worker thread has at hand: what all workers share, and its own pool and dice.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::connect::pool::Pool;
use crate::directory::Directory;
use crate::drain::Watch;
use crate::error::Error;
use crate::observe::labels::Party;
use crate::observe::metrics::Metrics;
use crate::observe::standard::Series;
use crate::observe::{Observer, Outcome, Teller};
use crate::snapshot::apps::Apps;
use crate::tls::Credentials;
use crate::tls::server::Acceptor;
use leno_http::h1::{Limits, Timeouts};
use leno_http::head::Head;
use leno_http::upgrade::Upgrades;

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// What runs.
    pub directory: Arc<Directory>,
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// Who else wants to know of requests.
    pub observer: Observer,
    /// What we prove ourselves with.
    pub credentials: Arc<Credentials>,
    /// Accepts mutual TLS.
    pub acceptor: Acceptor,
    /// Tells the end.
    pub watch: Watch,
    /// Bounds on messages.
    pub limits: Limits,
    /// How long peers may take.
    pub timeouts: Timeouts,
    /// The protocols that requests may switch to.
    pub upgrades: Upgrades,
    /// How long a connection may keep its protocol to itself.
    pub detection: Duration,
    /// Who we are, for metrics.
    pub me: Party,
    /// Addresses that we listen on: requests to them would go round in circles.
    pub own_addresses: Vec<SocketAddr>,
    /// Whether connections that were taken over come in: their destination is asked for.
    pub intercepts: bool,
    /// The apps behind ports that no flag names.
    pub apps: Apps,
    /// Where requests are counted whose destination is unknown.
    pub unknown: Arc<Series>,
}

/// What one worker has at hand.
#[derive(Debug)]
pub struct Worker {
    /// What all workers share.
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

    /// Runs `with` on this worker's random numbers.
    pub fn random<T>(&self, with: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        with(&mut self.rng.borrow_mut())
    }

    /// A request that could not be read is over.
    pub fn over(&self, outcome: &Outcome, teller: Teller<'_>, error: &Error) {
        let (none, dice) = (Head::default(), || self.random(|rng| rng.u64(..)));
        let observer = &self.shared.observer;
        observer.over(outcome, teller, (&none, &none), Some(error), dice);
    }

    /// A number evenly spread over `u32`.
    pub fn dice(&self) -> u32 {
        self.random(|rng| rng.u32(..))
    }
}
