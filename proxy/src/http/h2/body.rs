//! The two directions of a stream. What was received is given back to flow control when it is consumed, so a slow reader
//! slows its sender down and nothing else.

use std::task::{Context, Poll, ready};

use ::h2::{Reason, RecvStream, SendStream};
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::{broken, heads};
use crate::http::head::Head;
use crate::http::{Broken, Incoming, Outgoing};

/// Above this much unsent data, reading from the other side stops.
const HIGH_WATER: usize = 64 * 1024;

/// The receiving direction.
#[derive(Debug)]
pub(super) struct Receiving {
    stream: RecvStream,
    chunk: Bytes,
    trailers: Option<Box<Head>>,
    is_done: bool,
}

impl Receiving {
    pub(super) fn new(stream: RecvStream) -> Receiving {
        Receiving {
            is_done: stream.is_end_stream(),
            stream,
            chunk: Bytes::new(),
            trailers: None,
        }
    }

    /// Whether the body has been received whole.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// What comes isn't part of the message: the body has ended.
    pub(super) fn end(&mut self) {
        self.is_done = true;
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(broken)?;
        self.trailers = trailers.map(|map| Box::new(heads::read_trailers(&map)));
        self.is_done = true;
        Poll::Ready(Ok(()))
    }
}

impl Incoming for Receiving {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        while self.chunk.is_empty() {
            if self.is_done {
                return Poll::Ready(Ok(false));
            }
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => ready!(self.poll_end(cx))?,
            }
        }
        Poll::Ready(Ok(true))
    }

    fn data(&self) -> &[u8] {
        &self.chunk
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count);
        // A stream that has ended needs no window.
        let _ = self.stream.flow_control().release_capacity(count);
    }

    fn trailers(&self) -> Option<&Head> {
        self.trailers.as_deref()
    }
}

/// The sending direction.
#[derive(Debug)]
pub(super) struct Sending {
    stream: SendStream<Bytes>,
    pending: BytesMut,
    end: End,
}

/// How the body ends.
#[derive(Debug)]
enum End {
    /// It goes on.
    Open,
    /// After what is pending, with these trailers.
    Coming(HeaderMap),
    /// The library has all of it.
    Sent,
}

impl Sending {
    /// A body of which the library has sent the head; with it all, if `is_ended`.
    pub(super) fn new(stream: SendStream<Bytes>, is_ended: bool) -> Sending {
        Sending {
            stream,
            pending: BytesMut::new(),
            end: if is_ended { End::Sent } else { End::Open },
        }
    }

    /// Waits until the peer resets the stream.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        self.stream.poll_reset(cx).map(|reset| match reset {
            Ok(reason) => Broken::Reset(reason),
            Err(error) => broken(error),
        })
    }

    /// Resets the stream, unless it has ended.
    pub(super) fn reset(&mut self, reason: Reason) {
        if !matches!(self.end, End::Sent) {
            self.stream.send_reset(reason);
            self.end = End::Sent;
        }
    }

    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        loop {
            let capacity = self.stream.capacity();
            if capacity > 0 {
                return Poll::Ready(Ok(capacity));
            }
            self.stream.reserve_capacity(self.pending.len());
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => {
                    let why = match self.poll_reset(cx) {
                        Poll::Ready(why) => why,
                        Poll::Pending => Broken::Closed,
                    };
                    return Poll::Ready(Err(why));
                }
            }
        }
    }
}

impl Outgoing for Sending {
    fn unsent(&self) -> usize {
        self.pending.len()
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match self.pending.len() < HIGH_WATER {
            true => Poll::Ready(Ok(())),
            false => self.poll_flush(cx),
        }
    }

    fn write(&mut self, data: &[u8]) {
        self.pending.extend_from_slice(data);
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        if let End::Open = self.end {
            self.end = End::Coming(trailers.map(heads::write_fields).unwrap_or_default());
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while !self.pending.is_empty() {
            let capacity = ready!(self.poll_capacity(cx))?;
            let part = self.pending.split_to(capacity.min(self.pending.len()));
            let is_last = self.pending.is_empty()
                && matches!(&self.end, End::Coming(trailers) if trailers.is_empty());
            let sent = self.stream.send_data(part.freeze(), is_last);
            sent.map_err(broken)?;
            if is_last {
                self.end = End::Sent;
            }
        }
        if let End::Coming(trailers) = &mut self.end {
            let trailers = std::mem::take(trailers);
            self.end = End::Sent;
            let sent = match trailers.is_empty() {
                true => self.stream.send_data(Bytes::new(), true),
                false => self.stream.send_trailers(trailers),
            };
            sent.map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}
