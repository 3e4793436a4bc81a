//! The inbound story: what others send to the app, from their connection to the answer.

use std::cell::{Cell, OnceCell};
use std::future::pending;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::balance::Cluster;
use crate::config::endpoints::Workload;
use crate::config::peer;
use crate::connect::introduce::exchange;
use crate::deadline::Deadline;
use crate::drain::{ON_THE_WAY, Phase};
use crate::error::{Error, Kind};
use crate::forward::answer::{self, Audience};
use crate::forward::attempt::{Attempt, Limit};
use crate::forward::tries::Policy;
use crate::forward::{Arrival, Served, headers, http, propagate, serve_stream, tcp};
use crate::http::h1::{Conn, Read, ServerHalf};
use crate::http::h2;
use crate::http::half::Down;
use crate::http::head::{Head, Known, Version};
use crate::identify::{Protocol, http_version, identify};
use crate::intercept::original_destination;
use crate::observe::labels::Party;
use crate::observe::standard::Series;
use crate::observe::{Outcome, Reporter, Teller};
use crate::outbound::normalise;
use crate::policy::{Caller, Verdict, verdict, verdict_tcp};
use crate::route::matcher::RequestView;
use crate::snapshot::{InboundChain, InboundPlan};
use crate::stream::{Socket, Stream};
use crate::tls::Peer;
use crate::worker::Worker;

/// A connection to the app, as far as it is known.
#[derive(Debug)]
struct Connection {
    /// The workload port that it is for.
    port: u16,
    /// Where it wanted to go, if it was taken over.
    dialled: Option<SocketAddr>,
    /// Whether it begins with a TLS handshake.
    tls: bool,
    /// The ALPN protocols that its client offers; for plaintext, what it was told to be.
    offers: Vec<Vec<u8>>,
    /// Who is at the other end, once TLS was terminated.
    peer: Option<Authenticated>,
    /// Its address, as `x-forwarded-for` carries it.
    ip: String,
    address: SocketAddr,
    /// What it connected to.
    local: Option<SocketAddr>,
    /// The server name that its TLS asks for.
    server_name: Option<String>,
    /// What the sidecar at the other end says of its workload.
    source: OnceCell<Workload>,
}

/// Who is at the other end of mutual TLS, with what each of its requests needs of that.
#[derive(Debug)]
struct Authenticated {
    peer: Peer,
    /// When its certificate ends.
    expires: Instant,
    /// It as an element of `x-forwarded-client-cert`.
    element: String,
}

impl Authenticated {
    fn new(worker: &Worker, peer: Peer) -> Authenticated {
        let me = worker.shared.me.principal.as_deref().unwrap_or_default();
        Authenticated {
            expires: peer.expires(),
            element: headers::client_cert_element(me, &peer.hash, peer.id.as_str()),
            peer,
        }
    }
}

/// Serves a connection that the rules of `init` took over, until it ends.
pub async fn serve_taken_over(worker: Rc<Worker>, tcp: TcpStream, address: SocketAddr) {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
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
    serve_for(worker, tcp, address, port, None).await;
}

async fn serve_for(
    worker: Rc<Worker>,
    mut tcp: TcpStream,
    address: SocketAddr,
    port: u16,
    dialled: Option<SocketAddr>,
) {
    // Phase 1: nothing is known; without a plan it waits, never passes.
    let shared = &worker.shared;
    let mut connection = Connection {
        port,
        dialled,
        tls: false,
        offers: Vec::new(),
        peer: None,
        ip: address.ip().to_string(),
        address,
        local: dialled.or_else(|| tcp.local_addr().ok()),
        server_name: None,
        source: OnceCell::new(),
    };
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
    // Nor for ever: whoever waits may have left, and each takes one of --max-connections.
    let plan = tokio::select! {
        plan = timeout(shared.directory.patience(), shared.directory.inbound()) => plan,
        () = shared.watch.ended() => return,
    };
    let Ok(plan) = plan else {
        tracing::info!(%address, port, "closed: there is no inbound configuration yet");
        return;
    };
    let Some(chain) = connection.chain(&plan) else {
        tracing::info!(%address, port, "refused: mutual TLS is required here");
        return;
    };
    // Phase 2: who it is.
    let socket = Socket::with_read(tcp, read);
    if !chain.tls {
        let is_http = chain.http;
        return carry(worker, connection, Stream::Plain(socket), is_http).await;
    }
    let accepted = match Box::pin(shared.acceptor.accept(socket)).await {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::info!(%address, port, %error, "refused");
            return;
        }
    };
    connection.peer = Some(Authenticated::new(&worker, accepted.peer));
    // Phase 3: what it asks for.
    let is_http = chain.http;
    carry(worker, connection, accepted.stream, is_http).await;
}

