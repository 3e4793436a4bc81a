//! Opaque TCP: to one endpoint, in both directions, until both have ended.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};
use tokio::time::{Duration, Instant, sleep};

use crate::balance::limits::ConnectionPermit;
use crate::balance::outlier::EndpointResult;
use crate::balance::{Cluster, Endpoint, Lease, PickContext};
use crate::error::{Error, Kind, Progress, Side};
use crate::observe::standard::{RequestProtocol, Series};
use crate::observe::{LogContext, RequestRecord, TcpStats, UpstreamInfo};
use crate::upstream::peer_metadata::exchange_metadata;
use crate::upstream::{Carries, dial};
use crate::worker::Worker;
use leno_http::head::Head;
use leno_http::stream::Stream;
use leno_rules::config::endpoints::Workload;
use leno_rules::config::peer;

/// Endpoints that are tried before the connection is closed: nothing was sent to any of them.
const TRIES: usize = 3;

/// Time within which the first bytes of a destination mark its protocol as server-first.
const GREETING: Duration = Duration::from_secs(1);
/// Silence of a client after which its destination is dialled, since the protocol may be server-first.
const SILENCE: Duration = Duration::from_millis(2);

/// A connection to an endpoint, with its permit and lease.
#[derive(Debug)]
pub struct TcpUpstream {
    stream: Stream,
    _permit: ConnectionPermit,
    lease: Lease,
}

/// Opens a connection while the client is silent, and waits for the destination's first bytes, as many protocols begin
/// with them. A destination known to be server-first is dialled at once.
///
/// # Errors
/// When no endpoint can be reached.
pub async fn connect_server_first(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    is_server_first: &AtomicBool,
) -> Result<TcpUpstream, Error> {
    if !is_server_first.load(Ordering::Relaxed) {
        sleep(SILENCE).await;
    }
    let opened = open(worker, cluster).await?;
    let since = Instant::now();
    poll_fn(|cx| opened.stream.poll_readable(cx)).await;
    // Later it is more likely the end of an unused connection.
    if since.elapsed() < GREETING {
        is_server_first.store(true, Ordering::Relaxed);
    }
    Ok(opened)
}

/// Proxies bytes in both directions over an opened connection, first those `read` from the client already, counted in
/// the endpoint's own series if it has one.
///
/// # Errors
/// When a connection breaks.
pub async fn proxy_tcp(
    session: &mut TcpSession,
    cluster: &Cluster,
    mut up: TcpUpstream,
    read: &[u8],
    down: &mut Stream,
) -> Result<(), Error> {
    let carried = session.opened(cluster, &up);
    let sent = up.stream.write_all(read).await;
    sent.map_err(|error| Error::up(Kind::Reset, error.to_string()).at(Progress::Sent))?;
    carried.received(read.len());
    copy(down, &mut up.stream, carried).await
}

/// Opens a connection for opaque TCP to one of the cluster's endpoints.
///
/// # Errors
/// When none of `TRIES` endpoints can be reached, or the cluster is at its limit of connections.
pub async fn open(worker: &Worker, cluster: &Arc<Cluster>) -> Result<TcpUpstream, Error> {
    let permit = cluster
        .circuit_breaker
        .open()
        .map_err(|e| e.behind(&cluster.object))?;
    let mut tried = Vec::new();
    loop {
        let now = Instant::now();
        let context = PickContext {
            tried: &tried,
            is_replayable: true,
            now,
        };
        let mut lease = cluster.pick(context, || worker.random_u32())?;
        let endpoint = Arc::clone(lease.endpoint());
        let error = match connect_and_send_metadata(worker, cluster, &endpoint).await {
            Ok(stream) => {
                cluster.report(&mut lease, EndpointResult::Status(200), now);
                return Ok(TcpUpstream {
                    stream,
                    _permit: permit,
                    lease,
                });
            }
            Err(error) => error,
        };
        if error.side == Side::Up {
            cluster.report(&mut lease, EndpointResult::Failed, now);
        }
        tried.push(endpoint.id);
        if tried.len() == TRIES || cluster.endpoints().endpoints().len() <= tried.len() {
            return Err(error.behind(&cluster.object));
        }
    }
}

