//! Which endpoint takes a request: a [`Cluster`] picks, a [`Lease`] counts the request in flight until it is dropped.
//!
//! Invariant: an [`Endpoint`] outlives the configuration that named it first; a push replaces the list, never the
//! counters of an endpoint that stays.

pub mod endpoint;
mod least_request;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::config::cluster::Balance;
use crate::error::{Error, Kind};
pub use endpoint::Endpoint;

/// A set of endpoints that can serve the same requests.
#[derive(Debug)]
pub struct Cluster {
    /// Its name: `outbound|80|v1|user-service.default.svc.cluster.local`.
    pub name: Arc<str>,
    /// Which object it comes from, for explanations.
    pub object: Arc<str>,
    /// How long a connection to one of its endpoints may take.
    pub connect_timeout: Duration,
    balance: Balance,
    endpoints: ArcSwap<EndpointSet>,
    turn: AtomicU32,
}

/// The endpoints of a moment, with what picking needs worked out.
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

    /// The endpoint at `dice`, by weight.
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

/// `dice`, evenly spread over all of `u32`, as a number below `count`.
fn scaled(dice: u32, count: usize) -> usize {
    let scaled = (u64::from(dice) * count as u64) >> 32;
    usize::try_from(scaled).unwrap_or(0)
}

impl Cluster {
    /// A cluster without endpoints yet.
    pub fn new(name: &str, object: &str, balance: Balance, connect_timeout: Duration) -> Cluster {
        Cluster {
            name: name.into(),
            object: object.into(),
            connect_timeout,
            balance,
            endpoints: ArcSwap::default(),
            turn: AtomicU32::new(0),
        }
    }

    /// The endpoints of the moment.
    pub fn endpoints(&self) -> Arc<EndpointSet> {
        self.endpoints.load_full()
    }

    /// Requests are spread over these endpoints from now on.
    pub fn set_endpoints(&self, endpoints: Vec<Arc<Endpoint>>) {
        self.endpoints.store(Arc::new(EndpointSet::new(endpoints)));
    }

    /// Picks an endpoint and counts a request in flight on it. `dice` gives numbers evenly spread over `u32`.
    ///
    /// # Errors
    /// [`Kind::NoEndpoint`] when there is none.
    pub fn pick(&self, mut dice: impl FnMut() -> u32) -> Result<Lease, Error> {
        let set = self.endpoints.load();
        let at = match (set.endpoints.len(), self.balance) {
            (0, _) => {
                let detail = format!("cluster {} has no endpoints", self.name);
                return Err(Error::own(Kind::NoEndpoint, detail).behind(&self.object));
            }
            (1, _) => 0,
            (_, Balance::Random) => set.by_weight(dice()),
            (count, Balance::RoundRobin) => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
                match set.sums.last() {
                    None => turn % count,
                    Some(&total) => {
                        let at = turn % total as usize;
                        set.sums.partition_point(|&sum| sum as usize <= at)
                    }
                }
            }
            (count, Balance::LeastRequest) if set.sums.is_empty() => {
                least_request::pick(count, |i| set.endpoints[i].in_flight(), dice)
            }
            // Unequal weights: two draws by weight, the less loaded of them for its weight.
            (_, Balance::LeastRequest) => {
                let load = |i: usize| {
                    let endpoint: &Endpoint = &set.endpoints[i];
                    f64::from(endpoint.in_flight()) / f64::from(endpoint.weight)
                };
                let (a, b) = (set.by_weight(dice()), set.by_weight(dice()));
                if load(b) < load(a) { b } else { a }
            }
        };
        Ok(Lease::new(&set.endpoints[at.min(set.endpoints.len() - 1)]))
    }
}

/// A request in flight on an endpoint, until it is dropped.
#[derive(Debug)]
pub struct Lease {
    endpoint: Arc<Endpoint>,
}

impl Lease {
    fn new(endpoint: &Arc<Endpoint>) -> Lease {
        endpoint.enter();
        Lease {
            endpoint: Arc::clone(endpoint),
        }
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(balance: Balance, weights: &[u32]) -> Cluster {
        let cluster = Cluster::new("c", "o", balance, Duration::from_secs(1));
        let endpoint = |(i, &weight): (usize, &u32)| {
            let port = u16::try_from(i + 1).expect("few");
            Arc::new(Endpoint::plain(([127, 0, 0, 1], port).into(), weight))
        };
        cluster.set_endpoints(weights.iter().enumerate().map(endpoint).collect());
        cluster
    }

    /// How often each endpoint is picked in `rounds`, when each request is over before the next.
    fn counts(cluster: &Cluster, rounds: usize) -> Vec<usize> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut counts = vec![0; cluster.endpoints().endpoints().len()];
        for _ in 0..rounds {
            let lease = cluster.pick(|| rng.u32(..)).expect("there are endpoints");
            counts[usize::from(lease.endpoint().address.port()) - 1] += 1;
        }
        counts
    }

    #[test]
    fn an_empty_cluster_is_an_explained_error() {
        let error = cluster(Balance::Random, &[]).pick(|| 0).expect_err("empty");
        assert_eq!(error.kind, Kind::NoEndpoint);
        assert_eq!(error.object.as_deref(), Some("o"));
    }

    #[test]
    fn requests_in_flight_send_the_next_one_elsewhere() {
        let cluster = cluster(Balance::LeastRequest, &[1, 1, 1]);
        let mut rng = fastrand::Rng::with_seed(1);
        let leases: Vec<_> = (0..9)
            .map(|_| cluster.pick(|| rng.u32(..)).expect("one"))
            .collect();
        for endpoint in cluster.endpoints().endpoints() {
            assert_eq!(endpoint.in_flight(), 3);
        }
        drop(leases);
        for endpoint in cluster.endpoints().endpoints() {
            assert_eq!(endpoint.in_flight(), 0);
        }
    }

    #[test]
    fn weights_are_respected_by_every_policy() {
        for balance in [Balance::RoundRobin, Balance::Random, Balance::LeastRequest] {
            let counts = counts(&cluster(balance, &[1, 2, 5]), 8000);
            for (count, share) in counts.iter().zip([1000, 2000, 5000]) {
                assert!(count.abs_diff(share) < 200, "{balance:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn round_robin_takes_turns() {
        assert_eq!(
            counts(&cluster(Balance::RoundRobin, &[1, 1, 1]), 9),
            [3, 3, 3]
        );
    }

    #[test]
    fn equals_share_equally() {
        for balance in [Balance::Random, Balance::LeastRequest] {
            for count in counts(&cluster(balance, &[1; 40]), 40_000) {
                assert!(count.abs_diff(1000) < 200, "{balance:?}: {count}");
            }
        }
    }
}
