//! The inbound path: connections and requests to the app, from accept to response.

mod connection;
mod tcp;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use leno_http::deadline::Deadline;
use leno_http::h1::Conn;
use leno_http::head::{FieldName, Head};
use leno_http::stream::{PrefixedTcp, Stream, unmapped};
use leno_rules::policy::rbac::{Decision, authorize};
use leno_rules::route::matcher::RequestView;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::balance::Cluster;
use crate::drain::{IN_FLIGHT_GRACE, Phase, Side};
use crate::error::{Error, Kind};
use crate::forward::answer::Audience;
use crate::forward::request::{Limit, UpstreamRequest};
use crate::forward::retry_state::RetryPolicy;
use crate::forward::{exchange, headers, propagate};
use crate::intercept::original_destination;
use crate::observe::standard::Series;
use crate::observe::{LogContext, RequestStats};
use crate::serve::http::{self, Arrival, Handler};
use crate::serve::normalise;
use crate::serve::sniff::{detect_protocol, http_version};
use crate::snapshot::{InboundChain, InboundPlan};
use crate::worker::Worker;
use connection::{Authenticated, Connection};
use tcp::{connect_server_first, proxy_server_first, proxy_tcp};

/// Serves a connection that the rules of `init` intercepted, until it ends.
pub async fn serve_intercepted(worker: Rc<Worker>, tcp: TcpStream, address: SocketAddr) {
    let address = unmapped(address);
    let Some(dialled) = original_destination(&tcp) else {
        return tracing::info!(%address, "closed: it was not redirected here, so it leads nowhere");
    };
    let is_own = |own: &SocketAddr| own.port() == dialled.port();
    if worker.shared.own_addresses.iter().any(is_own) {
        return tracing::info!(%address, %dialled, "closed: it leads to the sidecar itself");
    }
    serve_for(worker, tcp, address, dialled.port(), Some(dialled)).await;
}

/// Serves a connection to workload port `port` until it ends.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream, address: SocketAddr, port: u16) {
    serve_for(worker, tcp, unmapped(address), port, None).await;
}

async fn serve_for(
    worker: Rc<Worker>,
    mut tcp: TcpStream,
    address: SocketAddr,
    port: u16,
    dialled: Option<SocketAddr>,
) {
    // Phase 1: nothing is known; without a plan the connection waits, and never passes.
    let shared = &worker.shared;
    let local = dialled.or_else(|| tcp.local_addr().ok().map(unmapped));
    let mut connection = Connection::new(address, local, port, dialled);
    let mut read = Vec::new();
    let protocol = tokio::select! {
        biased;
        protocol = detect_protocol(&mut tcp, &mut read, shared.detection) => protocol,
        up = Box::pin(connect_server_first(&worker, &connection)) => {
            let down = Stream::Plain(PrefixedTcp::with_prefix(tcp, read));
            return Box::pin(proxy_server_first(&worker, &connection, down, up)).await;
        }
    };
    connection.set_protocol(protocol);
    // Not for ever: the client may have left, and each connection that waits takes one of --max-connections.
    let plan = tokio::select! {
        plan = timeout(shared.directory.config_wait(), shared.directory.inbound()) => plan,
        () = shared.watch.ended() => return,
    };
    let Ok(plan) = plan else {
        tracing::info!(%address, port, "closed: there is no inbound configuration yet");
        return;
    };
    let Some(chain) = connection.chain(&plan) else {
        let why = match connection.is_tls() {
            false => "mutual TLS is required here",
            true => "neither mutual TLS of a sidecar nor what the port is declared to carry",
        };
        tracing::info!(%address, port, why, "refused");
        return;
    };
    // Phase 2: authenticate the peer.
    let is_http = chain.http;
    let socket = PrefixedTcp::with_prefix(tcp, read);
    let stream = if chain.tls {
        let accepted = match Box::pin(shared.acceptor.accept(socket)).await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::info!(%address, port, %error, "refused");
                return;
            }
        };
        connection.peer = Some(Authenticated::new(&worker, accepted.peer));
        accepted.stream
    } else {
        Stream::Plain(socket)
    };
    // Phase 3: serve the protocol.
    match is_http {
        true => serve_http(worker, connection, stream).await,
        false => proxy_tcp(&worker, connection, stream).await,
    }
}

