//! A request that came as a stream.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll};

use ::h2::server::SendResponse;
use ::h2::{Reason, RecvStream};
use bytes::Bytes;
use http::Request;
use tokio::time::Instant;

use super::body::{Receiving, Sending};
use super::broken;
use super::flood::Resets;
use super::heads::{self, Peer};
use super::tunnel::Tunnel;
use crate::http::h1::{Invalid, Length, Limits, request_length};
use crate::http::head::{Head, Known};
use crate::http::{Broken, Incoming, Outgoing};

/// A request that came as a stream, and where its response goes.
#[derive(Debug)]
pub struct ServerStream {
    respond: SendResponse<Bytes>,
    receiving: Receiving,
    sending: Option<Sending>,
    length: Length,
    is_head: bool,
    /// Whether what comes after the head is not a body, but what follows when the protocol was switched.
    is_held: bool,
    /// Whether the peer shows names to its app as they were written.
    wants_case: bool,
    opened: Opened,
}

/// A stream that is open, until this is dropped.
#[derive(Debug)]
pub(super) struct Opened {
    at: Instant,
    all: Rc<Streams>,
}

/// The streams of one connection.
#[derive(Debug)]
pub(super) struct Streams {
    /// How many are open.
    pub(super) count: Cell<usize>,
    /// When the last one began or ended.
    pub(super) changed: Cell<Instant>,
    /// How they ended.
    pub(super) resets: RefCell<Resets>,
}

impl Default for Streams {
    fn default() -> Streams {
        Streams {
            count: Cell::new(0),
            changed: Cell::new(Instant::now()),
            resets: RefCell::default(),
        }
    }
}

impl Opened {
    /// A stream was opened.
    pub(super) fn new(all: &Rc<Streams>) -> Opened {
        let at = Instant::now();
        all.count.set(all.count.get() + 1);
        all.changed.set(at);
        all.resets.borrow_mut().opened();
        Opened {
            at,
            all: Rc::clone(all),
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.all.count.set(self.all.count.get() - 1);
        self.all.changed.set(Instant::now());
    }
}

impl ServerStream {
    /// The stream of `request`, whose head is read into `head`, as who sent it is believed, and within `limits`.
    pub(super) fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        (peer, limits): (Peer, &Limits),
        opened: Opened,
        head: &mut Head,
    ) -> (ServerStream, Result<(), Invalid>) {
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts, ());
        let read = heads::read_request(&request, peer, limits, head);
        let length = request_length(head).map(|length| match (body.is_end_stream(), length) {
            (true, _) => Length::Empty,
            (false, Length::Empty) => Length::Chunked,
            (false, length) => length,
        });
        let is_held = head.get(Known::Upgrade).is_some();
        let stream = ServerStream {
            respond,
            receiving: Receiving::new(body),
            sending: None,
            length: match (is_held, &length) {
                (false, Ok(length)) => *length,
                _ => Length::Empty,
            },
            is_head: head.method() == b"HEAD",
            is_held,
            wants_case: peer == Peer::Mesh && heads::has_case(request.headers()),
            opened,
        };
        (stream, read.and(length.map(drop)))
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
        self.receiving.is_done()
    }

    /// Whether its response has begun.
    pub fn is_answered(&self) -> bool {
        self.sending.is_some()
    }

    /// Whether it asks for another protocol: an answer of 2xx says that it was switched to.
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// Passes an informational response on.
    pub fn inform(&mut self, head: &Head) {
        // A stream that was reset is noticed by whoever sends the final one.
        let response = heads::write_response(head, self.wants_case);
        let _ = self.respond.send_informational(response);
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
        let response = heads::write_response(head, self.wants_case);
        let sent = self.respond.send_response(response, is_ended);
        self.sending = sent.ok().map(|stream| Sending::new(stream, is_ended));
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

    /// Makes the stream the tunnel that CONNECT asked for; `None` when its peer is gone.
    pub fn into_tunnel(mut self) -> Option<Tunnel> {
        self.send(&Head::response(200), false);
        Some(Tunnel::new(
            self.receiving,
            self.sending?,
            Box::new(self.opened),
        ))
    }

    /// Waits until the peer takes its request back.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        let gone = match &mut self.sending {
            Some(sending) => sending.poll_reset(cx),
            None => self.respond.poll_reset(cx).map(|reset| match reset {
                Ok(reason) => Broken::Reset(reason),
                Err(error) => broken(error),
            }),
        };
        if gone.is_ready() && self.sending.is_none() {
            let age = self.opened.at.elapsed();
            self.opened.all.resets.borrow_mut().reset(age);
        }
        gone
    }

    /// Ends the stream where it is, so that nobody takes what was sent for the whole.
    pub fn reset(&mut self, reason: Reason) {
        match &mut self.sending {
            Some(sending) => sending.reset(reason),
            None => self.respond.send_reset(reason),
        }
    }
}

impl Incoming for ServerStream {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        match self.is_held {
            true => Poll::Ready(Ok(false)),
            false => self.receiving.poll_data(cx),
        }
    }

    fn data(&self) -> &[u8] {
        self.receiving.data()
    }

    fn consume(&mut self, count: usize) {
        self.receiving.consume(count);
    }

    fn trailers(&self) -> Option<&Head> {
        self.receiving.trailers()
    }
}

impl Outgoing for ServerStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match &mut self.sending {
            Some(sending) => sending.poll_ready(cx),
            None => Poll::Ready(Err(Broken::Closed)),
        }
    }

    fn unsent(&self) -> usize {
        self.sending.as_ref().map_or(0, Outgoing::unsent)
    }

    fn write(&mut self, data: &[u8]) {
        if let Some(sending) = &mut self.sending {
            sending.write(data);
        }
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        if let Some(sending) = &mut self.sending {
            sending.finish(trailers);
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match &mut self.sending {
            Some(sending) => sending.poll_flush(cx),
            // Before the final response there are only informational ones, which the library has.
            None => Poll::Ready(Ok(())),
        }
    }
}
