//! Load balancing: a [`Cluster`] picks an endpoint, a [`Lease`] counts the request in flight until it is dropped.
//!
//! Invariant: an [`Endpoint`] outlives the configuration that named it first; a push replaces the list, never the
//! counters of an endpoint that stays.

pub mod endpoint;
mod least_request;
pub mod limits;
pub mod outlier;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::error::{Error, Kind};
pub use endpoint::Endpoint;
use leno_rules::config;
use leno_rules::config::cluster::{Balance, Connections, Outlier};
use limits::Load;
use outlier::{Ejection, Fitness, Verdict};

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
    pub load: Arc<Load>,
    balance: Balance,
    outlier: Option<Outlier>,
    /// Time from which sweeps are counted: when the cluster began.
    start: Instant,
    endpoints: ArcSwap<EndpointSet>,
    turn: AtomicU32,
    /// Serialises ejections and returns. A pick checks no endpoint while `any_ejected` is false.
    ejected: Mutex<()>,
    any_ejected: AtomicBool,
}

/// Requirements of a request on its endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Ids of endpoints that were tried already: taken again only when there is no other.
    pub tried: &'a [u64],
    /// True when the request can be sent again, and so may probe an endpoint on probation.
    pub is_replayable: bool,
    /// Time of the pick.
    pub now: Instant,
}

/// The endpoints of a moment, with the sums that picking needs.
#[derive(Debug, Default)]
pub struct EndpointSet {
    endpoints: Vec<Arc<Endpoint>>,
    /// Running sum of the weights; empty when all weigh the same.
    sums: Vec<u32>,
}

impl EndpointSet {
    /// A set of `endpoints`.
    pub fn new(endpoints: Vec<Arc<Endpoint>>) -> EndpointSet {
        let mut weights = endpoints.iter().map(|endpoint| endpoint.weight);
        let first = weights.next();
        let sums = match weights.all(|weight| Some(weight) == first) {
            true => Vec::new(),
            false => running_sums(&endpoints),
        };
        EndpointSet { endpoints, sums }
    }

    /// The endpoints.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Index of the next endpoint; there is at least one.
    fn choose(&self, balance: Balance, turn: &AtomicU32, mut dice: impl FnMut() -> u32) -> usize {
        let at = match (self.endpoints.len(), balance) {
            (1, _) => 0,
            (_, Balance::Random) => self.by_weight(dice()),
            (count, Balance::RoundRobin) => {
                let turn = turn.fetch_add(1, Ordering::Relaxed) as usize;
                match self.sums.last() {
                    None => turn % count,
                    Some(&total) => {
                        let at = turn % total as usize;
                        self.sums.partition_point(|&sum| sum as usize <= at)
                    }
                }
            }
            (count, Balance::LeastRequest) if self.sums.is_empty() => {
                least_request::pick(count, |i| self.endpoints[i].in_flight(), dice)
            }
            // Unequal weights: two draws by weight, the less loaded of them for its weight.
            (_, Balance::LeastRequest) => {
                let load = |i: usize| {
                    let endpoint: &Endpoint = &self.endpoints[i];
                    f64::from(endpoint.in_flight()) / f64::from(endpoint.weight)
                };
                let (a, b) = (self.by_weight(dice()), self.by_weight(dice()));
                if load(b) < load(a) { b } else { a }
            }
        };
        at.min(self.endpoints.len() - 1)
    }

    /// Index of the endpoint at `dice`, by weight.
    fn by_weight(&self, dice: u32) -> usize {
        let Some(&total) = self.sums.last() else {
            return scaled(dice, self.endpoints.len());
        };
        let at = scaled(dice, total as usize);
        self.sums.partition_point(|&sum| sum as usize <= at)
    }
}

fn running_sums(endpoints: &[Arc<Endpoint>]) -> Vec<u32> {
    let mut sum = 0_u32;
    let add = |endpoint: &Arc<Endpoint>| {
        sum = sum.saturating_add(endpoint.weight);
        sum
    };
    endpoints.iter().map(add).collect()
}

/// `dice`, uniform over `u32`, as a number below `count`.
fn scaled(dice: u32, count: usize) -> usize {
    let scaled = (u64::from(dice) * count as u64) >> 32;
    usize::try_from(scaled).unwrap_or(0)
}

impl Cluster {
    /// A cluster as in `config`, without endpoints yet. It takes over the load of `before`, which it replaces, if the
    /// limits are the same; ejections stay with their endpoints while there is outlier detection.
    pub fn new(config: &config::cluster::Cluster, before: Option<&Cluster>) -> Cluster {
        let load = before
            .map(|before| &before.load)
            .filter(|load| *load.limits() == config.limits);
        Cluster {
            name: config.name.as_str().into(),
            object: config.rule.as_str().into(),
            connect_timeout: config.connect_timeout,
            connections: config.connections,
            load: load.map_or_else(|| Load::new(config.limits), Arc::clone),
            balance: config.balance,
            outlier: config.outlier.clone(),
            start: before.map_or_else(Instant::now, |before| before.start),
            endpoints: ArcSwap::default(),
            turn: AtomicU32::new(0),
            ejected: Mutex::default(),
            any_ejected: AtomicBool::new(false),
        }
    }

    /// The current endpoints.
    pub fn endpoints(&self) -> Arc<EndpointSet> {
        self.endpoints.load_full()
    }

    /// True when at least one of its endpoints has a sidecar.
    pub fn has_sidecars(&self) -> bool {
        let endpoints = self.endpoints.load();
        endpoints.endpoints.iter().any(|e| e.tls.is_some())
    }