/// Plan for the requests on a connection, and its parts that apply, for as long as the plan stays the same.
#[derive(Debug)]
struct Serving {
    /// Configuration generation in which the plan was last seen.
    generation: Cell<u64>,
    plan: Arc<InboundPlan>,
    /// True when `series` names the peer's workload.
    is_told: bool,
    chain: Arc<InboundChain>,
    series: Arc<Series>,
    app: Result<Arc<Cluster>, Error>,
}

impl Serving {
    /// State that serves HTTP on `connection` by `plan`; `None` when the plan doesn't.
    fn new(worker: &Worker, connection: &Connection, plan: Arc<InboundPlan>) -> Option<Serving> {
        let fits = |c: &&Arc<InboundChain>| c.http && c.tls == connection.peer.is_some();
        let chain = Arc::clone(connection.chain(&plan).filter(fits)?);
        Some(Serving {
            is_told: connection.knows_source(),
            series: connection.series(worker, &chain),
            app: connection.app(worker, &plan, &chain),
            chain,
            generation: Cell::new(0),
            plan,
        })
    }
}

/// Updates `serving`: the plan may have changed since the last request, and the peer may have reported its workload.
/// Each request is judged by the current plan.
async fn current_plan<'a>(
    worker: &Worker,
    connection: &Connection,
    serving: &'a mut Option<Rc<Serving>>,
) -> Option<&'a Serving> {
    let directory = &worker.shared.directory;
    // Read first: a plan that is published meanwhile is found with the next request.
    let (generation, is_told) = (directory.generation(), connection.knows_source());
    let is_current = |s: &Serving| s.generation.get() == generation && s.is_told == is_told;
    if !serving.as_deref().is_some_and(is_current) {
        let plan = directory.inbound().await;
        let fits = |s: &Serving| Arc::ptr_eq(&s.plan, &plan) && s.is_told == is_told;
        if !serving.as_deref().is_some_and(fits) {
            *serving = Serving::new(worker, connection, plan).map(Rc::new);
        }
        let seen = serving.as_deref().map(|serving| &serving.generation);
        seen.inspect(|seen| seen.set(generation));
    }
    serving.as_deref()
}

async fn serve_http(worker: Rc<Worker>, connection: Connection, stream: Stream) {
    let shared = &worker.shared;
    let mut conn = Conn::new(stream, Vec::new(), shared.limits);
    // The first request of an accepted connection may be on its way.
    let over = async {
        shared.watch.reached(Phase::Closing).await;
        sleep(IN_FLIGHT_GRACE).await;
    };
    let version = tokio::select! {
        biased;
        version = http_version(&mut conn, &shared.timeouts) => version,
        () = over => return,
    };
    if let Some(version) = version {
        http::serve(Inbound::new(worker, connection), conn, version).await;
    }
}

/// Handler of the requests on a connection to the app.
#[derive(Debug)]
struct Inbound {
    worker: Rc<Worker>,
    connection: Connection,
    /// Notified when a new plan has no chain for the connection.
    unfit: Notify,
}

impl Inbound {
    fn new(worker: Rc<Worker>, connection: Connection) -> Inbound {
        Inbound {
            worker,
            connection,
            unfit: Notify::new(),
        }
    }
}

impl Handler for Inbound {
    const SIDE: Side = Side::Inbound;
    type State = Serving;
    type Target<'a> = &'a Serving;

    fn worker(&self) -> &Worker {
        &self.worker
    }

