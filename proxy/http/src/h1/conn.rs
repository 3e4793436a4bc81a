//! One HTTP/1 connection: a stream, a read buffer that grows with the input, a write buffer, and the framing of the
//! current message in each direction.
//!
//! Bounds: buffers are held while a message is under way; reads of up to 128 KiB, none while 64 KiB wait unsent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::body::{Decoder, Encoder};
use super::{Framing, HeadLimits, InvalidHead, LastHead, Parse};
use crate::head::Head;
use crate::stream::Stream;
use crate::{Incoming, Outgoing, PeerError, buffers};

/// Bytes of unsent data above which reading from the other side stops.
const HIGH_WATER: usize = 64 * 1024;

/// One HTTP/1 connection.
#[derive(Debug)]
pub struct Conn {
    io: Stream,
    read: Vec<u8>,
    consumed: usize,
    /// Length of the unconsumed bytes known to hold no complete head.
    looked: usize,
    room: usize,
    write: Vec<u8>,
    written: usize,
    decoder: Decoder,
    encoder: Encoder,
    ended: bool,
    /// True once a byte of the message being sent was written to the transport.
    is_sent: bool,
    /// True after a protocol switch: our direction then ends when the message being sent does.
    is_switched: bool,
    /// Cache of the fields of the last head received.
    before: LastHead,
    limits: HeadLimits,
}

impl Conn {
    /// A connection on `io`, with bytes that were read from it before.
    pub fn new(io: Stream, read: Vec<u8>, limits: HeadLimits) -> Conn {
        Conn {
            io,
            read,
            consumed: 0,
            looked: 0,
            room: buffers::SIZE,
            write: Vec::new(),
            written: 0,
            decoder: Decoder::new(Framing::Empty, limits),
            encoder: Encoder::new(Framing::Empty),
            ended: false,
            is_sent: false,
            is_switched: false,
            before: LastHead::default(),
            limits,
        }
    }

    /// The cache of the fields of the last head received.
    pub fn last_head(&self) -> &LastHead {
        &self.before
    }

    /// Sets the cache, from another connection: the next head is probably like the last one there.
    pub fn set_last_head(&mut self, before: LastHead) {
        self.before = before;
    }

    /// The stream, and the bytes that were read and not consumed.
    pub fn into_parts(mut self) -> (Stream, Vec<u8>) {
        self.compact();
        (self.io, self.read)
    }

    /// The stream.
    pub fn io(&self) -> &Stream {
        &self.io
    }

    /// The limits on its messages.
    pub fn limits(&self) -> &HeadLimits {
        &self.limits
    }

    /// The bytes that were read and not consumed.
    pub fn unread(&self) -> &[u8] {
        &self.read[self.consumed..]
    }

    /// True when the peer has ended its direction.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// True when the message being received is complete, and the one being sent has been sent completely.
    pub fn is_between_messages(&self) -> bool {
        self.decoder.is_done() && self.encoder.is_finished() && self.written == self.write.len()
    }

    /// True when the message being received is complete.
    pub fn has_received(&self) -> bool {
        self.decoder.is_done()
    }

    /// Starts receiving a body.
    pub(super) fn receive(&mut self, length: Framing) {
        self.decoder = Decoder::new(length, self.limits);
    }

    /// Starts sending a message; `write_head` appends its head to the write buffer.
    pub(super) fn send(&mut self, length: Framing, write_head: impl FnOnce(&mut Vec<u8>)) {
        self.encoder = Encoder::new(length);
        self.is_sent = false;
        buffers::lend(&mut self.write);
        write_head(&mut self.write);
    }

    /// Ends HTTP: all bytes from now on are opaque, until each direction ends.
    pub(super) fn switch(&mut self) {
        self.decoder = Decoder::new(Framing::UntilClose, self.limits);
        self.encoder = Encoder::new(Framing::UntilClose);
        self.is_switched = true;
    }

