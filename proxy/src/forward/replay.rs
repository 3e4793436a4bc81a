//! A request's body, kept for a retry. Best effort: a body that doesn't fit isn't kept, and its request isn't retried;
//! it is never refused or cut for that.

use std::task::{Context, Poll};

use leno_http::head::Head;
use leno_http::peers::Down;
use leno_http::{Incoming, PeerError};

/// Largest body that is kept, in bytes.
const KEPT: usize = 1024 * 1024;

/// The part of the body that was read so far.
#[derive(Debug)]
pub struct Replay {
    keeps: bool,
    kept: Vec<u8>,
    /// Bytes of it that the current attempt has sent.
    at: usize,
    is_lost: bool,
}

impl Replay {
    /// An empty buffer, which keeps the body as it is read if `keeps`.
    pub fn new(keeps: bool) -> Replay {
        Replay {
            keeps,
            kept: Vec::new(),
            at: 0,
            is_lost: false,
        }
    }

    /// True when the request can be sent again from its beginning.
    pub fn is_whole(&self) -> bool {
        !self.is_lost
    }

    /// Ends the keeping: there will be no retry. This attempt still sends the rest.
    pub fn forget(&mut self) {
        self.keeps = false;
        if self.at == self.kept.len() {
            self.is_lost |= !self.kept.is_empty();
            (self.kept, self.at) = (Vec::new(), 0);
        }
    }

    /// Rewinds to the body's beginning.
    pub fn restart(&mut self) {
        self.at = 0;
    }

    /// The body as a stream: the kept part first.
    pub fn over<'a, 'd>(&'a mut self, down: &'a mut Down<'d>) -> Replaying<'a, 'd> {
        Replaying { replay: self, down }
    }

    fn keep(&mut self, data: &[u8]) {
        self.is_lost |= !self.keeps || self.kept.len() + data.len() > KEPT;
        if self.is_lost {
            self.kept = Vec::new();
        } else {
            self.kept.extend_from_slice(data);
        }
        self.at = self.kept.len();
    }
}

/// A body that can be read a second time.
#[derive(Debug)]
pub struct Replaying<'a, 'd> {
    replay: &'a mut Replay,
    down: &'a mut Down<'d>,
}

impl Incoming for Replaying<'_, '_> {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, PeerError>> {
        match self.replay.at < self.replay.kept.len() {
            true => Poll::Ready(Ok(true)),
            false => self.down.poll_data(cx),
        }
    }

    fn data(&self) -> &[u8] {
        match self.replay.kept.get(self.replay.at..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => self.down.data(),
        }
    }

    fn consume(&mut self, count: usize) {
        if self.replay.at < self.replay.kept.len() {
            self.replay.at += count;
            return;
        }
        self.replay.keep(&self.down.data()[..count]);
        self.down.consume(count);
    }

    fn trailers(&self) -> Option<&Head> {
        self.down.trailers()
    }
}