async fn carry(worker: Rc<Worker>, connection: Connection, mut stream: Stream, is_http: bool) {
    if is_http {
        return serve_http(worker, connection, stream).await;
    }
    let shared = &worker.shared;
    let plan = shared.directory.inbound().await;
    let Some(chain) = connection.chain(&plan) else {
        return;
    };
    match exchange(&mut stream, &plan.peer_frame, shared.timeouts.head).await {
        Ok(Some(said)) => connection.believe(said),
        Ok(None) => {}
        Err(error) => {
            return tracing::info!(address = %connection.address, %error, "connection not carried");
        }
    }
    let series = connection.series(&worker, chain);
    let mut passage = tcp::Passage::new(&series);
    let app = connection.app(&worker, &plan, chain);
    let carrying = carry_bytes(&worker, &connection, chain, app, &mut passage, stream);
    // A box: opaque connections must not make every connection's task larger.
    let carried = Box::pin(carrying).await;
    if let Err(error) = &carried {
        tracing::info!(address = %connection.address, %error, "connection not carried");
    }
    passage.over(&worker, connection.teller(), carried.err());
}

/// The app's own connection, once the app has spoken on it before the caller did. Never, where plaintext isn't taken as
/// bytes or the caller isn't allowed.
async fn spoken_first(worker: &Worker, connection: &Connection) -> tcp::Opened {
    let plan = worker.shared.directory.inbound().await;
    let chain = connection
        .chain(&plan)
        .filter(|chain| !chain.tls && !chain.http);
    let allowed = chain.filter(|chain| {
        matches!(
            verdict_tcp(&chain.policies, connection.caller()),
            Verdict::Allowed
        )
    });
    let Some(chain) = allowed else {
        return pending().await;
    };
    let Ok(cluster) = connection.app(worker, &plan, chain) else {
        return pending().await;
    };
    match tcp::spoken_first(worker, &cluster, &chain.speaks_first).await {
        Ok(up) => up,
        // Whoever carries the connection finds out.
        Err(_) => pending().await,
    }
}

/// Carries a connection on which the app spoke first.
async fn carry_spoken(worker: &Worker, connection: &Connection, mut down: Stream, up: tcp::Opened) {
    let plan = worker.shared.directory.inbound().await;
    let Some(chain) = connection.chain(&plan) else {
        return;
    };
    let mut passage = tcp::Passage::new(&connection.series(worker, chain));
    let carried = match connection.app(worker, &plan, chain) {
        Ok(cluster) => tcp::carry(&mut passage, &cluster, up, &[], &mut down).await,
        Err(error) => Err(error),
    };
    passage.over(worker, connection.teller(), carried.err());
}

impl Connection {
    /// Its first bytes, or their absence, have told what it carries.
    fn is_told(&mut self, protocol: Protocol) {
        self.tls = matches!(protocol, Protocol::Tls(_));
        self.offers = match protocol {
            Protocol::Tls(hello) => {
                self.server_name = hello.server_name;
                hello.alpn
            }
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::Http2 => vec![b"h2c".to_vec()],
            Protocol::Opaque => Vec::new(),
        };
    }

    /// The app that it is for.
    fn app(
        &self,
        worker: &Worker,
        plan: &InboundPlan,
        chain: &InboundChain,
    ) -> Result<Arc<Cluster>, Error> {
        if let Some(dialled) = self.dialled {
            return Ok(worker.shared.apps.at(plan, dialled));
        }
        let port = self.port;
        let missing = || Error::own(Kind::NoCluster, format!("no app is behind port {port}"));
        let target = chain.app(port).ok_or_else(missing)?;
        let cluster = target.cluster.as_ref();
        let cluster = cluster.map_err(|reason| Error::own(Kind::NoCluster, reason.to_string()))?;
        Ok(Arc::clone(cluster))
    }

