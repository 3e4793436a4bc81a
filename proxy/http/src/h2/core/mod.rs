//! The state of a connection, without IO: what was read goes in, frames to be written come out, and whoever waits for one
//! of its streams is woken.

mod receive;
mod send;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::{Context, Waker};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::flood::{Budget, Resets};
use super::frame::{
    self, MAX_PAYLOAD, Reason, Violation, setting, write_goaway, write_head, write_number,
    write_settings,
};
use super::header_block::{HeadDecoder, Peer};
use super::hpack::Encoder;
use super::{CONNECTION_WINDOW, MAX_STREAMS, PREFACE, STREAM_WINDOW};
use crate::Broken;
use crate::h1::{Invalid, Limits};
use crate::head::Head;

/// Bytes that wait to be written, above which bodies wait as well.
const HIGH_WATER: usize = 128 * 1024;
/// Bytes that wait to be written, above which nothing is read: a peer that takes nothing is given nothing to do.
const CLOGGED: usize = 1024 * 1024;
/// Bytes of a body that are written before another stream has its turn.
const QUANTUM: usize = MAX_PAYLOAD;
/// Why a connection ends on which nothing else comes.
const RESET_AT_ONCE: Violation = Violation(
    Reason::ENHANCE_YOUR_CALM,
    "a flood of streams that are reset at once",
);
/// What is sent in a PING of ours.
const OPAQUE: [u8; 8] = *b"lenoleno";

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// Why a stream carries nothing more.
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

    pub(super) fn broken(&self) -> Broken {
        match self {
            Failure::Reset(reason) => Broken::Reset(*reason),
            Failure::Unprocessed(why) => Broken::Unprocessed(why.to_string()),
            Failure::Closed => Broken::Closed,
            Failure::Io(kind, text) => Broken::Io(io::Error::new(*kind, text.to_string())),
        }
    }
}

/// A stream, as its connection and whoever handles it share it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: u32,
    pub(super) state: RefCell<State>,
}

/// What is known of a stream.
#[derive(Debug)]
pub(super) struct State {
    /// The head of a request, or of the final response, that nobody has taken, and why it isn't one, if it isn't.
    pub(super) head: Option<Head>,
    pub(super) invalid: Option<Invalid>,
    /// Whether a sidecar carries the request for a caller of HTTP/1.
    pub(super) is_carried: bool,
    /// Heads of informational responses that nobody has taken, and whether the final one was there.
    pub(super) informational: VecDeque<Head>,
    has_head: bool,
    /// What was received of the body and nobody has taken.
    pub(super) data: Vec<u8>,
    pub(super) trailers: Option<Box<Head>>,
    /// Whether the peer has ended its direction, and we ours.
    pub(super) has_ended: bool,
    pub(super) is_closed: bool,
    pub(super) failed: Option<Failure>,
    /// Whether its response has begun.
    pub(super) is_answered: bool,
    /// Whether it is among those that wait for room.
    is_blocked: bool,
    /// How far ahead the peer may be, what it may still send, and what was consumed since it was last told.
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
                has_ended: false,
                is_closed: false,
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

    /// Whoever handles it finds that it carries nothing more.
    pub(super) fn fail(&self, failure: &Failure) {
        let mut state = self.state.borrow_mut();
        state.failed.get_or_insert_with(|| failure.clone());
        state.wake();
    }
}

impl State {
    /// The task of `cx` wants to know what happens to the stream.
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

/// A head of which not all frames are there.
#[derive(Debug)]
struct Block {
    stream: u32,
    ends: bool,
    bytes: Vec<u8>,
}

/// How far the connection is on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The peer was told to open no stream, and those that it opened meanwhile are served.
    Warned,
    /// Streams that were not opened by now aren't served.
    Closing,
}

/// What the peer's settings say.
#[derive(Debug)]
struct Settings {
    are_known: bool,
    max_streams: usize,
    initial_window: i64,
    takes_connect: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Core {
    role: Role,
    peer: Peer,
    limits: Limits,
    /// Frames to be written, and how many bytes the driver has on their way.
    pub(super) out: Vec<u8>,
    pub(super) on_the_way: usize,
    /// The last DATA frame in `out`: its stream, and where its flags are.
    tail: Option<(u32, usize)>,
    encoder: Encoder,
    decoder: HeadDecoder,
    block: Option<Block>,
    /// By number, which is the order that they were opened in.
    streams: Vec<Rc<Slot>>,
    /// Where the last one was found that was looked for.
    near: Cell<usize>,
    /// The last stream that was opened, and the last that is served when the connection is closing.
    last: u32,
    served: u32,
    /// Streams that wait for room, those that had none for longest first.
    blocked: VecDeque<Rc<Slot>>,
    send_window: i64,
    receive_window: i64,
    consumed: u32,
    /// What the windows of streams have grown by.
    grown: u32,
    settings: Settings,
    /// Bytes of the client's preface that are still to come.
    preface: usize,
    phase: Phase,
    goaway: Option<Rc<str>>,
    /// Why it is over.
    pub(super) end: Option<Failure>,
    pong: Option<oneshot::Sender<()>>,
    budget: Budget,
    resets: Resets,
    /// Requests that nobody has taken.
    pub(super) arrived: VecDeque<Rc<Slot>>,
    driver: Option<Waker>,
    is_kicked: bool,
}

impl Core {
    pub(super) fn new(role: Role, peer: Peer, limits: Limits, now: Instant) -> Core {
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
        const DEFAULT_WINDOW: u32 = 65_535;
        write_settings(&mut out, &settings);
        let more = CONNECTION_WINDOW - DEFAULT_WINDOW;
        write_number(&mut out, frame::WINDOW_UPDATE, 0, more);
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
            budget: Budget::new(now),
            resets: Resets::default(),
            arrived: VecDeque::new(),
            driver: None,
            is_kicked: false,
        }
    }

