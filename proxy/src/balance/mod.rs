//! Load balancing: a [`Cluster`] picks an endpoint, a [`Lease`] counts the request in flight until it is dropped.
//!
//! Invariant: an [`Endpoint`] outlives the configuration that named it first; a push replaces the list, never the
//! counters of an endpoint that stays.
//!
//! State of a cluster, shared by all workers: its endpoints and the turn of round robin, until its configuration
//! changes.

pub mod endpoint;
mod endpoint_set;
mod least_request;
pub mod limits;
pub mod outlier;

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::error::{Error, Kind};
pub use endpoint::Endpoint;
pub use endpoint_set::EndpointSet;
use leno_rules::config;
use leno_rules::config::cluster::{Balance, Connections, Outlier};
use limits::CircuitBreaker;
use outlier::{Ejection, EndpointResult};

/// A set of endpoints that can serve the same requests.
#[derive(Debug)]
pub struct Cluster {
    /// Its name: `outbound|80|v1|user-service.default.svc.cluster.local`.
    pub name: Arc<str>,
    /// Configuration object that it comes from, for explanations.
    pub object: Arc<str>,
    /// Timeout for connecting to one of its endpoints, TLS included.
    pub connect_timeout: Duration,
    /// Settings of its connections.
    pub connections: Connections,
    /// Its requests and connections in flight.
    pub circuit_breaker: Arc<CircuitBreaker>,
    balance: Balance,
    outlier: Option<Outlier>,
    /// Time from which sweeps are counted: when the cluster began.
    start: Instant,
    endpoints: ArcSwap<EndpointSet>,
    turn: AtomicU32,
    /// Serialises changes of the endpoints, ejections and returns.
    changes: Mutex<()>,
}

/// Requirements of a request on its endpoint.
#[derive(Debug, Clone, Copy)]
pub struct PickContext<'a> {
    /// Ids of endpoints that were tried already: taken again only when there is no other.
    pub tried: &'a [u64],
    /// True when the request can be sent again, and so may probe an endpoint on probation.
    pub is_replayable: bool,
    /// Time of the pick.
    pub now: Instant,
}

impl Cluster {
    /// A cluster as in `config`, without endpoints yet. It takes over the circuit breaker of `before`, which it replaces, if the
    /// limits are the same; ejections stay with their endpoints while there is outlier detection.
    pub fn new(config: &config::cluster::Cluster, before: Option<&Cluster>) -> Cluster {
        let circuit_breaker = before
            .map(|before| &before.circuit_breaker)
            .filter(|breaker| *breaker.limits() == config.limits);
        Cluster {
            name: config.name.as_str().into(),
            object: config.rule.as_str().into(),
            connect_timeout: config.connect_timeout,
            connections: config.connections,
            circuit_breaker: circuit_breaker
                .map_or_else(|| CircuitBreaker::new(config.limits), Arc::clone),
            balance: config.balance,
            outlier: config.outlier.clone(),
            start: before.map_or_else(Instant::now, |before| before.start),
            endpoints: ArcSwap::default(),
            turn: AtomicU32::new(0),
            changes: Mutex::default(),
        }
    }

    /// The current endpoints.
    pub fn endpoints(&self) -> Arc<EndpointSet> {
        self.endpoints.load_full()
    }

    /// True when at least one of its endpoints has a sidecar.
    pub fn has_sidecars(&self) -> bool {
        let endpoints = self.endpoints.load();
        endpoints.endpoints().iter().any(|e| e.tls.is_some())
    }

    /// Replaces the endpoints over which requests are spread.
    pub fn set_endpoints(&self, endpoints: Vec<Arc<Endpoint>>) {
        let _lock = self.lock();
        self.store(endpoints);
    }

    /// Picks an endpoint and counts a request in flight on it: one on probation first, then an active one that was not
    /// tried, then any that is left. `dice` gives numbers uniform over `u32`.
    ///
    /// # Errors
    /// [`Kind::NoEndpoint`] when there is none.
    pub fn pick(
        &self,
        context: PickContext<'_>,
        dice: impl FnMut() -> u32,
    ) -> Result<Lease, Error> {
        let mut set = self.endpoints.load();
        if set.is_stale() {
            self.sort_ejected(&self.lock());
            set = self.endpoints.load();
        }
        let may_probe = |endpoint: &&Arc<Endpoint>| !context.tried.contains(&endpoint.id);
        let probe = |endpoint: &&Arc<Endpoint>| endpoint.health.begin_probe(context.now);
        if context.is_replayable
            && let Some(endpoint) = set.ejected().iter().filter(may_probe).find(probe)
        {
            return Ok(Lease::probe(endpoint));
        }
        if let Some(endpoint) = set.choose(context.tried, self.balance, &self.turn, dice) {
            return Ok(Lease::new(endpoint));
        }
        // Nothing else is left: better a try than a sure failure.
        match set.ejected().iter().find(probe) {
            Some(endpoint) => Ok(Lease::probe(endpoint)),
            None => Err(self.no_endpoint(&set)),
        }
    }