    fn chain<'a>(&self, plan: &'a InboundPlan) -> Option<&'a Arc<InboundChain>> {
        plan.find(self.port, self.tls, &self.offers)
    }

    fn caller(&self) -> Caller<'_> {
        Caller {
            principal: self.peer.as_ref().map(|caller| caller.peer.id.as_str()),
        }
    }

    /// When its peer's certificate ends.
    fn expires(&self) -> Option<Instant> {
        self.peer.as_ref().map(|caller| caller.expires)
    }

    /// Who tells of its requests.
    fn teller(&self) -> Teller<'_> {
        Teller {
            reporter: Reporter::Destination,
            peer: self.address,
            local: self.local,
            server_name: self.server_name.as_deref(),
        }
    }

    fn audience(&self) -> Audience {
        match self.peer {
            Some(_) => Audience::Trusted,
            None => Audience::Anyone,
        }
    }

    /// Takes from `request` what the caller's sidecar says of its workload.
    fn learn(&self, request: &Head) {
        if self.source.get().is_none()
            && let Some(value) = request.get(Known::PeerMetadata)
            && let Some(said) = peer::decode(value)
        {
            self.believe(said);
        }
    }

    /// Believes what the caller's sidecar says of its workload as far as its certificate goes: its name is its own
    /// affair; whose it is, the certificate says.
    fn believe(&self, said: Workload) {
        if (self.peer.as_ref()).is_some_and(|caller| said.namespace == caller.peer.id.namespace()) {
            // What was said first stays.
            let _ = self.source.set(said);
        }
    }

    /// Where requests on this connection are counted.
    fn series(&self, worker: &Worker, chain: &InboundChain) -> Arc<Series> {
        let source = Party {
            principal: self.peer.as_ref().map(|caller| caller.peer.id.to_string()),
            workload: self.source.get().cloned().unwrap_or_default(),
        };
        let security = match self.peer {
            Some(_) => "mutual_tls",
            None => "none",
        };
        let me = worker.shared.me.principal.clone();
        let labels = chain.labels(&source, me, security);
        worker.shared.metrics.series(labels)
    }
}

/// What requests on a connection are judged by, for as long as the plan stays the same.
#[derive(Debug)]
struct Serving {
    plan: Arc<InboundPlan>,
    /// Whether `series` names the caller's workload.
    is_told: bool,
    chain: Arc<InboundChain>,
    series: Arc<Series>,
    app: Result<Arc<Cluster>, Error>,
}

impl Serving {
    /// How HTTP on `connection` is served by `plan`, if it is.
    fn new(worker: &Worker, connection: &Connection, plan: Arc<InboundPlan>) -> Option<Serving> {
        let fits = |c: &&Arc<InboundChain>| c.http && c.tls == connection.peer.is_some();
        let chain = Arc::clone(connection.chain(&plan).filter(fits)?);
        Some(Serving {
            is_told: connection.source.get().is_some(),
            series: connection.series(worker, &chain),
            app: connection.app(worker, &plan, &chain),
            chain,
            plan,
        })
    }
}

/// The plan may have changed since the last request, and the caller may have said who it is: each one is judged by what
/// runs now.
async fn current<'a>(
    worker: &Worker,
    connection: &Connection,
    serving: &'a mut Option<Serving>,
) -> Option<&'a Serving> {
    let plan = worker.shared.directory.inbound().await;
    let is_told = connection.source.get().is_some();
    let fits = |s: &Serving| Arc::ptr_eq(&s.plan, &plan) && s.is_told == is_told;
    if !serving.as_ref().is_some_and(fits) {
        *serving = Serving::new(worker, connection, plan);
    }
    serving.as_ref()
}

async fn serve_http(worker: Rc<Worker>, connection: Connection, stream: Stream) {
    let shared = &worker.shared;
    let mut conn = Conn::new(stream, Vec::new(), shared.limits);
    // What was accepted may still say what it came for: its first request may be on its way.
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
        // A box: a connection that carries many requests at once must not make the others' tasks larger.
        Some(Version::Http2) => Box::pin(serve_h2(worker, connection, conn)).await,
        Some(_) => serve_h1(&worker, &connection, conn).await,
    }
}

