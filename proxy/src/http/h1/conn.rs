//! One HTTP/1 connection: a stream, a read buffer that grows with what comes, a write buffer, and the framing of the
//! message that is under way in each direction.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncReadExt, AsyncWrite};

use super::body::{Decoder, Encoder};
use super::{Invalid, Length, Limits};
use crate::http::head::Head;
use crate::http::{Broken, Incoming, Outgoing};
use crate::stream::Stream;

/// The first read's room; most messages fit.
const MIN_READ: usize = 8 * 1024;
/// Room grows to this while reads fill it: large bodies then cost few system calls.
const MAX_READ: usize = 128 * 1024;
/// Above this much unsent data, reading from the other side stops.
const HIGH_WATER: usize = 64 * 1024;

/// One HTTP/1 connection.
#[derive(Debug)]
pub struct Conn {
    io: Stream,
    read: Vec<u8>,
    consumed: usize,
    room: usize,
    write: Vec<u8>,
    written: usize,
    decoder: Decoder,
    encoder: Encoder,
    ended: bool,
    limits: Limits,
}

impl Conn {
    /// A connection on `io`, with bytes that were read from it before.
    pub fn new(io: Stream, read: Vec<u8>, limits: Limits) -> Conn {
        Conn {
            io,
            read,
            consumed: 0,
            room: MIN_READ,
            write: Vec::new(),
            written: 0,
            decoder: Decoder::new(Length::Empty, limits),
            encoder: Encoder::new(Length::Empty),
            ended: false,
            limits,
        }
    }

    /// The stream, and what was read from it and not consumed.
    pub fn into_parts(mut self) -> (Stream, Vec<u8>) {
        self.compact();
        (self.io, self.read)
    }

    /// The stream.
    pub fn io(&self) -> &Stream {
        &self.io
    }

    /// The limits that its messages are held to.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What is read and not consumed.
    pub fn unread(&self) -> &[u8] {
        &self.read[self.consumed..]
    }

    /// Whether the peer has ended its direction.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether the message being received has been received whole, and the one being sent has been sent.
    pub fn is_between_messages(&self) -> bool {
        self.decoder.is_done() && self.encoder.is_finished() && self.written == self.write.len()
    }

    /// Whether the message being received has been received whole.
    pub fn has_received(&self) -> bool {
        self.decoder.is_done()
    }

    /// Starts receiving a body.
    pub(super) fn receive(&mut self, length: Length) {
        self.decoder = Decoder::new(length, self.limits);
    }

    /// Starts sending a message, whose head `write_head` appends to the write buffer.
    pub(super) fn send(&mut self, length: Length, write_head: impl FnOnce(&mut Vec<u8>)) {
        self.encoder = Encoder::new(length);
        write_head(&mut self.write);
    }

    /// Reads more; 0 when the peer has ended its direction.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.compact();
        let room = self.room.max(1);
        if self.read.capacity() - self.read.len() < room / 2 {
            self.read.reserve(room);
        }
        let before = self.read.capacity() - self.read.len();
        let count = ready!(pin!(self.io.read_buf(&mut self.read)).poll(cx))?;
        if count == before {
            self.room = (self.room * 2).min(MAX_READ);
        }
        self.ended |= count == 0;
        Poll::Ready(Ok(count))
    }

    /// Moves the head that ends at `end` into `head`, without copying it: the buffers change places, and only what was
    /// read beyond the head moves.
    pub(super) fn take_head(&mut self, end: usize, head: &mut Head) {
        self.compact();
        head.clear();
        std::mem::swap(&mut self.read, head.buffer());
        self.read.extend_from_slice(&head.buffer()[end..]);
        head.buffer().truncate(end);
    }

    /// Gives back memory that only a busy connection needs.
    pub fn shrink(&mut self) {
        self.compact();
        if self.read.is_empty() && self.read.capacity() > MIN_READ {
            self.read = Vec::new();
            self.room = MIN_READ;
        }
        if self.write.is_empty() && self.write.capacity() > MIN_READ {
            self.write = Vec::new();
        }
    }

    /// Ends our direction; the transport is told as well, so that the peer sees an orderly end.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Forgets what was read and not consumed.
    pub(super) fn discard(&mut self) {
        self.consumed = self.read.len();
    }

    fn compact(&mut self) {
        if self.consumed > 0 {
            self.read.drain(..self.consumed);
            self.consumed = 0;
        }
    }
}

impl Incoming for Conn {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        loop {
            if self.decoder.is_done() {
                return Poll::Ready(Ok(false));
            }
            let advanced = self.decoder.advance(&self.read[self.consumed..]);
            self.consumed += advanced.map_err(Broken::Syntax)?;
            if self.decoder.available(self.unread()) > 0 {
                return Poll::Ready(Ok(true));
            }
            if self.decoder.is_done() {
                continue;
            }
            if ready!(self.poll_fill(cx))? == 0 {
                let ended = self.decoder.end_of_input();
                ended.map_err(|_: Invalid| Broken::Closed)?;
            }
        }
    }

    fn data(&self) -> &[u8] {
        let unread = self.unread();
        &unread[..self.decoder.available(unread)]
    }

    fn consume(&mut self, count: usize) {
        self.decoder.consume(count);
        self.consumed += count;
    }

    fn take_trailers(&mut self) -> Option<Head> {
        self.decoder.take_trailers()
    }
}

impl Outgoing for Conn {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match self.write.len() - self.written < HIGH_WATER {
            true => Poll::Ready(Ok(())),
            false => self.poll_flush(cx),
        }
    }

    fn write(&mut self, data: &[u8]) {
        self.encoder.write(data, &mut self.write);
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        self.encoder.finish(trailers, &mut self.write);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.write.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.written < self.write.len() {
            let io = Pin::new(&mut self.io);
            let count = ready!(io.poll_write(cx, &self.write[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(Broken::Closed));
            }
            self.written += count;
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.write.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}