/// Connects to an endpoint, and sends its sidecar the metadata of this workload.
async fn connect_and_send_metadata(
    worker: &Worker,
    cluster: &Cluster,
    endpoint: &Endpoint,
) -> Result<Stream, Error> {
    let (mut stream, _) = dial(cluster, endpoint, Carries::Tcp).await?;
    let plan = worker.shared.directory.inbound_now();
    let own = plan.map_or_else(
        || peer::frame(&Workload::default()),
        |plan| plan.peer_frame.clone(),
    );
    // The endpoint's own metadata is not needed: the control plane has sent it.
    let exchanged = exchange_metadata(&mut stream, &own, cluster.connect_timeout).await;
    exchanged.map_err(|error| Error::up(Kind::Reset, format!("{}: {error}", endpoint.address)))?;
    Ok(stream)
}

/// A TCP connection that is proxied, from the choice of its series to its end.
#[derive(Debug)]
pub struct TcpSession {
    series: Arc<Series>,
    begun: Instant,
    carried: Option<TcpStats>,
    reached: Option<UpstreamInfo>,
}

impl TcpSession {
    /// A connection that is counted in `series` until its endpoint's own is known.
    pub fn new(series: &Arc<Series>) -> TcpSession {
        TcpSession {
            series: Arc::clone(series),
            begun: Instant::now(),
            carried: None,
            reached: None,
        }
    }

    /// Records the endpoint that it is connected to; its own series counts it, if it has one.
    fn opened(&mut self, cluster: &Cluster, up: &TcpUpstream) -> &TcpStats {
        let endpoint = up.lease.endpoint();
        if let Some(series) = &endpoint.series {
            self.series = Arc::clone(series);
        }
        self.reached = Some(UpstreamInfo {
            cluster: Arc::clone(&cluster.name),
            address: endpoint.address,
            local: up.stream.local_address(),
            rule: None,
        });
        self.carried.insert(TcpStats::opened(&self.series))
    }

    /// Ends it, and reports it to the observer. One that reached no endpoint is counted with the error's flag.
    pub fn over(mut self, worker: &Worker, log_context: LogContext<'_>, error: Option<Error>) {
        let error = error.as_ref();
        let is_unbegun = |error: &&Error| error.progress == Progress::Nothing;
        let flag = error.filter(is_unbegun).map_or("-", Error::flag);
        let series = &self.series;
        let carried = self
            .carried
            .get_or_insert_with(|| TcpStats::ended(series, flag));
        let none = Head::default();
        let record = RequestRecord {
            log_context,
            request: &none,
            response: &none,
            labels: self.series.labels(),
            protocol: RequestProtocol::Tcp,
            status: 0,
            flag,
            grpc: None,
            took: self.begun.elapsed(),
            bodies: carried.bytes(),
            reached: self.reached.as_ref(),
            error,
            is_logged: worker.shared.observer.logs(0, || worker.random_u32()),
        };
        worker.shared.observer.report(&record);
    }
}

/// Copies in both directions; the end of one is passed on as a half-close, while the other goes on.
///
/// Bytes are counted in `carried` as they pass, so that metrics show a connection that stays open for days.
///
/// # Errors
/// When a connection breaks.
async fn copy(down: &mut Stream, up: &mut Stream, carried: &TcpStats) -> Result<(), Error> {
    let mut up = Counted { io: up, carried };
    let copied = copy_bidirectional(down, &mut up).await;
    copied.map_err(|error| Error::up(Kind::Reset, error.to_string()).at(Progress::Sent))?;
    Ok(())
}

/// The upstream connection, with a count of the bytes that pass.
struct Counted<'a> {
    io: &'a mut Stream,
    carried: &'a TcpStats,
}

impl AsyncRead for Counted<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut *self.io).poll_read(cx, buffer))?;
        let count = buffer.filled().len() - before;
        self.carried.sent(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut *self.io).poll_write(cx, data))?;
        self.carried.received(count);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }
}
