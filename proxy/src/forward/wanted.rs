//! The connection that a request goes by: an idle one, room on a shared one, or a new one.

use std::rc::Rc;
use std::sync::Arc;

use tokio::time::{Instant, timeout};

use crate::balance::{Cluster, Endpoint};
use crate::connect::multiplexed::Member;
use crate::connect::pool::Upstream;
use crate::connect::{Carries, dial};
use crate::error::{Error, Kind};
use crate::http::h1::{ClientHalf, Conn};
use crate::http::h2::Connection;
use crate::http::half::Up;
use crate::http::head::{Head, Known, Version};
use crate::stream::Stream;
use crate::tls::{alpn, expiry};
use crate::worker::{Shared, Worker};

/// How often a request waits for a connection that others wait for as well, before it gets one of its own.
const TURNS: u32 = 3;

/// What a request wants of a connection.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// Which endpoints' use it counts as.
    pub(super) cluster: &'a Arc<Cluster>,
    /// Where it leads.
    pub(super) endpoint: &'a Arc<Endpoint>,
    /// Whether it is spoken to in HTTP/2.
    pub(super) is_http2: bool,
    /// What is sent.
    pub(super) request: &'a Head,
    /// Whether that may be sent again.
    pub(super) is_repeatable: bool,
}

/// What only HTTP/1 can say, between sidecars, and takes an HTTP/1 connection of its own.
pub(super) fn is_of_http1(request: &Head) -> bool {
    request.version() == Version::Http10 || request.get(Known::Upgrade).is_some()
}

impl Wanted<'_> {
    /// Whether it goes by HTTP/2.
    fn goes_by_http2(&self) -> bool {
        let takes_http2 = match self.endpoint.tls {
            Some(_) => !is_of_http1(self.request) && !self.endpoint.is_http1_only(),
            None => true,
        };
        self.is_http2 && takes_http2
    }

    /// An idle connection of HTTP/1, if that is what is wanted and there is one.
    pub(super) fn idle(&self, worker: &Worker, now: Instant) -> Option<Box<Upstream>> {
        let idle = || worker.pool.take(self.endpoint, now, self.is_repeatable);
        (!self.goes_by_http2()).then(idle)?
    }

    /// The connection.
    ///
    /// # Errors
    /// Why there is none; nothing was sent.
    pub(super) async fn connection(
        &self,
        worker: &Worker,
        now: Instant,
    ) -> Result<Box<Upstream>, Error> {
        let endpoint = self.endpoint;
        if self.goes_by_http2()
            && let Some(stream) = self.stream(worker, now).await?
        {
            return self.fitting(stream);
        }
        if let Some(upstream) = self.idle(worker, now) {
            return Ok(upstream);
        }
        let (shared, cluster) = (&worker.shared, self.cluster);
        let (stream, until) = connect(shared, cluster, endpoint, Carries::Http).await?;
        let local = stream.local_address();
        let conn = Conn::new(stream, Vec::new(), shared.limits);
        let half = Up::H1(ClientHalf::new(conn));
        let uses = cluster.connections;
        Ok(Upstream::new(half, (until, local), endpoint, uses))
    }

    /// A stream; `None` when the endpoint turns out to know no HTTP/2.
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
            match pool.multiplexed.wait(endpoint.id).await {
                None => break,
                Some(Err(error)) => return Err(error),
                Some(Ok(())) if endpoint.is_http1_only() => return Ok(None),
                Some(Ok(())) => now = Instant::now(),
            }
        }
        let shared = Arc::clone(&worker.shared);
        let (cluster, own) = (Arc::clone(self.cluster), Arc::clone(endpoint));
        let open = async move { open(&shared, &cluster, own).await };
        pool.multiplexed.open(endpoint.id, open).await
    }

    /// The stream, if it can carry what is asked for.
    fn fitting(&self, stream: Box<Upstream>) -> Result<Box<Upstream>, Error> {
        let is_upgrade = self.request.get(Known::Upgrade).is_some();
        match &stream.half {
            Up::H2(half) if is_upgrade && !half.takes_extended_connect() => {
                let words = "the endpoint speaks HTTP/2 without extended CONNECT (RFC 8441)";
                Err(Error::up(Kind::Protocol, words))
            }
            _ => Ok(stream),
        }
    }
}

/// Connects to `endpoint`; until when the certificates of the connection are valid.
async fn connect(
    shared: &Shared,
    cluster: &Cluster,
    endpoint: &Endpoint,
    carries: Carries,
) -> Result<(Stream, Option<Instant>), Error> {
    let identity = shared.credentials.identity();
    let expires = identity.map(|identity| expiry(identity.not_after));
    let (stream, peer) = dial(cluster, endpoint, carries).await?;
    // A connection is good while both certificates that made it are.
    let until = peer.map(|peer| expires.map_or(peer.expires(), |own| own.min(peer.expires())));
    Ok((stream, until))
}

/// Opens a shared connection to `endpoint`, unless it knows no HTTP/2.
async fn open(
    shared: &Shared,
    cluster: &Arc<Cluster>,
    endpoint: Arc<Endpoint>,
) -> Result<Option<Member>, Error> {
    let (stream, until) = connect(shared, cluster, &endpoint, Carries::Http2).await?;
    let is_ours = stream.alpn() == Some(alpn::HTTP2);
    if endpoint.tls.is_some() && !is_ours && stream.alpn() != Some(b"h2") {
        endpoint.refuses_http2();
        return Ok(None);
    }
    let (address, within) = (endpoint.address, cluster.connect_timeout);
    let local = stream.local_address();
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
    Ok(Some(Member {
        connection: Rc::clone(&connection),
        until,
        local,
        endpoint,
        uses: cluster.connections,
    }))
}
