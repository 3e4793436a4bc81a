//! Received frames that concern the connection: SETTINGS, PING, GOAWAY and WINDOW_UPDATE.

use std::rc::Rc;

use super::{Core, Failure, Phase, Role};
use crate::error::Reason;
use crate::h2::frame::{
    self, ConnectionError, FrameHeader, MAX_WINDOW, setting, write_frame_header, write_goaway,
};

impl Core {
    pub(super) fn settings_frame(
        &mut self,
        frame: &FrameHeader,
        payload: &[u8],
    ) -> Result<(), ConnectionError> {
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() || (frame.has(frame::ACK) && !payload.is_empty()) {
            return Err(ConnectionError(
                Reason::FRAME_SIZE_ERROR,
                "SETTINGS of the wrong size",
            ));
        }
        if frame.has(frame::ACK) {
            return Ok(());
        }
        self.settings.are_known = true;
        for [a, b, value @ ..] in settings {
            self.setting(u16::from_be_bytes([*a, *b]), u32::from_be_bytes(*value))?;
        }
        write_frame_header(&mut self.out, 0, frame::SETTINGS, frame::ACK, 0);
        Ok(())
    }

    fn setting(&mut self, name: u16, value: u32) -> Result<(), ConnectionError> {
        let wrong = Err(ConnectionError(
            Reason::PROTOCOL_ERROR,
            "a setting that can't be",
        ));
        match name {
            setting::HEADER_TABLE_SIZE => self.encoder.resize(value),
            setting::ENABLE_PUSH if value > u32::from(self.role == Role::Server) => return wrong,
            setting::MAX_CONCURRENT_STREAMS => self.settings.max_streams = value as usize,
            setting::INITIAL_WINDOW_SIZE => {
                let window = i64::from(value);
                let too_large =
                    ConnectionError(Reason::FLOW_CONTROL_ERROR, "a window that is too large");
                let more = window - self.settings.initial_window;
                self.settings.initial_window = window;
                for slot in &self.streams {
                    let mut state = slot.state.borrow_mut();
                    state.send_window += more;
                    if window > MAX_WINDOW || state.send_window > MAX_WINDOW {
                        return Err(too_large);
                    }
                    state.wake();
                }
                if window > MAX_WINDOW {
                    return Err(too_large);
                }
            }
            setting::MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => return wrong,
            setting::ENABLE_CONNECT_PROTOCOL => match value {
                0 | 1 => self.settings.takes_connect = value == 1,
                _ => return wrong,
            },
            _ => {}
        }
        Ok(())
    }

    pub(super) fn ping_frame(&mut self, frame: &FrameHeader, payload: &[u8]) {
        if !frame.has(frame::ACK) {
            write_frame_header(&mut self.out, payload.len(), frame::PING, frame::ACK, 0);
            return self.out.extend_from_slice(payload);
        }
        if let Some(pong) = self.pong.take() {
            let _ = pong.send(());
        }
        if self.phase == Phase::GoAwaySent {
            self.phase = Phase::Closing;
            self.served = self.last;
            write_goaway(&mut self.out, self.last, Reason::NO_ERROR);
        }
    }

    pub(super) fn goaway_frame(&mut self, payload: &[u8]) -> Result<(), ConnectionError> {
        let (Some(last), Some(reason)) = (
            frame::number(payload),
            payload.get(4..).and_then(frame::number),
        ) else {
            return Err(ConnectionError(
                Reason::FRAME_SIZE_ERROR,
                "GOAWAY of the wrong size",
            ));
        };
        if self.role == Role::Server {
            return Ok(());
        }
        let last = last & 0x7fff_ffff;
        let why: Rc<str> = format!("GOAWAY ({}), last stream {last}", Reason(reason)).into();
        self.goaway = Some(Rc::clone(&why));
        let beyond = self.streams.partition_point(|slot| slot.id <= last);
        for slot in self.streams.split_off(beyond) {
            self.closed.add_ours(slot.id);
            slot.fail(&Failure::Unprocessed(Rc::clone(&why)));
        }
        Ok(())
    }

    pub(super) fn window_frame(&mut self, id: u32, payload: &[u8]) -> Result<(), ConnectionError> {
        let more = i64::from(frame::number(payload).unwrap_or(0) & 0x7fff_ffff);
        if id == 0 {
            self.send_window += more;
            if more == 0 {
                return Err(ConnectionError(
                    Reason::PROTOCOL_ERROR,
                    "a window opened by nothing",
                ));
            }
            if self.send_window > MAX_WINDOW {
                let why = "a window that is too large";
                return Err(ConnectionError(Reason::FLOW_CONTROL_ERROR, why));
            }
            self.unblock();
            return Ok(());
        }
        let Some(slot) = self.stream(id)? else {
            return Ok(());
        };
        let mut state = slot.state.borrow_mut();
        state.send_window += more;
        let reason = match () {
            () if more == 0 => Reason::PROTOCOL_ERROR,
            () if state.send_window > MAX_WINDOW => Reason::FLOW_CONTROL_ERROR,
            () => {
                state.wake();
                return Ok(());
            }
        };
        drop(state);
        self.reset_failing(&slot, reason);
        Ok(())
    }
}
