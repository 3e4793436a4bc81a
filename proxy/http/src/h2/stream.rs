//! A request that came as a stream.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::body::Body;
use super::core::{Core, Slot};
use super::frame::Reason;
use super::tunnel::Tunnel;
use crate::clock;
use crate::h1::{Invalid, Length, request_length};
use crate::head::{Head, Known};
use crate::{Broken, Incoming, Outgoing};

/// A request that came as a stream, and where its response goes.
#[derive(Debug)]
pub struct ServerStream {
    body: Body,
    is_answered: bool,
    length: Length,
    is_head: bool,
    /// Whether what comes after the head is not a body, but what follows when the protocol was switched.
    is_held: bool,
    /// Whether a sidecar carries it for a caller that speaks HTTP/1.
    is_carried: bool,
    opened: Opened,
}

/// A stream that is open, until this is dropped.
#[derive(Debug)]
pub(super) struct Opened(Rc<Streams>);

/// The streams of one connection.
#[derive(Debug)]
pub(super) struct Streams {
    /// How many are open.
    pub(super) count: Cell<usize>,
    /// When the last one that was open ended, or none ever was.
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

impl Opened {
    /// A stream was opened.
    fn new(all: &Rc<Streams>) -> Opened {
        all.count.set(all.count.get() + 1);
        Opened(Rc::clone(all))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let left = self.0.count.get() - 1;
        self.0.count.set(left);
        if left == 0 {
            self.0.idle_since.set(clock::now());
        }
    }
}

impl ServerStream {
    /// The stream of a request with `head`, and whether that fits to it.
    pub(super) fn new(
        core: &Rc<RefCell<Core>>,
        slot: Rc<Slot>,
        head: &Head,
        all: &Rc<Streams>,
    ) -> (ServerStream, Result<(), Invalid>) {
        let is_carried = slot.state.borrow().is_carried;
        let mut body = Body::new(core, slot, false);
        let length = request_length(head).and_then(|length| match (body.is_received(), length) {
            (true, Length::Fixed(1..)) => {
                Err(Invalid::Syntax("Content-Length of a body that isn't there"))
            }
            (true, _) => Ok(Length::Empty),
            (false, Length::Empty) => Ok(Length::Chunked),
            (false, length) => Ok(length),
        });
        if let Ok(Length::Fixed(length)) = length {
            body.declare(Some(length));
        }
        let is_held = head.get(Known::Upgrade).is_some();
        let stream = ServerStream {
            body,
            is_answered: false,
            length: match (is_held, &length) {
                (false, Ok(length)) => *length,
                _ => Length::Empty,
            },
            is_head: head.method() == b"HEAD",
            is_held,
            is_carried,
            opened: Opened::new(all),
        };
        (stream, length.map(drop))
    }

    /// Whether the request is a HEAD: its response has no body whatever its head says.
    pub fn is_head(&self) -> bool {
        self.is_head
    }

    /// How the request's body is framed.
    pub fn body_length(&self) -> Length {
        self.length
    }

    /// Whether the request has been received whole.
    pub fn has_received(&self) -> bool {
        self.body.is_received()
    }

    /// Whether its response has begun.
    pub fn is_answered(&self) -> bool {
        self.is_answered
    }

    /// Whether a sidecar carries it for a caller that speaks HTTP/1.
    pub fn is_of_http1(&self) -> bool {
        self.is_carried
    }

    /// Whether it asks for another protocol: an answer of 2xx says that it was switched to.
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// Passes an informational response on.
    pub fn inform(&mut self, head: &Head) {
        // A stream that was reset is noticed by whoever sends the final one.
        self.body.write_head(head, false);
    }

    /// Starts a response whose body has `length` as its sender framed it.
    pub fn respond(&mut self, head: &mut Head, length: Length) {
        if head.status() == 204 {
            head.remove(Known::ContentLength);
        }
        let is_ended = matches!(length, Length::Empty | Length::Fixed(0));
        self.send(head, is_ended);
    }

    fn send(&mut self, head: &Head, is_ended: bool) {
        self.body.write_head(head, is_ended);
        self.body.slot().state.borrow_mut().is_answered = true;
        self.is_answered = true;
    }

    /// Switches to the protocol that was asked for by extended CONNECT, whose answer is a 200 (RFC 8441, section 5).
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

    /// Makes the stream the tunnel that CONNECT asked for.
    pub fn into_tunnel(mut self) -> Tunnel {
        self.send(&Head::response(200), false);
        Tunnel::new(self.body, Box::new(self.opened))
    }

    /// Waits until the peer takes its request back.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        self.body.poll_gone(cx)
    }

    /// Ends the stream where it is, so that nobody takes what was sent for the whole.
    pub fn reset(&mut self, reason: Reason) {
        self.body.reset(reason);
    }
}

impl Incoming for ServerStream {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
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
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
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

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.body.poll_flush(cx)
    }
}
