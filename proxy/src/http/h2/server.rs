//! A connection on which a peer opens streams.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;

use ::h2::server::{Builder, Connection, SendResponse};
use ::h2::{Reason, RecvStream};
use bytes::Bytes;
use http::Request;
use tokio::time::{Instant, sleep_until, timeout};

use super::flood::Guarded;
use super::heads::Peer;
use super::stream::{Opened, ServerStream, Streams};
use super::{
    CONNECTION_WINDOW, FAREWELL, FRAME_BUDGET, MAX_STREAMS, RESET_STREAMS, SEND_BUFFER,
    STREAM_WINDOW,
};
use crate::http::h1::{Invalid, Limits, Timeouts};
use crate::http::head::Head;
use crate::stream::Stream;

/// A request that a peer opened a stream for.
#[derive(Debug)]
pub struct Arrived {
    /// Where it came, and where its response goes.
    pub stream: ServerStream,
    /// Its head.
    pub head: Head,
    /// Why that isn't one, if it isn't.
    pub read: Result<(), Invalid>,
}

/// How the streams of a connection are served.
#[derive(Debug)]
pub struct Served {
    /// Bounds on messages.
    pub limits: Limits,
    /// How long the peer may take.
    pub timeouts: Timeouts,
    /// Whether it proved to be in the mesh.
    pub is_mesh: bool,
    /// When its certificate ends: from then on it may open no stream.
    pub until: Option<Instant>,
}

impl Served {
    fn peer(&self) -> Peer {
        match self.is_mesh {
            true => Peer::Mesh,
            false => Peer::Foreign,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// A connection that is served.
#[derive(Debug)]
struct Session {
    connection: Connection<Guarded, Bytes>,
    how: Served,
    streams: Rc<Streams>,
    /// When it was told to end.
    closed: Option<Instant>,
}

/// Serves the streams that the peer opens on `io`, of which `read` was read, each by a task that `handle` makes, until
/// the connection ends. It is ended in two steps (RFC 9113, section 6.8) when `closing` is ready, when no stream has been
/// open for long, or when the peer's certificate ends.
pub async fn serve<F: Future<Output = ()> + 'static>(
    io: Stream,
    read: Vec<u8>,
    how: Served,
    closing: impl Future<Output = ()>,
    handle: impl Fn(Arrived) -> F,
) {
    let Some(connection) = handshake(Guarded::from_client(io, read), &how).await else {
        return;
    };
    let mut session = Session {
        connection,
        how,
        streams: Rc::default(),
        closed: None,
    };
    let mut closing = pin!(closing);
    loop {
        let (wake, is_open) = (session.wake(), session.closed.is_none());
        tokio::select! {
            biased;
            accepted = session.connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let arrived = session.accept(request, respond);
                    if let Some(arrived) = arrived {
                        tokio::task::spawn_local(handle(arrived));
                    }
                }
                Some(Err(error)) => return tracing::info!(%error, "HTTP/2 connection ended"),
                None => return,
            },
            () = &mut closing, if is_open => session.close(),
            () = sleep_until(wake) => {
                // Streams may have begun or ended meanwhile.
                let now = Instant::now();
                let is_due = session.wake() <= now;
                match session.closed {
                    Some(_) if is_due => return,
                    None if is_due || session.how.is_over(now) => session.close(),
                    _ => {}
                }
            }
        }
    }
}

impl Session {
    /// When to look at it again: it is idle for too long then, or has had time enough to end.
    fn wake(&self) -> Instant {
        let now = Instant::now();
        let since = match self.streams.count.get() {
            0 => self.streams.changed.get(),
            _ => now,
        };
        match (self.closed, self.how.until) {
            (Some(closed), _) => since.max(closed) + FAREWELL,
            (None, Some(until)) => until.min(since + self.how.timeouts.idle),
            (None, None) => since + self.how.timeouts.idle,
        }
    }

    fn close(&mut self) {
        self.closed = Some(Instant::now());
        self.connection.graceful_shutdown();
    }

    /// What to do with a stream that was opened, if it is one to serve.
    fn accept(
        &mut self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<Arrived> {
        if self.how.is_over(Instant::now()) {
            respond.send_reset(Reason::REFUSED_STREAM);
            return None;
        }
        let opened = Opened::new(&self.streams);
        // One that its peer took back is no longer counted by the library, but may still be worked on here.
        let is_crowded = self.streams.count.get() > 2 * MAX_STREAMS as usize;
        // A sidecar speaks for many callers, who may all give up when the app hangs.
        let is_flood = !self.how.is_mesh && self.streams.resets.borrow().is_flood();
        if is_crowded || is_flood {
            tracing::info!("HTTP/2 connection ended: a flood of streams that are reset at once");
            self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            return None;
        }
        let (limits, peer) = (&self.how.limits, self.how.peer());
        let mut head = Head::default();
        let (stream, read) = ServerStream::new(request, respond, (peer, limits), opened, &mut head);
        Some(Arrived { stream, head, read })
    }
}

async fn handshake(io: Guarded, how: &Served) -> Option<Connection<Guarded, Bytes>> {
    let handshake = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(how.limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .data_frame_budget(FRAME_BUDGET)
        .enable_connect_protocol()
        .handshake(io);
    match timeout(how.timeouts.head, handshake).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            tracing::info!(%error, "HTTP/2 connection refused");
            None
        }
        Err(_) => None,
    }
}