    fn log_context(&self) -> LogContext<'_> {
        self.connection.log_context()
    }

    fn audience(&self) -> Audience {
        self.connection.audience()
    }

    fn is_mesh(&self) -> bool {
        self.connection.peer.is_some()
    }

    fn expires(&self) -> Option<Instant> {
        self.connection.expires()
    }

    async fn closing(&self) {
        let watch = &self.worker.shared.watch;
        // A connection that comes during the drain is served until `Phase::Closing`, when all clients know of the drain.
        let closing = match watch.has_reached(Phase::Draining) {
            true => Phase::Closing,
            false => Phase::Draining,
        };
        tokio::select! {
            () = watch.reached(closing) => {}
            () = self.unfit.notified() => {}
        }
    }

    async fn begin<'a>(
        &self,
        arrival: &Arrival<'_>,
        state: &'a mut Option<Rc<Serving>>,
    ) -> Option<(RequestStats, &'a Serving)> {
        if arrival.read.is_ok() {
            self.connection.read_peer_workload(arrival.request);
        }
        let Some(serving) = current_plan(&self.worker, &self.connection, state).await else {
            self.unfit.notify_one();
            return None;
        };
        Some((RequestStats::new(&serving.series, arrival.at), serving))
    }

    async fn forward(
        &self,
        upstream: &mut UpstreamRequest<'_>,
        serving: Self::Target<'_>,
        deadline: &mut Deadline,
        at: Instant,
    ) -> Result<(), Error> {
        let limit = Limit {
            deadline,
            since: at,
            at_most: None,
        };
        forward(upstream, &self.connection, serving, limit).await
    }
}

/// Authorizes a request and forwards it to the app.
async fn forward(
    upstream: &mut UpstreamRequest<'_>,
    connection: &Connection,
    serving: &Serving,
    limit: Limit<'_>,
) -> Result<(), Error> {
    let worker = upstream.worker;
    let request = &mut *upstream.request;
    normalise(request)?;
    if request.method() == b"CONNECT" || !matches!(request.target().first(), Some(b'/' | b'*')) {
        return Err(Error::down(Kind::BadRequest, "the target must be a path"));
    }
    if connection.peer.is_none() {
        // Not authenticated: a client outside the mesh must not pass for one inside.
        request.remove(FieldName::ClientCert);
        request.remove(FieldName::Envoy);
        request.remove(FieldName::AttemptCount);
    }
    check_policies(connection, &serving.chain, request)?;
    let app = serving.app.as_ref().map_err(Error::clone)?;

    let body = upstream.down.body_framing();
    exchange::prepare(request, body, &worker.shared.upgrades)?;
    worker.random(|rng| headers::websocket_key(request, rng));
    headers::forwarded_for(request, &connection.ip);
    let scheme = if connection.peer.is_some() {
        "https"
    } else {
        "http"
    };
    headers::forwarded_proto(request, scheme);
    let is_carried = upstream.down.is_http1_over_h2();
    propagate::trace(worker, request, is_carried, upstream.stats);
    if let Some(caller) = &connection.peer {
        headers::client_cert(request, &caller.element);
    }
    upstream
        .run(app, limit, RetryPolicy::Stale, |request, response, _| {
            // The client's sidecar adds it for its app itself.
            if !is_carried {
                headers::echo_id(request, response);
            }
        })
        .await
}

fn check_policies(
    connection: &Connection,
    chain: &InboundChain,
    request: &Head,
) -> Result<(), Error> {
    let host = request.get(FieldName::Host).unwrap_or_default();
    let view = RequestView::new(request, host);
    let who = connection
        .peer_identity()
        .principal
        .unwrap_or("a caller without an identity");
    let denied = |detail: String| Error::own(Kind::Denied, detail);
    match authorize(&chain.policies, connection.peer_identity(), &view) {
        Decision::Allowed => Ok(()),
        Decision::DeniedBy(policy) => {
            Err(denied(format!("{who} is denied")).behind(&policy.into()))
        }
        Decision::NotAllowed(nearest) => {
            let method = String::from_utf8_lossy(view.head.method());
            let path = String::from_utf8_lossy(view.path);
            let error = denied(format!("no rule allows {who} to {method} {path}"));
            Err(match nearest {
                Some(policy) => error.behind(&format!("nearest: {policy}").into()),
                None => error,
            })
        }
    }
}