    /// True once a byte of the message being sent was written to the transport.
    pub fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// Reads more; 0 when the peer has ended its direction.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready!(self.io.poll_readable(cx));
        self.compact();
        let filled = buffers::poll_fill(&mut self.io, &mut self.read, &mut self.room, cx);
        let count = ready!(filled)?;
        self.ended |= count == 0;
        Poll::Ready(Ok(count))
    }

    /// Moves the message head at the front of the read buffer into `head` without copying it: the buffers are swapped,
    /// and only the bytes beyond the head move. `false` while the head is incomplete.
    pub(super) fn take_head(&mut self, head: &mut Head, parse: Parse) -> Result<bool, InvalidHead> {
        self.compact();
        // Parsed only after another line feed: a head that drips in costs no more than one attempt per line.
        let has_line =
            self.looked == 0 || memchr::memchr(b'\n', &self.read[self.looked..]).is_some();
        let limit = self.limits.head_bytes;
        let mut end = None;
        if has_line {
            head.clear();
            std::mem::swap(&mut self.read, head.buffer());
            let parsed = parse(head, &self.limits, &mut self.before);
            end = parsed?;
            if end.is_none() {
                std::mem::swap(&mut self.read, head.buffer());
            }
        }
        match end {
            Some(end) if end <= limit => {
                self.looked = 0;
                self.read.extend_from_slice(&head.buffer()[end..]);
                head.buffer().truncate(end);
                Ok(true)
            }
            None if self.read.len() < limit => {
                self.looked = self.read.len();
                Ok(false)
            }
            _ => Err(InvalidHead::TooLarge(limit)),
        }
    }

    /// Prepares for the next message: its first read is small again, and an empty read buffer is given back.
    pub fn release(&mut self) {
        self.room = buffers::SIZE;
        if self.unread().is_empty() {
            self.consumed = 0;
            buffers::give_back(&mut self.read);
        }
    }

    /// Shuts our direction down, in TLS by `close_notify` as well, so that the peer sees an orderly end.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Discards the bytes that were read and not consumed.
    pub(super) fn discard(&mut self) {
        self.consumed = self.read.len();
    }

    /// Ends our direction at the end of a switched protocol, which nothing else delimits.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
        match self.is_switched && self.encoder.is_finished() {
            true => self.poll_shutdown(cx).map_err(PeerError::Io),
            false => Poll::Ready(Ok(())),
        }
    }

    fn compact(&mut self) {
        if self.consumed > 0 {
            self.read.drain(..self.consumed);
            self.consumed = 0;
            self.looked = 0;
        }
    }
}

impl Incoming for Conn {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, PeerError>> {
        loop {
            if self.decoder.is_done() {
                return Poll::Ready(Ok(false));
            }
            let advanced = self.decoder.advance(&self.read[self.consumed..]);
            self.consumed += advanced.map_err(PeerError::Syntax)?;
            if self.decoder.available(self.unread()) > 0 {
                return Poll::Ready(Ok(true));
            }
            if self.decoder.is_done() {
                continue;
            }
            if ready!(self.poll_fill(cx))? == 0 {
                let ended = self.decoder.end_of_input();
                ended.map_err(|_: InvalidHead| PeerError::Closed)?;
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

    fn trailers(&self) -> Option<&Head> {
        self.decoder.trailers()
    }
}

impl Outgoing for Conn {
    fn unsent(&self) -> usize {
        self.write.len() - self.written
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
        match self.unsent() < HIGH_WATER {
            true => Poll::Ready(Ok(())),
            false => self.poll_flush(cx),
        }
    }

    fn write(&mut self, data: &[u8]) {
        buffers::lend(&mut self.write);
        self.encoder.write(data, &mut self.write);
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        self.encoder.finish(trailers, &mut self.write);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
        if self.write.is_empty() {
            return self.poll_end(cx);
        }
        while self.written < self.write.len() {
            let io = Pin::new(&mut self.io);
            let count = ready!(io.poll_write(cx, &self.write[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(PeerError::Closed));
            }
            self.written += count;
            self.is_sent = true;
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        buffers::give_back(&mut self.write);
        self.written = 0;
        self.poll_end(cx)
    }
}
