//! The two directions of a stream. Received bytes return to the flow-control windows once they are consumed, so a slow
//! reader slows its sender down and nothing else.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::core::{Core, Failure, Slot};
use crate::error::Reason;
use crate::head::Head;
use crate::{Incoming, Outgoing, PeerError, buffers};

/// Bytes of unsent data from which reading from the other side of the exchange stops.
const HIGH_WATER: usize = 64 * 1024;

/// Both directions of a stream, after the head of its request.
pub(super) struct Body {
    core: Rc<RefCell<Core>>,
    slot: Rc<Slot>,
    chunk: Vec<u8>,
    consumed: usize,
    /// Bytes of the declared `Content-Length` that are still to come.
    declared: Option<u64>,
    trailers: Option<Box<Head>>,
    has_received: bool,
    /// Bytes to be sent that wait for room in the windows and in the connection's buffer.
    pending: Vec<u8>,
    end: End,
}

/// Progress of the end of the outgoing body.
#[derive(Debug)]
enum End {
    /// More may be written.
    Open,
    /// It ends after the pending bytes, with these trailers.
    Coming(Option<Box<Head>>),
    /// The connection has all of it, or the stream was reset.
    Sent,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Body");
        debug.field("stream", &self.slot.id).finish_non_exhaustive()
    }
}

impl Body {
    /// Creates the directions of `slot`; `is_sent` if ours ended with the head.
    pub(super) fn new(core: &Rc<RefCell<Core>>, slot: Rc<Slot>, is_sent: bool) -> Body {
        Body {
            core: Rc::clone(core),
            slot,
            chunk: Vec::new(),
            consumed: 0,
            declared: None,
            trailers: None,
            has_received: false,
            pending: Vec::new(),
            end: if is_sent { End::Sent } else { End::Open },
        }
    }

    pub(super) fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Sets the incoming body's length as its head declares it.
    pub(super) fn declare(&mut self, length: Option<u64>) {
        self.declared = length;
    }

    /// Returns `true` once the peer has ended its direction and nothing of it is left to consume.
    pub(super) fn is_received(&self) -> bool {
        let state = self.slot.state.borrow();
        let is_empty = state.data.is_empty() && state.trailers.is_none() && self.rest().is_empty();
        self.has_received || (state.stream.is_remote_ended() && is_empty)
    }

    /// Ends the incoming body: later bytes aren't part of the message.
    pub(super) fn end(&mut self) {
        self.has_received = true;
    }

    /// Writes a response's head; `ends` if it has no body.
    pub(super) fn write_head(&mut self, head: &Head, ends: bool) {
        if self.slot.state.borrow().failed.is_some() {
            return;
        }
        self.core
            .borrow_mut()
            .write_head(&self.slot, ends, |encoder, out| {
                super::write_head::write_response(encoder, out, head);
            });
        if ends {
            self.end = End::Sent;
        }
    }

    /// Waits until the peer resets the stream or the connection fails.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<PeerError> {
        let mut state = self.slot.state.borrow_mut();
        match &state.failed {
            Some(failed) => Poll::Ready(failed.broken()),
            None => {
                state.register(cx);
                Poll::Pending
            }
        }
    }

    /// Resets the stream, unless our direction has ended.
    pub(super) fn reset(&mut self, reason: Reason) {
        if !matches!(self.end, End::Sent) {
            self.core.borrow_mut().reset(&self.slot, reason);
            self.slot.fail(&Failure::Reset(reason));
            self.pending.clear();
            self.end = End::Sent;
        }
    }

    fn rest(&self) -> &[u8] {
        &self.chunk[self.consumed..]
    }

    /// Resets a stream with another length than declared: its body must not pass for complete.
    fn differs(&mut self) -> PeerError {
        let reason = Reason::PROTOCOL_ERROR;
        self.core.borrow_mut().reset_failing(&self.slot, reason);
        PeerError::Reset(reason)
    }
}

impl Incoming for Body {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, PeerError>> {
        if !self.rest().is_empty() {
            return Poll::Ready(Ok(true));
        }
        if self.has_received {
            return Poll::Ready(Ok(false));
        }
        let mut state = self.slot.state.borrow_mut();
        if !state.data.is_empty() {
            self.chunk.clear();
            self.consumed = 0;
            std::mem::swap(&mut self.chunk, &mut state.data);
            drop(state);
            if let Some(declared) = &mut self.declared {
                let Some(rest) = declared.checked_sub(self.chunk.len() as u64) else {
                    return Poll::Ready(Err(self.differs()));
                };
                *declared = rest;
            }
            return Poll::Ready(Ok(true));
        }
        if state.stream.is_remote_ended() {
            self.trailers = state.trailers.take();
            drop(state);
            if self.declared.is_some_and(|rest| rest > 0) {
                return Poll::Ready(Err(self.differs()));
            }
            self.has_received = true;
            return Poll::Ready(Ok(false));
        }
        if let Some(failed) = &state.failed {
            return Poll::Ready(Err(failed.broken()));
        }
        state.register(cx);
        Poll::Pending
    }

    fn data(&self) -> &[u8] {
        self.rest()
    }

    fn consume(&mut self, count: usize) {
        self.consumed += count;
        self.core.borrow_mut().release_capacity(&self.slot, count);
    }

    fn trailers(&self) -> Option<&Head> {
        self.trailers.as_deref()
    }
}

impl Outgoing for Body {
    fn unsent(&self) -> usize {
        self.pending.len()
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
        match self.pending.len() < HIGH_WATER {
            true => Poll::Ready(Ok(())),
            false => self.poll_flush(cx),
        }
    }

    fn write(&mut self, mut data: &[u8]) {
        if self.pending.is_empty() && self.slot.state.borrow().failed.is_none() {
            let mut core = self.core.borrow_mut();
            data = &data[core.write_data(&self.slot, data)..];
        }
        self.pending.extend_from_slice(data);
    }

    fn finish(&mut self, trailers: Option<&Head>) {
        if let End::Open = self.end {
            self.end = End::Coming(trailers.map(|trailers| Box::new(trailers.clone())));
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
        if self.pending.is_empty() && !matches!(self.end, End::Coming(_)) {
            return Poll::Ready(Ok(()));
        }
        if let Some(failed) = &self.slot.state.borrow().failed {
            return Poll::Ready(Err(failed.broken()));
        }
        let mut core = self.core.borrow_mut();
        if !self.pending.is_empty() {
            let written = core.write_data(&self.slot, &self.pending);
            self.pending.drain(..written);
            if !self.pending.is_empty() {
                self.slot.state.borrow_mut().register(cx);
                core.wait(&self.slot);
                core.unblock();
                return Poll::Pending;
            }
            // The rest of its turn goes to another stream.
            core.stop_waiting(&self.slot);
            core.unblock();
        }
        if let End::Coming(trailers) = &self.end {
            match trailers {
                Some(trailers) if !trailers.is_empty() => {
                    core.write_trailers(&self.slot, trailers);
                }
                _ => core.end_data(&self.slot),
            }
            self.end = End::Sent;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let unread = self.rest().len() + self.slot.state.borrow().data.len();
        let mut core = self.core.borrow_mut();
        let reason = core.reset_reason(matches!(self.end, End::Sent));
        core.reset(&self.slot, reason);
        core.release(unread);
        core.stop_waiting(&self.slot);
        core.unblock();
        buffers::give_back(&mut self.chunk);
        buffers::give_back(&mut self.slot.state.borrow_mut().data);
    }
}