    /// Whether the peer's settings are known.
    pub(super) fn is_settled(&self) -> bool {
        self.settings.are_known
    }

    /// How many streams may be open towards the peer.
    pub(super) fn max_streams(&self) -> usize {
        self.settings.max_streams.min(MAX_STREAMS as usize)
    }

    /// Whether the peer takes extended CONNECT (RFC 8441).
    pub(super) fn takes_connect(&self) -> bool {
        self.settings.takes_connect
    }

    /// Whether streams may be opened towards the peer.
    pub(super) fn is_open(&self) -> bool {
        const ENOUGH: u32 = 1 << 30;
        self.end.is_none() && self.goaway.is_none() && self.last < ENOUGH
    }

    /// Whether nothing is under way, and nothing is to come.
    pub(super) fn is_done(&self) -> bool {
        let is_over = match self.role {
            Role::Server => self.phase == Phase::Closing,
            Role::Client => self.phase == Phase::Closing || self.goaway.is_some(),
        };
        is_over && self.streams.is_empty()
    }

    /// Whether so much waits to be written that nothing more is read.
    pub(super) fn is_clogged(&self) -> bool {
        self.unsent() > CLOGGED
    }

    /// Whether this is a rapid reset attack.
    pub(super) fn is_flood(&self) -> bool {
        self.resets.is_flood()
    }

    fn unsent(&self) -> usize {
        self.on_the_way + self.out.len()
    }

    // What the driver does.

    /// The driver's task is at it: what is written meanwhile it sees.
    pub(super) fn attend(&mut self) {
        self.is_kicked = true;
    }

    /// The driver's task wants to know when there is something to be written again.
    pub(super) fn rest(&mut self, cx: &mut Context<'_>) {
        self.is_kicked = false;
        match &mut self.driver {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    fn kick(&mut self) {
        if !std::mem::replace(&mut self.is_kicked, true)
            && let Some(waker) = &self.driver
        {
            waker.wake_by_ref();
        }
    }

    /// What is to be written, in exchange for an empty buffer.
    pub(super) fn take_out(&mut self, empty: Vec<u8>) -> Vec<u8> {
        self.tail = None;
        let out = std::mem::replace(&mut self.out, empty);
        self.on_the_way = out.len();
        out
    }

    /// So many bytes were written.
    pub(super) fn wrote(&mut self, count: usize) {
        self.on_the_way -= count;
        self.budget.moved(count);
        self.unblock();
    }

    /// The connection is over, and so is what is under way on it.
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
        self.kick();
    }

    fn violated(&mut self, Violation(reason, why): Violation) {
        // What was said before is not taken back.
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

    /// Nobody serves the connection any more; why, if that is worth telling.
    pub(super) fn over(&mut self) -> Option<Broken> {
        self.fail(&Failure::Closed);
        let end = self
            .end
            .as_ref()
            .filter(|end| !matches!(end, Failure::Closed));
        end.map(Failure::broken)
    }

    /// Ends the connection at once, since its peer only makes work.
    pub(super) fn calm(&mut self) {
        self.violated(RESET_AT_ONCE);
    }

    /// Ends the connection in two steps (RFC 9113, section 6.8).
    pub(super) fn shut_down(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        match self.role {
            Role::Server => {
                self.phase = Phase::Warned;
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
        self.kick();
    }

    /// Asks the peer whether it is there; what is given is ready when it answers, or can't any more.
    pub(super) fn ping(&mut self) -> oneshot::Receiver<()> {
        let (pong, answer) = oneshot::channel();
        if self.end.is_none() {
            self.write_ping();
            self.pong = Some(pong);
            self.kick();
        }
        answer
    }

    fn write_ping(&mut self) {
        write_head(&mut self.out, OPAQUE.len(), frame::PING, 0, 0);
        self.out.extend_from_slice(&OPAQUE);
    }
}
