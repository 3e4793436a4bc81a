//! The endpoints of a cluster at a moment: those that take requests and those that are ejected, published by one swap, so
//! that a pick takes no lock. A pick allocates nothing either, whatever it has to pass over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use leno_rules::config::cluster::Balance;

use super::endpoint::Endpoint;
use super::least_request::{self, scaled};

/// The endpoints of a moment, with the sums that picking needs.
#[derive(Debug, Default)]
pub struct EndpointSet {
    endpoints: Vec<Arc<Endpoint>>,
    /// Those that take requests.
    active: Vec<Arc<Endpoint>>,
    /// Running sum of their weights; empty when all weigh the same.
    sums: Vec<u32>,
    /// Those that take none but a probe.
    ejected: Vec<Arc<Endpoint>>,
}

/// Endpoints to choose from: the active ones without those that were tried.
struct Candidates<'a, 't> {
    set: &'a EndpointSet,
    /// Ids of endpoints to pass over.
    tried: &'t [u64],
    count: usize,
}

impl EndpointSet {
    /// A set of `endpoints`. With outlier detection, which is `watched`, ejected ones are told apart.
    pub fn new(endpoints: Vec<Arc<Endpoint>>, watched: bool) -> EndpointSet {
        let is_ejected = |e: &Arc<Endpoint>| watched && e.health.is_ejected();
        let (ejected, active): (Vec<_>, Vec<_>) = endpoints.iter().cloned().partition(is_ejected);
        let mut weights = active.iter().map(|endpoint| endpoint.weight);
        let first = weights.next();
        let sums = match weights.all(|weight| Some(weight) == first) {
            true => Vec::new(),
            false => running_sums(&active),
        };
        EndpointSet {
            endpoints,
            active,
            sums,
            ejected,
        }
    }

    /// All endpoints.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// The ejected ones.
    pub(super) fn ejected(&self) -> &[Arc<Endpoint>] {
        &self.ejected
    }

    /// True when an endpoint stands among the ejected ones that isn't ejected any more: a cluster that this one replaced
    /// has ended its ejection.
    pub(super) fn is_stale(&self) -> bool {
        self.ejected.iter().any(|e| !e.health.is_ejected())
    }

    /// The next active endpoint, if there is one. One of `tried` only when there is no other.
    pub(super) fn choose(
        &self,
        tried: &[u64],
        balance: Balance,
        turn: &AtomicU32,
        dice: impl FnMut() -> u32,
    ) -> Option<&Arc<Endpoint>> {
        let all = Candidates {
            set: self,
            tried: &[],
            count: self.active.len(),
        };
        let untried = match tried.is_empty() {
            true => None,
            false => Some(all.without(tried)).filter(|untried| untried.count > 0),
        };
        match untried.unwrap_or(all) {
            candidates if candidates.count == 0 => None,
            candidates => candidates.choose(balance, turn, dice),
        }
    }
}

impl<'a, 't> Candidates<'a, 't> {
    fn without(&self, tried: &'t [u64]) -> Candidates<'a, 't> {
        let is_new = |endpoint: &&Arc<Endpoint>| !tried.contains(&endpoint.id);
        Candidates {
            set: self.set,
            tried,
            count: self.set.active.iter().filter(is_new).count(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &'a Arc<Endpoint>> + use<'a, 't> {
        let tried = self.tried;
        let is_new = move |endpoint: &&Arc<Endpoint>| !tried.contains(&endpoint.id);
        self.set.active.iter().filter(is_new)
    }

    fn nth(&self, index: usize) -> Option<&'a Arc<Endpoint>> {
        match self.tried.is_empty() {
            true => self.set.active.get(index),
            false => self.iter().nth(index),
        }
    }

    /// Requests in flight at an endpoint, for its weight.
    fn load(endpoint: &Endpoint) -> f64 {
        f64::from(endpoint.in_flight()) / f64::from(endpoint.weight)
    }

    fn choose(
        &self,
        balance: Balance,
        turn: &AtomicU32,
        mut dice: impl FnMut() -> u32,
    ) -> Option<&'a Arc<Endpoint>> {
        match (self.count, balance) {
            (1, _) => self.nth(0),
            (_, Balance::Random) => self.by_weight(dice()),
            (_, Balance::RoundRobin) => {
                let turn = turn.fetch_add(1, Ordering::Relaxed) as usize;
                match self.total() {
                    None => self.nth(turn % self.count),
                    Some(total) => self.at(turn % total),
                }
            }
            (count, Balance::LeastRequest) if self.set.sums.is_empty() => {
                let in_flight = |i: usize| self.nth(i).map_or(0, |endpoint| endpoint.in_flight());
                self.nth(least_request::pick(count, in_flight, dice))
            }
            // Unequal weights: two draws by weight, the less loaded of them for its weight.
            (_, Balance::LeastRequest) => {
                let (a, b) = (self.by_weight(dice())?, self.by_weight(dice())?);
                let is_less = Candidates::load(b) < Candidates::load(a);
                Some(if is_less { b } else { a })
            }
        }
    }

    /// Sum of the weights; `None` when all weigh the same.
    fn total(&self) -> Option<usize> {
        let &sum = self.set.sums.last()?;
        Some(match self.tried.is_empty() {
            true => sum as usize,
            false => self.iter().map(|endpoint| endpoint.weight as usize).sum(),
        })
    }

    /// The endpoint at `dice`, uniform over `u32`, by weight.
    fn by_weight(&self, dice: u32) -> Option<&'a Arc<Endpoint>> {
        match self.total() {
            None => self.nth(scaled(dice, self.count)),
            Some(total) => self.at(scaled(dice, total)),
        }
    }

    /// The endpoint whose share of the sum of weights holds `at`.
    fn at(&self, at: usize) -> Option<&'a Arc<Endpoint>> {
        if self.tried.is_empty() {
            let index = self.set.sums.partition_point(|&sum| sum as usize <= at);
            return self.set.active.get(index);
        }
        let mut sum = 0;
        self.iter().find(|endpoint| {
            sum += endpoint.weight as usize;
            at < sum
        })
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
