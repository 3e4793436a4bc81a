//! The inbound path: connections and requests to the app, from accept to response.

mod connection;
mod tcp;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::balance::Cluster;
use crate::drain::{ON_THE_WAY, Phase};
use crate::error::{Error, Kind};
use crate::forward::answer;
use crate::forward::attempt::{Attempt, Limit};
use crate::forward::retry_state::Policy;
use crate::forward::{Arrival, Served, exchange, headers, propagate, serve_stream};
use crate::intercept::original_destination;
use crate::observe::Outcome;
use crate::observe::standard::Series;
use crate::outbound::normalise;
use crate::serve::sniff::{http_version, identify};
use crate::snapshot::{InboundChain, InboundPlan};
use crate::tls::alpn;
use crate::worker::Worker;
use connection::{Authenticated, Connection};
use leno_http::clock;
use leno_http::deadline::Deadline;
use leno_http::h1::{Conn, Read, ServerHalf};
use leno_http::h2;
use leno_http::head::{Head, Known, Version};
use leno_http::peers::Down;
use leno_http::stream::{Socket, Stream, unmapped};
use leno_rules::policy::rbac::{Verdict, verdict};
use leno_rules::route::matcher::RequestView;
use tcp::{carry, carry_spoken, spoken_first};

/// Serves a connection that the rules of `init` intercepted, until it ends.
pub async fn serve_taken_over(worker: Rc<Worker>, tcp: TcpStream, address: SocketAddr) {
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
        protocol = identify(&mut tcp, &mut read, shared.detection) => protocol,
        up = Box::pin(spoken_first(&worker, &connection)) => {
            let down = Stream::Plain(Socket::with_read(tcp, read));
            return Box::pin(carry_spoken(&worker, &connection, down, up)).await;
        }
    };
    connection.is_told(protocol);
    // Not for ever: the client may have left, and each connection that waits takes one of --max-connections.
    let plan = tokio::select! {
        plan = timeout(shared.directory.patience(), shared.directory.inbound()) => plan,
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
    let socket = Socket::with_read(tcp, read);
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
        false => carry(&worker, connection, stream).await,
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
async fn current<'a>(
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
        sleep(ON_THE_WAY).await;
    };
    let version = tokio::select! {
        biased;
        version = http_version(&mut conn, &shared.timeouts) => version,
        () = over => return,
    };
    match version {
        None => {}
        // Boxed: a connection that carries many requests at once must not enlarge the others' tasks.
        Some(Version::Http2) => Box::pin(serve_h2(worker, connection, conn)).await,
        Some(_) => serve_h1(&worker, &connection, conn).await,
    }
}

async fn serve_h1(worker: &Worker, connection: &Connection, conn: Conn) {
    let shared = &worker.shared;
    let timeouts = &shared.timeouts;
    let mut down = ServerHalf::new(conn).closing_when(shared.watch.draining());
    let (mut request, mut response) = (Head::default(), Head::default());
    let mut deadline = Deadline::default();
    let mut serving = None;
    let expires = connection.expires();
    let mut ended = pin!(shared.watch.reached(Phase::Closing));
    let (mut since, mut is_over) = (Instant::now(), false);
    loop {
        let idle = since + timeouts.idle;
        let idle = expires.map_or(idle, |expires| expires.min(idle));
        let read = tokio::select! {
            biased;
            read = down.read_request(&mut request, &mut deadline, idle, timeouts.head) => read,
            () = &mut ended, if !is_over => {
                is_over = true;
                // A request that has begun to arrive is the last.
                if down.conn_ref().unread().is_empty() {
                    return;
                }
                continue;
            }
        };
        let at = clock::now();
        // A request that was pipelined before the peer's certificate ended is not served after it.
        if matches!(read, Ok(Read::Closed)) || expires.is_some_and(|expires| expires <= at) {
            return;
        }
        let mut arrival = Arrival {
            down: Down::H1(&mut down),
            read: read.map(drop).map_err(Error::from),
            request: &mut request,
            response: &mut response,
            deadline: &mut deadline,
            at,
        };
        let served = serve_request(worker, connection, &mut serving, &mut arrival).await;
        let Served::Whole(over) = served else {
            return;
        };
        since = over;
        if !down.settle().await {
            return down.close().await;
        }
        request.rest();
        response.rest();
    }
}

