//! HTTP/2 connections of one worker, each shared by many requests. Requests to an endpoint wait for a connection that
//! is being opened.
//!
//! Bounds: 100 streams a connection, fewer if the peer says so; one entry an endpoint while one is opened, within the
//! connect timeout each for TCP with TLS and for HTTP/2.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::hash::BuildHasherDefault;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::{BEFORE_EXPIRY, IdHasher, Upstream};
use crate::balance::Endpoint;
use crate::error::{Error, Kind};
use leno_http::h2::Connection;
use leno_http::peers::Up;
use leno_rules::config::cluster::Connections;

/// A shared connection, with the settings of its use.
#[derive(Debug)]
pub struct SharedConnection {
    /// The connection.
    pub connection: Rc<Connection>,
    /// With mutual TLS: expiry of the certificates of its handshake.
    pub until: Option<Instant>,
    /// Its local address.
    pub local: Option<SocketAddr>,
    /// Endpoint that it leads to.
    pub endpoint: Arc<Endpoint>,
    /// Connection settings of the cluster.
    pub uses: Connections,
}

impl SharedConnection {
    /// True when it may be used for further requests. Records in the endpoint that it stayed open, or closed when idle.
    fn is_usable(&self, now: Instant, idle_timeout: Duration) -> bool {
        if !self.connection.is_open() {
            if let Some(idle) = self.connection.closed_after() {
                self.endpoint.closed_after(idle);
            }
            return false;
        }
        let since = self.connection.idle_since();
        let idle = since.map_or(Duration::ZERO, |since| now.duration_since(since));
        self.endpoint.open_after(idle);
        let is_stale = idle >= self.uses.idle_timeout.unwrap_or(idle_timeout);
        let expires = self.until.is_some_and(|until| until <= now + BEFORE_EXPIRY);
        // A sidecar at the other end applies the limit for its app itself.
        let max = self
            .uses
            .max_requests
            .filter(|_| self.endpoint.tls.is_none());
        let is_worn_out = max.is_some_and(|max| self.connection.streams() >= u64::from(max));
        !(is_stale || expires || is_worn_out || self.endpoint.is_retired())
    }

    /// True when it has room for a request. One that can't be sent again needs a connection that is surely open: a busy
    /// one, or one that the endpoint has never closed so early.
    fn takes(&self, now: Instant, is_repeatable: bool) -> bool {
        let is_sure = is_repeatable
            || self.connection.idle_since().is_none_or(|since| {
                let idle = now.duration_since(since);
                self.endpoint.idle_is_safe(idle)
            });
        is_sure && self.connection.has_room()
    }

    /// A stream on it.
    pub fn stream(&self) -> Box<Upstream> {
        let stream = Up::H2(self.connection.stream());
        Upstream::new(stream, (self.until, self.local), &self.endpoint, self.uses)
    }
}

/// Result of opening a connection; `None` until then.
type Opened = Option<Result<(), Error>>;

/// Connections by endpoint.
#[derive(Debug, Default)]
pub struct SharedConnections {
    members: RefCell<HashMap<u64, Vec<SharedConnection>, BuildHasherDefault<IdHasher>>>,
    opening: RefCell<HashMap<u64, watch::Receiver<Opened>>>,
}

/// Marks a connection to an endpoint as being opened, until this is dropped.
#[derive(Debug)]
struct Opening(Rc<SharedConnections>, u64);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.borrow_mut().remove(&self.1);
    }
}

impl SharedConnections {
    /// A stream to `endpoint`, if a connection has room for one.
    pub fn take(
        &self,
        endpoint: &Arc<Endpoint>,
        now: Instant,
        idle_timeout: Duration,
        is_repeatable: bool,
    ) -> Option<Box<Upstream>> {
        let mut members = self.members.borrow_mut();
        let members = members.get_mut(&endpoint.id)?;
        members.retain(|member| member.is_usable(now, idle_timeout));
        let member = members.iter().find(|m| m.takes(now, is_repeatable))?;
        Some(member.stream())
    }

    /// Keeps a connection for further requests.
    pub fn add(&self, member: SharedConnection) {
        let mut members = self.members.borrow_mut();
        let of = members.entry(member.endpoint.id).or_default();
        // The newest is tried first.
        of.insert(0, member);
    }

    /// Waits for the end of another request's attempt to connect to `endpoint`; `None` when there is none.
    ///
    /// # Errors
    /// Error of that attempt.
    pub async fn wait(&self, endpoint: u64) -> Option<Result<(), Error>> {
        let mut opened = self.opening.borrow().get(&endpoint)?.clone();
        let outcome = opened.wait_for(Option::is_some).await;
        outcome.ok()?.clone()
    }

    /// Connects to `endpoint` by `open`, for the caller and for the requests that wait. Returns a stream on the
    /// connection, or `None` where the endpoint negotiates no HTTP/2.
    ///
    /// # Errors
    /// When the connection can't be made.
    pub async fn open<F>(
        self: &Rc<Self>,
        endpoint: u64,
        open: F,
    ) -> Result<Option<Box<Upstream>>, Error>
    where
        F: Future<Output = Result<Option<SharedConnection>, Error>> + 'static,
    {
        let (sender, receiver) = watch::channel(None);
        self.opening.borrow_mut().insert(endpoint, receiver);
        let (own, opening) = (Rc::clone(self), Opening(Rc::clone(self), endpoint));
        // A task: the first request may be cancelled, and the others still wait.
        let task = tokio::task::spawn_local(async move {
            let outcome = open.await;
            drop(opening);
            let result = outcome.as_ref().map(drop).map_err(Clone::clone);
            let stream = outcome.map(|member| {
                let member = member?;
                // It is good for this request, even if the next ones can't use it.
                let stream = member.stream();
                own.add(member);
                Some(stream)
            });
            let _ = sender.send(Some(result));
            stream
        });
        let ended = |_| Error::up(Kind::Connect, "the worker is ending");
        task.await.map_err(ended)?
    }

    /// Drops connections that take no further requests; they close once their streams have ended. Called every second
    /// or so.
    pub fn sweep(&self, now: Instant, idle_timeout: Duration) {
        self.members.borrow_mut().retain(|_, members| {
            members.retain(|member| member.is_usable(now, idle_timeout));
            !members.is_empty()
        });
    }
}
