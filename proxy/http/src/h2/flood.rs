//! Flood protection: idle frames, which move no request forward, are charged to a peer's budget, which received DATA,
//! written bytes and time restore. A peer that exhausts it loses the connection.

use std::time::Duration;

use tokio::time::Instant;

use super::frame::{self, FrameHeader};

/// Idle frames that a peer may send in a burst.
const BURST: u32 = 10_000;
/// Idle frames a second that it may send in the long run.
const PER_SECOND: u32 = 2_000;
/// Bytes of received DATA frames, or of any frames written, that earn an idle frame, since bodies cause WINDOW_UPDATE.
const BYTES_PER_FRAME: u32 = 64;

/// The budget of a peer's idle frames.
#[derive(Debug)]
pub(super) struct Budget {
    left: u32,
    /// Bytes that don't make up a frame yet.
    bytes: u32,
    since: Instant,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Budget {
        Budget {
            left: BURST,
            bytes: 0,
            since: now,
        }
    }

    /// Credits `count` bytes received or written.
    pub(super) fn credit(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let bytes = self.bytes.saturating_add(count);
        self.bytes = bytes % BYTES_PER_FRAME;
        self.left = self.left.saturating_add(bytes / BYTES_PER_FRAME).min(BURST);
    }

    /// Charges a received frame.
    ///
    /// # Errors
    /// The name of the flood, when the budget is exhausted.
    pub(super) fn charge(&mut self, frame: &FrameHeader, now: Instant) -> Result<(), &'static str> {
        let is_idle = match frame.kind {
            frame::DATA => frame.length == 0 && !frame.has(frame::END_STREAM),
            // Streams are limited by their number, and `ResetCounter` judges their ends.
            frame::HEADERS | frame::RST_STREAM => false,
            _ => true,
        };
        if frame.kind == frame::DATA {
            self.credit(frame.length);
        }
        if !is_idle {
            return Ok(());
        }
        if self.left == 0 {
            self.refill(now);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(flood_of(frame.kind)),
        }
    }

    fn refill(&mut self, now: Instant) {
        let earned = (now - self.since).as_millis() * u128::from(PER_SECOND) / 1000;
        if let Ok(earned @ 1..) = u32::try_from(earned) {
            self.left = earned.min(BURST);
            self.since = now;
        }
    }
}

fn flood_of(kind: u8) -> &'static str {
    match kind {
        frame::DATA => "a flood of DATA frames",
        frame::PRIORITY => "a flood of PRIORITY frames",
        frame::SETTINGS => "a flood of SETTINGS frames",
        frame::PING => "a flood of PING frames",
        frame::GOAWAY => "a flood of GOAWAY frames",
        frame::WINDOW_UPDATE => "a flood of WINDOW_UPDATE frames",
        frame::CONTINUATION => "a flood of CONTINUATION frames",
        _ => "a flood of unknown frames",
    }
}

/// Counts the streams that a peer opened, and those that were reset before a response could come of them.
#[derive(Debug, Default)]
pub(super) struct ResetCounter {
    opened: u32,
    premature: u32,
}

/// Age from which a stream's reset is no sign of an attack.
const MATURE: Duration = Duration::from_secs(1);
/// Streams that must have been opened before resets are judged.
const SOME: u32 = 500;

impl ResetCounter {
    /// Counts an opened stream.
    pub(super) fn count_opened(&mut self) {
        self.opened = self.opened.saturating_add(1);
    }

    /// Counts a stream that was reset at `age`, before its response began.
    pub(super) fn count_reset(&mut self, age: Duration) {
        if age < MATURE {
            self.premature = self.premature.saturating_add(1);
        }
    }

    /// Returns `true` for a rapid reset attack (CVE-2023-44487), by Envoy's measure.
    pub(super) fn is_flood(&self) -> bool {
        self.opened >= SOME && self.premature > self.opened / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> FrameHeader {
        FrameHeader {
            length,
            kind,
            flags,
            stream: 1,
        }
    }

    #[test]
    fn frames_that_move_nothing_forward_are_bounded() {
        for (kind, flags, length, name) in [
            (0, 0, 0, "DATA"),
            (2, 0, 5, "PRIORITY"),
            (4, 0, 6, "SETTINGS"),
            (6, 0, 8, "PING"),
            (8, 0, 4, "WINDOW_UPDATE"),
            (9, 0, 3, "CONTINUATION"),
            (77, 0, 1, "unknown"),
        ] {
            let start = Instant::now();
            let mut budget = Budget::new(start);
            for _ in 0..BURST {
                assert_eq!(budget.charge(&frame(kind, flags, length), start), Ok(()));
            }
            let stop = budget.charge(&frame(kind, flags, length), start);
            assert_eq!(stop, Err(&*format!("a flood of {name} frames")));
            let later = start + Duration::from_secs(1);
            for _ in 0..PER_SECOND {
                assert_eq!(budget.charge(&frame(kind, flags, length), later), Ok(()));
            }
            assert!(budget.charge(&frame(kind, flags, length), later).is_err());
        }
    }

    #[test]
    fn frames_that_come_with_bodies_are_not() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        for _ in 0..2 * BURST {
            for frame in [
                frame(frame::HEADERS, 4, 20),
                frame(frame::DATA, 0, 64),
                frame(frame::WINDOW_UPDATE, 0, 4),
                frame(frame::DATA, frame::END_STREAM, 0),
            ] {
                assert_eq!(budget.charge(&frame, now), Ok(()));
            }
        }
    }

    #[test]
    fn a_rapid_reset_is_told_from_callers_that_give_up() {
        let mut resets = ResetCounter::default();
        for _ in 0..2 * SOME {
            resets.count_opened();
            resets.count_reset(MATURE);
        }
        assert!(!resets.is_flood());
        let mut resets = ResetCounter::default();
        for i in 0..SOME {
            assert!(!resets.is_flood(), "{i}");
            resets.count_opened();
            resets.count_reset(Duration::ZERO);
        }
        assert!(resets.is_flood());
    }
}
