//! Received frames.

use std::rc::Rc;

use tokio::time::Instant;

use super::closed::End;
use super::{Block, Core, Failure, Phase, RESET_AT_ONCE, Role, Slot};
use crate::buffers;
use crate::error::Reason;
use crate::h1::{Framing, request_framing};
use crate::h2::frame::{self, ConnectionError, FrameHeader, HEADER, MAX_PAYLOAD};
use crate::h2::header_block::HeadError;
use crate::h2::{MAX_STREAMS, PREFACE, STREAM_WINDOW};
use crate::head::Head;

/// Informational heads of one stream that may wait to be taken. The handler passes on fewer.
const MAX_INFORMATIONAL: usize = 32;
const GARBLED: ConnectionError =
    ConnectionError(Reason::COMPRESSION_ERROR, "a head that can't be read");

impl Core {
    /// Handles the complete frames at the front of `bytes`; returns their length.
    pub(in crate::h2) fn receive(&mut self, bytes: &[u8], now: Instant) -> usize {
        let mut at = self.preface.min(bytes.len());
        if bytes[..at] != PREFACE[PREFACE.len() - self.preface..][..at] {
            self.connection_error(ConnectionError(
                Reason::PROTOCOL_ERROR,
                "not the preface of HTTP/2",
            ));
        }
        self.preface -= at;
        while self.end.is_none() {
            let Some(head) = bytes[at..].first_chunk() else {
                break;
            };
            let frame = FrameHeader::read(head);
            if frame.length > MAX_PAYLOAD {
                let why = match head.starts_with(b"HTTP/1.") {
                    true => "the peer answers in HTTP/1, though its port is declared as HTTP/2",
                    false => "a frame that is too large",
                };
                self.connection_error(ConnectionError(Reason::FRAME_SIZE_ERROR, why));
                break;
            }
            let Some(payload) = bytes.get(at + HEADER..at + HEADER + frame.length) else {
                break;
            };
            at += HEADER + frame.length;
            if let Err(violation) = self.frame(&frame, payload, now) {
                self.connection_error(violation);
            }
        }
        at
    }

    fn frame(
        &mut self,
        frame: &FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        if let Err(flood) = self.budget.charge(frame, now) {
            return Err(ConnectionError(Reason::ENHANCE_YOUR_CALM, flood));
        }
        self.check_frame(frame, payload)?;
        match frame.kind {
            frame::DATA => self.data_frame(frame, payload),
            frame::HEADERS => {
                let block = frame.content(payload)?;
                let ends = frame.has(frame::END_STREAM);
                match frame.has(frame::END_HEADERS) {
                    true => self.head(frame.stream, ends, block, now),
                    false => {
                        self.block = Some(Block {
                            stream: frame.stream,
                            ends,
                            bytes: block.to_vec(),
                        });
                        Ok(())
                    }
                }
            }
            frame::CONTINUATION => self.continuation(frame, payload, now),
            frame::RST_STREAM => self.reset_frame(frame.stream, payload, now),
            frame::SETTINGS => self.settings_frame(frame, payload),
            frame::PING => {
                self.ping_frame(frame, payload);
                Ok(())
            }
            frame::GOAWAY => self.goaway_frame(payload),
            frame::WINDOW_UPDATE => self.window_frame(frame.stream, payload),
            frame::PUSH_PROMISE => {
                let why = "PUSH_PROMISE, which nobody asked for";
                Err(ConnectionError(Reason::PROTOCOL_ERROR, why))
            }
            _ => Ok(()),
        }
    }

    /// Checks what doesn't depend on the state of a stream: the order of frames, their streams and sizes.
    fn check_frame(&self, frame: &FrameHeader, payload: &[u8]) -> Result<(), ConnectionError> {
        let wrong = |why| Err(ConnectionError(Reason::PROTOCOL_ERROR, why));
        let is_settings = frame.kind == frame::SETTINGS && !frame.has(frame::ACK);
        if !self.settings.are_known && !is_settings {
            return wrong("no SETTINGS at the beginning");
        }
        if let Some(block) = &self.block
            && (frame.kind != frame::CONTINUATION || frame.stream != block.stream)
        {
            return wrong("a head is interrupted");
        }
        let is_of_connection = matches!(frame.kind, frame::SETTINGS | frame::PING | frame::GOAWAY);
        let is_of_any = frame.kind == frame::WINDOW_UPDATE || frame.kind > frame::CONTINUATION;
        if !is_of_any && (frame.stream == 0) != is_of_connection {
            return wrong("a frame of the connection on a stream, or of a stream on none");
        }
        let length = match frame.kind {
            frame::PRIORITY => Some(5),
            frame::RST_STREAM | frame::WINDOW_UPDATE => Some(4),
            frame::PING => Some(8),
            _ => None,
        };
        if length.is_some_and(|length| length != payload.len()) {
            return Err(ConnectionError(
                Reason::FRAME_SIZE_ERROR,
                "a frame of the wrong size",
            ));
        }
        if frame.depends_on_itself(payload) {
            return wrong("a stream that depends on itself");
        }
        Ok(())
    }

