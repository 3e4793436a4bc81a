//! Forwarding: one request to one upstream and back, opaque TCP connections, and local replies.

pub mod answer;
pub mod attempt;
mod checkout;
pub mod exchange;
pub mod headers;
pub mod propagate;
pub mod replay;
pub mod retry;
pub mod retry_state;

use std::future::poll_fn;

use tokio::time::Instant;

use crate::error::Error;
use leno_http::Outgoing;
use leno_http::deadline::Deadline;
use leno_http::h1::Timeouts;
use leno_http::h2::{Arrived, Reason};
use leno_http::head::Head;
use leno_http::peers::Down;

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
    pub response: &'a mut Head,
    /// Timer that limits it.
    pub deadline: &'a mut Deadline,
    /// Time at which its head was complete.
    pub at: Instant,
}

/// Result of serving a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// A complete response, part of which may still be buffered; the time at which it ended.
    Whole(Instant),
    /// A truncated response: only cutting the stream or connection short can still signal that.
    Cut,
    /// No response, and the request was not processed: the client may send it elsewhere.
    Refused,
}

/// Serves a request that came as a stream. A stream that `serve` leaves unanswered stays open, for a tunnel.
pub async fn serve_stream(
    arrived: &mut Arrived,
    timeouts: &Timeouts,
    serve: impl AsyncFnOnce(&mut Arrival<'_>) -> Served,
) {
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
        Served::Refused => stream.reset(Reason::REFUSED_STREAM),
        Served::Cut => Down::H2(stream).cut(None),
        Served::Whole(_) if !stream.is_answered() => {}
        Served::Whole(over) => {
            let flush = poll_fn(|cx| stream.poll_flush(cx));
            let flushed = deadline.limit(over + timeouts.flush, flush).await;
            if !matches!(flushed, Some(Ok(()))) {
                Down::H2(stream).cut(None);
            }
        }
    }
}
