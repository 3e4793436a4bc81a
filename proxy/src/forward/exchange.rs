//! The downstream and the upstream half of an exchange, joined. Both directions run at once, in one task, so a
//! response may begin before the request has ended. Bodies are streamed; only `replay` keeps a copy of a request's.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::headers;
use super::replay::Replay;

use crate::error::{Error, Kind, Progress};
use crate::observe::grpc::Messages;
use leno_http::h1::{Framing, InvalidHead};
use leno_http::h2::Reason;
use leno_http::head::{FieldName, Head, Version};
use leno_http::peers::{Down, Up};
use leno_http::upgrade::Upgrades;
use leno_http::{Incoming, Outgoing, PeerError};

/// Limit of informational responses to one request; an app that sends more is broken.
const MAX_INFORMATIONAL: usize = 20;

/// An exchange between the downstream and the upstream peer of a request.
#[derive(Debug)]
pub struct Exchange<'a, 'd> {
    /// The downstream peer; the request's head was read already.
    pub down: &'a mut Down<'d>,
    /// The request's body, with the copy for a retry.
    pub replay: &'a mut Replay,
    /// The upstream peer.
    pub up: &'a mut Up,
    /// Progress of the exchange; valid after a failure as well.
    pub progress: &'a mut Progress,
    /// Transfer of the request's body.
    pub upload: &'a mut Transfer,
    /// Transfer of the response's body.
    pub download: &'a mut Transfer,
    /// Longest time for which a peer may accept no data.
    pub stall_timeout: Duration,
}

impl Exchange<'_, '_> {
    /// Sends `request` with its body, and receives the response's head into `response`.
    ///
    /// # Errors
    /// The failure, and the side that it is on.
    pub async fn begin(&mut self, request: &mut Head, response: &mut Head) -> Result<(), Error> {
        let sent = self.up.request(request, self.down.body_framing());
        sent.map_err(|broken| no_response(&broken))?;
        self.response_head(request, response).await
    }

