//! HTTP/1.0 and 1.1, Leno's own: strict grammar, strict framing, adaptive buffers, a server and a client half.
//!
//! Invariant: a message sent to an upstream is re-serialised from its parsed form; no byte of a message that failed the
//! strict rules is forwarded. This makes request smuggling impossible to express.

mod body;
mod client;
mod conn;
mod framing;
mod parse;
mod server;

pub use crate::error::InvalidHead;
use crate::head::Head;
pub use body::{Decoder, Encoder};
pub use client::ClientHalf;
pub use conn::Conn;
pub use framing::{Framing, request_framing, response_framing};
pub use parse::{
    LastHead, check_request, is_text, is_token, is_token_method, parse_request, parse_response,
    parse_trailers, trimmed,
};
pub use server::{ReadError, ReadOutcome, ServerHalf, Timeouts};

/// A parser of the head at the front of its own buffer, with the cached fields of the last head; returns the head's
/// end, `None` while it is incomplete.
type Parse = fn(&mut Head, &HeadLimits, &mut LastHead) -> Result<Option<usize>, InvalidHead>;

/// Limits on the heads and trailer sections of messages.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Bytes of a head, or of a trailer section.
    pub head_bytes: usize,
    /// Fields of a head, or of a trailer section.
    pub headers: usize,
}

impl Default for HeadLimits {
    /// Istio's: 60 KiB, 100 fields.
    fn default() -> HeadLimits {
        HeadLimits {
            head_bytes: 60 * 1024,
            headers: 100,
        }
    }
}
