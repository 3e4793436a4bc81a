//! The outbound story: what the app sends, from its connection to the answer.
//!
//! Without interception the app names the destination itself: by `Host`, by an absolute target (`HTTP_PROXY`), or by
//! CONNECT, after which the connection is treated as one to that destination.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::deadline::Deadline;
use crate::error::{Error, Kind, Progress};
use crate::forward::answer::{self, Audience};
use crate::forward::attempt::{Attempt, Limit, Policy};
use crate::forward::{headers, http, tcp};
use crate::http::Outgoing;
use crate::http::h1::{Conn, Read, ServerHalf};
use crate::http::head::{Head, Known};
use crate::http::path;
use crate::identify::{Protocol, sniff};
use crate::observe::Outcome;
use crate::route::NotFound;
use crate::route::matcher::RequestView;
use crate::snapshot::{OutboundKind, OutboundPlan, RoutePlan, Target};
use crate::stream::{Socket, Stream};
use crate::worker::Worker;

/// Serves a connection of the app until it ends.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream) {
    let stream = Stream::Plain(Socket::new(tcp));
    let conn = Conn::new(stream, Vec::new(), worker.shared.limits);
    let down = ServerHalf::new(conn);
    if let Some(tunnel) = serve_http(&worker, down, None).await {
        // A box: tunnels are rare, and must not make every connection's task larger.
        Box::pin(serve_tunnel(&worker, tunnel)).await;
    }
}

/// A connection after its CONNECT was answered.
#[derive(Debug)]
struct Tunnel {
    conn: Conn,
    plan: Arc<OutboundPlan>,
}

/// Serves requests until the connection ends, or becomes a tunnel. `inside` is the plan of the tunnel that the
/// connection is already.
async fn serve_http(
    worker: &Worker,
    mut down: ServerHalf,
    inside: Option<&Arc<OutboundPlan>>,
) -> Option<Tunnel> {
    let shared = &worker.shared;
    let timeouts = &shared.timeouts;
    let (mut request, mut response) = (Head::default(), Head::default());
    let mut deadline = Deadline::new(timeouts.idle);
    let mut last: Option<Destination> = None;
    let mut ended = pin!(shared.watch.ended());
    loop {
        // Phase 1: nothing is known of the request yet; what can't be read is answered, and counted under no service.
        let idle = Instant::now() + timeouts.idle;
        let read = tokio::select! {
            biased;
            read = down.read_request(&mut request, &mut deadline, idle, timeouts.head) => read,
            () = &mut ended, if down.conn_ref().unread().is_empty() => return None,
        };
        let arrived = Instant::now();
        if matches!(read, Ok(Read::Closed)) {
            return None;
        }
        let mut outcome = Outcome::begun(&shared.unknown);
        if let Err(error) = read {
            refuse(&mut down, &mut outcome, &error, &Head::default());
            down.close().await;
            return None;
        }
        shared.metrics.parsed.inc();
        if request.method() == b"CONNECT" && inside.is_none() {
            if let Some(plan) = connect(worker, &mut down, &mut request, &mut outcome).await {
                let conn = down.into_conn();
                return Some(Tunnel { conn, plan });
            }
        } else {
            // Phase 2: the request has an id; every failure is answered with its reason.
            worker.random(|rng| headers::request_id(&mut request, rng));
            let attempt = Attempt {
                worker,
                down: &mut down,
                request: &mut request,
                response: &mut response,
                outcome: &mut outcome,
            };
            match forward(attempt, inside, &mut last, &mut deadline, arrived).await {
                Ok(()) => outcome.answered(response.status(), "-"),
                Err(error) if error.progress == Progress::Answered => {
                    // The head is out: cutting the body short is the only way left to say that it isn't whole.
                    outcome.answered(response.status(), error.answer().flag);
                    tracing::debug!(%error, "response cut short");
                    return None;
                }
                Err(error) => refuse(&mut down, &mut outcome, &error, &request),
            }
        }
        drop(outcome);
        if !down.settle().await {
            down.close().await;
            return None;
        }
        request.rest();
        response.rest();
    }
}

