//! One attempt: the two halves of an exchange joined. Both directions of the exchange run at once, in one
//! task, so a response may begin before the request has ended, and neither body is ever held whole.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::headers;
use super::replay::Replay;

use crate::error::{Error, Kind, Progress};
use crate::observe::grpc::Messages;
use leno_http::h1::{Invalid, Length};
use leno_http::h2::Reason;
use leno_http::head::{Head, Known, Version};
use leno_http::peers::{Down, Up};
use leno_http::upgrade::Upgrades;
use leno_http::{Broken, Incoming, Outgoing};

/// Informational responses that one request may have; beyond, the app is broken.
const MAX_INFORMATIONAL: usize = 20;

/// An exchange between the two peers of a request.
#[derive(Debug)]
pub struct Exchange<'a, 'd> {
    /// Who sent the request, whose head was read already.
    pub down: &'a mut Down<'d>,
    /// Its body.
    pub replay: &'a mut Replay,
    /// Who answers it.
    pub up: &'a mut Up,
    /// How far it got; true after a failure as well.
    pub progress: &'a mut Progress,
    /// How much of the body was sent.
    pub upload: &'a mut Transfer,
    /// How much of the response's body was.
    pub download: &'a mut Transfer,
    /// How long a peer may take nothing of what is sent to it.
    pub patience: Duration,
}

impl Exchange<'_, '_> {
    /// Sends `request` with its body, and receives the response's head into `response`.
    ///
    /// # Errors
    /// What went wrong, on whose side.
    pub async fn begin(&mut self, request: &mut Head, response: &mut Head) -> Result<(), Error> {
        let sent = self.up.request(request, self.down.body_length());
        sent.map_err(|broken| no_response(&broken))?;
        self.response_head(request, response).await
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
        if response.status() == 101 {
            // A box: it is rare, and must not make every request's room larger.
            return Box::pin(self.switch(request, response, edit)).await;
        }
        if self.down.is_held() && (200..300).contains(&response.status()) {
            let status = response.status();
            let text = format!("the app answered {status} and did not switch protocols");
            return Err(protocol_error(&text));
        }
        let received = self.up.receive(response, self.down.is_head());
        let length = received.map_err(|invalid| protocol(&invalid))?;
        response.remove_hop_by_hop();
        edit(request, response);
        *self.progress = Progress::Answered;
        self.replay.forget();
        self.down.respond(response, length);
        let passed = self.response_body(length).await;
        passed.map_err(|(error, reason)| {
            if reason.is_some() {
                self.down.cut(reason);
            }
            error
        })?;
        if !self.upload.is_done {
            // The app answered without reading all of the request; what is left of it can't be told from a next one.
            self.down.close_after();
        }
        Ok(())
    }

