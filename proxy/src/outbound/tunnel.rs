//! Tunnels: connections to one destination, requested by CONNECT or intercepted by the rules of `init`. Their protocol
//! is detected from the first bytes of either side.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::destination::{Downstream, canonical, check_loop, find_plan, host_of, no_route, pick};
use crate::balance::Cluster;
use crate::error::{Error, Kind};
use crate::forward::answer::{self, Audience};
use crate::intercept::is_probe;
use crate::observe::{LogContext, Reporter, RequestStats};
use crate::serve::sniff::{DetectedProtocol, sniff};
use crate::serve::tcp;
use crate::snapshot::{OutboundKind, OutboundPlan};
use crate::worker::Worker;
use leno_http::h1::Conn;
use leno_http::head::{Head, Version};
use leno_http::peers::Down;
use leno_http::stream::{PrefixedTcp, Stream};
use leno_rules::route::matcher::RequestView;

/// A connection after its CONNECT was answered, or after it was intercepted.
#[derive(Debug)]
pub(super) struct Tunnel {
    conn: Conn,
    plan: Arc<OutboundPlan>,
    address: SocketAddr,
    local: Option<SocketAddr>,
    /// Server name (SNI) of the TLS inside of it.
    server_name: Option<String>,
}

impl Tunnel {
    pub(super) fn new(conn: Conn, plan: Arc<OutboundPlan>, caller: &Downstream) -> Tunnel {
        Tunnel {
            conn,
            plan,
            address: caller.address,
            local: caller.local,
            server_name: None,
        }
    }
}

/// A connection to `dialled` that the rules of `init` intercepted, as a tunnel without a CONNECT; `None` for the probe of
/// the self-test.
pub(super) async fn intercepted(
    worker: &Worker,
    tcp: TcpStream,
    address: SocketAddr,
    dialled: SocketAddr,
) -> Option<Tunnel> {
    if is_probe(dialled) {
        return None;
    }
    let conn = Conn::new(
        Stream::Plain(PrefixedTcp::new(tcp)),
        Vec::new(),
        worker.shared.limits,
    );
    let authority = dialled.to_string();
    let plan = find_plan(worker, &authority, None).await;
    // A refused destination still gets a tunnel: a request is answered with the reason, or names a known destination.
    let plan = plan.unwrap_or_else(|error| {
        let unknown = &worker.shared.unknown;
        Arc::new(OutboundPlan::refused(&authority, &error, unknown))
    });
    let caller = Downstream {
        address,
        local: Some(dialled),
        inside: None,
    };
    Some(Tunnel::new(conn, plan, &caller))
}

/// Plan for the destination of a CONNECT. One that can't be connected to is refused with the reason.
pub(super) async fn connect(
    worker: &Worker,
    down: &mut Down<'_>,
    request: &Head,
    caller: &Downstream,
) -> Option<Arc<OutboundPlan>> {
    let at = Instant::now();
    if !down.is_h2() {
        worker.shared.metrics.parsed.inc();
    }
    let authority = canonical(&String::from_utf8_lossy(request.target()), None);
    let plan = match check_loop(worker, &authority) {
        Ok(()) => find_plan(worker, &authority, None).await,
        Err(error) => Err(error),
    };
    match plan {
        // The traffic inside the tunnel is counted, not the CONNECT.
        Ok(plan) => Some(plan),
        Err(error) => {
            let mut stats = RequestStats::new(&worker.shared.unknown, at);
            down.close_after();
            answer::send_local_reply(down, &mut stats, &error, request, Audience::Trusted);
            worker.report_headless(&stats, caller.log_context(), &error);
            None
        }
    }
}

/// Proxies the traffic of a tunnel, if it is opaque TCP; HTTP is returned, to be served by the mesh's routes.
pub(super) async fn serve(
    worker: &Worker,
    mut tunnel: Tunnel,
) -> Option<(Conn, Version, Downstream)> {
    if matches!(tunnel.plan.kind, OutboundKind::Tcp(_)) {
        proxy_tcp(worker, tunnel, None).await;
        return None;
    }
    let protocol = match first_bytes(worker, &mut tunnel.conn, &tunnel.plan).await {
        FirstBytes::Client(protocol) => protocol,
        FirstBytes::Server(up) => {
            proxy_tcp(worker, tunnel, Some(up)).await;
            return None;
        }
        FirstBytes::Closed => return None,
    };
    let version = match protocol {
        DetectedProtocol::Http1 => Version::Http11,
        DetectedProtocol::Http2 => Version::Http2,
        DetectedProtocol::Tls(hello) => {
            if let Some(name) = hello.server_name {
                tunnel.plan = by_server_name(worker, &name, tunnel.plan).await;
                tunnel.server_name = Some(name);
            }
            proxy_tcp(worker, tunnel, None).await;
            return None;
        }
        DetectedProtocol::Opaque => {
            proxy_tcp(worker, tunnel, None).await;
            return None;
        }
    };
    let caller = Downstream {
        address: tunnel.address,
        local: tunnel.local,
        inside: Some(tunnel.plan),
    };
    Some((tunnel.conn, version, caller))
}

