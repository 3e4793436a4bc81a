//! The outbound path: connections and requests of the app, from accept to response.
//!
//! Without interception the app names the destination itself: by `Host`, by an absolute target (`HTTP_PROXY`), or by
//! CONNECT, after which the connection is treated as one to that destination.

mod destination;
mod tunnel;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use leno_http::deadline::Deadline;
use leno_http::h1::Conn;
use leno_http::head::{FieldName, Head};
use leno_http::peers::Down;
use leno_http::stream::{PrefixedTcp, Stream, unmapped};
use leno_rules::route::matcher::RequestView;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::drain::Side;
use crate::error::{Error, Kind};
use crate::forward::answer::Audience;
use crate::forward::request::{Limit, UpstreamRequest};
use crate::forward::retry_state::RetryPolicy;
use crate::forward::{exchange, headers, propagate};
use crate::intercept::original_destination;
use crate::observe::{LogContext, RequestStats};
use crate::serve::http::{self, Arrival, Handler};
use crate::serve::normalise;
use crate::serve::sniff::http_version;
use crate::snapshot::{OutboundKind, OutboundPlan};
use crate::worker::Worker;
use destination::{Destination, Downstream, add_rule, destination, no_cluster, no_route, pick};
use tunnel::Tunnel;

/// Serves a connection of the app until it ends.
pub async fn serve(worker: Rc<Worker>, tcp: TcpStream, address: SocketAddr) {
    if worker.shared.intercepts
        && let Some(dialled) = original_destination(&tcp)
    {
        return Box::pin(serve_intercepted(worker, tcp, address, dialled)).await;
    }
    let (address, local) = (unmapped(address), tcp.local_addr().ok().map(unmapped));
    let stream = Stream::Plain(PrefixedTcp::new(tcp));
    let mut conn = Conn::new(stream, Vec::new(), worker.shared.limits);
    let version = tokio::select! {
        version = http_version(&mut conn, &worker.shared.timeouts) => version,
        () = worker.shared.watch.ended() => return,
    };
    if let Some(version) = version {
        let caller = Downstream {
            address,
            local,
            inside: None,
        };
        http::serve(Outbound { worker, caller }, conn, version).await;
    }
}

/// Serves a connection to `dialled` that the rules of `init` intercepted, as a tunnel without a CONNECT.
async fn serve_intercepted(
    worker: Rc<Worker>,
    tcp: TcpStream,
    address: SocketAddr,
    dialled: SocketAddr,
) {
    if let Some(tunnel) = tunnel::intercepted(&worker, tcp, address, dialled).await {
        serve_tunnel(worker, tunnel).await;
    }
}

/// Proxies the traffic of a tunnel: HTTP by the mesh's routes, anything else as opaque TCP.
fn serve_tunnel(worker: Rc<Worker>, tunnel: Tunnel) -> Pin<Box<dyn Future<Output = ()>>> {
    // Boxed: a tunnel may carry HTTP, and the code that serves HTTP opens tunnels.
    Box::pin(async move {
        if let Some((conn, version, caller)) = tunnel::serve(&worker, tunnel).await {
            http::serve(Outbound { worker, caller }, conn, version).await;
        }
    })
}

/// Handler of the requests on a connection of the app.
#[derive(Debug)]
struct Outbound {
    worker: Rc<Worker>,
    caller: Downstream,
}

impl Handler for Outbound {
    const SIDE: Side = Side::Outbound;
    type State = Destination;
    type Target<'a> = &'a mut Option<Rc<Destination>>;

    fn worker(&self) -> &Worker {
        &self.worker
    }

    fn log_context(&self) -> LogContext<'_> {
        self.caller.log_context()
    }

    fn audience(&self) -> Audience {
        Audience::Trusted
    }

    async fn closing(&self) {
        self.worker.shared.watch.ended().await;
    }

    async fn begin<'a>(
        &self,
        arrival: &Arrival<'_>,
        state: &'a mut Option<Rc<Destination>>,
    ) -> Option<(RequestStats, &'a mut Option<Rc<Destination>>)> {
        // One that can't be read is counted under no service.
        let stats = RequestStats::new(&self.worker.shared.unknown, arrival.at);
        Some((stats, state))
    }

    async fn forward(
        &self,
        upstream: &mut UpstreamRequest<'_>,
        last: Self::Target<'_>,
        deadline: &mut Deadline,
        at: Instant,
    ) -> Result<(), Error> {
        forward(upstream, self.caller.inside.as_ref(), last, deadline, at).await
    }

    fn is_connect(&self, request: &Head) -> bool {
        request.method() == b"CONNECT" && self.caller.inside.is_none()
    }

    async fn connect(&self, down: &mut Down<'_>, request: &Head) -> Option<Arc<OutboundPlan>> {
        tunnel::connect(&self.worker, down, request, &self.caller).await
    }

    async fn serve_tunnel(&self, conn: Conn, plan: Arc<OutboundPlan>) {
        let tunnel = Tunnel::new(conn, plan, &self.caller);
        serve_tunnel(Rc::clone(&self.worker), tunnel).await;
    }
}

/// Routes a request that has an id, and forwards it.
async fn forward(
    upstream: &mut UpstreamRequest<'_>,
    inside: Option<&Arc<OutboundPlan>>,
    last: &mut Option<Rc<Destination>>,
    deadline: &mut Deadline,
    arrived: Instant,
) -> Result<(), Error> {
    let worker = upstream.worker;
    let found = destination(worker, upstream, inside, last).await?;
    normalise(upstream.request)?;
    let (plan, authority) = (&found.plan, &found.authority);
    plan.used(worker.shared.directory.clock_at(arrived));
    upstream.stats.set_destination(&plan.series);

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
    let view = RequestView::new(upstream.request, &found.host);
    let route = router
        .find(&view)
        .map_err(|none| no_route(none, authority, &view))?;
    let target = pick(route, worker)?;
    let cluster = target
        .cluster
        .as_ref()
        .map_err(|reason| no_cluster(route, reason))?;

    let body = upstream.down.body_framing();
    exchange::prepare(upstream.request, body, &worker.shared.upgrades)?;
    worker.random(|rng| headers::websocket_key(upstream.request, rng));
    propagate::trace(worker, upstream.request, false, upstream.stats);
    // Next to `x-envoy-attempt-count`, which follows: fields that rarely change stand together (`Encoder::write_cached`).
    headers::forwarded_proto(upstream.request, "http");
    let edit = |request: &Head, response: &mut Head, heard: Instant| {
        let mut digits = itoa::Buffer::new();
        let took = heard.duration_since(arrived);
        let millis = took.as_secs() * 1000 + u64::from(took.subsec_millis());
        let elapsed = digits.format(millis).as_bytes();
        response.add_known(b"x-envoy-upstream-service-time", FieldName::Envoy, elapsed);
        headers::echo_id(request, response);
    };
    let limit = Limit {
        deadline,
        // The wait for the configuration is not the upstream's time.
        since: arrived.max(found.since),
        at_most: route.timeout,
    };
    let stats = upstream
        .run(
            cluster,
            limit,
            RetryPolicy::Route(route.retry.as_ref()),
            edit,
        )
        .await;
    if let Some(reached) = &mut upstream.stats.reached {
        reached.rule = Some(Arc::clone(&route.rule));
    }
    stats.map_err(|error| add_rule(error, route))
}
