//! HTTP/2 connections of one worker, each shared by many requests. Requests to an endpoint wait for the one that is
//! being opened.

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

use super::pool::{BEFORE_EXPIRY, IdHasher, Upstream};
use crate::balance::Endpoint;
use crate::error::{Error, Kind};
use leno_http::h2::Connection;
use leno_http::peers::Up;
use leno_rules::config::cluster::Connections;

/// A connection with what it may be used for.
#[derive(Debug)]
pub struct Member {
    /// The connection.
    pub connection: Rc<Connection>,
    /// When it is mutual TLS: how long the certificates that made it are valid.
    pub until: Option<Instant>,
    /// Its own end.
    pub local: Option<SocketAddr>,
    /// Where it leads.
    pub endpoint: Arc<Endpoint>,
    /// How it is used.
    pub uses: Connections,
}

impl Member {
    /// Whether it may be used for requests to come. Learns from what it sees.
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
        // A sidecar at the other end keeps the limit for its app itself.
        let max = self
            .uses
            .max_requests
            .filter(|_| self.endpoint.tls.is_none());
        let is_worn_out = max.is_some_and(|max| self.connection.streams() >= u64::from(max));
        !(is_stale || expires || is_worn_out || self.endpoint.is_retired())
    }

    /// Whether it has room for a request. One that can't be sent again needs a connection that is surely open: a busy
    /// one, or one that the endpoint has never closed so early.
    fn takes(&self, now: Instant, is_repeatable: bool) -> bool {
        let is_sure = is_repeatable
            || self.connection.idle_since().is_none_or(|since| {
                let idle = now.duration_since(since);
                self.endpoint.surely_open_after(idle)
            });
        is_sure && self.connection.has_room()
    }

    /// A stream on it.
    pub fn stream(&self) -> Box<Upstream> {
        let stream = Up::H2(self.connection.stream());
        Upstream::new(stream, (self.until, self.local), &self.endpoint, self.uses)
    }
}

/// What came of opening a connection.
type Opened = Option<Result<(), Error>>;

/// Connections by endpoint.
#[derive(Debug, Default)]
pub struct Multiplexed {
    members: RefCell<HashMap<u64, Vec<Member>, BuildHasherDefault<IdHasher>>>,
    opening: RefCell<HashMap<u64, watch::Receiver<Opened>>>,
}

/// Somebody opens a connection to an endpoint, until this is dropped.
#[derive(Debug)]
struct Opening(Rc<Multiplexed>, u64);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.borrow_mut().remove(&self.1);
    }
}

impl Multiplexed {
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

    /// Keeps a connection for requests to come.
    pub fn add(&self, member: Member) {
        let mut members = self.members.borrow_mut();
        let of = members.entry(member.endpoint.id).or_default();
        // The freshest is asked first.
        of.insert(0, member);
    }

    /// Waits until somebody else's try to connect to `endpoint` is over; `None` when nobody is at it.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn wait(&self, endpoint: u64) -> Option<Result<(), Error>> {
        let mut opened = self.opening.borrow().get(&endpoint)?.clone();
        let outcome = opened.wait_for(Option::is_some).await;
        outcome.ok()?.clone()
    }

    /// Connects to `endpoint` by `open`, for whoever asks and whoever waits; what it gives is a stream on the connection,
    /// or nothing where the endpoint knows no HTTP/2.
    ///
    /// # Errors
    /// Why it can't be connected to.
    pub async fn open<F>(
        self: &Rc<Self>,
        endpoint: u64,
        open: F,
    ) -> Result<Option<Box<Upstream>>, Error>
    where
        F: Future<Output = Result<Option<Member>, Error>> + 'static,
    {
        let (sender, receiver) = watch::channel(None);
        self.opening.borrow_mut().insert(endpoint, receiver);
        let (own, opening) = (Rc::clone(self), Opening(Rc::clone(self), endpoint));
        // A task: whoever asked first may leave, and the others still wait.
        let task = tokio::task::spawn_local(async move {
            let outcome = open.await;
            drop(opening);
            let said = outcome.as_ref().map(drop).map_err(Clone::clone);
            let stream = outcome.map(|member| {
                let member = member?;
                // It is good for this request, whatever the next ones want of a connection.
                let stream = member.stream();
                own.add(member);
                Some(stream)
            });
            let _ = sender.send(Some(said));
            stream
        });
        let ended = |_| Error::up(Kind::Connect, "the worker is ending");
        task.await.map_err(ended)?
    }

    /// Closes what can't be used any more, once nobody uses it. Called every second or so.
    pub fn sweep(&self, now: Instant, idle_timeout: Duration) {
        self.members.borrow_mut().retain(|_, members| {
            members.retain(|member| member.is_usable(now, idle_timeout));
            !members.is_empty()
        });
    }
}