/// First event on a connection in a tunnel.
enum FirstBytes {
    /// The client's protocol, by its first bytes; opaque TCP if those stay undecided, or if it is silent and the
    /// destination can't be reached.
    Client(DetectedProtocol),
    /// The destination's first bytes, on this connection.
    Server(tcp::TcpUpstream),
    /// The end, or the idle timeout.
    Closed,
}

/// Waits for the first bytes of a tunnel, from either side.
async fn first_bytes(worker: &Worker, conn: &mut Conn, plan: &OutboundPlan) -> FirstBytes {
    let shared = &worker.shared;
    let mut deadline = Instant::now() + shared.detection;
    let mut spoken = pin!(connect_server_first(worker, plan));
    // In a protocol that is declared as HTTP the client speaks first.
    let mut is_watched = plan.is_undeclared;
    let (mut is_reached, mut is_idle) = (true, false);
    loop {
        if let Some(protocol) = sniff(conn.unread()) {
            return FirstBytes::Client(protocol);
        }
        let fill = poll_fn(|cx| conn.poll_fill(cx));
        let filled = tokio::select! {
            biased;
            filled = timeout_at(deadline, fill) => filled,
            spoke = &mut spoken, if is_watched => match spoke {
                Ok(up) => return FirstBytes::Server(up),
                Err(_) => {
                    (is_watched, is_reached) = (false, false);
                    continue;
                }
            },
        };
        match filled {
            Ok(Ok(count)) if count > 0 => {}
            Ok(_) if conn.unread().is_empty() => return FirstBytes::Closed,
            Err(_) if is_idle => return FirstBytes::Closed,
            // Both are silent, as with a client that connects ahead of its requests: its first bytes will decide.
            Err(_) if is_reached && conn.unread().is_empty() => {
                is_idle = true;
                deadline += shared.timeouts.idle;
            }
            _ => return FirstBytes::Client(DetectedProtocol::Opaque),
        }
    }
}

/// Connection to the tunnel's destination, once that has sent bytes before the client did.
async fn connect_server_first(
    worker: &Worker,
    plan: &OutboundPlan,
) -> Result<tcp::TcpUpstream, Error> {
    let cluster = tcp_cluster(worker, plan)?;
    tcp::connect_server_first(worker, &cluster, &plan.is_server_first).await
}

/// Plan for TLS with server name `name`: that of the name on the tunnel's port if it is opaque TCP, else the tunnel's
/// own.
async fn by_server_name(
    worker: &Worker,
    name: &str,
    inside: Arc<OutboundPlan>,
) -> Arc<OutboundPlan> {
    let Some((_, port)) = inside.authority.rsplit_once(':') else {
        return inside;
    };
    let named = find_plan(worker, &format!("{name}:{port}"), None).await;
    let carries = |plan: &Arc<OutboundPlan>| matches!(plan.kind, OutboundKind::Tcp(_));
    named.ok().filter(carries).unwrap_or(inside)
}

/// Proxies opaque TCP to the destination of a tunnel.
async fn proxy_tcp(worker: &Worker, mut tunnel: Tunnel, spoken: Option<tcp::TcpUpstream>) {
    let mut session = tcp::TcpSession::new(&tunnel.plan.series);
    let server_name = tunnel.server_name.take();
    let log_context = LogContext {
        reporter: Reporter::Source,
        peer: tunnel.address,
        local: tunnel.local,
        server_name: server_name.as_deref(),
    };
    let carried = connect_and_proxy(worker, tunnel, spoken, &mut session).await;
    if let Err(error) = &carried {
        tracing::info!(%error, "connection not carried");
    }
    session.over(worker, log_context, carried.err());
}

async fn connect_and_proxy(
    worker: &Worker,
    tunnel: Tunnel,
    spoken: Option<tcp::TcpUpstream>,
    session: &mut tcp::TcpSession,
) -> Result<(), Error> {
    let cluster = tcp_cluster(worker, &tunnel.plan)?;
    let up = match spoken {
        Some(up) => up,
        None => tcp::open(worker, &cluster).await?,
    };
    let (mut down, read) = tunnel.conn.into_parts();
    tcp::proxy_tcp(session, &cluster, up, &read, &mut down).await
}

/// Cluster for opaque TCP to a destination.
fn tcp_cluster(worker: &Worker, plan: &OutboundPlan) -> Result<Arc<Cluster>, Error> {
    let target = match &plan.kind {
        OutboundKind::Tcp(target) => target,
        OutboundKind::Refused(kind, reason) => {
            return Err(Error::own(*kind, reason.to_string()));
        }
        // Opaque TCP has no path to be routed by: it goes to the cluster of a request for `/`.
        OutboundKind::Http(router) => {
            let root = Head::request("GET", "/");
            let view = RequestView::new(&root, host_of(&plan.authority));
            let found = router.find(&view);
            let route = found.map_err(|none| no_route(none, &plan.authority, &view))?;
            pick(route, worker)?
        }
    };
    let cluster = target.cluster.as_ref();
    let cluster = cluster.map_err(|why| Error::own(Kind::NoCluster, why.to_string()))?;
    Ok(Arc::clone(cluster))
}