    /// Forwards the response, after `edit` has changed its head.
    ///
    /// # Errors
    /// The failure, and the side that it is on. When `progress` is [`Progress::Answered`], the response's head was sent
    /// and the downstream connection can only be closed.
    pub async fn finish(
        &mut self,
        request: &Head,
        response: &mut Head,
        edit: impl FnOnce(&Head, &mut Head),
    ) -> Result<(), Error> {
        if response.status() == 101 {
            // Boxed: an upgrade is rare, and must not enlarge every request's future.
            return Box::pin(self.switch(request, response, edit)).await;
        }
        if self.down.is_switch_pending() && (200..300).contains(&response.status()) {
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
                self.down.reset(reason);
            }
            error
        })?;
        if !self.upload.is_done {
            // The app responded without reading all of the request; the rest of it can't be told from a next one.
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
            let sent = self.upload.poll(cx, self.down, self.up, self.stall_timeout);
            let received = self
                .download
                .poll(cx, self.up, self.down, self.stall_timeout);
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

    /// Sends the request while waiting for the final response's head; forwards informational ones.
    async fn response_head(&mut self, request: &Head, response: &mut Head) -> Result<(), Error> {
        for _ in 0..=MAX_INFORMATIONAL {
            poll_fn(|cx| self.poll_response_head(cx, response)).await?;
            match response.status() {
                101 if request.get(FieldName::Upgrade).is_some() => return Ok(()),
                101 => return Err(protocol_error("a 101 that was not asked for")),
                100..=199 => {
                    // From here on the client has seen part of this attempt's response.
                    *self.progress = Progress::Informed;
                    response.remove_hop_by_hop();
                    self.down.send_informational(response);
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
            if matches!(broken, PeerError::Unprocessed(_)) && *self.progress == Progress::Sent {
                *self.progress = Progress::Nothing;
            }
            no_response(&broken)
        }))
    }

    /// Sends the available part of the request's body. An error ends the exchange.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if let Poll::Ready(broken) = self.down.poll_reset(cx) {
            return Err(left(broken));
        }
        if self.upload.is_done {
            return Ok(());
        }
        let mut body = self.replay.over(self.down);
        match self.upload.poll(cx, &mut body, self.up, self.stall_timeout) {
            Poll::Ready(Err(Failed::From(broken))) => Err(bad_body(&broken)),
            Poll::Ready(Err(Failed::To(broken @ PeerError::Stalled(_))))
                if *self.progress < Progress::Answered =>
            {
                Err(stalled(&broken))
            }
            // The app may refuse the rest of a request and still have responded: its response decides.
            _ => Ok(()),
        }
    }

    /// Forwards the response's body. An error carries the reason with which the upstream reset its stream.
    async fn response_body(&mut self, length: Framing) -> Result<(), (Error, Option<Reason>)> {
        poll_fn(|cx| {
            self.poll_upload(cx).map_err(|error| (error, None))?;
            let received = ready!(
                self.download
                    .poll(cx, self.up, self.down, self.stall_timeout)
            );
            Poll::Ready(received.map_err(|failed| match failed {
                Failed::From(broken) => {
                    let reason = match broken {
                        PeerError::Reset(reason) => Some(reason),
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

/// Waits for `future`, unless the client cancels the request.
///
/// # Errors
/// When the request was cancelled.
pub fn unless_reset<'a, F: Future>(
    down: &'a mut Down<'_>,
    mut future: Pin<&'a mut F>,
) -> impl Future<Output = Result<F::Output, Error>> {
    poll_fn(move |cx| match down.poll_reset(cx) {
        Poll::Ready(broken) => Poll::Ready(Err(left(broken))),
        Poll::Pending => future.as_mut().poll(cx).map(Ok),
    })
}

/// Transfer of a body from one peer to the other.
#[derive(Debug, Default)]
pub struct Transfer {
    is_finished: bool,
    is_done: bool,
    /// Timer that runs while the receiver accepts no data.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Bytes unsent at the last check; the timer restarts when that changes.
    unsent: usize,
    /// Bytes transferred.
    count: u64,
    /// Counts the gRPC messages among them.
    messages: Option<Box<Messages>>,
}

/// Side on which a transfer failed.
#[derive(Debug)]
enum Failed {
    From(PeerError),
    To(PeerError),
}

impl Transfer {
    /// A body whose gRPC messages are counted.
    pub fn of_messages(messages: Option<Messages>) -> Transfer {
        Transfer {
            messages: messages.map(Box::new),
            ..Transfer::default()
        }
    }

    /// Bytes of the body that were transferred.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// True once the body has been sent whole.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Transfers the data that is available; ready when the body has been sent whole, or with an error, which includes
    /// a receiver that accepted nothing for `stall_timeout`.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Incoming,
        to: &mut impl Outgoing,
        stall_timeout: Duration,
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
            .get_or_insert_with(|| Box::pin(sleep(stall_timeout)));
        timer
            .as_mut()
            .poll(cx)
            .map(|()| Err(Failed::To(PeerError::Stalled(stall_timeout))))
    }

    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Incoming,
        to: &mut impl Outgoing,
        is_stalled: &mut bool,
    ) -> Poll<Result<(), Failed>> {
        let mut taken = |poll: Poll<Result<(), PeerError>>| {
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
                    // No more data for now: the buffered part is sent.
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

fn bad_body(broken: &PeerError) -> Error {
    let kind = match broken {
        PeerError::Syntax(_) => Kind::BadRequest,
        _ => Kind::Reset,
    };
    Error::down(kind, format!("request body: {broken}"))
}

fn no_response(broken: &PeerError) -> Error {
    match broken {
        PeerError::Syntax(invalid) => protocol(invalid),
        PeerError::Closed => Error::up(Kind::Reset, "the connection was closed before a response"),
        other => Error::up(
            Kind::Reset,
            format!("the connection broke before a response: {other}"),
        ),
    }
}

fn cut_short(broken: &PeerError, length: Framing) -> Error {
    Error::up(Kind::Reset, format!("response body ({length:?}): {broken}"))
}

fn stalled(broken: &PeerError) -> Error {
    Error::up(Kind::Timeout, format!("request body: {broken}"))
}

fn left(broken: PeerError) -> Error {
    Error::down(Kind::Reset, format!("the caller left: {broken}"))
}

fn protocol(invalid: &InvalidHead) -> Error {
    protocol_error(&invalid.to_string())
}

fn protocol_error(text: &str) -> Error {
    Error::up(
        Kind::Protocol,
        format!("the response is not acceptable: {text}"),
    )
}

/// Removes hop-by-hop fields from a request. An upgrade to one of `upgrades` is kept; without it, the request is like
/// any other.
///
/// # Errors
/// When it is an extended CONNECT for another protocol: nothing would be left of it.
pub fn prepare(request: &mut Head, body: Framing, upgrades: &Upgrades) -> Result<(), Error> {
    let upgrade = match request.get(FieldName::Upgrade) {
        None => None,
        Some(named) => asked_upgrade(request, named, body, upgrades)?,
    };
    let wants_trailers = request
        .get(FieldName::Te)
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

/// Protocol of an upgrade that is forwarded, of those `named` in the request.
#[cold]
fn asked_upgrade(
    request: &Head,
    named: &[u8],
    body: Framing,
    upgrades: &Upgrades,
) -> Result<Option<Vec<u8>>, Error> {
    let is_asked = request.version() != Version::Http10 && request.connection_has("upgrade");
    let found = upgrades
        .find(request)
        .filter(|_| is_asked && body == Framing::Empty);
    if found.is_none() && request.version() == Version::Http2 {
        let named = String::from_utf8_lossy(named);
        let detail =
            format!("the protocol {named:?} is not passed on; --upgrades names those that are");
        return Err(Error::down(Kind::Upgrade, detail));
    }
    Ok(found.map(<[u8]>::to_vec))
}
