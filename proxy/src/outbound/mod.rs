//! The outbound path: connections and requests of the app, from accept to response.
//!
//! Without interception the app names the destination itself: by `Host`, by an absolute target (`HTTP_PROXY`), or by
//! CONNECT, after which the connection is treated as one to that destination.

mod tunnel;

use std::cell::RefCell;
use std::future::poll_fn;
use std::mem;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::error::{Error, Kind};
use crate::forward::answer::{self, Audience};
use crate::forward::attempt::{Attempt, Limit};
use crate::forward::exchange::unless_gone;
use crate::forward::retry_state::Policy;
use crate::forward::{Arrival, Served, exchange, headers, propagate, serve_stream};
use crate::intercept::original_destination;
use crate::observe::{Outcome, Reporter, Teller};
use crate::serve::sniff::http_version;
use crate::snapshot::{OutboundKind, OutboundPlan, RoutePlan, Target};
use crate::worker::Worker;
use leno_http::Outgoing;
use leno_http::clock;
use leno_http::deadline::Deadline;
use leno_http::h1::{Conn, Read, ServerHalf};
use leno_http::h2::{self, Arrived};
use leno_http::head::{Head, Known, Version};
use leno_http::path;
use leno_http::peers::Down;
use leno_http::stream::{Socket, Stream, unmapped};
use leno_rules::route::NotFound;
use leno_rules::route::matcher::RequestView;
use tunnel::{Tunnel, connect, serve_taken_over, serve_tunnel};

/// Serves a connection of the app until it ends.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream, address: SocketAddr) {
    if worker.shared.intercepts
        && let Some(dialled) = original_destination(&tcp)
    {
        return Box::pin(serve_taken_over(worker, tcp, address, dialled)).await;
    }
    let (address, local) = (unmapped(address), tcp.local_addr().ok().map(unmapped));
    let stream = Stream::Plain(Socket::new(tcp));
    let mut conn = Conn::new(stream, Vec::new(), worker.shared.limits);
    let version = tokio::select! {
        version = http_version(&mut conn, &worker.shared.timeouts) => version,
        () = worker.shared.watch.ended() => return,
    };
    if let Some(version) = version {
        let caller = Caller {
            address,
            local,
            inside: None,
        };
        serve_http(worker, conn, version, caller).await;
    }
}

/// Downstream connection of a request.
#[derive(Debug, Clone)]
struct Caller {
    /// Address of the app's end.
    address: SocketAddr,
    /// Address that the app connected to.
    local: Option<SocketAddr>,
    /// The plan of the tunnel that it is inside.
    inside: Option<Arc<OutboundPlan>>,
}

impl Caller {
    /// Reporter and connection, for the records of its requests.
    fn teller(&self) -> Teller<'static> {
        Teller {
            reporter: Reporter::Source,
            peer: self.address,
            local: self.local,
            server_name: None,
        }
    }
}

/// Serves HTTP on `conn`.
async fn serve_http(worker: Rc<Worker>, conn: Conn, version: Version, caller: Caller) {
    // Boxed: rare cases must not enlarge every connection's task.
    if version == Version::Http2 {
        return Box::pin(serve_h2(worker, conn, caller)).await;
    }
    if let Some(tunnel) = serve_h1(&worker, ServerHalf::new(conn), &caller).await {
        serve_tunnel(worker, tunnel).await;
    }
}

