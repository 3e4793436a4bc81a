//! Frames to be written.

use std::rc::Rc;

use tokio::time::Instant;

use super::{Core, Failure, HIGH_WATER, QUANTUM, Role, Slot};
use crate::error::Reason;
use crate::h2::frame::{self, HEADER, MAX_PAYLOAD, write_frame_header, write_number};
use crate::h2::header_block::Peer;
use crate::h2::hpack::Encoder;
use crate::h2::write_head;
use crate::h2::{GROWTH, LARGE_WINDOW, STREAM_WINDOW};
use crate::head::Head;
use crate::{PeerError, buffers};

impl Core {
    /// Opens a stream with a request's head, which `encode` writes.
    pub(in crate::h2) fn open(
        &mut self,
        ends: bool,
        now: Instant,
        encode: impl FnOnce(&mut Encoder, &mut Vec<u8>),
    ) -> Result<Rc<Slot>, PeerError> {
        if !self.is_open() {
            let why = match (&self.end, &self.goaway) {
                (Some(end), _) => end.broken().to_string(),
                (_, Some(why)) => why.to_string(),
                _ => "the connection has no numbers left".into(),
            };
            return Err(PeerError::Unprocessed(why));
        }
        self.last = if self.last == 0 { 1 } else { self.last + 2 };
        let slot = Slot::new(self.last, self.settings.initial_window, now);
        self.streams.push(Rc::clone(&slot));
        self.write_head(&slot, ends, encode);
        Ok(slot)
    }