    pub(super) fn position(&self, id: u32) -> Option<usize> {
        // Most frames are of the stream found last or, if it was removed, of the next one.
        let near = self.near.get();
        if self.streams.get(near).is_some_and(|slot| slot.id == id) {
            return Some(near);
        }
        let found = self.streams.binary_search_by_key(&id, |slot| slot.id);
        found.ok().inspect(|at| self.near.set(*at))
    }

    /// Finds a stream; `None` if it is no longer open, an error if it never was.
    pub(super) fn stream(&self, id: u32) -> Result<Option<Rc<Slot>>, ConnectionError> {
        if id > self.last || id.is_multiple_of(2) {
            return Err(ConnectionError(
                Reason::PROTOCOL_ERROR,
                "a frame of a stream that isn't open",
            ));
        }
        Ok(self.position(id).map(|at| Rc::clone(&self.streams[at])))
    }

    /// Handles DATA or HEADERS on a stream that isn't open any more (RFC 9113, section 5.1).
    fn frame_after_end(&mut self, id: u32) -> Result<(), ConnectionError> {
        match self.closed.end(id) {
            End::ResetByUs => Ok(()),
            End::ResetByPeer => {
                self.write_reset(id, Reason::STREAM_CLOSED);
                Ok(())
            }
            End::Ended => {
                let why = "a frame of a stream that has ended";
                Err(ConnectionError(Reason::STREAM_CLOSED, why))
            }
            End::Skipped => {
                let why = "a stream that an earlier one has closed";
                Err(ConnectionError(Reason::PROTOCOL_ERROR, why))
            }
        }
    }

    fn data_frame(&mut self, frame: &FrameHeader, payload: &[u8]) -> Result<(), ConnectionError> {
        let body = frame.content(payload)?;
        let (all, padding) = (payload.len(), payload.len() - body.len());
        self.receive_window -= all as i64;
        if self.receive_window < 0 {
            let why = "more than the connection's window";
            return Err(ConnectionError(Reason::FLOW_CONTROL_ERROR, why));
        }
        let Some(slot) = self.stream(frame.stream)? else {
            self.release(all);
            return self.frame_after_end(frame.stream);
        };
        let mut state = slot.state.borrow_mut();
        state.receive_window -= all as i64;
        let reason = match () {
            () if state.stream.is_remote_ended() => Some(Reason::STREAM_CLOSED),
            () if state.receive_window < 0 => Some(Reason::FLOW_CONTROL_ERROR),
            () if self.role == Role::Client && !state.has_head => Some(Reason::PROTOCOL_ERROR),
            () => None,
        };
        if let Some(reason) = reason {
            drop(state);
            self.release(all);
            self.reset_failing(&slot, reason);
            return Ok(());
        }
        if !body.is_empty() {
            buffers::lend(&mut state.data);
            state.data.extend_from_slice(body);
        }
        state.wake();
        drop(state);
        if padding > 0 {
            self.release_capacity(&slot, padding);
        }
        if frame.has(frame::END_STREAM) {
            self.close_receive(&slot);
        }
        Ok(())
    }

    /// Handles the end of the peer's direction of a stream.
    fn close_receive(&mut self, slot: &Rc<Slot>) {
        let mut state = slot.state.borrow_mut();
        state.stream = state.stream.end_remote();
        state.wake();
        let is_over = state.stream.is_closed();
        drop(state);
        if is_over {
            self.forget(slot.id);
        }
    }

    pub(super) fn forget(&mut self, id: u32) {
        if let Some(at) = self.position(id) {
            let slot = self.streams.remove(at);
            self.grown -= slot.state.borrow().window - STREAM_WINDOW;
            if self.is_done() {
                self.wake_driver();
            }
        }
    }

    fn continuation(
        &mut self,
        frame: &FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        let Some(mut block) = self.block.take() else {
            let why = "CONTINUATION of no head";
            return Err(ConnectionError(Reason::PROTOCOL_ERROR, why));
        };
        // An acceptable head is smaller than this, with the overhead of its encoding.
        if block.bytes.len() + payload.len() > 2 * self.limits.head_bytes + MAX_PAYLOAD {
            return Err(ConnectionError(
                Reason::ENHANCE_YOUR_CALM,
                "a head that is too large",
            ));
        }
        block.bytes.extend_from_slice(payload);
        if frame.has(frame::END_HEADERS) {
            return self.head(block.stream, block.ends, &block.bytes, now);
        }
        self.block = Some(block);
        Ok(())
    }