    /// Replaces the endpoints over which requests are spread.
    pub fn set_endpoints(&self, endpoints: Vec<Arc<Endpoint>>) {
        let lock = self.lock();
        self.endpoints.store(Arc::new(EndpointSet::new(endpoints)));
        self.count_ejected(&lock);
    }

    /// Picks an endpoint and counts a request in flight on it. `dice` gives numbers uniform over `u32`.
    ///
    /// # Errors
    /// [`Kind::NoEndpoint`] when there is none.
    pub fn pick(&self, ask: Ask<'_>, dice: impl FnMut() -> u32) -> Result<Lease, Error> {
        let set = self.endpoints.load();
        if set.endpoints.is_empty() {
            let detail = format!("cluster {} has no endpoints", self.name);
            return Err(Error::own(Kind::NoEndpoint, detail).behind(&self.object));
        }
        if ask.tried.is_empty() && !self.any_ejected.load(Ordering::Relaxed) {
            let at = set.choose(self.balance, &self.turn, dice);
            return Ok(Lease::new(&set.endpoints[at]));
        }
        self.pick_among(&set, ask, dice)
    }

    /// Picks around ejected and tried endpoints: one on probation first, then one not tried, then any that is left.
    fn pick_among(
        &self,
        set: &EndpointSet,
        ask: Ask<'_>,
        dice: impl FnMut() -> u32,
    ) -> Result<Lease, Error> {
        let fitness = |endpoint: &Arc<Endpoint>| match self.outlier {
            Some(_) => endpoint.health.fitness(ask.now),
            None => Fitness::Fit,
        };
        let is_new = |endpoint: &&Arc<Endpoint>| !ask.tried.contains(&endpoint.id);
        let of = |wanted: Fitness| set.endpoints.iter().filter(move |e| fitness(e) == wanted);
        let probe = |endpoint: &&Arc<Endpoint>| endpoint.health.begin_probe(ask.now);
        if ask.is_replayable
            && let Some(endpoint) = of(Fitness::OnProbation).filter(is_new).find(probe)
        {
            return Ok(Lease::probe(endpoint));
        }
        let fit: Vec<Arc<Endpoint>> = of(Fitness::Fit).cloned().collect();
        let fresh: Vec<Arc<Endpoint>> = fit.iter().filter(is_new).cloned().collect();
        let candidates = EndpointSet::new(if fresh.is_empty() { fit } else { fresh });
        if !candidates.endpoints.is_empty() {
            let at = candidates.choose(self.balance, &self.turn, dice);
            return Ok(Lease::new(&candidates.endpoints[at]));
        }
        // Nothing else is left: better a try than a sure failure.
        if let Some(endpoint) = of(Fitness::OnProbation).find(probe) {
            return Ok(Lease::probe(endpoint));
        }
        let why = set.endpoints.iter().find_map(|e| e.health.ejection());
        let why = why.map_or(String::new(), |why| format!(", after {}", why.reason));
        let detail = format!(
            "cluster {}: every one of its {} endpoints is ejected{why}",
            self.name,
            set.endpoints.len()
        );
        Err(Error::own(Kind::NoEndpoint, detail).behind(&self.object))
    }

    /// An endpoint that may return, and that no request has probed for the base time of an ejection: the caller should
    /// probe it by connecting. The lease holds its one probe.
    pub fn due_for_a_look(&self, now: Instant) -> Option<Lease> {
        let outlier = self.outlier.as_ref()?;
        if !self.any_ejected.load(Ordering::Relaxed) {
            return None;
        }
        let set = self.endpoints.load();
        let is_due = |endpoint: &&Arc<Endpoint>| {
            let ejection = endpoint.health.ejection();
            ejection.is_some_and(|ejection| ejection.until + outlier.base_time <= now)
        };
        let mut due = set.endpoints.iter().filter(is_due);
        due.find(|endpoint| endpoint.health.begin_probe(now))
            .map(Lease::probe)
    }

    /// Reports the result of a request at an endpoint. Returns the ejection that it causes, if any.
    pub fn report(&self, lease: &mut Lease, verdict: Verdict, now: Instant) -> Option<Ejection> {
        let outlier = self.outlier.as_ref()?;
        let health = &lease.endpoint.health;
        let failed = !matches!(verdict, Verdict::Status(status) if status < 500);
        if std::mem::take(&mut lease.is_probe) {
            let lock = self.lock();
            match failed {
                true => health.eject(outlier, "its probe failed".to_owned(), self.start, now),
                false => health.restore(now),
            }
            self.count_ejected(&lock);
            return health.ejection();
        }
        let reason = health.count(outlier, verdict)?;
        let lock = self.lock();
        let set = self.endpoints.load();
        let ejected = |e: &&Arc<Endpoint>| e.health.ejection().is_some();
        let count = set.endpoints.iter().filter(ejected).count();
        let is_new = health.ejection().is_none();
        if !is_new {
            // It may have been ejected on behalf of the cluster that this one replaced.
            self.count_ejected(&lock);
            return None;
        }
        if !outlier::may_eject(outlier, count, set.endpoints.len()) {
            return None;
        }
        health.eject(outlier, reason, self.start, now);
        self.count_ejected(&lock);
        health.ejection()
    }

    /// True when it needs reports on the results of requests.
    pub fn is_watched(&self) -> bool {
        self.outlier.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.ejected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_ejected(&self, _lock: &MutexGuard<'_, ()>) {
        let set = self.endpoints.load();
        let any = set.endpoints.iter().any(|e| e.health.ejection().is_some());
        let any = any && self.outlier.is_some();
        self.any_ejected.store(any, Ordering::Relaxed);
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
