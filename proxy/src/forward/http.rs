//! One attempt: a downstream half and an upstream half joined. Both directions of the exchange run at once, in one
//! task, so a response may begin before the request has ended, and neither body is ever held whole.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use super::replay::Replay;
use crate::error::{Error, Kind, Progress};
use crate::http::h1::{ClientHalf, Invalid, Length, ServerHalf};
use crate::http::head::{Head, Known};
use crate::http::{Broken, Incoming, Outgoing};

/// Informational responses that one request may have; beyond, the app is broken.
const MAX_INFORMATIONAL: usize = 20;

/// An exchange between the two peers of a request.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// Who sent the request, whose head was read already.
    pub down: &'a mut ServerHalf,
    /// Its body.
    pub replay: &'a mut Replay,
    /// Who answers it.
    pub up: &'a mut ClientHalf,
    /// How far it got; true after a failure as well.
    pub progress: &'a mut Progress,
    /// How much of the body was sent.
    pub upload: &'a mut Transfer,
}

impl Exchange<'_> {
    /// Sends `request` with its body, and receives the response's head into `response`.
    ///
    /// # Errors
    /// What went wrong, on whose side.
    pub async fn begin(&mut self, request: &mut Head, response: &mut Head) -> Result<(), Error> {
        self.up.request(request, self.down.body_length());
        self.response_head(response).await
    }

    /// Passes the response on, after `edit` has changed its head.
    ///
    /// # Errors
    /// What went wrong, on whose side. When `progress` is [`Progress::Answered`], the response's head is out and the
    /// downstream connection can only be closed.
    pub async fn finish(
        &mut self,
        request: &Head,
        response: &mut Head,
        edit: impl FnOnce(&Head, &mut Head),
    ) -> Result<(), Error> {
        let received = self.up.receive(response, self.down.is_head());
        let length = received.map_err(|invalid| protocol(&invalid))?;
        response.remove_hop_by_hop();
        edit(request, response);
        *self.progress = Progress::Answered;
        self.down.respond(response, length);
        self.response_body(length).await?;
        if !self.upload.is_done {
            // The app answered without reading all of the request; what is left of it can't be told from a next one.
            self.down.close_after();
        }
        Ok(())
    }

    /// Sends the request while waiting for the final response's head; passes informational ones on.
    async fn response_head(&mut self, response: &mut Head) -> Result<(), Error> {
        for _ in 0..=MAX_INFORMATIONAL {
            poll_fn(|cx| self.poll_response_head(cx, response)).await?;
            match response.status() {
                101 => return Err(protocol_error("a 101 that was not asked for")),
                100..=199 => {
                    // From here on the caller has seen something of this try.
                    *self.progress = Progress::Informed;
                    response.remove_hop_by_hop();
                    self.down.inform(response);
                    poll_fn(|cx| self.down.conn().poll_flush(cx))
                        .await
                        .map_err(left)?;
                }
                _ => return Ok(()),
            }
        }
        let text = format!("more than {MAX_INFORMATIONAL} informational responses");
        Err(protocol_error(&text))
    }

    fn poll_response_head(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut Head,
    ) -> Poll<Result<(), Error>> {
        let sent = self.poll_upload(cx);
        if *self.progress == Progress::Nothing && self.up.conn().is_sent() {
            *self.progress = Progress::Sent;
        }
        // The app may refuse the rest of a request and still have answered it: its answer decides.
        if let Poll::Ready(Err(Failed::From(broken))) = sent {
            return Poll::Ready(Err(bad_body(&broken)));
        }
        let head = ready!(self.up.poll_head(cx, response));
        Poll::Ready(head.map_err(|broken| no_response(&broken)))
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let mut body = self.replay.over(self.down.conn());
        self.upload.poll(cx, &mut body, self.up.conn())
    }

    async fn response_body(&mut self, length: Length) -> Result<(), Error> {
        let mut download = Transfer::default();
        poll_fn(|cx| {
            let sent = self.poll_upload(cx);
            if let Poll::Ready(Err(Failed::From(broken))) = sent {
                return Poll::Ready(Err(bad_body(&broken)));
            }
            let received = ready!(download.poll(cx, self.up.conn(), self.down.conn()));
            Poll::Ready(received.map_err(|failed| match failed {
                Failed::From(broken) => cut_short(&broken, length),
                Failed::To(broken) => left(broken),
            }))
        })
        .await
    }
}

/// A body on its way from one peer to the other.
#[derive(Debug, Default)]
pub struct Transfer {
    is_finished: bool,
    is_done: bool,
}

/// Whose side a transfer failed on.
#[derive(Debug)]
enum Failed {
    From(Broken),
    To(Broken),
}

impl Transfer {
    /// Whether the body has been sent whole.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Moves what can be moved; ready when the body has been sent whole.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Incoming,
        to: &mut impl Outgoing,
    ) -> Poll<Result<(), Failed>> {
        while !self.is_finished {
            match from.poll_data(cx) {
                Poll::Ready(Ok(true)) => {
                    ready!(to.poll_ready(cx)).map_err(Failed::To)?;
                    let data = from.data();
                    let count = data.len();
                    to.write(data);
                    from.consume(count);
                }
                Poll::Ready(Ok(false)) => {
                    to.finish(from.trailers());
                    self.is_finished = true;
                }
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(Failed::From(broken))),
                Poll::Pending => {
                    // Nothing more comes for now: what is here goes out.
                    ready!(to.poll_flush(cx)).map_err(Failed::To)?;
                    return Poll::Pending;
                }
            }
        }
        if !self.is_done {
            ready!(to.poll_flush(cx)).map_err(Failed::To)?;
            self.is_done = true;
        }
        Poll::Ready(Ok(()))
    }
}

fn bad_body(broken: &Broken) -> Error {
    let kind = match broken {
        Broken::Syntax(_) => Kind::BadRequest,
        Broken::Closed | Broken::Io(_) => Kind::Reset,
    };
    Error::down(kind, format!("request body: {broken}"))
}

fn no_response(broken: &Broken) -> Error {
    match broken {
        Broken::Syntax(invalid) => protocol(invalid),
        Broken::Closed => Error::up(Kind::Reset, "the connection was closed before a response"),
        Broken::Io(error) => Error::up(
            Kind::Reset,
            format!("the connection broke before a response: {error}"),
        ),
    }
}

fn cut_short(broken: &Broken, length: Length) -> Error {
    Error::up(Kind::Reset, format!("response body ({length:?}): {broken}"))
}

fn left(broken: Broken) -> Error {
    Error::down(Kind::Reset, format!("the caller left: {broken}"))
}

fn protocol(invalid: &Invalid) -> Error {
    protocol_error(&invalid.to_string())
}

fn protocol_error(text: &str) -> Error {
    Error::up(
        Kind::Protocol,
        format!("the response is not acceptable: {text}"),
    )
}

/// Removes from a request what a proxy must not pass on.
pub fn prepare(request: &mut Head) {
    let wants_trailers = request
        .get(Known::Te)
        .is_some_and(|te| te.eq_ignore_ascii_case(b"trailers"));
    request.remove_hop_by_hop();
    if wants_trailers {
        request.add("te", b"trailers");
    }
}
