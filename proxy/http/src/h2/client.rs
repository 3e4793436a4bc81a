//! A client connection, with requests of many callers on its streams, and one such stream.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::body::Body;
use super::core::{Core, Failure, Role};
use super::driver::Driver;
use super::header_block::Peer;
use super::write_head;
use crate::clock;
use crate::h1::{Framing, HeadLimits, InvalidHead, response_framing};
use crate::head::{FieldName, Head};
use crate::stream::Stream;
use crate::{Incoming, Outgoing, PeerError};

/// Silence of a peer after which an unanswered request causes a PING; after as much again it gets no new request.
const PROOF: Duration = Duration::from_secs(3);
/// Silence after that until the connection fails, with all requests in flight.
const GONE: Duration = Duration::from_secs(20);
/// Pings allowed between two responses: gRPC's servers end a connection that pings more often.
const PINGS: u32 = 2;

/// A connection on which requests are sent as streams.
pub struct Connection {
    core: Rc<RefCell<Core>>,
    liveness: Rc<Liveness>,
    streams: Cell<u64>,
    /// Number of requests sent: streams wait for their turn, and the first request sent carries the peer metadata.
    sent: Cell<u64>,
}

/// Liveness and load of a connection.
struct Liveness {
    /// Set while the answer to a liveness ping is pending.
    is_asked: Cell<bool>,
    /// Pings since the last response.
    asked: Cell<u32>,
    /// Time of the last read.
    heard: Cell<Instant>,
    /// Set once it takes no new request.
    is_over: Cell<bool>,
    active: Cell<usize>,
    idle_since: Cell<Instant>,
    /// Idle time at which the peer closed it.
    closed_after: Cell<Option<Duration>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Connection");
        debug.field("active", &self.liveness.active.get());
        debug.finish_non_exhaustive()
    }
}

impl Liveness {
    fn ended(&self) {
        if self.active.get() == 0 && !self.is_over.get() {
            self.closed_after.set(Some(self.idle_since.get().elapsed()));
        }
        self.is_over.set(true);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.core.borrow_mut().shut_down();
    }
}

impl Connection {
    /// Opens a connection on `io`; the peer is a sidecar of ours if `is_ours`. Its SETTINGS are known on return: they
    /// arrive before its answer to a ping.
    ///
    /// # Errors
    /// [`PeerError`] when the peer is gone, or doesn't speak HTTP/2.
    pub async fn open(
        io: Stream,
        is_ours: bool,
        limits: HeadLimits,
    ) -> Result<Rc<Connection>, PeerError> {
        let (now, peer) = match is_ours {
            true => (Instant::now(), Peer::Mesh),
            false => (Instant::now(), Peer::Foreign),
        };
        let core = Rc::new(RefCell::new(Core::new(Role::Client, peer, limits, now)));
        let liveness = Rc::new(Liveness {
            is_asked: Cell::new(false),
            asked: Cell::new(0),
            heard: Cell::new(now),
            is_over: Cell::new(false),
            active: Cell::new(0),
            idle_since: Cell::new(now),
            closed_after: Cell::new(None),
        });
        let pong = core.borrow_mut().ping();
        let (mut driver, own) = (Driver::new(io, Vec::new(), &core), Rc::clone(&liveness));
        tokio::task::spawn_local(async move {
            poll_fn(|cx| driver.poll(cx, |now| own.heard.set(now))).await;
            own.ended();
        });
        let connection = Rc::new(Connection {
            core,
            liveness,
            streams: Cell::new(0),
            sent: Cell::new(0),
        });
        // Without an answer the connection is over, or the caller's timeout drops this future.
        let _ = pong.await;
        match &connection.core.borrow().end {
            Some(end) => Err(end.broken()),
            None => Ok(Rc::clone(&connection)),
        }
    }