/// Serves requests until the connection ends, or becomes the tunnel that is returned.
async fn serve_h1(worker: &Worker, mut down: ServerHalf, caller: &Caller) -> Option<Tunnel> {
    let shared = &worker.shared;
    let timeouts = &shared.timeouts;
    let (mut request, mut response) = (Head::default(), Head::default());
    let mut deadline = Deadline::default();
    let mut last = None;
    let mut ended = pin!(shared.watch.ended());
    let (mut since, mut is_over) = (Instant::now(), false);
    loop {
        let idle = since + timeouts.idle;
        let read = tokio::select! {
            biased;
            read = down.read_request(&mut request, &mut deadline, idle, timeouts.head) => read,
            () = &mut ended, if !is_over => {
                is_over = true;
                // A request that has begun to arrive is the last.
                if down.conn_ref().unread().is_empty() {
                    return None;
                }
                continue;
            }
        };
        let at = clock::now();
        if matches!(read, Ok(Read::Closed)) {
            return None;
        }
        if read.is_ok() && request.method() == b"CONNECT" && caller.inside.is_none() {
            let plan = connect(worker, &mut Down::H1(&mut down), &request, caller).await;
            if let Some(plan) = plan {
                answer::plain(&mut down, 200);
                let flushed = poll_fn(|cx| down.conn().poll_flush(cx)).await;
                let tunnel = Tunnel::new(down.into_conn(), plan, caller);
                return flushed.is_ok().then_some(tunnel);
            }
            // Bytes that were sent ahead of the response were for the tunnel: they must not be read as requests.
            let _ = down.settle().await;
            down.close().await;
            return None;
        }
        let mut arrival = Arrival {
            down: Down::H1(&mut down),
            read: read.map(drop).map_err(Error::from),
            request: &mut request,
            response: &mut response,
            deadline: &mut deadline,
            at,
        };
        let served = serve_request(worker, caller, &mut last, &mut arrival).await;
        let Served::Whole(over) = served else {
            return None;
        };
        since = over;
        if !down.settle().await {
            down.close().await;
            return None;
        }
        request.rest();
        response.rest();
    }
}

async fn serve_h2(worker: Rc<Worker>, conn: Conn, caller: Caller) {
    let shared = Arc::clone(&worker.shared);
    let how = h2::Served {
        limits: shared.limits,
        timeouts: shared.timeouts,
        is_mesh: false,
        is_ours: false,
        until: None,
    };
    let (io, read) = conn.into_parts();
    // The destination that one stream found fits most of the others.
    let last: RefCell<Option<Rc<Destination>>> = RefCell::default();
    let handle = async move |arrived: &mut Arrived| {
        let is_connect = arrived.head.method() == b"CONNECT" && caller.inside.is_none();
        if is_connect && arrived.read.is_ok() {
            // Boxed: CONNECT is rare, and must not enlarge every request's future.
            return Box::pin(connect_stream(&worker, arrived, &caller)).await;
        }
        let mut own = last.borrow().clone();
        let serve = async |arrival: &mut Arrival<'_>| {
            serve_request(&worker, &caller, &mut own, arrival).await
        };
        serve_stream(arrived, &worker.shared.timeouts, serve).await;
        last.replace(own);
    };
    h2::serve(io, read, how, shared.watch.ended(), handle).await;
}

/// Turns a stream with CONNECT into a tunnel.
async fn connect_stream(worker: &Rc<Worker>, arrived: &mut Arrived, caller: &Caller) {
    let mut plan = None;
    let connect = async |arrival: &mut Arrival<'_>| {
        plan = connect(worker, &mut arrival.down, arrival.request, caller).await;
        Served::Whole(Instant::now())
    };
    serve_stream(arrived, &worker.shared.timeouts, connect).await;
    // A tunnel lives for long, and doesn't need the head.
    drop(mem::take(&mut arrived.head));
    if let (Some(plan), Some(stream)) = (plan, arrived.stream.take()) {
        let io = Stream::Inside(Box::new(stream.into_tunnel()));
        let conn = Conn::new(io, Vec::new(), worker.shared.limits);
        serve_tunnel(Rc::clone(worker), Tunnel::new(conn, plan, caller)).await;
    }
}

