//! Frames (RFC 9113, sections 4 and 6), and the error codes of streams and connections (section 7).

use crate::error::Reason;

/// Bytes of a frame's header.
pub(super) const HEADER: usize = 9;
/// The largest payload accepted and sent: the initial SETTINGS_MAX_FRAME_SIZE, which every peer accepts.
pub(super) const MAX_PAYLOAD: usize = 16 * 1024;
/// The largest window (section 6.9.1).
pub(super) const MAX_WINDOW: i64 = (1 << 31) - 1;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const HAS_PRIORITY: u8 = 0x20;

/// Settings that are sent, applied or checked (section 6.5.2; RFC 8441, section 3).
pub(super) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub(crate) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// A connection error: the code sent in GOAWAY, and the text that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConnectionError(pub(super) Reason, pub(super) &'static str);

/// A frame's header.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameHeader {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHeader {
    pub(super) fn read(bytes: &[u8; HEADER]) -> FrameHeader {
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        FrameHeader {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// True for HEADERS or PRIORITY by which a stream would depend on itself (RFC 7540, section 5.3.1). Priorities mean
    /// nothing otherwise.
    pub(super) fn depends_on_itself(&self, payload: &[u8]) -> bool {
        let at = match self.kind {
            PRIORITY => 0,
            HEADERS if self.has(HAS_PRIORITY) => usize::from(self.has(PADDED)),
            _ => return false,
        };
        let dependency = payload.get(at..).and_then(number);
        dependency.is_some_and(|dependency| dependency & 0x7fff_ffff == self.stream)
    }

    /// The payload of a frame that may be padded, without its padding and its priority.
    pub(super) fn content<'a>(&self, mut payload: &'a [u8]) -> Result<&'a [u8], ConnectionError> {
        let wrong = ConnectionError(Reason::PROTOCOL_ERROR, "more padding than payload");
        if self.has(PADDED) {
            let (padding, rest) = payload.split_first().ok_or(wrong)?;
            let end = rest.len().checked_sub(usize::from(*padding));
            payload = &rest[..end.ok_or(wrong)?];
        }
        if self.kind == HEADERS && self.has(HAS_PRIORITY) {
            let why = "HEADERS without room for their priority";
            let short = ConnectionError(Reason::FRAME_SIZE_ERROR, why);
            payload = payload.get(5..).ok_or(short)?;
        }
        Ok(payload)
    }
}

/// Writes a frame's header.
pub(super) fn write_frame_header(
    out: &mut Vec<u8>,
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
) {
    // Nothing longer than `MAX_PAYLOAD` is sent.
    let length = u32::try_from(length).unwrap_or(0).to_be_bytes();
    let stream = stream.to_be_bytes();
    let head = [
        length[1], length[2], length[3], kind, flags, stream[0], stream[1], stream[2], stream[3],
    ];
    out.extend_from_slice(&head);
}

/// Writes a frame with one number as its payload.
pub(super) fn write_number(out: &mut Vec<u8>, kind: u8, stream: u32, number: u32) {
    write_frame_header(out, 4, kind, 0, stream);
    out.extend_from_slice(&number.to_be_bytes());
}

/// Writes SETTINGS.
pub(super) fn write_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    write_frame_header(out, settings.len() * 6, SETTINGS, 0, 0);
    for (name, value) in settings {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Writes GOAWAY.
pub(super) fn write_goaway(out: &mut Vec<u8>, last: u32, reason: Reason) {
    write_frame_header(out, 8, GOAWAY, 0, 0);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&reason.0.to_be_bytes());
}

/// Reads a number of four bytes at the front of a payload.
pub(super) fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|four| u32::from_be_bytes(*four))
}
