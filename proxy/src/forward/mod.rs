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

use tokio::time::{Instant, timeout};

use crate::deadline::Deadline;
use crate::error::Error;
use crate::http::Outgoing;
use crate::http::h1::{Timeouts, refused};
use crate::http::h2::{Arrived, Reason, ServerStream};
use crate::http::half::Down;
use crate::http::head::Head;

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
    /// An answer, though not all of it may have been sent yet.
    Whole,
    /// Part of an answer: cutting it short is the only way left to say so.
    Cut,
    /// Nothing, and nothing was done about it: its sender may send it elsewhere.
    Refused,
}

/// Serves a request that came as a stream. Gives the stream back when nothing was answered on it.
pub async fn serve_stream(
    arrived: Arrived,
    timeouts: &Timeouts,
    serve: impl AsyncFnOnce(Arrival<'_>) -> Served,
) -> Option<ServerStream> {
    let Arrived {
        mut stream,
        mut head,
        read,
    } = arrived;
    let mut response = Head::default();
    let arrival = Arrival {
        down: Down::H2(&mut stream),
        request: &mut head,
        read: read.map_err(refused),
        response: &mut response,
        deadline: &mut Deadline::new(timeouts.idle),
        at: Instant::now(),
    };
    let served = serve(arrival).await;
    if served == Served::Whole && !stream.is_answered() {
        return Some(stream);
    }
    let flush = timeout(timeouts.flush, poll_fn(|cx| stream.poll_flush(cx)));
    match served {
        Served::Refused => stream.reset(Reason::REFUSED_STREAM),
        Served::Cut => Down::H2(&mut stream).cut(None),
        Served::Whole => {
            if !matches!(flush.await, Ok(Ok(()))) {
                Down::H2(&mut stream).cut(None);
            }
        }
    }
    head.rest();
    response.rest();
    None
}
