//! HTTP/2 connections of one worker, each shared by many requests. One is opened at a time to an endpoint, however many
//! requests wait for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::pool::{BEFORE_EXPIRY, Upstream};
use crate::balance::Endpoint;
use crate::config::cluster::Connections;
use crate::error::{Error, Kind};
use crate::http::h2::Connection;
use crate::http::half::Up;

/// A connection with what it may be used for.
#[derive(Debug)]
pub struct Member {
    /// The connection.
    pub connection: Rc<Connection>,
    /// When it is mutual TLS: how long the certificates that made it are valid.
    pub until: Option<Instant>,
    /// Where it leads.
    pub endpoint: Arc<Endpoint>,
    /// How it is used.
    pub uses: Connections,
}

impl Member {
    fn is_usable(&self, now: Instant, idle_timeout: Duration) -> bool {
        let idle_timeout = self.uses.idle_timeout.unwrap_or(idle_timeout);
        let since = self.connection.idle_since();
        let is_stale = since.is_some_and(|since| now.duration_since(since) >= idle_timeout);
        let expires = self.until.is_some_and(|until| until <= now + BEFORE_EXPIRY);
        // A sidecar at the other end keeps the limit for its app itself.
        let max = self
            .uses
            .max_requests
            .filter(|_| self.endpoint.tls.is_none());
        let is_worn_out = max.is_some_and(|max| self.connection.streams() >= u64::from(max));
        let is_retired = self.endpoint.is_retired();
        !(is_stale || expires || is_worn_out || is_retired) && self.connection.is_open()
    }
}

/// What came of opening a connection.
type Opened = Option<Result<(), Error>>;

/// Connections by endpoint.
#[derive(Debug, Default)]
pub struct Multiplexed {
    members: RefCell<HashMap<u64, Vec<Member>>>,
    opening: RefCell<HashMap<u64, watch::Receiver<Opened>>>,
}

impl Multiplexed {
    /// A stream to `endpoint`, if a connection has room for one. For a request that can't be sent again, only on a
    /// connection that is surely open.
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
        let member = members.iter().find(|member| {
            let since = member.connection.idle_since();
            let idle = since.map_or(Duration::ZERO, |since| now.duration_since(since));
            member.connection.has_room() && (is_repeatable || endpoint.surely_open_after(idle))
        })?;
        let stream = Up::H2(member.connection.stream());
        Some(Upstream::new(stream, member.until, endpoint, member.uses))
    }

    /// Keeps a connection for requests to come.
    pub fn add(&self, member: Member) {
        let mut members = self.members.borrow_mut();
        let of = members.entry(member.endpoint.id).or_default();
        // The freshest is asked first.
        of.insert(0, member);
    }

    /// Waits until a connection to `endpoint` is open: by `open`, unless somebody is at it already.
    ///
    /// # Errors
    /// Why it can't be opened; to everybody who waits.
    pub async fn open<F>(
        self: &Rc<Self>,
        endpoint: u64,
        open: impl FnOnce() -> F,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<(), Error>> + 'static,
    {
        let under_way = self.opening.borrow().get(&endpoint).cloned();
        let mut opened = under_way.unwrap_or_else(|| {
            let (sender, receiver) = watch::channel(None);
            self.opening.borrow_mut().insert(endpoint, receiver.clone());
            let (own, opening) = (Rc::clone(self), open());
            // A task: whoever asked first may leave, and the others still wait.
            tokio::task::spawn_local(async move {
                let outcome = opening.await;
                own.opening.borrow_mut().remove(&endpoint);
                let _ = sender.send(Some(outcome));
            });
            receiver
        });
        let outcome = opened.wait_for(Option::is_some).await;
        let outcome = outcome.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| Err(Error::up(Kind::Connect, "the worker is ending")))
    }

    /// Closes what can't be used any more, once nobody uses it. Called every second or so.
    pub fn sweep(&self, now: Instant, idle_timeout: Duration) {
        self.members.borrow_mut().retain(|_, members| {
            members.retain(|member| member.is_usable(now, idle_timeout));
            !members.is_empty()
        });
    }
}