/// Where the last request of a connection went: the next one mostly goes there as well.
#[derive(Debug)]
struct Destination {
    /// `Host`, as it was sent.
    host: Vec<u8>,
    authority: String,
    plan: Arc<OutboundPlan>,
    /// The generation of the configuration that it was found in, and when.
    generation: u64,
    since: Instant,
}

/// Where `request` goes. `last` is looked at first, and brought up to date.
async fn destination<'a>(
    worker: &Worker,
    request: &mut Head,
    inside: Option<&Arc<OutboundPlan>>,
    last: &'a mut Option<Destination>,
) -> Result<&'a Destination, Error> {
    let generation = worker.shared.directory.generation();
    let host = request.get(Known::Host).unwrap_or_default();
    let is_same = last.as_ref().is_some_and(|last| {
        last.generation == generation && last.host == host && request.target().starts_with(b"/")
    });
    if !is_same {
        *last = None;
        let authority = take_authority(request, inside)?;
        check_loop(worker, &authority)?;
        let plan = find_plan(worker, &authority, inside).await?;
        *last = Some(Destination {
            host: request.get(Known::Host).unwrap_or_default().to_vec(),
            authority,
            plan,
            generation,
            since: Instant::now(),
        });
    }
    last.as_ref()
        .ok_or_else(|| Error::own(Kind::NotConfigured, "no destination"))
}

/// Answers a request that failed, and counts it.
fn refuse(down: &mut ServerHalf, outcome: &mut Outcome, error: &Error, request: &Head) {
    outcome.answered(error.answer().status, error.answer().flag);
    answer::refuse(down, error, request, Audience::Trusted);
}

/// Phase 3: from a request with an id to its response.
async fn forward(
    mut attempt: Attempt<'_>,
    inside: Option<&Arc<OutboundPlan>>,
    last: &mut Option<Destination>,
    deadline: &mut Deadline,
    arrived: Instant,
) -> Result<(), Error> {
    let worker = attempt.worker;
    let found = destination(worker, attempt.request, inside, last).await?;
    normalise(attempt.request)?;
    let (plan, authority) = (&found.plan, &found.authority);
    plan.used(worker.shared.directory.clock_at(arrived));
    attempt.outcome.toward(&plan.series);

    let router = match &plan.kind {
        OutboundKind::Http(router) => router,
        OutboundKind::NoRoutes(reason) => {
            return Err(Error::own(Kind::NotConfigured, reason.to_string()));
        }
        OutboundKind::Tcp(_) => {
            let detail = format!("{authority} does not carry HTTP; use CONNECT");
            return Err(Error::own(Kind::NoRoute, detail));
        }
    };
    let view = RequestView::new(attempt.request, host_of(authority));
    let route = router
        .find(&view)
        .map_err(|none| no_route(none, authority, &view))?;
    let target = pick(route, worker)?;
    let cluster = target
        .cluster
        .as_ref()
        .map_err(|reason| no_cluster(route, reason))?;

    http::prepare(attempt.request);
    headers::forwarded_proto(attempt.request, "http");
    worker.random(|rng| headers::traceparent(attempt.request, rng));
    let edit = |request: &Head, response: &mut Head| {
        let mut digits = itoa::Buffer::new();
        let elapsed = digits.format(arrived.elapsed().as_millis());
        response.add("x-envoy-upstream-service-time", elapsed.as_bytes());
        headers::echo_id(request, response);
    };
    let limit = Limit {
        deadline,
        // Waiting for the configuration is not the upstream's time.
        since: arrived.max(found.since),
        at_most: route.timeout,
    };
    let outcome = attempt
        .run(cluster, limit, Policy::Route(route.retry.as_ref()), edit)
        .await;
    outcome.map_err(|error| explain(error, route))
}

/// Names the rule before the cluster that it led to.
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