/// Serves one request, from its head to the response.
async fn serve_request(
    worker: &Worker,
    caller: &Caller,
    last: &mut Option<Rc<Destination>>,
    arrival: &mut Arrival<'_>,
) -> Served {
    // Phase 1: nothing is known of the request yet; one that can't be read is answered, and counted under no service.
    let mut outcome = Outcome::begun(&worker.shared.unknown, arrival.at);
    if let Err(error) = &arrival.read {
        let (down, none) = (&mut arrival.down, &Head::default());
        answer::refuse(down, &mut outcome, error, none, Audience::Trusted);
        worker.over(&outcome, caller.teller(), error);
        return Served::Whole(outcome.over());
    }
    worker.shared.metrics.parsed.inc();
    if arrival.down.is_h2() && answer::is_grpc(arrival.request) {
        outcome.is_call();
    }
    // Phase 2: the request has an id; every failure is answered with its reason.
    worker.random(|rng| headers::request_id(arrival.request, rng));
    let mut attempt = Attempt {
        worker,
        down: arrival.down.reborrow(),
        request: arrival.request,
        response: arrival.response,
        outcome: &mut outcome,
        teller: caller.teller(),
    };
    let inside = caller.inside.as_ref();
    let forwarded = forward(&mut attempt, inside, last, arrival.deadline, arrival.at).await;
    attempt.conclude(forwarded, Audience::Trusted)
}

/// Destination of a connection's last request: the next one mostly goes there as well.
#[derive(Debug)]
struct Destination {
    /// `Host`, as the client sent it.
    said: Vec<u8>,
    authority: String,
    /// The authority without its port.
    host: String,
    plan: Arc<OutboundPlan>,
    /// Configuration generation in which it was found, and the time of the lookup.
    generation: u64,
    since: Instant,
}

/// Destination of the request: `last` if it applies, else a new one, which replaces it.
async fn destination<'a>(
    worker: &Worker,
    attempt: &mut Attempt<'_>,
    inside: Option<&Arc<OutboundPlan>>,
    last: &'a mut Option<Rc<Destination>>,
) -> Result<&'a Destination, Error> {
    let (request, down) = (&mut *attempt.request, &mut attempt.down);
    let generation = worker.shared.directory.generation();
    let host = request.get(Known::Host).unwrap_or_default();
    let is_same = last.as_ref().is_some_and(|last| {
        last.generation == generation && last.said == host && request.target().starts_with(b"/")
    });
    if !is_same {
        *last = None;
        let authority = take_authority(request, inside)?;
        check_loop(worker, &authority)?;
        let plan = {
            let found = pin!(find_plan(worker, &authority, inside));
            unless_gone(down, found).await??
        };
        *last = Some(Rc::new(Destination {
            said: request.get(Known::Host).unwrap_or_default().to_vec(),
            host: host_of(&authority).to_owned(),
            authority,
            plan,
            generation,
            since: Instant::now(),
        }));
    }
    last.as_deref()
        .ok_or_else(|| Error::own(Kind::NotConfigured, "no destination"))
}

