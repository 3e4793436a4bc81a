//! Limits on a cluster's requests and connections at once, over every worker of the process (Istio's `connectionPool`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Kind};
use leno_rules::config::cluster::Limits;

/// Retry budget: percentage of the requests in flight, but at least [`MIN_RETRIES`].
const RETRY_PERCENT: u32 = 20;
const MIN_RETRIES: u32 = 3;

/// Requests and connections in flight, with their limits.
#[derive(Debug)]
pub struct Load {
    limits: Limits,
    requests: AtomicU32,
    pending: AtomicU32,
    retries: AtomicU32,
    connections: Arc<Semaphore>,
}

/// A place in a counter of [`Load`], until it is dropped.
#[derive(Debug)]
pub struct Held(Arc<Load>, fn(&Load) -> &AtomicU32);

impl Drop for Held {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Permit to use a connection, until it is dropped.
#[derive(Debug)]
pub struct Leave(#[allow(dead_code)] Option<OwnedSemaphorePermit>);

impl Load {
    /// An empty load under `limits`.
    pub fn new(limits: Limits) -> Arc<Load> {
        let connections = limits.connections.map_or(0, |limit| limit as usize);
        Arc::new(Load {
            limits,
            requests: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            retries: AtomicU32::new(0),
            connections: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
        })
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Numbers of requests in flight, of requests that wait for a connection, and of retries in flight.
    pub fn under_way(&self) -> [u32; 3] {
        [&self.requests, &self.pending, &self.retries].map(|count| count.load(Ordering::Relaxed))
    }

    /// Permit that takes no connection: the request is a stream on a shared one.
    pub fn shared() -> Leave {
        Leave(None)
    }

    /// Counts a request, until the guard is dropped.
    ///
    /// # Errors
    /// [`Kind::Overload`] when the limit of requests is reached.
    pub fn begin(self: &Arc<Load>) -> Result<Held, Error> {
        let limit = self.limits.requests;
        self.hold(|load| &load.requests, limit)
            .ok_or_else(|| overflow("http2MaxRequests", limit))
    }

    /// Takes a place in the retry budget; `None` when it is used up.
    pub fn retry(self: &Arc<Load>) -> Option<Held> {
        let active = self.requests.load(Ordering::Relaxed);
        let budget = (active * RETRY_PERCENT / 100).max(MIN_RETRIES);
        let limit = self.limits.retries.unwrap_or(budget);
        self.hold(|load| &load.retries, Some(limit))
    }

    /// Permit to use a connection, if one is free.
    pub fn connection_now(&self) -> Option<Leave> {
        if self.limits.connections.is_none() {
            return Some(Leave(None));
        }
        let permit = Arc::clone(&self.connections).try_acquire_owned();
        permit.ok().map(|permit| Leave(Some(permit)))
    }

    /// Permit to use a connection: at once if one is free, else after another is dropped.
    ///
    /// # Errors
    /// [`Kind::Overload`] when the limit of pending requests is reached.
    pub async fn connection(self: &Arc<Load>) -> Result<Leave, Error> {
        if let Some(leave) = self.connection_now() {
            return Ok(leave);
        }
        let limit = self.limits.pending;
        let waiting = self.hold(|load| &load.pending, limit);
        let waiting = waiting.ok_or_else(|| overflow("http1MaxPendingRequests", limit))?;
        let permit = Arc::clone(&self.connections).acquire_owned().await;
        drop(waiting);
        // The semaphore is never closed.
        Ok(Leave(permit.ok()))
    }

    /// Permit for an opaque TCP connection, whose client can't be made to wait.
    ///
    /// # Errors
    /// [`Kind::Overload`] when the limit of connections is reached.
    pub fn open(self: &Arc<Load>) -> Result<Leave, Error> {
        let Some(limit) = self.limits.connections else {
            return Ok(Leave(None));
        };
        let permit = Arc::clone(&self.connections).try_acquire_owned();
        let permit = permit.map_err(|_| overflow("maxConnections", Some(limit)))?;
        Ok(Leave(Some(permit)))
    }

    fn hold(self: &Arc<Load>, of: fn(&Load) -> &AtomicU32, limit: Option<u32>) -> Option<Held> {
        let count = of(self).fetch_add(1, Ordering::Relaxed);
        // It is counted already: above the limit, dropping it takes it back.
        let held = Held(Arc::clone(self), of);
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
        let load = Load::new(Limits {
            connections: Some(2),
            pending: Some(1),
            requests: Some(4),
            retries: None,
        });
        let requests: Vec<_> = (0..4).map(|_| load.begin().expect("within")).collect();
        assert!(load.begin().is_err());
        let first = load.connection().await.expect("one");
        let second = load.connection().await.expect("two");
        let mut third = Box::pin(load.connection());
        assert!(futures_poll(&mut third).is_none(), "waits");
        assert!(load.connection().await.is_err(), "one waits already");
        assert!(load.open().is_err());
        drop(first);
        let third = third.await.expect("its turn");
        drop((second, third, requests));
        load.begin().expect("free again");
        load.open().expect("free again");
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
            let load = Load::new(Limits {
                retries: limit,
                ..Limits::default()
            });
            let _requests: Vec<_> = (0..active).map(|_| load.begin()).collect();
            let retries: Vec<_> = std::iter::from_fn(|| load.retry()).collect();
            assert_eq!(retries.len(), expected, "{limit:?} {active}");
        }
    }
}
