//! The state of a connection, without IO: received bytes go in, frames to be written come out, and tasks that wait for
//! a stream are woken.
//!
//! Bounds: 100 open streams, 64 KiB unread each, 4 MiB more for readers that keep up; 1 MiB unwritten, beyond which
//! nothing is read.

mod closed;
mod control;
mod receive;
#[cfg(test)]
mod rfc_tests;
mod send;
mod stream_state;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::{Context, Waker};

use tokio::sync::oneshot;
use tokio::time::Instant;

use self::closed::ClosedStreams;
use self::stream_state::StreamState;
use super::flood::{Budget, ResetCounter};
use super::frame::{
    self, ConnectionError, MAX_PAYLOAD, setting, write_frame_header, write_goaway, write_number,
    write_settings,
};
use super::header_block::{HeadDecoder, Peer};
use super::hpack::Encoder;
use super::{CONNECTION_WINDOW, MAX_STREAMS, PREFACE, STREAM_WINDOW};
use crate::PeerError;
use crate::error::Reason;
use crate::h1::{HeadLimits, InvalidHead};
use crate::head::Head;

/// Unsent bytes above which bodies wait.
const HIGH_WATER: usize = 128 * 1024;
/// Unsent bytes above which nothing is read: a peer that doesn't read can't cause more to be sent.
const READ_PAUSE: usize = 1024 * 1024;
/// Bytes of a body that are written before it is another stream's turn.
const QUANTUM: usize = MAX_PAYLOAD;
/// The connection error for a rapid reset attack.
const RESET_AT_ONCE: ConnectionError = ConnectionError(
    Reason::ENHANCE_YOUR_CALM,
    "a flood of streams that are reset at once",
);
/// Opaque data of our PING frames.
const OPAQUE: [u8; 8] = *b"lenoleno";

/// Our end of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// Reason for the failure of a stream, or for the end of the connection.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    Reset(Reason),
    Unprocessed(Rc<str>),
    Closed,
    Io(io::ErrorKind, Rc<str>),
}

impl Failure {
    pub(super) fn of(error: &io::Error) -> Failure {
        Failure::Io(error.kind(), error.to_string().into())
    }

    pub(super) fn broken(&self) -> PeerError {
        match self {
            Failure::Reset(reason) => PeerError::Reset(*reason),
            Failure::Unprocessed(why) => PeerError::Unprocessed(why.to_string()),
            Failure::Closed => PeerError::Closed,
            Failure::Io(kind, text) => PeerError::Io(io::Error::new(*kind, text.to_string())),
        }
    }
}

/// A stream, shared by its connection and the task that handles it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: u32,
    pub(super) state: RefCell<State>,
}

/// State of a stream.
#[derive(Debug)]
pub(super) struct State {
    /// Head of the request, or of the final response, until it is taken, and the error in it, if there is one.
    pub(super) head: Option<Head>,
    pub(super) invalid: Option<InvalidHead>,
    /// Set if a sidecar carries the request for an HTTP/1 caller.
    pub(super) is_carried: bool,
    /// Heads of informational responses until they are taken, and a flag that is set once the final one arrived.
    pub(super) informational: VecDeque<Head>,
    has_head: bool,
    /// Received bytes of the body, until they are taken.
    pub(super) data: Vec<u8>,
    pub(super) trailers: Option<Box<Head>>,
    pub(super) stream: StreamState,
    pub(super) failed: Option<Failure>,
    /// Set once its response has begun.
    pub(super) is_answered: bool,
    /// Set while it is among the streams that wait for room.
    is_blocked: bool,
    /// Size of the receive window, its rest, and the bytes consumed since the last WINDOW_UPDATE.
    window: u32,
    receive_window: i64,
    consumed: u32,
    send_window: i64,
    waker: Option<Waker>,
    pub(super) opened: Instant,
}

impl Slot {
    fn new(id: u32, send_window: i64, opened: Instant) -> Rc<Slot> {
        Rc::new(Slot {
            id,
            state: RefCell::new(State {
                head: None,
                invalid: None,
                is_carried: false,
                informational: VecDeque::new(),
                has_head: false,
                data: Vec::new(),
                trailers: None,
                stream: StreamState::Open,
                failed: None,
                is_answered: false,
                is_blocked: false,
                window: STREAM_WINDOW,
                receive_window: i64::from(STREAM_WINDOW),
                consumed: 0,
                send_window,
                waker: None,
                opened,
            }),
        })
    }

    /// Fails the stream, unless it has failed already, and wakes the task that handles it.
    pub(super) fn fail(&self, failure: &Failure) {
        let mut state = self.state.borrow_mut();
        state.failed.get_or_insert_with(|| failure.clone());
        state.wake();
    }
}