/// Phase 3: routes a request that has an id, and forwards it.
async fn forward(
    attempt: &mut Attempt<'_>,
    inside: Option<&Arc<OutboundPlan>>,
    last: &mut Option<Rc<Destination>>,
    deadline: &mut Deadline,
    arrived: Instant,
) -> Result<(), Error> {
    let worker = attempt.worker;
    let found = destination(worker, attempt, inside, last).await?;
    normalise(attempt.request)?;
    let (plan, authority) = (&found.plan, &found.authority);
    plan.used(worker.shared.directory.clock_at(arrived));
    attempt.outcome.toward(&plan.series);

    let router = match &plan.kind {
        OutboundKind::Http(router) => router,
        OutboundKind::Refused(kind, reason) => {
            return Err(Error::own(*kind, reason.to_string()));
        }
        OutboundKind::Tcp(_) => {
            let detail = format!("{authority} does not carry HTTP; use CONNECT");
            return Err(Error::own(Kind::NoRoute, detail));
        }
    };
    let view = RequestView::new(attempt.request, &found.host);
    let route = router
        .find(&view)
        .map_err(|none| no_route(none, authority, &view))?;
    let target = pick(route, worker)?;
    let cluster = target
        .cluster
        .as_ref()
        .map_err(|reason| no_cluster(route, reason))?;

    let body = attempt.down.body_length();
    exchange::prepare(attempt.request, body, &worker.shared.upgrades)?;
    worker.random(|rng| headers::websocket_key(attempt.request, rng));
    propagate::trace(worker, attempt.request, false, attempt.outcome);
    // Next to `x-envoy-attempt-count`, which follows: fields that rarely change stand together (`Encoder::again`).
    headers::forwarded_proto(attempt.request, "http");
    let edit = |request: &Head, response: &mut Head, heard: Instant| {
        let mut digits = itoa::Buffer::new();
        let took = heard.duration_since(arrived);
        let millis = took.as_secs() * 1000 + u64::from(took.subsec_millis());
        let elapsed = digits.format(millis).as_bytes();
        response.add_known(b"x-envoy-upstream-service-time", Known::Envoy, elapsed);
        headers::echo_id(request, response);
    };
    let limit = Limit {
        deadline,
        // The wait for the configuration is not the upstream's time.
        since: arrived.max(found.since),
        at_most: route.timeout,
    };
    let outcome = attempt
        .run(cluster, limit, Policy::Route(route.retry.as_ref()), edit)
        .await;
    if let Some(reached) = &mut attempt.outcome.reached {
        reached.rule = Some(Arc::clone(&route.rule));
    }
    outcome.map_err(|error| explain(error, route))
}

/// Adds the rule before the cluster that it led to.
fn explain(mut error: Error, route: &RoutePlan) -> Error {
    error.object = Some(match error.object {
        Some(object) => format!("{} → {object}", route.rule).into(),
        None => Arc::clone(&route.rule),
    });
    error
}

fn no_route(none: NotFound, authority: &str, view: &RequestView<'_>) -> Error {
    let path = String::from_utf8_lossy(view.path);
    let detail = match none {
        NotFound::Host => format!("no virtual host has the authority {authority}"),
        NotFound::Route => format!("no route of {authority} matches {path}"),
    };
    Error::own(Kind::NoRoute, detail)
}

fn no_cluster(route: &RoutePlan, reason: &Arc<str>) -> Error {
    Error::own(Kind::NoCluster, reason.to_string()).behind(&route.rule)
}

fn pick<'a>(route: &'a RoutePlan, worker: &Worker) -> Result<&'a Target, Error> {
    let none = || Error::own(Kind::NoCluster, "the route leads nowhere").behind(&route.rule);
    route.split.pick(worker.dice()).ok_or_else(none)
}

/// Plan for `authority`. Inside a tunnel, an authority that the mesh doesn't know stands for the tunnel's destination.
async fn find_plan(
    worker: &Worker,
    authority: &str,
    inside: Option<&Arc<OutboundPlan>>,
) -> Result<Arc<OutboundPlan>, Error> {
    let directory = &worker.shared.directory;
    let found = match directory.find(authority) {
        Some(known) => known,
        None => Box::pin(directory.resolve(authority)).await,
    };
    match (found, inside) {
        // The current plan of the tunnel's destination; the one that the tunnel began with only when that is gone.
        (Err(error), Some(plan)) if error.kind == Kind::UnknownAuthority => {
            let current = directory.find(&plan.authority).and_then(Result::ok);
            Ok(current.unwrap_or_else(|| Arc::clone(plan)))
        }
        (found, _) => found,
    }
}

fn host_of(authority: &str) -> &str {
    authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host)
}

fn check_loop(worker: &Worker, authority: &str) -> Result<(), Error> {
    let address: Option<SocketAddr> = authority.parse().ok();
    match address.is_some_and(|address| worker.shared.own_addresses.contains(&address)) {
        true => {
            let detail = format!("{authority} is this proxy itself");
            Err(Error::own(Kind::Loop, detail))
        }
        false => Ok(()),
    }
}

