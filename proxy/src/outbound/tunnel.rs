//! Tunnels: connections to one destination, requested by CONNECT or intercepted by the rules of `init`. Their protocol
//! is detected from the first bytes of either side.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::destination::{Caller, canonical, check_loop, find_plan, host_of, no_route, pick};
use crate::balance::Cluster;
use crate::error::{Error, Kind};
use crate::forward::answer::{self, Audience};
use crate::intercept::is_probe;
use crate::observe::{Outcome, Reporter, Teller};
use crate::serve::sniff::{Protocol, sniff};
use crate::serve::tcp;
use crate::snapshot::{OutboundKind, OutboundPlan};
use crate::worker::Worker;
use leno_http::h1::Conn;
use leno_http::head::{Head, Version};
use leno_http::peers::Down;
use leno_http::stream::{Socket, Stream};
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
    pub(super) fn new(conn: Conn, plan: Arc<OutboundPlan>, caller: &Caller) -> Tunnel {
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
pub(super) async fn to(
    worker: &Worker,
    tcp: TcpStream,
    address: SocketAddr,
    dialled: SocketAddr,
) -> Option<Tunnel> {
    if is_probe(dialled) {
        return None;
    }
    let conn = Conn::new(
        Stream::Plain(Socket::new(tcp)),
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
    let caller = Caller {
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
    caller: &Caller,
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
            let mut outcome = Outcome::begun(&worker.shared.unknown, at);
            down.close_after();
            answer::refuse(down, &mut outcome, &error, request, Audience::Trusted);
            worker.over(&outcome, caller.teller(), &error);
            None
        }
    }
}

/// Proxies the traffic of a tunnel, if it is opaque TCP; HTTP is returned, to be served by the mesh's routes.
pub(super) async fn serve(worker: &Worker, mut tunnel: Tunnel) -> Option<(Conn, Version, Caller)> {
    if matches!(tunnel.plan.kind, OutboundKind::Tcp(_)) {
        carry(worker, tunnel, None).await;
        return None;
    }
    let protocol = match beginning(worker, &mut tunnel.conn, &tunnel.plan).await {
        Beginning::Told(protocol) => protocol,
        Beginning::Spoken(up) => {
            carry(worker, tunnel, Some(up)).await;
            return None;
        }
        Beginning::Nothing => return None,
    };
    let version = match protocol {
        Protocol::Http1 => Version::Http11,
        Protocol::Http2 => Version::Http2,
        Protocol::Tls(hello) => {
            if let Some(name) = hello.server_name {
                tunnel.plan = by_server_name(worker, &name, tunnel.plan).await;
                tunnel.server_name = Some(name);
            }
            carry(worker, tunnel, None).await;
            return None;
        }
        Protocol::Opaque => {
            carry(worker, tunnel, None).await;
            return None;
        }
    };
    let caller = Caller {
        address: tunnel.address,
        local: tunnel.local,
        inside: Some(tunnel.plan),
    };
    Some((tunnel.conn, version, caller))
}

/// First event on a connection in a tunnel.
enum Beginning {
    /// The client's protocol, detected from its first bytes or their absence.
    Told(Protocol),
    /// The destination's first bytes, on this connection.
    Spoken(tcp::Opened),
    /// The end, or the idle timeout.
    Nothing,
}

/// Waits for the first bytes of a tunnel, from either side.
async fn beginning(worker: &Worker, conn: &mut Conn, plan: &OutboundPlan) -> Beginning {
    let shared = &worker.shared;
    let mut deadline = Instant::now() + shared.detection;
    let mut spoken = pin!(spoken_first(worker, plan));
    // In a protocol that is declared as HTTP the client speaks first.
    let mut is_watched = plan.is_undeclared;
    let (mut is_reached, mut is_idle) = (true, false);
    loop {
        if let Some(protocol) = sniff(conn.unread()) {
            return Beginning::Told(protocol);
        }
        let fill = poll_fn(|cx| conn.poll_fill(cx));
        let filled = tokio::select! {
            biased;
            filled = timeout_at(deadline, fill) => filled,
            spoke = &mut spoken, if is_watched => match spoke {
                Ok(up) => return Beginning::Spoken(up),
                Err(_) => {
                    (is_watched, is_reached) = (false, false);
                    continue;
                }
            },
        };
        match filled {
            Ok(Ok(count)) if count > 0 => {}
            Ok(_) if conn.unread().is_empty() => return Beginning::Nothing,
            Err(_) if is_idle => return Beginning::Nothing,
            // Both are silent, as with a client that connects ahead of its requests: its first bytes will decide.
            Err(_) if is_reached && conn.unread().is_empty() => {
                is_idle = true;
                deadline += shared.timeouts.idle;
            }
            _ => return Beginning::Told(Protocol::Opaque),
        }
    }
}

/// Connection to the tunnel's destination, once that has sent bytes before the client did.
async fn spoken_first(worker: &Worker, plan: &OutboundPlan) -> Result<tcp::Opened, Error> {
    let cluster = cluster_of_bytes(worker, plan)?;
    tcp::spoken_first(worker, &cluster, &plan.speaks_first).await
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
async fn carry(worker: &Worker, mut tunnel: Tunnel, spoken: Option<tcp::Opened>) {
    let mut passage = tcp::Passage::new(&tunnel.plan.series);
    let server_name = tunnel.server_name.take();
    let teller = Teller {
        reporter: Reporter::Source,
        peer: tunnel.address,
        local: tunnel.local,
        server_name: server_name.as_deref(),
    };
    let carried = carry_bytes(worker, tunnel, spoken, &mut passage).await;
    if let Err(error) = &carried {
        tracing::info!(%error, "connection not carried");
    }
    passage.over(worker, teller, carried.err());
}

async fn carry_bytes(
    worker: &Worker,
    tunnel: Tunnel,
    spoken: Option<tcp::Opened>,
    passage: &mut tcp::Passage,
) -> Result<(), Error> {
    let cluster = cluster_of_bytes(worker, &tunnel.plan)?;
    let up = match spoken {
        Some(up) => up,
        None => tcp::open(worker, &cluster).await?,
    };
    let (mut down, read) = tunnel.conn.into_parts();
    tcp::carry(passage, &cluster, up, &read, &mut down).await
}

/// Cluster for opaque TCP to a destination.
fn cluster_of_bytes(worker: &Worker, plan: &OutboundPlan) -> Result<Arc<Cluster>, Error> {
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