async fn serve_h2(worker: Rc<Worker>, connection: Connection, conn: Conn) {
    let shared = Arc::clone(&worker.shared);
    let how = h2::Served {
        limits: shared.limits,
        timeouts: shared.timeouts,
        is_mesh: connection.peer.is_some(),
        is_ours: conn.io().alpn() == Some(alpn::SHARED),
        until: connection.expires(),
    };
    let (io, read) = conn.into_parts();
    // The state that one stream found fits most of the others.
    let serving: RefCell<Option<Rc<Serving>>> = RefCell::default();
    // Notified when a new plan has no chain for the connection.
    let unfit: Rc<Notify> = Rc::default();
    let misfit = Rc::clone(&unfit);
    let handle = async move |arrived: &mut h2::Arrived| {
        let mut own = serving.borrow().clone();
        let serve = async |arrival: &mut Arrival<'_>| {
            let served = serve_request(&worker, &connection, &mut own, arrival).await;
            if served == Served::Refused {
                misfit.notify_one();
            }
            served
        };
        serve_stream(arrived, &worker.shared.timeouts, serve).await;
        serving.replace(own);
    };
    // A connection that comes during the drain is served until `Phase::Closing`, when all clients know of the drain.
    let closing = match shared.watch.has_reached(Phase::Draining) {
        true => Phase::Closing,
        false => Phase::Draining,
    };
    let closing = async {
        tokio::select! {
            () = shared.watch.reached(closing) => {}
            () = unfit.notified() => {}
        }
    };
    h2::serve(io, read, how, closing, handle).await;
}

/// Serves one request, from its head to the response.
async fn serve_request(
    worker: &Worker,
    connection: &Connection,
    serving: &mut Option<Rc<Serving>>,
    arrival: &mut Arrival<'_>,
) -> Served {
    if arrival.read.is_ok() {
        connection.learn(arrival.request);
    }
    let Some(serving) = current(worker, connection, serving).await else {
        return Served::Refused;
    };
    let mut outcome = Outcome::begun(&serving.series, arrival.at);
    if let Err(error) = &arrival.read {
        let (down, none) = (&mut arrival.down, &Head::default());
        answer::refuse(down, &mut outcome, error, none, connection.audience());
        worker.over(&outcome, connection.teller(), error);
        return Served::Whole(outcome.over());
    }
    worker.shared.metrics.parsed.inc();
    if arrival.down.is_h2() && answer::is_grpc(arrival.request) {
        outcome.is_call();
    }
    worker.random(|rng| headers::request_id(arrival.request, rng));
    let mut attempt = Attempt {
        worker,
        down: arrival.down.reborrow(),
        request: arrival.request,
        response: arrival.response,
        outcome: &mut outcome,
        teller: connection.teller(),
    };
    let limit = Limit {
        deadline: arrival.deadline,
        since: arrival.at,
        at_most: None,
    };
    let forwarded = forward(&mut attempt, connection, serving, limit).await;
    attempt.conclude(forwarded, connection.audience())
}

/// Authorizes a request and forwards it to the app.
async fn forward(
    attempt: &mut Attempt<'_>,
    connection: &Connection,
    serving: &Serving,
    limit: Limit<'_>,
) -> Result<(), Error> {
    let worker = attempt.worker;
    let request = &mut *attempt.request;
    normalise(request)?;
    if request.method() == b"CONNECT" || !matches!(request.target().first(), Some(b'/' | b'*')) {
        return Err(Error::down(Kind::BadRequest, "the target must be a path"));
    }
    if connection.peer.is_none() {
        // Not authenticated: a client outside the mesh must not pass for one inside.
        request.remove(Known::ClientCert);
        request.remove(Known::Envoy);
        request.remove(Known::AttemptCount);
    }
    authorize(connection, &serving.chain, request)?;
    let app = serving.app.as_ref().map_err(Error::clone)?;

    let body = attempt.down.body_length();
    exchange::prepare(request, body, &worker.shared.upgrades)?;
    worker.random(|rng| headers::websocket_key(request, rng));
    headers::forwarded_for(request, &connection.ip);
    let scheme = if connection.peer.is_some() {
        "https"
    } else {
        "http"
    };
    headers::forwarded_proto(request, scheme);
    let is_carried = attempt.down.is_carried();
    propagate::trace(worker, request, is_carried, attempt.outcome);
    if let Some(caller) = &connection.peer {
        headers::client_cert(request, &caller.element);
    }
    attempt
        .run(app, limit, Policy::Stale, |request, response, _| {
            // The client's sidecar adds it for its app itself.
            if !is_carried {
                headers::echo_id(request, response);
            }
        })
        .await
}

fn authorize(connection: &Connection, chain: &InboundChain, request: &Head) -> Result<(), Error> {
    let host = request.get(Known::Host).unwrap_or_default();
    let view = RequestView::new(request, host);
    let who = connection
        .caller()
        .principal
        .unwrap_or("a caller without an identity");
    let denied = |detail: String| Error::own(Kind::Denied, detail);
    match verdict(&chain.policies, connection.caller(), &view) {
        Verdict::Allowed => Ok(()),
        Verdict::DeniedBy(policy) => Err(denied(format!("{who} is denied")).behind(&policy.into())),
        Verdict::NotAllowed(nearest) => {
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