    fn no_endpoint(&self, set: &EndpointSet) -> Error {
        let count = set.endpoints().len();
        let detail = match count {
            0 => format!("cluster {} has no endpoints", self.name),
            _ => {
                let why = set.ejected().iter().find_map(|e| e.health.ejection());
                let why = why.map_or(String::new(), |why| format!(", after {}", why.reason));
                format!(
                    "cluster {}: every one of its {count} endpoints is ejected{why}",
                    self.name
                )
            }
        };
        Error::own(Kind::NoEndpoint, detail).behind(&self.object)
    }

    /// An endpoint that may return, and that no request has probed for the base time of an ejection: the caller should
    /// probe it by connecting. The lease holds its one probe.
    pub fn next_probe(&self, now: Instant) -> Option<Lease> {
        let outlier = self.outlier.as_ref()?;
        let set = self.endpoints.load();
        let is_due = |endpoint: &&Arc<Endpoint>| {
            let until = endpoint.health.ejected_until();
            until.is_some_and(|until| until + outlier.base_time <= now)
        };
        let mut due = set.ejected().iter().filter(is_due);
        due.find(|endpoint| endpoint.health.begin_probe(now))
            .map(Lease::probe)
    }

    /// Reports the result of a request at an endpoint. Returns the ejection that it causes, if any.
    pub fn report(
        &self,
        lease: &mut Lease,
        verdict: EndpointResult,
        now: Instant,
    ) -> Option<Ejection> {
        let outlier = self.outlier.as_ref()?;
        let health = &lease.endpoint.health;
        let failed = !matches!(verdict, EndpointResult::Status(status) if status < 500);
        if std::mem::take(&mut lease.is_probe) {
            let lock = self.lock();
            match failed {
                true => health.eject(outlier, "its probe failed".to_owned(), self.start, now),
                false => health.restore(now),
            }
            self.sort_ejected(&lock);
            return health.ejection();
        }
        let reason = health.count(outlier, verdict)?;
        let lock = self.lock();
        let set = self.endpoints.load();
        if health.is_ejected() {
            // It may have been ejected on behalf of the cluster that this one replaced.
            self.sort_ejected(&lock);
            return None;
        }
        let ejected = |e: &&Arc<Endpoint>| e.health.is_ejected();
        let count = set.endpoints().iter().filter(ejected).count();
        if !outlier::may_eject(outlier, count, set.endpoints().len()) {
            return None;
        }
        health.eject(outlier, reason, self.start, now);
        self.sort_ejected(&lock);
        health.ejection()
    }

    /// True when it needs reports on the results of requests.
    pub fn is_watched(&self) -> bool {
        self.outlier.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the same endpoints after an ejection or a return.
    fn sort_ejected(&self, _lock: &MutexGuard<'_, ()>) {
        self.store(self.endpoints.load().endpoints().to_vec());
    }

    fn store(&self, endpoints: Vec<Arc<Endpoint>>) {
        let set = EndpointSet::new(endpoints, self.outlier.is_some());
        self.endpoints.store(Arc::new(set));
    }
}

/// A request in flight on an endpoint, until it is dropped.
#[derive(Debug)]
pub struct Lease {
    endpoint: Arc<Endpoint>,
    /// True when it holds the one probe of an endpoint on probation.
    is_probe: bool,
}

impl Lease {
    fn new(endpoint: &Arc<Endpoint>) -> Lease {
        endpoint.enter();
        Lease {
            endpoint: Arc::clone(endpoint),
            is_probe: false,
        }
    }

    fn probe(endpoint: &Arc<Endpoint>) -> Lease {
        let mut lease = Lease::new(endpoint);
        lease.is_probe = true;
        lease
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// True when it holds the one probe of an endpoint on probation.
    pub fn is_probe(&self) -> bool {
        self.is_probe
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.leave();
        if self.is_probe {
            self.endpoint.health.abandon_probe();
        }
    }
}

#[cfg(test)]
mod tests;