    /// Checks the peer's liveness after a request without a response: a silent peer gets a ping, then no new request,
    /// and later the connection fails with its requests in flight.
    fn check_liveness(&self) {
        let (liveness, before) = (Rc::clone(&self.liveness), self.liveness.heard.get());
        let is_heard = before.elapsed() < PROOF;
        if liveness.is_over.get() || is_heard || liveness.asked.get() >= PINGS {
            return;
        }
        if liveness.is_asked.replace(true) {
            return;
        }
        liveness.asked.set(liveness.asked.get() + 1);
        let (core, pong) = (Rc::clone(&self.core), self.core.borrow_mut().ping());
        tokio::task::spawn_local(async move {
            let _ = timeout(PROOF, pong).await;
            liveness.is_asked.set(false);
            if liveness.heard.get() > before {
                return;
            }
            tracing::info!(
                "an HTTP/2 connection takes no more requests: nothing is heard of its peer"
            );
            liveness.is_over.set(true);
            sleep(GONE).await;
            if liveness.heard.get() == before {
                core.borrow_mut().fail(&Failure::Closed);
            }
        });
    }

    /// Returns `true` if it takes another request now. The connection's window has room for a limited number of
    /// streams: beyond that, some would wait for others to be read.
    pub fn has_room(&self) -> bool {
        self.is_open() && self.liveness.active.get() < self.core.borrow().max_streams()
    }

    /// Returns `true` if it takes requests at all: it isn't closed, silent or out of stream identifiers, and the peer
    /// sent no GOAWAY.
    pub fn is_open(&self) -> bool {
        !self.liveness.is_over.get() && self.core.borrow().is_open()
    }

    /// Number of requests begun on it.
    pub fn streams(&self) -> u64 {
        self.streams.get()
    }

    /// Time since which no request has been in flight; `None` while one is.
    pub fn idle_since(&self) -> Option<Instant> {
        let liveness = &self.liveness;
        (liveness.active.get() == 0).then(|| liveness.idle_since.get())
    }

    /// Idle time at which the peer closed it, if it was idle.
    pub fn closed_after(&self) -> Option<Duration> {
        self.liveness.closed_after.get()
    }

    /// Creates a stream for one request; it counts as active until dropped.
    pub fn stream(self: &Rc<Connection>) -> ClientStream {
        self.liveness.active.set(self.liveness.active.get() + 1);
        self.streams.set(self.streams.get() + 1);
        ClientStream {
            body: None,
            is_answered: false,
            is_held: false,
            connection: Rc::clone(self),
        }
    }
}

/// One request as a stream.
#[derive(Debug)]
pub struct ClientStream {
    /// Both directions, once the request was sent.
    body: Option<Body>,
    /// Set once the final response's head was returned.
    is_answered: bool,
    /// Set from an upgrade request to its switch: the end of the request's body doesn't end the stream meanwhile.
    is_held: bool,
    connection: Rc<Connection>,
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        let liveness = &self.connection.liveness;
        liveness.active.set(liveness.active.get() - 1);
        if liveness.active.get() == 0 {
            liveness.idle_since.set(clock::now());
        }
        if self.body.is_some() && !self.is_answered {
            self.connection.check_liveness();
        }
    }
}

impl ClientStream {
    /// Number of requests sent on its connection so far.
    pub fn requests_sent(&self) -> u64 {
        self.connection.sent.get()
    }

    /// Returns `true` if the peer accepts extended CONNECT (RFC 8441).
    pub fn takes_extended_connect(&self) -> bool {
        self.connection.core.borrow().takes_connect()
    }

    /// Returns `true` once the connection has the request's head.
    pub fn is_sent(&self) -> bool {
        self.body.is_some()
    }

