//! A peer that only makes work: frames that move no request forward cost it a budget, which the bytes of bodies, and time,
//! restore. Beyond it the connection ends. What the library bounds itself isn't counted here: the size of header
//! blocks, and streams that are reset before they were accepted.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::PREFACE;
use crate::stream::Stream;

/// Idle frames that a peer may send at once.
const BURST: u32 = 10_000;
/// Idle frames that it may send for good.
const PER_SECOND: u32 = 2_000;
/// Bytes of bodies, either way, that are worth an idle frame: windows are opened because of them.
const BYTES_PER_FRAME: u32 = 64;

const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// Frame types by number (RFC 9113, section 6).
const NAMES: [&str; 10] = [
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
];

/// Why a connection isn't read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Stop {
    #[error("a flood of {0} frames")]
    Flood(&'static str),
    #[error("the peer answers in HTTP/1, though its port is declared as HTTP/2")]
    Http1,
}

/// Counts frames that move nothing forward.
#[derive(Debug)]
struct Census {
    /// Bytes to come that aren't a frame's header, and whether they are a body's.
    skip: usize,
    is_data: bool,
    header: [u8; FRAME_HEADER],
    filled: usize,
    budget: u32,
    /// Bytes that are not worth a frame yet.
    bytes: u32,
    since: Instant,
}

impl Census {
    /// A census of a connection whose first `skip` bytes are no frames.
    fn new(skip: usize, now: Instant) -> Census {
        Census {
            skip,
            is_data: false,
            header: [0; FRAME_HEADER],
            filled: 0,
            budget: BURST,
            bytes: 0,
            since: now,
        }
    }

    /// Bytes moved that are worth something.
    fn moved(&mut self, count: usize) {
        let bytes = self
            .bytes
            .saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        self.bytes = bytes % BYTES_PER_FRAME;
        self.budget = self
            .budget
            .saturating_add(bytes / BYTES_PER_FRAME)
            .min(BURST);
    }

    /// Counts what was read.
    fn read(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), Stop> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            if skipped > 0 {
                if self.is_data {
                    self.moved(skipped);
                }
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (FRAME_HEADER - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == FRAME_HEADER {
                self.filled = 0;
                self.frame(&now)?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, now: &impl Fn() -> Instant) -> Result<(), Stop> {
        if self.header.starts_with(b"HTTP/1.") {
            return Err(Stop::Http1);
        }
        let [a, b, c, kind, flags, ..] = self.header;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.is_data = kind == DATA;
        let is_idle = match kind {
            DATA => self.skip == 0 && flags & END_STREAM == 0,
            // Streams are bounded by number, and by how they end.
            HEADERS | RST_STREAM => false,
            _ => true,
        };
        if !is_idle {
            return Ok(());
        }
        if self.budget == 0 {
            self.refill(now());
        }
        match self.budget.checked_sub(1) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => {
                let name = NAMES.get(usize::from(kind)).copied();
                Err(Stop::Flood(name.unwrap_or("unknown")))
            }
        }
    }

    fn refill(&mut self, now: Instant) {
        let earned = (now - self.since).as_millis() * u128::from(PER_SECOND) / 1000;
        if let Ok(earned @ 1..) = u32::try_from(earned) {
            self.budget = earned.min(BURST);
            self.since = now;
        }
    }
}

/// A stream that ends when its peer floods it. Gives what was read of it before first.
#[derive(Debug)]
pub(super) struct Guarded {
    io: Stream,
    read: Vec<u8>,
    census: Census,
    /// When something was read last, where somebody wants to know.
    heard: Option<Rc<Cell<Instant>>>,
}

impl Guarded {
    /// A stream on which a client speaks, of which `read` was read.
    pub(super) fn from_client(io: Stream, read: Vec<u8>) -> Guarded {
        Guarded {
            io,
            read,
            census: Census::new(PREFACE.len(), Instant::now()),
            heard: None,
        }
    }