impl State {
    /// Registers the task of `cx` to be woken when the stream changes.
    pub(super) fn register(&mut self, cx: &mut Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

/// A field block with CONTINUATION frames still to come.
#[derive(Debug)]
struct Block {
    stream: u32,
    ends: bool,
    bytes: Vec<u8>,
}

/// Progress of a graceful shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The first GOAWAY was sent; streams that the peer opens meanwhile are served.
    GoAwaySent,
    /// Streams opened from now on aren't served.
    Closing,
}

/// The peer's SETTINGS.
#[derive(Debug)]
struct Settings {
    are_known: bool,
    max_streams: usize,
    initial_window: i64,
    takes_connect: bool,
}

/// The window of a connection, and of a stream, before SETTINGS and WINDOW_UPDATE (RFC 9113, section 6.9.2).
const DEFAULT_WINDOW: u32 = 65_535;

/// The frames that a connection begins with, behind a client's preface.
fn first_frames(role: Role, limits: HeadLimits) -> Vec<u8> {
    let head_bytes = u32::try_from(limits.head_bytes).unwrap_or(u32::MAX);
    let mut out = Vec::new();
    let mut settings = vec![
        (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
        (setting::MAX_HEADER_LIST_SIZE, head_bytes),
    ];
    match role {
        Role::Client => {
            out.extend_from_slice(PREFACE);
            settings.push((setting::ENABLE_PUSH, 0));
        }
        Role::Server => {
            settings.push((setting::MAX_CONCURRENT_STREAMS, MAX_STREAMS));
            settings.push((setting::ENABLE_CONNECT_PROTOCOL, 1));
        }
    }
    write_settings(&mut out, &settings);
    let more = CONNECTION_WINDOW - DEFAULT_WINDOW;
    write_number(&mut out, frame::WINDOW_UPDATE, 0, more);
    out
}

/// State of a connection.
#[derive(Debug)]
pub(super) struct Core {
    role: Role,
    peer: Peer,
    limits: HeadLimits,
    /// Frames to be written, and the number of bytes that the driver is writing.
    pub(super) out: Vec<u8>,
    pub(super) on_the_way: usize,
    /// The last DATA frame in `out`: its stream, and the offset of its flags.
    tail: Option<(u32, usize)>,
    encoder: Encoder,
    decoder: HeadDecoder,
    block: Option<Block>,
    /// Sorted by identifier, which is the order in which they were opened.
    streams: Vec<Rc<Slot>>,
    /// Index of the stream found last.
    near: Cell<usize>,
    /// The last stream that was opened, and the last that is served once the connection is closing.
    last: u32,
    served: u32,
    /// Streams that wait for room, in the order of their turns.
    blocked: VecDeque<Rc<Slot>>,
    send_window: i64,
    receive_window: i64,
    consumed: u32,
    /// Bytes by which the streams' receive windows have grown, together.
    grown: u32,
    settings: Settings,
    /// Bytes of the client's preface that are still to come.
    preface: usize,
    phase: Phase,
    goaway: Option<Rc<str>>,
    /// Reason for its end, once it is over.
    pub(super) end: Option<Failure>,
    pong: Option<oneshot::Sender<()>>,
    /// Ends of streams that aren't open any more.
    closed: ClosedStreams,
    budget: Budget,
    resets: ResetCounter,
    /// Requests that wait for a task.
    pub(super) arrived: VecDeque<Rc<Slot>>,
    driver: Option<Waker>,
    is_driver_awake: bool,
}

impl Core {
    pub(super) fn new(role: Role, peer: Peer, limits: HeadLimits, now: Instant) -> Core {
        let out = first_frames(role, limits);
        Core {
            role,
            peer,
            limits,
            out,
            on_the_way: 0,
            tail: None,
            encoder: Encoder::new(peer.case()),
            decoder: HeadDecoder::new(peer, limits),
            block: None,
            streams: Vec::new(),
            near: Cell::new(0),
            last: 0,
            served: 0,
            blocked: VecDeque::new(),
            send_window: i64::from(DEFAULT_WINDOW),
            receive_window: i64::from(CONNECTION_WINDOW),
            consumed: 0,
            grown: 0,
            settings: Settings {
                are_known: false,
                max_streams: MAX_STREAMS as usize,
                initial_window: i64::from(DEFAULT_WINDOW),
                takes_connect: false,
            },
            preface: if role == Role::Server {
                PREFACE.len()
            } else {
                0
            },
            phase: Phase::Open,
            goaway: None,
            end: None,
            pong: None,
            closed: ClosedStreams::default(),
            budget: Budget::new(now),
            resets: ResetCounter::default(),
            arrived: VecDeque::new(),
            driver: None,
            is_driver_awake: false,
        }
    }

    /// Returns `true` once the peer's SETTINGS were received.
    pub(super) fn is_settled(&self) -> bool {
        self.settings.are_known
    }

    /// Number of streams that may be open towards the peer.
    pub(super) fn max_streams(&self) -> usize {
        self.settings.max_streams.min(MAX_STREAMS as usize)
    }

    /// Returns `true` if the peer accepts extended CONNECT (RFC 8441).
    pub(super) fn takes_connect(&self) -> bool {
        self.settings.takes_connect
    }

    /// Returns `true` while streams may be opened towards the peer.
    pub(super) fn is_open(&self) -> bool {
        const ENOUGH: u32 = 1 << 30;
        self.end.is_none() && self.goaway.is_none() && self.last < ENOUGH
    }

    /// Returns `true` once no stream is open and none is to come.
    pub(super) fn is_done(&self) -> bool {
        let is_over = match self.role {
            Role::Server => self.phase == Phase::Closing,
            Role::Client => self.phase == Phase::Closing || self.goaway.is_some(),
        };
        is_over && self.streams.is_empty()
    }

    /// Returns `true` while so much is unsent that nothing more is read.
    pub(super) fn is_read_paused(&self) -> bool {
        self.unsent() > READ_PAUSE
    }

    /// Returns `true` for a rapid reset attack.
    pub(super) fn is_flood(&self) -> bool {
        self.resets.is_flood()
    }

    fn unsent(&self) -> usize {
        self.on_the_way + self.out.len()
    }

    // The driver's interface.

    /// Marks the driver's task as running, which needs no waking for frames that are written meanwhile.
    pub(super) fn mark_running(&mut self) {
        self.is_driver_awake = true;
    }

    /// Registers the driver's task to be woken when there are frames to be written again.
    pub(super) fn park(&mut self, cx: &mut Context<'_>) {
        self.is_driver_awake = false;
        match &mut self.driver {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    fn wake_driver(&mut self) {
        if !std::mem::replace(&mut self.is_driver_awake, true)
            && let Some(waker) = &self.driver
        {
            waker.wake_by_ref();
        }
    }

    /// Takes the frames to be written, in exchange for an empty buffer.
    pub(super) fn take_out(&mut self, empty: Vec<u8>) -> Vec<u8> {
        self.tail = None;
        let out = std::mem::replace(&mut self.out, empty);
        self.on_the_way = out.len();
        out
    }

    /// Counts bytes that the driver wrote, and wakes streams for which there is room now.
    pub(super) fn record_written(&mut self, count: usize) {
        self.on_the_way -= count;
        self.budget.credit(count);
        self.unblock();
    }

    /// Ends the connection, and fails all of its streams.
    pub(super) fn fail(&mut self, failure: &Failure) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(failure.clone());
        for slot in self.streams.drain(..) {
            slot.fail(failure);
        }
        self.blocked.clear();
        self.arrived.clear();
        self.pong = None;
        self.wake_driver();
    }

    fn connection_error(&mut self, ConnectionError(reason, why): ConnectionError) {
        // The last stream of an earlier GOAWAY is never raised (RFC 9113, section 6.8).
        let last = match (self.role, self.phase) {
            (Role::Client, _) => 0,
            (Role::Server, Phase::Closing) => self.served,
            (Role::Server, _) => self.last,
        };
        write_goaway(&mut self.out, last, reason);
        let text = match reason {
            Reason::ENHANCE_YOUR_CALM => why.into(),
            reason => format!("{reason}: {why}").into(),
        };
        self.fail(&Failure::Io(io::ErrorKind::InvalidData, text));
    }

    /// Ends a connection that is no longer driven; returns the error, if it is worth logging.
    pub(super) fn finish(&mut self) -> Option<PeerError> {
        self.fail(&Failure::Closed);
        let end = self
            .end
            .as_ref()
            .filter(|end| !matches!(end, Failure::Closed));
        end.map(Failure::broken)
    }

    /// Ends the connection at once with ENHANCE_YOUR_CALM, since its peer resets too many streams.
    pub(super) fn enhance_your_calm(&mut self) {
        self.connection_error(RESET_AT_ONCE);
    }

    /// Shuts the connection down gracefully: a server in two steps (RFC 9113, section 6.8).
    pub(super) fn shut_down(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        match self.role {
            Role::Server => {
                self.phase = Phase::GoAwaySent;
                write_goaway(&mut self.out, (1 << 31) - 1, Reason::NO_ERROR);
                self.write_ping();
            }
            Role::Client => {
                self.phase = Phase::Closing;
                if self.end.is_none() {
                    write_goaway(&mut self.out, 0, Reason::NO_ERROR);
                }
            }
        }
        self.wake_driver();
    }

    /// Sends a PING; the receiver is ready when the peer answers or the connection is over.
    pub(super) fn ping(&mut self) -> oneshot::Receiver<()> {
        let (pong, answer) = oneshot::channel();
        if self.end.is_none() {
            self.write_ping();
            self.pong = Some(pong);
            self.wake_driver();
        }
        answer
    }

    fn write_ping(&mut self) {
        write_frame_header(&mut self.out, OPAQUE.len(), frame::PING, 0, 0);
        self.out.extend_from_slice(&OPAQUE);
    }
}
