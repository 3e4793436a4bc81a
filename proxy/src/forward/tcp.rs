//! Opaque bytes: to one endpoint, both ways, until both directions have ended.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::Instant;

use crate::balance::limits::Leave;
use crate::balance::outlier::Verdict;
use crate::balance::{Ask, Cluster, Lease};
use crate::connect::{Carries, dial};
use crate::error::{Error, Kind, Progress, Side};
use crate::observe::Carried;
use crate::stream::Stream;
use crate::worker::Worker;

/// Endpoints that are tried before the connection is given up: nothing was sent to any of them.
const TRIES: usize = 3;

/// Opens a connection for bytes to one of the cluster's endpoints. What comes with it is held while it is open.
///
/// # Errors
/// When none of a few endpoints can be reached, or the cluster takes no more connections.
pub async fn open(
    worker: &Worker,
    cluster: &Arc<Cluster>,
) -> Result<(Stream, Leave, Lease), Error> {
    let leave = cluster.load.open().map_err(|e| e.behind(&cluster.object))?;
    let mut tried = Vec::new();
    loop {
        let now = Instant::now();
        let ask = Ask {
            tried: &tried,
            is_replayable: true,
            now,
        };
        let mut lease = cluster.pick(ask, || worker.dice())?;
        let endpoint = Arc::clone(lease.endpoint());
        let error = match dial(cluster, &endpoint, Carries::Tcp).await {
            Ok((stream, _)) => {
                cluster.report(&mut lease, Verdict::Status(200), now);
                return Ok((stream, leave, lease));
            }
            Err(error) => error,
        };
        if error.side == Side::Up {
            cluster.report(&mut lease, Verdict::Failed, now);
        }
        tried.push(endpoint.id);
        if tried.len() == TRIES || cluster.endpoints().endpoints().len() <= tried.len() {
            return Err(error.behind(&cluster.object));
        }
    }
}

/// Copies between two peers; a direction that one ends is ended towards the other, while the opposite one goes on.
///
/// Bytes are counted as `carried` as they pass, so that a connection which is open for days is seen all the while.
///
/// # Errors
/// When a connection breaks.
pub async fn copy(down: &mut Stream, up: &mut Stream, carried: &Carried) -> Result<(), Error> {
    let mut up = Counted {
        io: up,
        read: &carried.cell().sent,
        written: &carried.cell().received,
    };
    let copied = copy_bidirectional(down, &mut up).await;
    copied.map_err(|error| Error::up(Kind::Reset, error.to_string()).at(Progress::Sent))?;
    Ok(())
}

/// The peer that was connected to, with what passes counted.
struct Counted<'a> {
    io: &'a mut Stream,
    read: &'a AtomicU64,
    written: &'a AtomicU64,
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
        self.read.fetch_add(count as u64, Ordering::Relaxed);
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
        self.written.fetch_add(count as u64, Ordering::Relaxed);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }
}
