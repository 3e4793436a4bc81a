//! HTTP on a downstream connection, the same for both directions: the loops over its requests, and the phases of each.
//! The direction only decides, as a [`Handler`].

use std::cell::RefCell;
use std::future::poll_fn;
use std::mem;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use leno_http::deadline::Deadline;
use leno_http::h1::{Conn, ReadOutcome, ServerHalf};
use leno_http::h2::{self, Reason, StreamRequest};
use leno_http::head::{Head, Version};
use leno_http::peers::Down;
use leno_http::stream::Stream;
use leno_http::{Outgoing, clock};
use tokio::time::Instant;

use crate::drain::Side;
use crate::error::Error;
use crate::forward::answer::{self, Audience};
use crate::forward::headers;
use crate::forward::request::UpstreamRequest;
use crate::observe::{LogContext, RequestStats};
use crate::snapshot::OutboundPlan;
use crate::tls::alpn;
use crate::worker::Worker;

/// A request as it arrived, over any version of HTTP.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// The downstream peer.
    pub down: Down<'a>,
    /// Its head; partial when `read` failed.
    pub request: &'a mut Head,
    /// Error of reading the head, if that failed.
    pub read: Result<(), Error>,
    /// Buffer for the response's head.
    response: &'a mut Head,
    /// Timer that limits it.
    deadline: &'a mut Deadline,
    /// Time at which its head was complete.
    pub at: Instant,
}

/// Result of serving a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// A complete response, part of which may still be buffered; the time at which it ended.
    Whole(Instant),
    /// A truncated response: only cutting the stream or connection short can still signal that.
    Cut,
    /// No response, and the request was not processed: the client may send it elsewhere.
    Refused,
}

/// Decisions of a direction on the requests of one connection.
#[allow(async_fn_in_trait)] // a connection stays on its worker's thread
pub trait Handler: 'static {
    /// The direction.
    const SIDE: Side;
    /// Destination of the last request, kept since the next one mostly goes there as well.
    type State: 'static;
    /// Part of the state that forwards a request.
    type Target<'a>;

    /// The worker that serves the connection.
    fn worker(&self) -> &Worker;

    /// Reporter and connection, for the records of its requests.
    fn log_context(&self) -> LogContext<'_>;

    /// Audience of its local replies.
    fn audience(&self) -> Audience;

    /// True when the peer is authenticated by mutual TLS.
    fn is_mesh(&self) -> bool {
        false
    }

    /// Expiry of the peer's certificate: from then on the connection takes no request.
    fn expires(&self) -> Option<Instant> {
        None
    }

    /// Waits until an HTTP/2 connection is to be shut down gracefully.
    async fn closing(&self);

    /// Starts the record of a request; `None` refuses it.
    async fn begin<'a>(
        &self,
        arrival: &Arrival<'_>,
        state: &'a mut Option<Rc<Self::State>>,
    ) -> Option<(RequestStats, Self::Target<'a>)>;

    /// Forwards a request that has an id, and arrived at `at`.
    async fn forward(
        &self,
        upstream: &mut UpstreamRequest<'_>,
        target: Self::Target<'_>,
        deadline: &mut Deadline,
        at: Instant,
    ) -> Result<(), Error>;

    /// True when `request` asks for a tunnel.
    fn is_connect(&self, _request: &Head) -> bool {
        false
    }

    /// Plan for the destination of a CONNECT; `None` when it was refused, and answered.
    async fn connect(&self, _down: &mut Down<'_>, _request: &Head) -> Option<Arc<OutboundPlan>> {
        None
    }

    /// Serves a tunnel after its CONNECT was answered.
    async fn serve_tunnel(&self, _conn: Conn, _plan: Arc<OutboundPlan>) {}
}

/// Serves the requests on `conn`, and the tunnel that it becomes by a CONNECT.
pub async fn serve<H: Handler>(handler: H, conn: Conn, version: Version) {
    // Boxed: a connection that carries many requests at once must not enlarge the others' tasks.
    if version == Version::Http2 {
        return Box::pin(serve_http2(handler, conn)).await;
    }
    if let Some((conn, plan)) = serve_http1(&handler, conn).await {
        handler.serve_tunnel(conn, plan).await;
    }
}

/// Serves requests one after another until the connection ends, or becomes the tunnel that is returned.
async fn serve_http1<H: Handler>(handler: &H, conn: Conn) -> Option<(Conn, Arc<OutboundPlan>)> {
    let shared = &handler.worker().shared;
    let timeouts = &shared.timeouts;
    let mut down = ServerHalf::new(conn);
    if H::SIDE == Side::Inbound {
        down = down.closing_when(shared.watch.draining());
    }
    let (mut request, mut response) = (Head::default(), Head::default());
    let mut deadline = Deadline::default();
    let mut state = None;
    let expires = handler.expires();
    let mut ended = pin!(shared.watch.reached(H::SIDE.last_phase()));
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
                    return None;
                }
                continue;
            }
        };
        let at = clock::now();
        // A request that was pipelined before the peer's certificate ended is not served after it.
        if matches!(read, Ok(ReadOutcome::Closed)) || expires.is_some_and(|expires| expires <= at) {
            return None;
        }
        if read.is_ok() && handler.is_connect(&request) {
            return connect_http1(handler, down, &request).await;
        }
        let mut arrival = Arrival {
            down: Down::H1(&mut down),
            read: read.map(drop).map_err(Error::from),
            request: &mut request,
            response: &mut response,
            deadline: &mut deadline,
            at,
        };
        let Outcome::Whole(over) = serve_request(handler, &mut state, &mut arrival).await else {
            return None;
        };
        since = over;
        if !down.finish_response().await {
            down.close().await;
            return None;
        }
        request.release();
        response.release();
    }
}

