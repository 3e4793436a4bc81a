//! The two halves of an exchange, whichever version their peers speak: one concrete type each, so that what joins them is
//! compiled once.

use std::task::{Context, Poll};

use super::h1::{ClientHalf, Invalid, Length, ServerHalf};
use super::h2::{self, ClientStream, ServerStream};
use super::head::Head;
use super::{Broken, Incoming, Outgoing};

/// Who sent a request.
#[derive(Debug)]
pub enum Down<'a> {
    /// Over HTTP/1.
    H1(&'a mut ServerHalf),
    /// Over HTTP/2.
    H2(&'a mut ServerStream),
}

/// Who answers it.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // it lives in the box of its connection
pub enum Up {
    /// Over HTTP/1.
    H1(ClientHalf),
    /// Over HTTP/2.
    H2(ClientStream),
}

impl Down<'_> {
    /// The same for a while.
    pub fn reborrow(&mut self) -> Down<'_> {
        match self {
            Down::H1(half) => Down::H1(half),
            Down::H2(stream) => Down::H2(stream),
        }
    }

    /// Whether the request was made in HTTP/2, and not only carried by it between sidecars.
    pub fn is_h2(&self) -> bool {
        matches!(self, Down::H2(stream) if !stream.is_of_http1())
    }

    /// Whether a sidecar of ours carries the request for a caller of HTTP/1.
    pub fn is_carried(&self) -> bool {
        matches!(self, Down::H2(stream) if stream.is_of_http1())
    }

    /// How the request's body is framed.
    pub fn body_length(&self) -> Length {
        match self {
            Down::H1(half) => half.body_length(),
            Down::H2(stream) => stream.body_length(),
        }
    }

    /// Whether the request is a HEAD: its response has no body whatever its head says.
    pub fn is_head(&self) -> bool {
        match self {
            Down::H1(half) => half.is_head(),
            Down::H2(stream) => stream.is_head(),
        }
    }

    /// Whether the request has been received whole.
    pub fn has_received(&self) -> bool {
        match self {
            Down::H1(half) => half.conn_ref().has_received(),
            Down::H2(stream) => stream.has_received(),
        }
    }

    /// No request after this one, where requests follow each other.
    pub fn close_after(&mut self) {
        if let Down::H1(half) = self {
            half.close_after();
        }
    }

    /// Whether an answer of 2xx would say that the protocol was switched.
    pub fn is_held(&self) -> bool {
        matches!(self, Down::H2(stream) if stream.is_held())
    }

    /// Passes an informational response on.
    pub fn inform(&mut self, head: &Head) {
        match self {
            Down::H1(half) => half.inform(head),
            Down::H2(stream) => stream.inform(head),
        }
    }

    /// Starts a response whose body has `length` as its sender framed it.
    pub fn respond(&mut self, head: &mut Head, length: Length) {
        match self {
            Down::H1(half) => half.respond(head, length),
            Down::H2(stream) => stream.respond(head, length),
        }
    }

    /// Switches to the protocol that `request` asked for, with the answer `head`.
    pub fn switch(&mut self, request: &Head, head: &mut Head) {
        match self {
            Down::H1(half) => half.switch(request, head),
            Down::H2(stream) => stream.switch(head),
        }
    }

    /// Waits until the peer takes its request back, as far as its protocol can say so.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        match self {
            Down::H1(_) => Poll::Pending,
            Down::H2(stream) => stream.poll_gone(cx),
        }
    }

    /// Lets the peer see that what was sent isn't whole. An HTTP/1 connection is then closed by whoever has it.
    pub fn cut(&mut self, reason: Option<h2::Reason>) {
        if let Down::H2(stream) = self {
            stream.reset(h2::reason(reason));
        }
    }
}

impl Up {
    /// How many requests its connection carried before the one under way.
    pub fn exchanges(&self) -> u64 {
        match self {
            Up::H1(half) => half.exchanges(),
            Up::H2(stream) => stream.exchanges(),
        }
    }

    /// Starts a request whose body has `length` as its sender framed it.
    ///
    /// # Errors
    /// [`Broken`] when it can't be sent; it wasn't then.
    pub fn request(&mut self, head: &mut Head, length: Length) -> Result<(), Broken> {
        match self {
            Up::H1(half) => {
                half.request(head, length);
                Ok(())
            }
            Up::H2(stream) => stream.request(head, length),
        }
    }

    /// Whether a byte of the request has left.
    pub fn is_sent(&self) -> bool {
        match self {
            Up::H1(half) => half.conn_ref().is_sent(),
            Up::H2(stream) => stream.is_sent(),
        }
    }

    /// Waits for a response's head.
    ///
    /// # Errors
    /// [`Broken`] when the peer left first, or what it sent isn't an acceptable response.
    pub fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut Head) -> Poll<Result<(), Broken>> {
        match self {
            Up::H1(half) => half.poll_head(cx, head),
            Up::H2(stream) => stream.poll_head(cx, head),
        }
    }

    /// Starts receiving the body of the final response `head`; returns how it is framed.
    ///
    /// # Errors
    /// [`Invalid`] when the head leaves a doubt about it.
    pub fn receive(&mut self, head: &Head, is_head: bool) -> Result<Length, Invalid> {
        match self {
            Up::H1(half) => half.receive(head, is_head),
            Up::H2(stream) => stream.receive(head, is_head),
        }
    }

    /// What is sent and received from now on belongs to the protocol that was switched to.
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
            fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
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
            fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
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

            fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
                each!(self, $side, half => half.poll_flush(cx))
            }
        }
    };
}

directions!(Down for Down<'_>);
directions!(Up for Up);
