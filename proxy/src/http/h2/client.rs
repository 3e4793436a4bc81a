//! A connection whose streams carry requests of many callers, and one such stream.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use ::h2::client::{Builder, ResponseFuture, SendRequest};
use ::h2::{Ping, PingPong};
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::body::{Receiving, Sending};
use super::flood::Guarded;
use super::heads::{self, Peer};
use super::{
    CONNECTION_WINDOW, FRAME_BUDGET, MAX_STREAMS, RESET_STREAMS, SEND_BUFFER, STREAM_WINDOW, broken,
};
use crate::http::h1::{Invalid, Length, Limits, response_length};
use crate::http::head::{Head, Known};
use crate::http::{Broken, Incoming, Outgoing};
use crate::stream::Stream;

/// A peer that was heard within this is there; one that isn't heard for as long after a ping gets no new request.
const PROOF: Duration = Duration::from_secs(3);
/// One that isn't heard for this long after that is gone, with all that is under way.
const GONE: Duration = Duration::from_secs(20);
/// Pings between two responses: gRPC's servers end a connection that pings more often.
const PINGS: u32 = 2;

/// A connection on which requests are sent as streams.
pub struct Connection {
    sender: SendRequest<Bytes>,
    pulse: Rc<Pulse>,
    streams: Cell<u64>,
    /// How many requests were sent: streams wait for their turn, and the first that is sent says who calls.
    sent: Cell<u64>,
    peer: Peer,
    limits: Limits,
}

/// How a connection is doing.
struct Pulse {
    /// Taken while a ping is under way.
    pings: RefCell<Option<PingPong>>,
    /// Pings since the last response.
    asked: Cell<u32>,
    /// When something was read last.
    heard: Rc<Cell<Instant>>,
    driver: RefCell<Option<AbortHandle>>,
    /// Whether it takes no new request.
    is_over: Cell<bool>,
    active: Cell<usize>,
    idle_since: Cell<Instant>,
    /// For how long it was idle when the peer closed it.
    closed_after: Cell<Option<Duration>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Connection");
        debug.field("active", &self.pulse.active.get());
        debug.finish_non_exhaustive()
    }
}

impl Pulse {
    fn ended(&self) {
        if self.active.get() == 0 && !self.is_over.get() {
            self.closed_after.set(Some(self.idle_since.get().elapsed()));
        }
        self.is_over.set(true);
    }

    /// A request got no answer: unless the peer is heard, it gets no other, and what it has is given up later.
    fn doubt(self: &Rc<Pulse>) {
        let is_heard = self.heard.get().elapsed() < PROOF;
        if self.is_over.get() || is_heard || self.asked.get() >= PINGS {
            return;
        }
        let Some(mut pings) = self.pings.take() else {
            return;
        };
        self.asked.set(self.asked.get() + 1);
        let (own, before) = (Rc::clone(self), self.heard.get());
        tokio::task::spawn_local(async move {
            let _ = timeout(PROOF, pings.ping(Ping::opaque())).await;
            own.pings.replace(Some(pings));
            if own.heard.get() > before {
                return;
            }
            tracing::info!(
                "an HTTP/2 connection takes no more requests: nothing is heard of its peer"
            );
            own.is_over.set(true);
            sleep(GONE).await;
            if let (true, Some(driver)) = (own.heard.get() == before, own.driver.take()) {
                driver.abort();
            }
        });
    }
}

impl Connection {
    /// Opens a connection on `io`, whose peer is a sidecar of ours if `is_ours`. Its settings are known then: they come
    /// before its answer to a ping.
    ///
    /// # Errors
    /// [`Broken`] when the peer is gone, or speaks something else.
    pub async fn open(io: Stream, is_ours: bool, limits: Limits) -> Result<Rc<Connection>, Broken> {
        let mut builder = Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(MAX_STREAMS as usize)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .max_local_error_reset_streams(None)
            .data_frame_budget(FRAME_BUDGET)
            .enable_push(false);
        let heard = Rc::new(Cell::new(Instant::now()));
        let (sender, mut connection) = builder
            .handshake(Guarded::from_server(io, &heard))
            .await
            .map_err(broken)?;
        let mut pings = connection.ping_pong();
        let pulse = Rc::new(Pulse {
            pings: RefCell::default(),
            asked: Cell::new(0),
            heard,
            driver: RefCell::default(),
            is_over: Cell::new(false),
            active: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            closed_after: Cell::new(None),
        });
        let (own, (ended, why)) = (Rc::clone(&pulse), oneshot::channel());
        let driver = tokio::task::spawn_local(async move {
            let outcome = connection.await;
            own.ended();
            let _ = ended.send(outcome.err().map_or(Broken::Closed, broken));
        });
        pulse.driver.replace(Some(driver.abort_handle()));
        if let Some(pings) = &mut pings
            && let Err(error) = pings.ping(Ping::opaque()).await
        {
            // The connection's own end says more than the ping that it ended.
            return Err(why.await.unwrap_or_else(|_| broken(error)));
        }
        pulse.pings.replace(pings);
        Ok(Rc::new(Connection {
            sender,
            pulse,
            streams: Cell::new(0),
            sent: Cell::new(0),
            peer: if is_ours { Peer::Mesh } else { Peer::Foreign },
            limits,
        }))
    }

    /// Whether it takes another request now. Of more streams than have windows, some would wait for others to be read.
    pub fn has_room(&self) -> bool {
        let room = self.sender.current_max_send_streams();
        self.is_open() && self.pulse.active.get() < room.min(MAX_STREAMS as usize)
    }