/// The plan for `authority`. Inside a tunnel a `Host` that the mesh doesn't know means the tunnel's destination.
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
        // The tunnel's destination as it runs now; the plan of its beginning only when that is gone.
        (Err(error), Some(plan)) if error.kind == Kind::UnknownAuthority => {
            let current = directory.find(&plan.authority).and_then(Result::ok);
            Ok(current.unwrap_or_else(|| Arc::clone(plan)))
        }
        (found, _) => found,
    }
}

/// Answers a CONNECT; returns the destination's plan when the connection becomes a tunnel.
async fn connect(
    worker: &Worker,
    down: &mut ServerHalf,
    request: &mut Head,
    outcome: &mut Outcome,
) -> Option<Arc<OutboundPlan>> {
    let authority = canonical(&String::from_utf8_lossy(request.target()), None);
    let plan = match check_loop(worker, &authority) {
        Ok(()) => find_plan(worker, &authority, None).await,
        Err(error) => Err(error),
    };
    match plan {
        Ok(plan) => {
            outcome.toward(&plan.series);
            outcome.answered(200, "-");
            answer::plain(down, 200);
            let flushed = poll_fn(|cx| down.conn().poll_flush(cx)).await;
            flushed.is_ok().then_some(plan)
        }
        Err(error) => {
            // What was sent ahead of the answer was meant for the tunnel: it must not be read as requests.
            down.close_after();
            refuse(down, outcome, &error, request);
            None
        }
    }
}

/// Carries what comes through a tunnel: HTTP by the mesh's routes, anything else as bytes.
async fn serve_tunnel(worker: &Worker, mut tunnel: Tunnel) {
    if matches!(tunnel.plan.kind, OutboundKind::Tcp(_)) {
        return carry(worker, tunnel).await;
    }
    let deadline = Instant::now() + worker.shared.detection;
    let protocol = loop {
        if let Some(protocol) = sniff(tunnel.conn.unread()) {
            break protocol;
        }
        let fill = poll_fn(|cx| tunnel.conn.poll_fill(cx));
        match tokio::time::timeout_at(deadline, fill).await {
            Ok(Ok(count)) if count > 0 => {}
            Ok(_) if tunnel.conn.unread().is_empty() => return,
            _ => break Protocol::Opaque,
        }
    };
    match protocol {
        Protocol::Http1 => {
            let down = ServerHalf::new(tunnel.conn);
            serve_http(worker, down, Some(&tunnel.plan)).await;
        }
        _ => carry(worker, tunnel).await,
    }
}

/// Carries opaque bytes to the destination of a tunnel.
async fn carry(worker: &Worker, tunnel: Tunnel) {
    if let Err(error) = carry_bytes(worker, tunnel).await {
        tracing::info!(%error, "connection not carried");
    }
}

async fn carry_bytes(worker: &Worker, tunnel: Tunnel) -> Result<(), Error> {
    use tokio::io::AsyncWriteExt;
    let target = match &tunnel.plan.kind {
        OutboundKind::Tcp(target) => target,
        OutboundKind::NoRoutes(reason) => {
            return Err(Error::own(Kind::NotConfigured, reason.to_string()));
        }
        // Bytes have no path to be routed by: they go where a request for `/` would.
        OutboundKind::Http(router) => {
            let root = Head::request("GET", "/");
            let view = RequestView::new(&root, host_of(&tunnel.plan.authority));
            let found = router.find(&view);
            let route = found.map_err(|none| no_route(none, &tunnel.plan.authority, &view))?;
            pick(route, worker)?
        }
    };
    let cluster = target.cluster.as_ref();
    let cluster = cluster.map_err(|why| Error::own(Kind::NoCluster, why.to_string()))?;
    let (mut up, _leave, _lease) = tcp::open(worker, cluster).await?;
    let (mut down, read) = tunnel.conn.into_parts();
    let sent = up.write_all(&read).await;
    sent.map_err(|error| Error::up(Kind::Reset, error.to_string()))?;
    tcp::copy(&mut down, &mut up).await.map(|_| ())
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

/// The authority that a request is for. An absolute target wins over `Host` (RFC 9112, section 3.2.2), and becomes a
/// path and a `Host`.
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

/// What is matched is what is forwarded.
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
