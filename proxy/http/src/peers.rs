//! The two halves of an exchange, over HTTP/1 or HTTP/2: one concrete type each, so that the code that joins them is
//! compiled once.

use std::task::{Context, Poll};

use super::h1::{ClientHalf, Framing, InvalidHead, ServerHalf};
use super::h2::{self, ClientStream, ServerStream};
use super::head::Head;
use super::{Incoming, Outgoing, PeerError};

/// The downstream half: the client that sent the request.
#[derive(Debug)]
pub enum Down<'a> {
    /// Over HTTP/1.
    H1(&'a mut ServerHalf),
    /// Over HTTP/2.
    H2(&'a mut ServerStream),
}

/// The upstream half: the server that responds to it.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // it lives in the box of its connection
pub enum Up {
    /// Over HTTP/1.
    H1(ClientHalf),
    /// Over HTTP/2.
    H2(ClientStream),
}

impl Down<'_> {
    /// The same half, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> Down<'_> {
        match self {
            Down::H1(half) => Down::H1(half),
            Down::H2(stream) => Down::H2(stream),
        }
    }

    /// True when the client speaks HTTP/2; false for HTTP/1 carried over HTTP/2 between sidecars.
    pub fn is_h2(&self) -> bool {
        matches!(self, Down::H2(stream) if !stream.is_http1_over_h2())
    }

    /// True when a Leno sidecar carries an HTTP/1 client's request over HTTP/2.
    pub fn is_http1_over_h2(&self) -> bool {
        matches!(self, Down::H2(stream) if stream.is_http1_over_h2())
    }

    /// Framing of the request's body.
    pub fn body_framing(&self) -> Framing {
        match self {
            Down::H1(half) => half.body_framing(),
            Down::H2(stream) => stream.body_framing(),
        }
    }

    /// True for a HEAD request: its response has no body, regardless of the response's head.
    pub fn is_head(&self) -> bool {
        match self {
            Down::H1(half) => half.is_head(),
            Down::H2(stream) => stream.is_head(),
        }
    }

    /// True when the request has been received completely.
    pub fn has_received(&self) -> bool {
        match self {
            Down::H1(half) => half.conn_ref().has_received(),
            Down::H2(stream) => stream.has_received(),
        }
    }

    /// Makes this request the connection's last, over HTTP/1.
    pub fn close_after(&mut self) {
        if let Down::H1(half) = self {
            half.close_after();
        }
    }

    /// True while a 2xx response would say that the protocol was switched (extended CONNECT, RFC 8441).
    pub fn is_switch_pending(&self) -> bool {
        matches!(self, Down::H2(stream) if stream.is_switch_pending())
    }

    /// Sends an informational response.
    pub fn send_informational(&mut self, head: &Head) {
        match self {
            Down::H1(half) => half.send_informational(head),
            Down::H2(stream) => stream.send_informational(head),
        }
    }

    /// Starts a response; its body was framed as `length` by its sender.
    pub fn respond(&mut self, head: &mut Head, length: Framing) {
        match self {
            Down::H1(half) => half.respond(head, length),
            Down::H2(stream) => stream.respond(head, length),
        }
    }

    /// Switches to the protocol that `request` names, with the response `head`.
    pub fn switch(&mut self, request: &Head, head: &mut Head) {
        match self {
            Down::H1(half) => half.switch(request, head),
            Down::H2(stream) => stream.switch(head),
        }
    }

    /// Waits until the client's stream is reset or fails; HTTP/1 has no such signal.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<PeerError> {
        match self {
            Down::H1(_) => Poll::Pending,
            Down::H2(stream) => stream.poll_reset(cx),
        }
    }

    /// Resets the stream, so that the client sees that the response is incomplete. An HTTP/1 connection is then closed
    /// by its owner.
    pub fn reset(&mut self, reason: Option<h2::Reason>) {
        if let Down::H2(stream) = self {
            stream.reset(h2::reason(reason));
        }
    }
}

impl Up {
    /// Number of requests sent on its connection so far.
    pub fn requests_sent(&self) -> u64 {
        match self {
            Up::H1(half) => half.requests_sent(),
            Up::H2(stream) => stream.requests_sent(),
        }
    }

    /// Starts a request; its body was framed as `length` by its sender.
    ///
    /// # Errors
    /// [`PeerError`] when it can't be sent; nothing of it was sent then.
    pub fn request(&mut self, head: &mut Head, length: Framing) -> Result<(), PeerError> {
        match self {
            Up::H1(half) => {
                half.request(head, length);
                Ok(())
            }
            Up::H2(stream) => stream.request(head, length),
        }
    }

    /// True once a byte of the request was written, or, in HTTP/2, once the connection has its head.
    pub fn is_sent(&self) -> bool {
        match self {
            Up::H1(half) => half.conn_ref().is_sent(),
            Up::H2(stream) => stream.is_sent(),
        }
    }

    /// Waits for a response's head.
    ///
    /// # Errors
    /// [`PeerError`] when the peer closed first, or sent no acceptable response.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut Head,
    ) -> Poll<Result<(), PeerError>> {
        match self {
            Up::H1(half) => half.poll_head(cx, head),
            Up::H2(stream) => stream.poll_head(cx, head),
        }
    }

    /// Starts receiving the body of the final response `head`; returns its framing.
    ///
    /// # Errors
    /// [`InvalidHead`] when the head is ambiguous about it.
    pub fn receive(&mut self, head: &Head, is_head: bool) -> Result<Framing, InvalidHead> {
        match self {
            Up::H1(half) => half.receive(head, is_head),
            Up::H2(stream) => stream.receive(head, is_head),
        }
    }

    /// Ends HTTP: all bytes from now on belong to the protocol that was switched to.
    pub fn switch(&mut self) {
        match self {
            Up::H1(half) => half.switch(),
            Up::H2(stream) => stream.switch(),
        }
    }
}

macro_rules! each {
    ($self:expr, $side:ident, $half:ident => $call:expr) => {
        match $self {
            $side::H1(half) => {
                let $half = half.conn();
                $call
            }
            $side::H2($half) => $call,
        }
    };
}

macro_rules! directions {
    ($side:ident for $type:ty) => {
        impl Incoming for $type {
            fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, PeerError>> {
                each!(self, $side, half => half.poll_data(cx))
            }

            fn data(&self) -> &[u8] {
                match self {
                    $side::H1(half) => half.conn_ref().data(),
                    $side::H2(stream) => stream.data(),
                }
            }

            fn consume(&mut self, count: usize) {
                each!(self, $side, half => half.consume(count));
            }

            fn trailers(&self) -> Option<&Head> {
                match self {
                    $side::H1(half) => half.conn_ref().trailers(),
                    $side::H2(stream) => stream.trailers(),
                }
            }
        }

        impl Outgoing for $type {
            fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
                each!(self, $side, half => half.poll_ready(cx))
            }

            fn write(&mut self, data: &[u8]) {
                each!(self, $side, half => half.write(data));
            }

            fn unsent(&self) -> usize {
                match self {
                    $side::H1(half) => half.conn_ref().unsent(),
                    $side::H2(stream) => stream.unsent(),
                }
            }

            fn finish(&mut self, trailers: Option<&Head>) {
                each!(self, $side, half => half.finish(trailers));
            }

            fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
                each!(self, $side, half => half.poll_flush(cx))
            }
        }
    };
}

directions!(Down for Down<'_>);
directions!(Up for Up);