    /// Whether it takes requests at all: the peer neither closed it nor said that it will.
    pub fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        !self.pulse.is_over.get()
            && matches!(self.sender.clone().poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    /// How many requests were begun on it.
    pub fn streams(&self) -> u64 {
        self.streams.get()
    }

    /// Since when no request has been under way; `None` while one is.
    pub fn idle_since(&self) -> Option<Instant> {
        let pulse = &self.pulse;
        (pulse.active.get() == 0).then(|| pulse.idle_since.get())
    }

    /// For how long it was idle when the peer closed it, if it was.
    pub fn closed_after(&self) -> Option<Duration> {
        self.pulse.closed_after.get()
    }

    /// A stream for one request.
    pub fn stream(self: &Rc<Connection>) -> ClientStream {
        self.pulse.active.set(self.pulse.active.get() + 1);
        self.streams.set(self.streams.get() + 1);
        ClientStream {
            response: None,
            sending: None,
            receiving: None,
            is_held: false,
            connection: Rc::clone(self),
        }
    }
}

/// One request as a stream.
#[derive(Debug)]
pub struct ClientStream {
    response: Option<ResponseFuture>,
    sending: Option<Sending>,
    receiving: Option<Receiving>,
    /// Whether it asks for another protocol and hasn't switched: what is sent then is no body of the request.
    is_held: bool,
    connection: Rc<Connection>,
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        let pulse = &self.connection.pulse;
        pulse.active.set(pulse.active.get() - 1);
        pulse.idle_since.set(Instant::now());
        if self.sending.is_some() && self.receiving.is_none() {
            pulse.doubt();
        }
    }
}

impl ClientStream {
    /// How many requests were sent on its connection so far.
    pub fn exchanges(&self) -> u64 {
        self.connection.sent.get()
    }

    /// Whether the peer takes extended CONNECT (RFC 8441).
    pub fn takes_extended_connect(&self) -> bool {
        let sender = &self.connection.sender;
        sender.is_extended_connect_protocol_enabled()
    }

    /// Whether the library has the request's head.
    pub fn is_sent(&self) -> bool {
        self.sending.is_some()
    }

    /// Starts a request whose body has `length` as its sender framed it.
    ///
    /// # Errors
    /// [`Broken`] when HTTP/2 can't say it, or the connection takes no request any more; it wasn't sent then.
    pub fn request(&mut self, head: &Head, length: Length) -> Result<(), Broken> {
        self.is_held = head.get(Known::Upgrade).is_some();
        let request = heads::write_request(head, self.connection.peer, self.is_held);
        let request = request.map_err(Broken::Syntax)?;
        let is_ended = !self.is_held && matches!(length, Length::Empty | Length::Fixed(0));
        let sent = self
            .connection
            .sender
            .clone()
            .send_request(request, is_ended);
        let (response, stream) = sent.map_err(|error| Broken::Unprocessed(error.to_string()))?;
        let count = &self.connection.sent;
        count.set(count.get() + 1);
        self.response = Some(response);
        self.sending = Some(Sending::new(stream, is_ended));
        Ok(())
    }

    /// Waits for a response's head.
    ///
    /// # Errors
    /// [`Broken`] when the peer left or reset the stream first, or what it sent isn't an acceptable response.
    pub fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut Head) -> Poll<Result<(), Broken>> {
        let Some(future) = &mut self.response else {
            return Poll::Ready(Err(Broken::Closed));
        };
        let Connection { peer, limits, .. } = *self.connection;
        match ready!(future.poll_informational(cx)) {
            Some(response) => {
                let response = response.map_err(broken)?;
                let read = heads::read_response(&response, peer, &limits, head);
                Poll::Ready(read.map_err(Broken::Syntax))
            }
            None => {
                let response = ready!(Pin::new(future).poll(cx)).map_err(broken)?;
                let (parts, body) = response.into_parts();
                self.receiving = Some(Receiving::new(body));
                self.connection.pulse.asked.set(0);
                let response = http::Response::from_parts(parts, ());
                let read = heads::read_response(&response, peer, &limits, head);
                read.map_err(Broken::Syntax)?;
                if self.is_held && (200..300).contains(&head.status()) {
                    head.set_status(101);
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Starts receiving the body of the final response `head`; returns how it is framed.
    ///
    /// # Errors
    /// [`Invalid`] when the head leaves a doubt about it.
    pub fn receive(&mut self, head: &Head, is_head: bool) -> Result<Length, Invalid> {
        let length = response_length(head, is_head)?;
        let Some(receiving) = &mut self.receiving else {
            return Ok(Length::Empty);
        };
        Ok(match length {
            Length::Empty => {
                receiving.end();
                Length::Empty
            }
            _ if receiving.is_done() => Length::Fixed(0),
            Length::UntilClose => Length::Chunked,
            length => length,
        })
    }

    /// What is sent from now on belongs to the protocol that was switched to.
    pub fn switch(&mut self) {
        self.is_held = false;
    }
}

impl Incoming for ClientStream {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        match &mut self.receiving {
            Some(receiving) => receiving.poll_data(cx),
            None => Poll::Ready(Err(Broken::Closed)),
        }
    }

    fn data(&self) -> &[u8] {
        self.receiving.as_ref().map_or(&[], Receiving::data)
    }

    fn consume(&mut self, count: usize) {
        if let Some(receiving) = &mut self.receiving {
            receiving.consume(count);
        }
    }

    fn trailers(&self) -> Option<&Head> {
        self.receiving.as_ref()?.trailers()
    }
}

impl Outgoing for ClientStream {
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
        if let Some(sending) = &mut self.sending
            && !self.is_held
        {
            sending.finish(trailers);
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match &mut self.sending {
            Some(sending) => sending.poll_flush(cx),
            None => Poll::Ready(Err(Broken::Closed)),
        }
    }
}
