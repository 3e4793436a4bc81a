//! One request to one upstream and back, the bytes of an opaque connection, and the answers that Leno gives itself.

pub mod answer;
pub mod attempt;
pub mod headers;
pub mod http;
pub mod propagate;
pub mod replay;
pub mod retry;
pub mod tcp;
pub mod tries;
mod wanted;

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
    /// Who sent it.
    pub down: Down<'a>,
    /// Its head; what there is of it when `read` failed.
    pub request: &'a mut Head,
    /// Why the head isn't one, if it isn't.
    pub read: Result<(), Error>,
    /// Where the response's head goes.
    pub response: &'a mut Head,
    /// The timer that limits it.
    pub deadline: &'a mut Deadline,
    /// When its head was whole.
    pub at: Instant,
}

/// What a request was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// An answer, though not all of it may have been sent yet; when that was.
    Whole(Instant),
    /// Part of an answer: cutting it short is the only way left to say so.
    Cut,
    /// Nothing, and nothing was done about it: its sender may send it elsewhere.
    Refused,
}

/// Serves a request that came as a stream. It may be left for more to come, with nothing answered.
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