    /// Joins the peers in the protocol that they switched to, until both directions have ended.
    async fn switch(
        &mut self,
        request: &Head,
        response: &mut Head,
        edit: impl FnOnce(&Head, &mut Head),
    ) -> Result<(), Error> {
        response.remove_hop_by_hop();
        headers::websocket_accept(request, response);
        edit(request, response);
        *self.progress = Progress::Answered;
        self.down.switch(request, response);
        self.up.switch();
        (*self.upload, *self.download) = Default::default();
        poll_fn(|cx| {
            let sent = self.upload.poll(cx, self.down, self.up, self.patience);
            let received = self.download.poll(cx, self.up, self.down, self.patience);
            match (sent, received) {
                (Poll::Ready(Err(Failed::From(broken) | Failed::To(broken))), _)
                | (_, Poll::Ready(Err(Failed::From(broken) | Failed::To(broken)))) => {
                    let error = Error::up(Kind::Reset, format!("after the upgrade: {broken}"));
                    Poll::Ready(Err(error))
                }
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Sends the request while waiting for the final response's head; passes informational ones on.
    async fn response_head(&mut self, request: &Head, response: &mut Head) -> Result<(), Error> {
        for _ in 0..=MAX_INFORMATIONAL {
            poll_fn(|cx| self.poll_response_head(cx, response)).await?;
            match response.status() {
                101 if request.get(Known::Upgrade).is_some() => return Ok(()),
                101 => return Err(protocol_error("a 101 that was not asked for")),
                100..=199 => {
                    // From here on the caller has seen something of this try.
                    *self.progress = Progress::Informed;
                    response.remove_hop_by_hop();
                    self.down.inform(response);
                    poll_fn(|cx| self.down.poll_flush(cx)).await.map_err(left)?;
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
        if *self.progress == Progress::Nothing && self.up.is_sent() {
            *self.progress = Progress::Sent;
        }
        sent?;
        let head = ready!(self.up.poll_head(cx, response));
        Poll::Ready(head.map_err(|broken| {
            if matches!(broken, Broken::Unprocessed(_)) && *self.progress == Progress::Sent {
                *self.progress = Progress::Nothing;
            }
            no_response(&broken)
        }))
    }

    /// Sends what there is of the request's body. An error is one that ends the exchange.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if let Poll::Ready(broken) = self.down.poll_gone(cx) {
            return Err(left(broken));
        }
        if self.upload.is_done {
            return Ok(());
        }
        let mut body = self.replay.over(self.down);
        match self.upload.poll(cx, &mut body, self.up, self.patience) {
            Poll::Ready(Err(Failed::From(broken))) => Err(bad_body(&broken)),
            Poll::Ready(Err(Failed::To(broken @ Broken::Stalled(_))))
                if *self.progress < Progress::Answered =>
            {
                Err(stalled(&broken))
            }
            // The app may refuse the rest of a request and still have answered it: its answer decides.
            _ => Ok(()),
        }
    }

    /// Passes the response's body on. An error comes with the reason of an upstream that reset its stream.
    async fn response_body(&mut self, length: Length) -> Result<(), (Error, Option<Reason>)> {
        poll_fn(|cx| {
            self.poll_upload(cx).map_err(|error| (error, None))?;
            let received = ready!(self.download.poll(cx, self.up, self.down, self.patience));
            Poll::Ready(received.map_err(|failed| match failed {
                Failed::From(broken) => {
                    let reason = match broken {
                        Broken::Reset(reason) => Some(reason),
                        _ => None,
                    };
                    (cut_short(&broken, length), reason)
                }
                Failed::To(broken) => (left(broken), None),
            }))
        })
        .await
    }
}

/// Waits for `future`, unless whoever sent the request takes it back.
///
/// # Errors
/// When that happened.
pub fn unless_gone<'a, F: Future>(
    down: &'a mut Down<'_>,
    mut future: Pin<&'a mut F>,
) -> impl Future<Output = Result<F::Output, Error>> {
    poll_fn(move |cx| match down.poll_gone(cx) {
        Poll::Ready(broken) => Poll::Ready(Err(left(broken))),
        Poll::Pending => future.as_mut().poll(cx).map(Ok),
    })
}

/// A body on its way from one peer to the other.
#[derive(Debug, Default)]
pub struct Transfer {
    is_finished: bool,
    is_done: bool,
    /// Runs while the receiver takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// How much it had not taken then.
    unsent: usize,
    /// Bytes that were moved.
    count: u64,
    /// Counts gRPC's messages among them.
    messages: Option<Box<Messages>>,
}

/// Whose side a transfer failed on.
#[derive(Debug)]
enum Failed {
    From(Broken),
    To(Broken),
}

impl Transfer {
    /// A body whose gRPC messages are counted.
    pub fn of_messages(messages: Option<Messages>) -> Transfer {
        Transfer {
            messages: messages.map(Box::new),
            ..Transfer::default()
        }
    }

    /// Bytes of the body that were moved.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether the body has been sent whole.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Moves what can be moved; ready when the body has been sent whole, or the receiver took nothing for as long as
    /// `patience`.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Incoming,
        to: &mut impl Outgoing,
        patience: Duration,
    ) -> Poll<Result<(), Failed>> {
        let mut is_stalled = false;
        let moved = self.poll_move(cx, from, to, &mut is_stalled);
        if !is_stalled {
            self.stalled = None;
            return moved;
        }
        let unsent = to.unsent();
        if std::mem::replace(&mut self.unsent, unsent) != unsent {
            self.stalled = None;
        }
        let timer = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        timer
            .as_mut()
            .poll(cx)
            .map(|()| Err(Failed::To(Broken::Stalled(patience))))
    }

    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Incoming,
        to: &mut impl Outgoing,
        is_stalled: &mut bool,
    ) -> Poll<Result<(), Failed>> {
        let mut taken = |poll: Poll<Result<(), Broken>>| {
            *is_stalled = poll.is_pending();
            poll.map_err(Failed::To)
        };
        while !self.is_finished {
            match from.poll_data(cx) {
                Poll::Ready(Ok(true)) => {
                    ready!(taken(to.poll_ready(cx)))?;
                    let data = from.data();
                    let count = data.len();
                    self.count += count as u64;
                    if let Some(messages) = &mut self.messages {
                        messages.pass(data);
                    }
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
                    ready!(taken(to.poll_flush(cx)))?;
                    return Poll::Pending;
                }
            }
        }
        if !self.is_done {
            ready!(taken(to.poll_flush(cx)))?;
            self.is_done = true;
        }
        Poll::Ready(Ok(()))
    }
}

fn bad_body(broken: &Broken) -> Error {
    let kind = match broken {
        Broken::Syntax(_) => Kind::BadRequest,
        _ => Kind::Reset,
    };
    Error::down(kind, format!("request body: {broken}"))
}

fn no_response(broken: &Broken) -> Error {
    match broken {
        Broken::Syntax(invalid) => protocol(invalid),
        Broken::Closed => Error::up(Kind::Reset, "the connection was closed before a response"),
        other => Error::up(
            Kind::Reset,
            format!("the connection broke before a response: {other}"),
        ),
    }
}

fn cut_short(broken: &Broken, length: Length) -> Error {
    Error::up(Kind::Reset, format!("response body ({length:?}): {broken}"))
}

fn stalled(broken: &Broken) -> Error {
    Error::up(Kind::Timeout, format!("request body: {broken}"))
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

/// Removes from a request what a proxy must not pass on. A request for another protocol keeps saying so, if it is one of
/// `upgrades`; without it, it is a request like any other.
///
/// # Errors
/// When it is an extended CONNECT for a protocol that isn't passed on: there would be nothing left of it.
pub fn prepare(request: &mut Head, body: Length, upgrades: &Upgrades) -> Result<(), Error> {
    let upgrade = match request.get(Known::Upgrade) {
        None => None,
        Some(named) => asked_upgrade(request, named, body, upgrades)?,
    };
    let wants_trailers = request
        .get(Known::Te)
        .is_some_and(|te| te.eq_ignore_ascii_case(b"trailers"));
    request.remove_hop_by_hop();
    if wants_trailers {
        request.add("te", b"trailers");
    }
    if let Some(protocol) = upgrade {
        request.add("connection", b"upgrade");
        request.add("upgrade", &protocol);
    }
    Ok(())
}

/// The protocol that a request for another one, which it `named`, is passed on for.
#[cold]
fn asked_upgrade(
    request: &Head,
    named: &[u8],
    body: Length,
    upgrades: &Upgrades,
) -> Result<Option<Vec<u8>>, Error> {
    let is_asked = request.version() != Version::Http10 && request.connection_has("upgrade");
    let found = upgrades
        .find(request)
        .filter(|_| is_asked && body == Length::Empty);
    if found.is_none() && request.version() == Version::Http2 {
        let named = String::from_utf8_lossy(named);
        let detail =
            format!("the protocol {named:?} is not passed on; --upgrades names those that are");
        return Err(Error::down(Kind::Upgrade, detail));
    }
    Ok(found.map(<[u8]>::to_vec))
}
