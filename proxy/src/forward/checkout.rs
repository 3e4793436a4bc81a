//! Checkout of a connection for a request: an idle one, a stream on a shared one, or a new one.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::{Instant, timeout};

use crate::balance::{Cluster, Endpoint};
use crate::error::{Error, Kind};
use crate::tls::{alpn, expiry};
use crate::upstream::connection::Upstream;
use crate::upstream::shared::SharedConnection;
use crate::upstream::{Carries, dial};
use crate::worker::{Shared, Worker};
use leno_http::h1::{ClientHalf, Conn};
use leno_http::h2::Connection;
use leno_http::head::{FieldName, Head, Version};
use leno_http::peers::Up;
use leno_http::stream::Stream;

/// Times that a request waits for a shared connection that another one opens, before it opens its own.
const TURNS: u32 = 3;

/// Checkout of a connection for one request.
#[derive(Debug)]
pub(super) struct Checkout<'a> {
    /// Cluster of the endpoint, with the settings of its connections.
    pub(super) cluster: &'a Arc<Cluster>,
    /// Endpoint to connect to.
    pub(super) endpoint: &'a Arc<Endpoint>,
    /// True when the cluster's protocol for the request is HTTP/2.
    pub(super) is_http2: bool,
    /// The request's head.
    pub(super) request: &'a Head,
    /// True when the request may be sent again.
    pub(super) is_repeatable: bool,
}

/// True for a request that only HTTP/1 can express between sidecars: it takes an HTTP/1 connection of its own.
pub(super) fn needs_http1(request: &Head) -> bool {
    let has_host = request
        .get(FieldName::Host)
        .is_some_and(|host| !host.is_empty());
    request.version() == Version::Http10 || !has_host || request.get(FieldName::Upgrade).is_some()
}

impl Checkout<'_> {
    /// True when the request goes as an HTTP/2 stream: to an HTTP/2 endpoint, or to a sidecar of ours, which takes
    /// streams for an app of any version.
    fn goes_by_stream(&self) -> bool {
        let endpoint = self.endpoint;
        match (&endpoint.tls, self.is_http2) {
            (None, is_http2) => is_http2,
            (Some(_), _) if needs_http1(self.request) => false,
            (Some(_), true) => !endpoint.is_http1_only(),
            (Some(_), false) => !endpoint.no_multiplexing(),
        }
    }

    /// A connection that is available at once: a stream on a shared one, or an idle one.
    pub(super) fn try_checkout(&self, worker: &Worker, now: Instant) -> Option<Box<Upstream>> {
        let pool = &worker.pool;
        match self.goes_by_stream() {
            // `connection` checks that the peer supports the upgrade.
            true if self.request.get(FieldName::Upgrade).is_some() => None,
            true => pool.stream(self.endpoint, now, self.is_repeatable),
            false => pool.take(self.endpoint, now, self.is_repeatable),
        }
    }

    /// A connection, opened if none is available.
    ///
    /// # Errors
    /// When there is none, or it doesn't support the upgrade; nothing was sent.
    pub(super) async fn connection(
        &self,
        worker: &Worker,
        now: Instant,
    ) -> Result<Box<Upstream>, Error> {
        let endpoint = self.endpoint;
        if self.goes_by_stream()
            && let Some(stream) = self.stream(worker, now).await?
        {
            return self.fitting(stream);
        }
        if let Some(upstream) = worker.pool.take(endpoint, now, self.is_repeatable) {
            return Ok(upstream);
        }
        let (shared, cluster) = (&worker.shared, self.cluster);
        let (stream, until) = connect(shared, cluster, endpoint, Carries::Http).await?;
        let local = local_address(shared, &stream);
        let conn = Conn::new(stream, Vec::new(), shared.limits);
        let half = Up::H1(ClientHalf::new(conn));
        let uses = cluster.connections;
        let mut upstream = Upstream::new(half, (until, local), endpoint, uses);
        worker.pool.prime_last_head(&mut upstream);
        Ok(upstream)
    }

    /// A stream on a shared connection; `None` when the endpoint turns out to take none.
    async fn stream(
        &self,
        worker: &Worker,
        mut now: Instant,
    ) -> Result<Option<Box<Upstream>>, Error> {
        let (pool, endpoint) = (&worker.pool, self.endpoint);
        for _ in 0..TURNS {
            if let Some(upstream) = pool.stream(endpoint, now, self.is_repeatable) {
                return Ok(Some(upstream));
            }
            match pool.shared.wait(endpoint.id).await {
                None => break,
                Some(Err(error)) => return Err(error),
                Some(Ok(())) if !self.goes_by_stream() => return Ok(None),
                Some(Ok(())) => now = Instant::now(),
            }
        }
        let shared = Arc::clone(&worker.shared);
        let (cluster, own) = (Arc::clone(self.cluster), Arc::clone(endpoint));
        let carries = match self.is_http2 {
            true => Carries::Http2,
            false => Carries::Shared,
        };
        let open = async move { open(&shared, &cluster, own, carries).await };
        pool.shared.open(endpoint.id, open).await
    }

    /// Returns `stream` if it supports the upgrade that the request asks for.
    fn fitting(&self, stream: Box<Upstream>) -> Result<Box<Upstream>, Error> {
        let is_upgrade = self.request.get(FieldName::Upgrade).is_some();
        match &stream.half {
            Up::H2(half) if is_upgrade && !half.takes_extended_connect() => {
                let words = "the endpoint speaks HTTP/2 without extended CONNECT (RFC 8441)";
                Err(Error::up(Kind::Protocol, words))
            }
            _ => Ok(stream),
        }
    }
}