    /// A stream on which a server speaks, and where to note when it was heard.
    pub(super) fn from_server(io: Stream, heard: &Rc<Cell<Instant>>) -> Guarded {
        Guarded {
            io,
            read: Vec::new(),
            census: Census::new(0, Instant::now()),
            heard: Some(Rc::clone(heard)),
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.read.is_empty() {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        } else {
            let count = this.read.len().min(buf.remaining());
            buf.put_slice(&this.read[..count]);
            this.read.drain(..count);
        }
        if let Some(heard) = &this.heard {
            heard.set(Instant::now());
        }
        let counted = this.census.read(&buf.filled()[before..], Instant::now);
        Poll::Ready(counted.map_err(|stop| io::Error::new(io::ErrorKind::InvalidData, stop)))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.io).poll_write(cx, data))?;
        self.census.moved(count);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// How many streams a peer opened, and how many of them it took back before anything could come of them.
#[derive(Debug, Default)]
pub(super) struct Resets {
    opened: u32,
    premature: u32,
}

/// A stream that lived for so long was no attack.
const MATURE: Duration = Duration::from_secs(1);
/// Streams that are opened before anything is made of how they end.
const SOME: u32 = 500;

impl Resets {
    /// A stream was opened.
    pub(super) fn opened(&mut self) {
        self.opened = self.opened.saturating_add(1);
    }

    /// The peer reset a stream without an answer, at `age`.
    pub(super) fn reset(&mut self, age: Duration) {
        if age < MATURE {
            self.premature = self.premature.saturating_add(1);
        }
    }

    /// Whether this is a rapid reset attack (CVE-2023-44487), by Envoy's measure.
    pub(super) fn is_flood(&self) -> bool {
        self.opened >= SOME && self.premature > self.opened / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.extend(vec![b'x'; usize::from(length)]);
        frame
    }

    fn census(bytes: &[u8], pieces: usize, after: Duration) -> Result<(), Stop> {
        let start = Instant::now();
        let mut census = Census::new(0, start);
        for piece in bytes.chunks(pieces) {
            census.read(piece, || start + after)?;
        }
        Ok(())
    }

    #[test]
    fn frames_that_move_nothing_forward_are_bounded() {
        let burst = BURST as usize;
        for (kind, flags, length, name) in [
            (0, 0, 0, "DATA"),
            (2, 0, 5, "PRIORITY"),
            (4, 0, 6, "SETTINGS"),
            (6, 0, 8, "PING"),
            (8, 0, 4, "WINDOW_UPDATE"),
            (9, 0, 3, "CONTINUATION"),
            (77, 0, 1, "unknown"),
        ] {
            let frame = frame(kind, flags, length);
            for pieces in [7, 4096] {
                let some = frame.repeat(burst);
                assert_eq!(census(&some, pieces, Duration::ZERO), Ok(()), "{name}");
                let many = frame.repeat(burst + 1);
                assert_eq!(
                    census(&many, pieces, Duration::ZERO),
                    Err(Stop::Flood(name))
                );
                assert_eq!(census(&many, pieces, Duration::from_secs(1)), Ok(()));
            }
        }
    }

    #[test]
    fn frames_that_come_with_bodies_are_not() {
        let mut bytes = Vec::new();
        for _ in 0..2 * BURST {
            bytes.extend(frame(HEADERS, 4, 20));
            bytes.extend(frame(DATA, 0, 64));
            bytes.extend(frame(8, 0, 4));
            bytes.extend(frame(DATA, END_STREAM, 0));
        }
        assert_eq!(census(&bytes, 1000, Duration::ZERO), Ok(()));
    }

    #[test]
    fn a_rapid_reset_is_told_from_callers_that_give_up() {
        let mut resets = Resets::default();
        for _ in 0..2 * SOME {
            resets.opened();
            resets.reset(MATURE);
        }
        assert!(!resets.is_flood());
        let mut resets = Resets::default();
        for i in 0..SOME {
            assert!(!resets.is_flood(), "{i}");
            resets.opened();
            resets.reset(Duration::ZERO);
        }
        assert!(resets.is_flood());
    }
}