    fn head(
        &mut self,
        id: u32,
        ends: bool,
        block: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        if self.role == Role::Server && id > self.last && id % 2 == 1 {
            return self.request(id, ends, block, now);
        }
        let Some(slot) = self.stream(id)? else {
            self.decoder.skip(block).map_err(|_| GARBLED)?;
            return self.frame_after_end(id);
        };
        if slot.state.borrow().stream.is_remote_ended() {
            self.decoder.skip(block).map_err(|_| GARBLED)?;
            self.reset_failing(&slot, Reason::STREAM_CLOSED);
            return Ok(());
        }
        let is_response = {
            let state = slot.state.borrow();
            self.role == Role::Client && !state.has_head
        };
        let read = match is_response {
            true => self.response(&slot, ends, block),
            false => self.trailers(&slot, ends, block),
        };
        match read {
            Ok(()) if ends => self.close_receive(&slot),
            Ok(()) => {}
            Err(HeadError::Garbled) => return Err(GARBLED),
            Err(_) => self.reset_failing(&slot, Reason::PROTOCOL_ERROR),
        }
        Ok(())
    }

    fn request(
        &mut self,
        id: u32,
        ends: bool,
        block: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        self.closed.add_opened(self.last, id);
        self.last = id;
        let mut head = Head::default();
        let read = self.decoder.request(block, &mut head);
        let (invalid, is_carried) = match read {
            Ok(is_carried) => (None, is_carried),
            Err(HeadError::Invalid(invalid)) => (Some(invalid), false),
            Err(HeadError::Garbled) => return Err(GARBLED),
            Err(HeadError::Malformed(why)) => {
                tracing::debug!(why, "a malformed request");
                self.write_reset(id, Reason::PROTOCOL_ERROR);
                return Ok(());
            }
        };
        if ends && matches!(request_framing(&head), Ok(Framing::Fixed(1..))) {
            self.write_reset(id, Reason::PROTOCOL_ERROR);
            return Ok(());
        }
        if self.phase == Phase::Closing || self.streams.len() >= MAX_STREAMS as usize {
            self.write_reset(id, Reason::REFUSED_STREAM);
            return Ok(());
        }
        // The server's tasks empty the queue each time: only streams that are reset at once get this far.
        if self.arrived.len() >= 2 * MAX_STREAMS as usize {
            return Err(RESET_AT_ONCE);
        }
        self.resets.count_opened();
        let slot = Slot::new(id, self.settings.initial_window, now);
        let mut state = slot.state.borrow_mut();
        (state.head, state.invalid) = (Some(head), invalid);
        state.is_carried = is_carried;
        if ends {
            state.stream = state.stream.end_remote();
        }
        drop(state);
        self.streams.push(Rc::clone(&slot));
        self.arrived.push_back(slot);
        Ok(())
    }

    fn response(&mut self, slot: &Slot, ends: bool, block: &[u8]) -> Result<(), HeadError> {
        let mut head = Head::default();
        let read = self.decoder.response(block, &mut head);
        let mut state = slot.state.borrow_mut();
        match read {
            Ok(()) => {
                let is_final = head.status() >= 200;
                if ends && !is_final {
                    return Err(HeadError::Malformed("an informational response that ends"));
                }
                if state.informational.len() >= MAX_INFORMATIONAL {
                    return Err(HeadError::Malformed(
                        "informational responses without an end",
                    ));
                }
                state.has_head |= is_final;
                match is_final {
                    true => state.head = Some(head),
                    false => state.informational.push_back(head),
                }
            }
            Err(HeadError::Invalid(invalid)) => {
                state.has_head = true;
                (state.head, state.invalid) = (Some(head), Some(invalid));
            }
            Err(bad) => return Err(bad),
        }
        state.wake();
        Ok(())
    }

    fn trailers(&mut self, slot: &Slot, ends: bool, block: &[u8]) -> Result<(), HeadError> {
        let mut head = Box::<Head>::default();
        self.decoder.trailers(block, &mut head)?;
        let mut state = slot.state.borrow_mut();
        if !ends {
            return Err(HeadError::Malformed("a second head"));
        }
        state.trailers = Some(head);
        Ok(())
    }

    fn reset_frame(
        &mut self,
        id: u32,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        let reason = Reason(frame::number(payload).unwrap_or(0));
        let Some(slot) = self.stream(id)? else {
            // Both may have ended it before the peer's reset arrived.
            self.closed.add_peers(id);
            return Ok(());
        };
        self.forget(id);
        self.closed.add_peers(id);
        let failure = match reason {
            Reason::REFUSED_STREAM => Failure::Unprocessed("the stream was refused".into()),
            reason => Failure::Reset(reason),
        };
        slot.fail(&failure);
        let state = slot.state.borrow();
        if self.role == Role::Server && !state.is_answered {
            self.resets.count_reset(now.duration_since(state.opened));
        }
        Ok(())
    }
}