/// Connects to `endpoint`. Returns the expiry of the connection's certificates with it.
async fn connect(
    shared: &Shared,
    cluster: &Cluster,
    endpoint: &Endpoint,
    carries: Carries,
) -> Result<(Stream, Option<Instant>), Error> {
    let identity = (endpoint.tls.as_ref()).and_then(|_| shared.credentials.identity());
    let expires = identity.map(|identity| expiry(identity.not_after));
    let (stream, peer) = dial(cluster, endpoint, carries).await?;
    // A connection is usable while both certificates of its handshake are valid.
    let until = peer.map(|peer| expires.map_or(peer.expires(), |own| own.min(peer.expires())));
    Ok((stream, until))
}

/// Local address of `stream`, if there is an access log to hold it.
fn local_address(shared: &Shared, stream: &Stream) -> Option<SocketAddr> {
    (shared.observer.log.as_ref()).and_then(|_| stream.local_address())
}

/// Opens a shared connection to `endpoint`; `None` when TLS negotiates HTTP/1.
async fn open(
    shared: &Shared,
    cluster: &Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    carries: Carries,
) -> Result<Option<SharedConnection>, Error> {
    let (stream, until) = connect(shared, cluster, &endpoint, carries).await?;
    let is_ours = stream.alpn() == Some(alpn::SHARED);
    if endpoint.tls.is_some() && !is_ours {
        endpoint.mark_no_multiplexing();
        if !matches!(stream.alpn(), Some(alpn::HTTP2 | b"h2")) {
            if carries == Carries::Http2 {
                endpoint.mark_http1_only();
            }
            return Ok(None);
        }
    }
    let (address, within) = (endpoint.address, cluster.connect_timeout);
    let local = local_address(shared, &stream);
    let opening = timeout(within, Connection::open(stream, is_ours, shared.limits));
    let connection = match opening.await {
        Ok(Ok(connection)) => connection,
        Ok(Err(broken)) => {
            return Err(Error::up(Kind::Connect, format!("{address}: {broken}")));
        }
        Err(_) => {
            let words = format!("{address}: HTTP/2 not begun after {within:?}");
            return Err(Error::up(Kind::ConnectTimeout, words));
        }
    };
    Ok(Some(SharedConnection {
        connection: Rc::clone(&connection),
        until,
        local,
        endpoint,
        uses: cluster.connections,
    }))
}
