//! Limits on a cluster's requests and connections at once, over every worker of the process (Istio's `connectionPool`).
//!
//! State: counters, as long as the cluster's limits stay the same; `connectionPool` bounds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Kind};
use leno_rules::config::cluster::CircuitBreakers;

/// Retry budget: percentage of the requests in flight, but at least [`MIN_RETRIES`].
const RETRY_PERCENT: u32 = 20;
const MIN_RETRIES: u32 = 3;

/// Requests and connections in flight, with their limits.
#[derive(Debug)]
pub struct CircuitBreaker {
    limits: CircuitBreakers,
    requests: AtomicU32,
    pending: AtomicU32,
    retries: AtomicU32,
    connections: Arc<Semaphore>,
}

/// A place in a counter of [`CircuitBreaker`], until it is dropped.
#[derive(Debug)]
pub struct Permit(Arc<CircuitBreaker>, fn(&CircuitBreaker) -> &AtomicU32);

impl Drop for Permit {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Permit to use a connection, until it is dropped.
#[derive(Debug)]
pub struct ConnectionPermit(#[allow(dead_code)] Option<OwnedSemaphorePermit>);

impl CircuitBreaker {
    /// A circuit breaker with nothing under way, under `limits`.
    pub fn new(limits: CircuitBreakers) -> Arc<CircuitBreaker> {
        let connections = limits.connections.map_or(0, |limit| limit as usize);
        Arc::new(CircuitBreaker {
            limits,
            requests: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            retries: AtomicU32::new(0),
            connections: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
        })
    }

    /// The limits.
    pub fn limits(&self) -> &CircuitBreakers {
        &self.limits
    }

    /// Numbers of requests in flight, of requests that wait for a connection, and of retries in flight.
    pub fn under_way(&self) -> [u32; 3] {
        [&self.requests, &self.pending, &self.retries].map(|count| count.load(Ordering::Relaxed))
    }

    /// Permit that takes no connection: the request is a stream on a shared one.
    pub fn shared() -> ConnectionPermit {
        ConnectionPermit(None)
    }

    /// Counts a request, until the guard is dropped.
    ///
    /// # Errors
    /// [`Kind::Overload`] when the limit of requests is reached.
    pub fn begin(self: &Arc<CircuitBreaker>) -> Result<Permit, Error> {
        let limit = self.limits.requests;
        self.hold(|breaker| &breaker.requests, limit)
            .ok_or_else(|| overflow("http2MaxRequests", limit))
    }

    /// Counts a retry, until the guard is dropped; `None` at the limit: `maxRetries` if set, else the retry budget.
    pub fn retry(self: &Arc<CircuitBreaker>) -> Option<Permit> {
        let active = self.requests.load(Ordering::Relaxed);
        let budget = (active * RETRY_PERCENT / 100).max(MIN_RETRIES);
        let limit = self.limits.retries.unwrap_or(budget);
        self.hold(|breaker| &breaker.retries, Some(limit))
    }

    /// Permit to use a connection, if one is free.
    pub fn try_acquire(&self) -> Option<ConnectionPermit> {
        if self.limits.connections.is_none() {
            return Some(ConnectionPermit(None));
        }
        let permit = Arc::clone(&self.connections).try_acquire_owned();
        permit.ok().map(|permit| ConnectionPermit(Some(permit)))
    }

    /// Permit to use a connection: at once if one is free, else after another is dropped.
    ///
    /// # Errors
    /// [`Kind::Overload`] when the limit of pending requests is reached.
    pub async fn connection(self: &Arc<CircuitBreaker>) -> Result<ConnectionPermit, Error> {
        if let Some(permit) = self.try_acquire() {
            return Ok(permit);
        }
        let limit = self.limits.pending;
        let waiting = self.hold(|breaker| &breaker.pending, limit);
        let waiting = waiting.ok_or_else(|| overflow("http1MaxPendingRequests", limit))?;
        let permit = Arc::clone(&self.connections).acquire_owned().await;
        drop(waiting);
        // The semaphore is never closed.
        Ok(ConnectionPermit(permit.ok()))
    }

    /// Permit for an opaque TCP connection, whose client can't be made to wait.
    ///
    /// # Errors
    /// [`Kind::Overload`] when the limit of connections is reached.
    pub fn open(self: &Arc<CircuitBreaker>) -> Result<ConnectionPermit, Error> {
        let Some(limit) = self.limits.connections else {
            return Ok(ConnectionPermit(None));
        };
        let permit = Arc::clone(&self.connections).try_acquire_owned();
        let permit = permit.map_err(|_| overflow("maxConnections", Some(limit)))?;
        Ok(ConnectionPermit(Some(permit)))
    }

    fn hold(
        self: &Arc<CircuitBreaker>,
        of: fn(&CircuitBreaker) -> &AtomicU32,
        limit: Option<u32>,
    ) -> Option<Permit> {
        let count = of(self).fetch_add(1, Ordering::Relaxed);
        // It is counted already: above the limit, dropping it takes it back.
        let held = Permit(Arc::clone(self), of);
        limit.is_none_or(|limit| count < limit).then_some(held)
    }
}

fn overflow(name: &str, limit: Option<u32>) -> Error {
    let limit = limit.unwrap_or(u32::MAX);
    Error::own(
        Kind::Overload,
        format!("connectionPool {name}: {limit} is reached"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_limit_lets_exactly_as_many_through() {
        let breaker = CircuitBreaker::new(CircuitBreakers {
            connections: Some(2),
            pending: Some(1),
            requests: Some(4),
            retries: None,
        });
        let requests: Vec<_> = (0..4).map(|_| breaker.begin().expect("within")).collect();
        assert!(breaker.begin().is_err());
        let first = breaker.connection().await.expect("one");
        let second = breaker.connection().await.expect("two");
        let mut third = Box::pin(breaker.connection());
        assert!(futures_poll(&mut third).is_none(), "waits");
        assert!(breaker.connection().await.is_err(), "one waits already");
        assert!(breaker.open().is_err());
        drop(first);
        let third = third.await.expect("its turn");
        drop((second, third, requests));
        breaker.begin().expect("free again");
        breaker.open().expect("free again");
    }

    fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn retries_have_a_budget_or_a_limit() {
        for (limit, active, expected) in [
            (None, 1, 3),
            (None, 100, 20),
            (Some(1), 100, 1),
            (Some(50), 1, 50),
        ] {
            let breaker = CircuitBreaker::new(CircuitBreakers {
                retries: limit,
                ..CircuitBreakers::default()
            });
            let _requests: Vec<_> = (0..active).map(|_| breaker.begin()).collect();
            let retries: Vec<_> = std::iter::from_fn(|| breaker.retry()).collect();
            assert_eq!(retries.len(), expected, "{limit:?} {active}");
        }
    }
}