/// Turns a connection with a CONNECT into a tunnel.
async fn connect_http1<H: Handler>(
    handler: &H,
    mut down: ServerHalf,
    request: &Head,
) -> Option<(Conn, Arc<OutboundPlan>)> {
    let plan = handler.connect(&mut Down::H1(&mut down), request).await;
    if let Some(plan) = plan {
        answer::plain(&mut down, 200);
        let flushed = poll_fn(|cx| down.conn().poll_flush(cx)).await;
        return flushed.is_ok().then_some((down.into_conn(), plan));
    }
    // Bytes that were sent ahead of the response were for the tunnel: they must not be read as requests.
    let _ = down.finish_response().await;
    down.close().await;
    None
}

/// Serves requests as streams until the connection ends.
async fn serve_http2<H: Handler>(handler: H, conn: Conn) {
    let shared = Arc::clone(&handler.worker().shared);
    let how = h2::ServerConfig {
        limits: shared.limits,
        timeouts: shared.timeouts,
        is_mesh: handler.is_mesh(),
        is_ours: conn.io().alpn() == Some(alpn::SHARED),
        until: handler.expires(),
    };
    let (io, read) = conn.into_parts();
    let handler = Rc::new(handler);
    let own = Rc::clone(&handler);
    // The destination that one stream found fits most of the others.
    let state: RefCell<Option<Rc<H::State>>> = RefCell::default();
    let handle = async move |arrived: &mut StreamRequest| {
        if arrived.read.is_ok() && own.is_connect(&arrived.head) {
            // Boxed: CONNECT is rare, and must not enlarge every request's future.
            return Box::pin(connect_stream(&*own, arrived)).await;
        }
        let mut last = state.borrow().clone();
        let serve =
            async |arrival: &mut Arrival<'_>| serve_request(&*own, &mut last, arrival).await;
        serve_stream(&*own, arrived, serve).await;
        state.replace(last);
    };
    h2::serve(io, read, how, handler.closing(), handle).await;
}

/// Turns a stream with CONNECT into a tunnel.
async fn connect_stream<H: Handler>(handler: &H, arrived: &mut StreamRequest) {
    let mut plan = None;
    let connect = async |arrival: &mut Arrival<'_>| {
        plan = handler.connect(&mut arrival.down, arrival.request).await;
        Outcome::Whole(Instant::now())
    };
    serve_stream(handler, arrived, connect).await;
    // A tunnel lives for long, and doesn't need the head.
    drop(mem::take(&mut arrived.head));
    if let (Some(plan), Some(stream)) = (plan, arrived.stream.take()) {
        let io = Stream::Tunnel(Box::new(stream.into_tunnel()));
        let conn = Conn::new(io, Vec::new(), handler.worker().shared.limits);
        handler.serve_tunnel(conn, plan).await;
    }
}

/// Serves a request that came as a stream. A stream that `serve` leaves unanswered stays open, for a tunnel.
async fn serve_stream<H: Handler>(
    handler: &H,
    arrived: &mut StreamRequest,
    serve: impl AsyncFnOnce(&mut Arrival<'_>) -> Outcome,
) {
    let timeouts = &handler.worker().shared.timeouts;
    let Some(stream) = &mut arrived.stream else {
        return;
    };
    let (mut response, mut deadline) = (Head::default(), Deadline::default());
    let mut arrival = Arrival {
        down: Down::H2(stream),
        request: &mut arrived.head,
        read: arrived.read.map_err(Error::from),
        response: &mut response,
        deadline: &mut deadline,
        at: arrived.at,
    };
    match serve(&mut arrival).await {
        Outcome::Refused => stream.reset(Reason::REFUSED_STREAM),
        Outcome::Cut => Down::H2(stream).reset(None),
        Outcome::Whole(_) if !stream.is_answered() => {}
        Outcome::Whole(over) => {
            let flush = poll_fn(|cx| stream.poll_flush(cx));
            let flushed = deadline.limit(over + timeouts.flush, flush).await;
            if !matches!(flushed, Some(Ok(()))) {
                Down::H2(stream).reset(None);
            }
        }
    }
}

/// Serves one request, from its head to the response.
async fn serve_request<H: Handler>(
    handler: &H,
    state: &mut Option<Rc<H::State>>,
    arrival: &mut Arrival<'_>,
) -> Outcome {
    let worker = handler.worker();
    // Phase 1: nothing is known of the request yet; one that can't be read is answered.
    let Some((mut stats, target)) = handler.begin(arrival, state).await else {
        return Outcome::Refused;
    };
    if let Err(error) = &arrival.read {
        let (down, none) = (&mut arrival.down, &Head::default());
        answer::send_local_reply(down, &mut stats, error, none, handler.audience());
        worker.report_headless(&stats, handler.log_context(), error);
        return Outcome::Whole(stats.finish());
    }
    worker.shared.metrics.parsed.inc();
    if arrival.down.is_h2() && answer::is_grpc(arrival.request) {
        stats.mark_grpc();
    }
    // Phase 2: the request has an id; every failure is answered with its reason.
    worker.random(|rng| headers::request_id(arrival.request, rng));
    let mut upstream = UpstreamRequest {
        worker,
        down: arrival.down.reborrow(),
        request: arrival.request,
        response: arrival.response,
        stats: &mut stats,
        log_context: handler.log_context(),
    };
    // Phase 3: it is forwarded, and recorded.
    let (deadline, at) = (&mut *arrival.deadline, arrival.at);
    let forwarded = handler.forward(&mut upstream, target, deadline, at).await;
    match upstream.conclude(forwarded, handler.audience()) {
        Some(over) => Outcome::Whole(over),
        None => Outcome::Cut,
    }
}
