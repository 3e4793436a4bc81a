//! Listening sockets, and the accept loop.
//!
//! State: the number of open connections of the process, at most `--max-connections`.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::drain::{Guard, Side, Watch};
use crate::observe::metrics::Metrics;
use leno_http::stream::tune;

/// Connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;

/// Pause of accepting when the process is out of descriptors or memory.
const REST: Duration = Duration::from_millis(100);

/// Binds `address`. Without `SO_REUSEPORT`: a second proxy on the same port would silently take part of the traffic
/// under another identity, so a port in use is an error.
///
/// # Errors
/// When the address can't be bound.
pub fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Limit on open connections, over every listener of the process.
#[derive(Debug)]
pub struct ConnectionLimit {
    open: AtomicUsize,
    limit: usize,
    metrics: Arc<Metrics>,
}

impl ConnectionLimit {
    /// A limit of `limit` connections.
    pub fn new(limit: usize, metrics: &Arc<Metrics>) -> Arc<ConnectionLimit> {
        Arc::new(ConnectionLimit {
            open: AtomicUsize::new(0),
            limit,
            metrics: Arc::clone(metrics),
        })
    }

    fn try_acquire(self: &Arc<ConnectionLimit>) -> Option<DownstreamPermit> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.metrics.refused_connections.inc();
            return None;
        }
        self.metrics.connections.inc();
        Some(DownstreamPermit(Arc::clone(self)))
    }
}

/// Permit for one open connection, returned when it is dropped.
#[derive(Debug)]
pub struct DownstreamPermit(Arc<ConnectionLimit>);

impl Drop for DownstreamPermit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.connections.dec();
    }
}

/// Permit and drain guard of an accepted connection, held until it ends.
#[derive(Debug)]
pub struct ConnectionGuard {
    _permit: DownstreamPermit,
    _guard: Guard,
}

/// Accepts until the drain phase in which the side ends, and runs `serve` for each connection in a task of this worker.
pub async fn accept<F>(
    listener: TcpListener,
    limit: Arc<ConnectionLimit>,
    (watch, side): (Watch, Side),
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let begin = |tcp: TcpStream, peer: SocketAddr| {
        // Above the limit the connection is closed at once: leaving it unanswered would look like an outage.
        let Some(permit) = limit.try_acquire() else {
            return;
        };
        let kept = ConnectionGuard {
            _permit: permit,
            _guard: watch.guard(side),
        };
        tune(&tcp, peer);
        let serving = serve(tcp, peer);
        tokio::task::spawn_local(async move {
            serving.await;
            drop(kept);
        });
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = watch.reached(side.last_phase()) => break,
        };
        match accepted {
            Ok((tcp, peer)) => begin(tcp, peer),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                sleep(REST).await;
            }
        }
    }
    // Connections in the kernel's queue are established already: their clients expect to be served.
    let Ok(listener) = listener.into_std() else {
        return;
    };
    while let Ok((tcp, peer)) = listener.accept() {
        if let Ok(tcp) = tcp
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(tcp))
        {
            begin(tcp, peer);
        }
    }
}

/// True for errors of a single connection that is gone, not of the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