/// Authority of a request. An absolute target wins over `Host` (RFC 9112, section 3.2.2), and becomes a path and a
/// `Host`.
fn take_authority(request: &mut Head, inside: Option<&Arc<OutboundPlan>>) -> Result<String, Error> {
    let bad = |text: &str| Error::down(Kind::BadRequest, text);
    if request.method() == b"CONNECT" {
        return Err(bad("CONNECT inside a tunnel"));
    }
    let port = inside.and_then(|plan| plan.authority.rsplit_once(':')?.1.parse().ok());
    if request.target().first() != Some(&b'/') && request.target() != b"*" {
        let target = String::from_utf8_lossy(&request.target()[7..]).into_owned();
        let end = target.find(['/', '?']).unwrap_or(target.len());
        let (authority, path) = target.split_at(end);
        if authority.is_empty() || authority.contains('@') {
            return Err(bad("the target's authority is not a host"));
        }
        let origin = match path.as_bytes().first() {
            Some(b'/') => path.to_owned(),
            _ => format!("/{path}"),
        };
        request.set_target(origin.as_bytes());
        request.set("host", Known::Host, authority.as_bytes());
        return Ok(canonical(authority, port));
    }
    match request.get(Known::Host) {
        Some(host) if !host.is_empty() => Ok(canonical(&String::from_utf8_lossy(host), port)),
        // An old client sends no `Host`: the tunnel's destination applies.
        None if inside.is_some() => Ok(inside
            .map(|plan| plan.authority.to_string())
            .unwrap_or_default()),
        _ => Err(bad("no Host: nothing says where the request is to go")),
    }
}

/// `host:port`, lower-case, without a trailing dot.
fn canonical(authority: &str, default_port: Option<u16>) -> String {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (host, port.to_owned())
        }
        _ => (authority, default_port.unwrap_or(80).to_string()),
    };
    let host = host.trim_end_matches(':').trim_end_matches('.');
    format!("{}:{port}", host.to_ascii_lowercase())
}

/// Normalises the target, so that the path that is matched is the one that is forwarded.
pub(crate) fn normalise(request: &mut Head) -> Result<(), Error> {
    if request.target() == b"*" {
        return Ok(());
    }
    let normal = path::normalise(request.target());
    let normal = normal.map_err(|error| Error::down(Kind::BadRequest, error.to_string()))?;
    if let std::borrow::Cow::Owned(normal) = normal {
        request.set_target(&normal);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_has_one_form() {
        for (said, canon) in [
            ("User-Service", "user-service:80"),
            ("user-service:8080", "user-service:8080"),
            ("user-service.", "user-service:80"),
            ("user-service.:80", "user-service:80"),
            ("user-service:", "user-service:80"),
            ("10.0.5.3:5432", "10.0.5.3:5432"),
            ("[::1]", "[::1]:80"),
            ("[::1]:81", "[::1]:81"),
        ] {
            assert_eq!(canonical(said, None), canon);
        }
        assert_eq!(canonical("a", Some(443)), "a:443");
    }

    #[test]
    fn an_absolute_target_becomes_a_path_and_a_host() {
        for (target, authority, path) in [
            ("http://A:81/x?y", "a:81", "/x?y"),
            ("http://a", "a:80", "/"),
            ("http://a?q", "a:80", "/?q"),
        ] {
            let mut head = Head::request("GET", target);
            head.add("Host", b"other");
            assert_eq!(take_authority(&mut head, None).expect("valid"), authority);
            assert_eq!(head.target(), path.as_bytes());
            assert_ne!(head.get(Known::Host), Some(&b"other"[..]));
        }
        for target in ["http:///x", "http://user@a/x"] {
            let mut head = Head::request("GET", target);
            assert!(take_authority(&mut head, None).is_err(), "{target}");
        }
    }
}
