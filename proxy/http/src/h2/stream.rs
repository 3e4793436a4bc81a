//! A request received as a stream.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::body::Body;
use super::core::{Core, Slot};
use super::tunnel::Tunnel;
use crate::clock;
use crate::error::Reason;
use crate::h1::{Framing, InvalidHead, request_framing};
use crate::head::{FieldName, Head};
use crate::{Incoming, Outgoing, PeerError};

/// A request received as a stream, and the way of its response.
#[derive(Debug)]
pub struct ServerStream {
    body: Body,
    is_answered: bool,
    length: Framing,
    is_head: bool,
    /// Set while an upgrade is requested: the bytes after the head are no body, but the new protocol's.
    is_held: bool,
    /// Set if a sidecar carries it for a caller that speaks HTTP/1.
    is_carried: bool,
    opened: OpenStream,
}

/// Counts a stream as open until dropped.
#[derive(Debug)]
pub(super) struct OpenStream(Rc<Streams>);

/// Counts the open streams of one connection.
#[derive(Debug)]
pub(super) struct Streams {
    /// Number of open streams.
    pub(super) count: Cell<usize>,
    /// Time at which the last open stream ended, or of the connection's beginning.
    pub(super) idle_since: Cell<Instant>,
}

impl Default for Streams {
    fn default() -> Streams {
        Streams {
            count: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
        }
    }
}

impl OpenStream {
    /// Counts another open stream.
    fn new(all: &Rc<Streams>) -> OpenStream {
        all.count.set(all.count.get() + 1);
        OpenStream(Rc::clone(all))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let left = self.0.count.get() - 1;
        self.0.count.set(left);
        if left == 0 {
            self.0.idle_since.set(clock::now());
        }
    }
}

impl ServerStream {
    /// Creates the stream of a request with `head`, and checks the framing in `head` against the stream.
    pub(super) fn new(
        core: &Rc<RefCell<Core>>,
        slot: Rc<Slot>,
        head: &Head,
        all: &Rc<Streams>,
    ) -> (ServerStream, Result<(), InvalidHead>) {
        let is_carried = slot.state.borrow().is_carried;
        let mut body = Body::new(core, slot, false);
        let length = request_framing(head).and_then(|length| match (body.is_received(), length) {
            (true, Framing::Fixed(1..)) => Err(InvalidHead::Syntax(
                "Content-Length of a body that isn't there",
            )),
            (true, _) => Ok(Framing::Empty),
            (false, Framing::Empty) => Ok(Framing::Chunked),
            (false, length) => Ok(length),
        });
        if let Ok(Framing::Fixed(length)) = length {
            body.declare(Some(length));
        }
        let is_held = head.get(FieldName::Upgrade).is_some();
        let stream = ServerStream {
            body,
            is_answered: false,
            length: match (is_held, &length) {
                (false, Ok(length)) => *length,
                _ => Framing::Empty,
            },
            is_head: head.method() == b"HEAD",
            is_held,
            is_carried,
            opened: OpenStream::new(all),
        };
        (stream, length.map(drop))
    }

    /// Returns `true` for a HEAD request, to which the response has no body regardless of its head.
    pub fn is_head(&self) -> bool {
        self.is_head
    }

    /// Framing of the request's body.
    pub fn body_framing(&self) -> Framing {
        self.length
    }

    /// Returns `true` once the request has been received whole.
    pub fn has_received(&self) -> bool {
        self.body.is_received()
    }

    /// Returns `true` once its final response has begun.
    pub fn is_answered(&self) -> bool {
        self.is_answered
    }

    /// Returns `true` if a sidecar carries it for a caller that speaks HTTP/1.
    pub fn is_http1_over_h2(&self) -> bool {
        self.is_carried
    }

    /// Returns `true` while it requests an upgrade, which a 2xx response accepts.
    pub fn is_switch_pending(&self) -> bool {
        self.is_held
    }

    /// Sends an informational response.
    pub fn send_informational(&mut self, head: &Head) {
        // A stream that was reset is noticed when the final response is sent.
        self.body.write_head(head, false);
    }

    /// Starts a response; `length` is the framing of its body by the sender.
    pub fn respond(&mut self, head: &mut Head, length: Framing) {
        if head.status() == 204 {
            head.remove(FieldName::ContentLength);
        }
        let is_ended = matches!(length, Framing::Empty | Framing::Fixed(0));
        self.send(head, is_ended);
    }

    fn send(&mut self, head: &Head, is_ended: bool) {
        self.body.write_head(head, is_ended);
        self.body.slot().state.borrow_mut().is_answered = true;
        self.is_answered = true;
    }

    /// Accepts the protocol that extended CONNECT requested, with a 200 (RFC 8441, section 5).
    pub fn switch(&mut self, head: &Head) {
        let mut answer = Head::response(200);
        for (name, value) in head.fields() {
            if !name.eq_ignore_ascii_case(b"sec-websocket-accept")
                && let Ok(name) = std::str::from_utf8(name)
            {
                answer.add(name, value);
            }
        }
        self.send(&answer, false);
        self.is_held = false;
    }

    /// Accepts CONNECT with a 200, and makes the stream its tunnel.
    pub fn into_tunnel(mut self) -> Tunnel {
        self.send(&Head::response(200), false);
        Tunnel::new(self.body, Box::new(self.opened))
    }

    /// Waits until the peer resets the stream or the connection fails.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<PeerError> {
        self.body.poll_gone(cx)
    }

    /// Resets the stream, so that a truncated response doesn't pass for a complete one.
    pub fn reset(&mut self, reason: Reason) {
        self.body.reset(reason);
    }
}

impl Incoming for ServerStream {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, PeerError>> {
        match self.is_held {
            true => Poll::Ready(Ok(false)),
            false => self.body.poll_data(cx),
        }
    }

    fn data(&self) -> &[u8] {
        self.body.data()
    }

    fn consume(&mut self, count: usize) {
        self.body.consume(count);
    }

    fn trailers(&self) -> Option<&Head> {
        self.body.trailers()
    }
}

impl Outgoing for ServerStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
        self.body.poll_ready(cx)
    }

    fn unsent(&self) -> usize {
        self.body.unsent()
    }

    fn write(&mut self, data: &[u8]) {
        self.body.write(data);
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        self.body.finish(trailers);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
        self.body.poll_flush(cx)
    }
}