    /// Writes the field block that `encode` produces as HEADERS of a stream, with CONTINUATION if it is long; `ends`
    /// sets END_STREAM.
    pub(in crate::h2) fn write_head(
        &mut self,
        slot: &Slot,
        ends: bool,
        encode: impl FnOnce(&mut Encoder, &mut Vec<u8>),
    ) {
        buffers::lend(&mut self.out);
        let start = self.out.len();
        let flags = if ends { frame::END_STREAM } else { 0 };
        write_frame_header(
            &mut self.out,
            0,
            frame::HEADERS,
            flags | frame::END_HEADERS,
            slot.id,
        );
        encode(&mut self.encoder, &mut self.out);
        let length = self.out.len() - start - HEADER;
        if length > MAX_PAYLOAD {
            let block = self.out.split_off(start + HEADER);
            self.out.truncate(start);
            let (mut kind, mut flags) = (frame::HEADERS, flags);
            let mut parts = block.chunks(MAX_PAYLOAD).peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    flags |= frame::END_HEADERS;
                }
                write_frame_header(&mut self.out, part.len(), kind, flags, slot.id);
                self.out.extend_from_slice(part);
                (kind, flags) = (frame::CONTINUATION, 0);
            }
        } else {
            // At most `MAX_PAYLOAD`, which fits into three bytes.
            let bytes = (length as u32).to_be_bytes();
            self.out[start..start + 3].copy_from_slice(&bytes[1..]);
        }
        if ends {
            self.close_send(slot);
        }
        self.wake_driver();
    }

    /// Writes as much of `body` as there is room for in this turn; returns the number of bytes written.
    pub(in crate::h2) fn write_data(&mut self, slot: &Rc<Slot>, body: &[u8]) -> usize {
        let mut state = slot.state.borrow_mut();
        let mut written = 0;
        while written < body.len() && written < QUANTUM {
            let room = self.room().min(state.send_window).min(MAX_PAYLOAD as i64);
            let Ok(room @ 1..) = usize::try_from(room) else {
                break;
            };
            let part = &body[written..body.len().min(written + room)];
            state.send_window -= part.len() as i64;
            self.send_window -= part.len() as i64;
            buffers::lend(&mut self.out);
            self.tail = Some((slot.id, self.out.len() + 4));
            write_frame_header(&mut self.out, part.len(), frame::DATA, 0, slot.id);
            self.out.extend_from_slice(part);
            written += part.len();
        }
        drop(state);
        if written > 0 {
            self.wake_driver();
        }
        written
    }

    /// Queues a stream to be woken when there is room and it is its turn. One with an exhausted window of its own isn't
    /// queued: its WINDOW_UPDATE wakes it.
    pub(in crate::h2) fn wait(&mut self, slot: &Rc<Slot>) {
        let mut state = slot.state.borrow_mut();
        if state.send_window > 0 && !std::mem::replace(&mut state.is_blocked, true) {
            self.blocked.push_back(Rc::clone(slot));
        }
    }

    /// Removes a stream from those that wait for room.
    pub(in crate::h2) fn stop_waiting(&mut self, slot: &Rc<Slot>) {
        if std::mem::take(&mut slot.state.borrow_mut().is_blocked) {
            self.blocked.retain(|other| !Rc::ptr_eq(other, slot));
        }
    }

    /// Bytes of bodies that the connection's window and `HIGH_WATER` have room for.
    fn room(&self) -> i64 {
        let room = HIGH_WATER.saturating_sub(self.unsent());
        self.send_window.min(room as i64)
    }

    /// Wakes as many streams that wait for room as there is room for.
    pub(in crate::h2) fn unblock(&mut self) {
        if self.blocked.is_empty() {
            return;
        }
        let mut room = self.room();
        while room > 0
            && let Some(slot) = self.blocked.pop_front()
        {
            let mut state = slot.state.borrow_mut();
            state.is_blocked = false;
            if state.failed.is_none() {
                state.wake();
                room -= QUANTUM as i64;
            }
        }
    }

    /// Ends a body.
    pub(in crate::h2) fn end_data(&mut self, slot: &Slot) {
        match self.tail {
            Some((id, flags)) if id == slot.id => self.out[flags] |= frame::END_STREAM,
            _ => {
                buffers::lend(&mut self.out);
                write_frame_header(&mut self.out, 0, frame::DATA, frame::END_STREAM, slot.id);
            }
        }
        self.close_send(slot);
        self.wake_driver();
    }

    /// Ends a body with trailers.
    pub(in crate::h2) fn write_trailers(&mut self, slot: &Slot, trailers: &Head) {
        self.write_head(slot, true, |encoder, out| {
            write_head::write_trailers(encoder, out, trailers);
        });
    }

    /// Handles the end of our direction of a stream.
    fn close_send(&mut self, slot: &Slot) {
        let mut state = slot.state.borrow_mut();
        state.stream = state.stream.end_local();
        let is_over = state.stream.is_closed();
        drop(state);
        if is_over {
            self.forget(slot.id);
        }
    }

    /// Resets a stream, if it is still open.
    pub(in crate::h2) fn reset(&mut self, slot: &Slot, reason: Reason) {
        let is_over = slot.state.borrow().stream.is_closed();
        if !is_over && self.position(slot.id).is_some() {
            self.write_reset(slot.id, reason);
            self.forget(slot.id);
        }
    }

    /// Resets a stream after a stream error of the peer's, and fails it for the task that handles it.
    pub(in crate::h2) fn reset_failing(&mut self, slot: &Slot, reason: Reason) {
        self.reset(slot, reason);
        slot.fail(&Failure::Reset(reason));
        let state = slot.state.borrow();
        if self.role == Role::Server && !state.is_answered {
            // A peer that makes us reset its streams is as bad as one that resets them itself (CVE-2025-8671).
            self.resets.count_reset(state.opened.elapsed());
        }
    }

    pub(super) fn write_reset(&mut self, id: u32, reason: Reason) {
        write_number(&mut self.out, frame::RST_STREAM, id, reason.0);
        self.closed.add_ours(id);
        self.wake_driver();
    }

    /// Returns consumed bytes of a stream's body to the windows of the stream, which may grow, and of the connection.
    pub(in crate::h2) fn release_capacity(&mut self, slot: &Slot, count: usize) {
        let mut state = slot.state.borrow_mut();
        state.consumed += u32::try_from(count).unwrap_or(0);
        if state.consumed >= state.window / 2
            && !state.stream.is_remote_ended()
            && state.failed.is_none()
        {
            let mut more = std::mem::take(&mut state.consumed);
            // Apps are near; only other sidecars may be far away.
            let keeps_up = self.peer == Peer::Mesh && state.data.is_empty();
            if keeps_up && state.window < LARGE_WINDOW && self.grown + state.window <= GROWTH {
                self.grown += state.window;
                more += state.window;
                state.window *= 2;
            }
            state.receive_window += i64::from(more);
            write_number(&mut self.out, frame::WINDOW_UPDATE, slot.id, more);
            self.wake_driver();
        }
        drop(state);
        self.release(count);
    }

    /// Returns consumed or discarded bytes to the connection's window.
    pub(in crate::h2) fn release(&mut self, count: usize) {
        self.consumed += u32::try_from(count).unwrap_or(0);
        // Early, since streams that are still read lack the bytes that aren't returned yet.
        if self.consumed >= STREAM_WINDOW / 2 && self.end.is_none() {
            let consumed = std::mem::take(&mut self.consumed);
            self.receive_window += i64::from(consumed);
            write_number(&mut self.out, frame::WINDOW_UPDATE, 0, consumed);
            self.wake_driver();
        }
    }

    /// Error code for a stream that is dropped before its end: a complete response isn't taken back, even if the
    /// request is incomplete.
    pub(in crate::h2) fn reset_reason(&self, is_sent: bool) -> Reason {
        match (self.role, is_sent) {
            (Role::Server, true) => Reason::NO_ERROR,
            _ => Reason::CANCEL,
        }
    }
}