async fn serve_h1(worker: &Worker, connection: &Connection, conn: Conn) {
    let shared = &worker.shared;
    let timeouts = &shared.timeouts;
    let mut down = ServerHalf::new(conn).closing_on(shared.watch.flag());
    let (mut request, mut response) = (Head::default(), Head::default());
    let mut deadline = Deadline::new(timeouts.idle);
    let mut serving: Option<Serving> = None;
    let expires = connection.expires();
    let mut ended = pin!(shared.watch.reached(Phase::Closing));
    let mut is_over = false;
    loop {
        let idle = Instant::now() + timeouts.idle;
        let idle = expires.map_or(idle, |expires| expires.min(idle));
        let read = tokio::select! {
            biased;
            read = down.read_request(&mut request, &mut deadline, idle, timeouts.head) => read,
            () = &mut ended, if !is_over => {
                is_over = true;
                // A request of which something is there is the last.
                if down.conn_ref().unread().is_empty() {
                    return;
                }
                continue;
            }
        };
        let at = Instant::now();
        // A request that was pipelined before the peer's certificate ended is not served after it.
        if matches!(read, Ok(Read::Closed)) || expires.is_some_and(|expires| expires <= at) {
            return;
        }
        let arrival = Arrival {
            down: Down::H1(&mut down),
            read: read.map(drop),
            request: &mut request,
            response: &mut response,
            deadline: &mut deadline,
            at,
        };
        if serve_request(worker, connection, &mut serving, arrival).await != Served::Whole {
            return;
        }
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
        until: connection.expires(),
    };
    let (io, read) = conn.into_parts();
    let connection = Rc::new(connection);
    // The streams share it while none of them is at it.
    let serving: Rc<Cell<Option<Serving>>> = Rc::default();
    // The plan may come to have no place for it.
    let unfit: Rc<Notify> = Rc::default();
    let misfit = Rc::clone(&unfit);
    let handle = move |arrived: h2::Arrived| {
        let (worker, connection) = (Rc::clone(&worker), Rc::clone(&connection));
        let (serving, unfit) = (Rc::clone(&serving), Rc::clone(&misfit));
        async move {
            let mut own = serving.take();
            let serve = async |arrival: Arrival<'_>| {
                let served = serve_request(&worker, &connection, &mut own, arrival).await;
                if served == Served::Refused {
                    unfit.notify_one();
                }
                served
            };
            serve_stream(arrived, &worker.shared.timeouts, serve).await;
            serving.set(own);
        }
    };
    // A connection that comes while callers are told to go elsewhere is served until they all know.
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

/// Serves one request, from its head to the answer.
async fn serve_request(
    worker: &Worker,
    connection: &Connection,
    serving: &mut Option<Serving>,
    mut arrival: Arrival<'_>,
) -> Served {
    if arrival.read.is_ok() {
        connection.learn(arrival.request);
    }
    let Some(serving) = current(worker, connection, serving).await else {
        return Served::Refused;
    };
    let mut outcome = Outcome::begun(&serving.series, arrival.at);
    if let Err(error) = arrival.read {
        let (down, none) = (&mut arrival.down, &Head::default());
        answer::refuse(down, &mut outcome, &error, none, connection.audience());
        worker.over(&outcome, connection.teller(), &error);
        return Served::Whole;
    }
    match arrival.down.is_h2() {
        false => worker.shared.metrics.parsed.inc(),
        true if answer::is_grpc(arrival.request) => outcome.is_call(),
        true => {}
    }
    worker.random(|rng| headers::request_id(arrival.request, rng));
    let mut attempt = Attempt {
        worker,
        down: arrival.down,
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

/// From a request with an id to the app's response.
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
        // Nobody proved these: a caller outside the mesh must not pass for one inside.
        request.remove(Known::ClientCert);
        request.remove(Known::Envoy);
        request.remove(Known::AttemptCount);
    }
    authorize(connection, &serving.chain, request)?;
    let app = serving.app.as_ref().map_err(Error::clone)?;

    http::prepare(request, attempt.down.body_length());
    worker.random(|rng| headers::websocket_key(request, rng));
    headers::forwarded_for(request, &connection.ip);
    let scheme = if connection.peer.is_some() {
        "https"
    } else {
        "http"
    };
    headers::forwarded_proto(request, scheme);
    propagate::trace(worker, request, attempt.outcome);
    if let Some(caller) = &connection.peer {
        headers::client_cert(request, &caller.element);
    }
    attempt
        .run(app, limit, Policy::Stale, headers::echo_id)
        .await
}

fn authorize(connection: &Connection, chain: &InboundChain, request: &Head) -> Result<(), Error> {
    let host = request.get(Known::Host).unwrap_or_default();
    let host = String::from_utf8_lossy(host);
    let view = RequestView::new(request, &host);
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

/// Carries opaque bytes to the app.
async fn carry_bytes(
    worker: &Worker,
    connection: &Connection,
    chain: &InboundChain,
    app: Result<Arc<Cluster>, Error>,
    passage: &mut tcp::Passage,
    mut down: Stream,
) -> Result<(), Error> {
    match verdict_tcp(&chain.policies, connection.caller()) {
        Verdict::Allowed => {}
        Verdict::DeniedBy(policy) | Verdict::NotAllowed(Some(policy)) => {
            let error = Error::own(Kind::Denied, "the connection is not allowed");
            return Err(error.behind(&policy.into()));
        }
        Verdict::NotAllowed(None) => {
            return Err(Error::own(Kind::Denied, "nothing is allowed here"));
        }
    }
    let app = app?;
    let up = tcp::open(worker, &app).await?;
    tcp::carry(passage, &app, up, &[], &mut down).await
}