    /// Starts a request; `length` is the framing of its body by the sender.
    ///
    /// # Errors
    /// [`PeerError::Unprocessed`] when the connection takes no more requests; nothing was sent.
    pub fn request(&mut self, head: &Head, length: Framing) -> Result<(), PeerError> {
        self.is_held = head.get(FieldName::Upgrade).is_some();
        let is_ended = !self.is_held && matches!(length, Framing::Empty | Framing::Fixed(0));
        let upgrades = self.is_held;
        let core = &self.connection.core;
        let now = self.connection.liveness.heard.get();
        let opened = core.borrow_mut().open(is_ended, now, |encoder, out| {
            write_head::write_request(encoder, out, head, upgrades);
        });
        self.body = Some(Body::new(core, opened?, is_ended));
        let count = &self.connection.sent;
        count.set(count.get() + 1);
        Ok(())
    }

    /// Waits for the head of the next response, informational or final.
    ///
    /// # Errors
    /// [`PeerError`] when the peer left or reset the stream first, or the response isn't acceptable.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut Head,
    ) -> Poll<Result<(), PeerError>> {
        let Some(body) = &self.body else {
            return Poll::Ready(Err(PeerError::Closed));
        };
        let mut state = body.slot().state.borrow_mut();
        let informational = state.informational.pop_front();
        let Some(next) = informational.or_else(|| state.head.take()) else {
            return match &state.failed {
                Some(failed) => Poll::Ready(Err(failed.broken())),
                None => {
                    state.register(cx);
                    Poll::Pending
                }
            };
        };
        let invalid = state.invalid.take();
        drop(state);
        self.connection.liveness.asked.set(0);
        if let Some(invalid) = invalid {
            return Poll::Ready(Err(PeerError::Syntax(invalid)));
        }
        *head = next;
        self.is_answered = head.status() >= 200;
        if self.is_held && (200..300).contains(&head.status()) {
            head.set_status(101);
        }
        Poll::Ready(Ok(()))
    }

    /// Starts receiving the body of the final response `head`; returns its framing.
    ///
    /// # Errors
    /// [`InvalidHead`] when the framing is ambiguous, or announces a body that isn't there.
    pub fn receive(&mut self, head: &Head, is_head: bool) -> Result<Framing, InvalidHead> {
        let length = response_framing(head, is_head)?;
        let Some(body) = &mut self.body else {
            return Ok(Framing::Empty);
        };
        Ok(match (length, body.is_received()) {
            (Framing::Empty, _) => {
                body.end();
                Framing::Empty
            }
            (Framing::Fixed(1..), true) => {
                return Err(InvalidHead::Syntax(
                    "Content-Length of a body that isn't there",
                ));
            }
            (_, true) => Framing::Fixed(0),
            (Framing::UntilClose, false) => Framing::Chunked,
            (Framing::Fixed(length), false) => {
                body.declare(Some(length));
                Framing::Fixed(length)
            }
            (length, false) => length,
        })
    }

    /// Completes the upgrade: bytes sent from now on belong to the new protocol.
    pub fn switch(&mut self) {
        self.is_held = false;
    }
}

impl Incoming for ClientStream {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, PeerError>> {
        match &mut self.body {
            Some(body) => body.poll_data(cx),
            None => Poll::Ready(Err(PeerError::Closed)),
        }
    }

    fn data(&self) -> &[u8] {
        self.body.as_ref().map_or(&[], Incoming::data)
    }

    fn consume(&mut self, count: usize) {
        if let Some(body) = &mut self.body {
            body.consume(count);
        }
    }

    fn trailers(&self) -> Option<&Head> {
        self.body.as_ref()?.trailers()
    }
}

impl Outgoing for ClientStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
        match &mut self.body {
            Some(body) => body.poll_ready(cx),
            None => Poll::Ready(Err(PeerError::Closed)),
        }
    }

    fn unsent(&self) -> usize {
        self.body.as_ref().map_or(0, Outgoing::unsent)
    }

    fn write(&mut self, data: &[u8]) {
        if let Some(body) = &mut self.body {
            body.write(data);
        }
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        if let Some(body) = &mut self.body
            && !self.is_held
        {
            body.finish(trailers);
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
        match &mut self.body {
            Some(body) => body.poll_flush(cx),
            None => Poll::Ready(Err(PeerError::Closed)),
        }
    }
}
