//! The ways in which a peer breaks HTTP.

use std::time::Duration;
use std::{fmt, io};

/// Failure of a connection or a stream, by its peer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It closed before the message was complete.
    #[error("connection closed")]
    Closed,
    /// The transport failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It reset the stream (RFC 9113, section 5.4.2).
    #[error("stream reset: {0}")]
    Reset(Reason),
    /// It didn't process the request, as it reports (RFC 9113, section 8.7) or because the request was never sent.
    #[error("not processed: {0}")]
    Unprocessed(String),
    /// It accepted no byte for this long.
    #[error("nothing was taken for {0:?}")]
    Stalled(Duration),
    /// It sent bytes that aren't HTTP, or not in the strict form that Leno accepts.
    #[error("{0}")]
    Syntax(InvalidHead),
}

/// Error of a head that isn't accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHead {
    /// Larger than [`head_bytes`](crate::h1::HeadLimits::head_bytes).
    #[error("head larger than {0} bytes")]
    TooLarge(usize),
    /// More fields than [`headers`](crate::h1::HeadLimits::headers).
    #[error("more than {0} header fields")]
    TooMany(usize),
    /// Not the grammar of RFC 9112, or not the strict part of it that Leno accepts.
    #[error("{0}")]
    Syntax(&'static str),
}

/// An error code of HTTP/2 (RFC 9113, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason(pub u32);

#[allow(missing_docs)]
impl Reason {
    pub const NO_ERROR: Reason = Reason(0);
    pub const PROTOCOL_ERROR: Reason = Reason(1);
    pub const INTERNAL_ERROR: Reason = Reason(2);
    pub const FLOW_CONTROL_ERROR: Reason = Reason(3);
    pub const STREAM_CLOSED: Reason = Reason(5);
    pub const FRAME_SIZE_ERROR: Reason = Reason(6);
    pub const REFUSED_STREAM: Reason = Reason(7);
    pub const CANCEL: Reason = Reason(8);
    pub const COMPRESSION_ERROR: Reason = Reason(9);
    pub const ENHANCE_YOUR_CALM: Reason = Reason(11);
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "error {:#x}", self.0),
        }
    }
}
