//! HTTP/2 (RFC 9113) by the `h2` crate: the streams of a connection as the same two halves that HTTP/1 has, a head copied
//! in once, and a guard that ends connections whose peer only makes work.

mod body;
mod client;
mod flood;
mod heads;
mod server;
mod stream;
mod tunnel;

use std::time::Duration;

use ::h2::{Error, Reason};

use super::Broken;
pub use client::{ClientStream, Connection};
pub use server::{Arrived, Served, serve};
pub use stream::ServerStream;
pub use tunnel::Tunnel;

/// What a client with prior knowledge of HTTP/2 says first (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that one stream's sender may be ahead of its reader.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Streams that a peer may have open at once: Envoy's figure for servers.
const MAX_STREAMS: u32 = 100;
/// All streams of a connection may be ahead at once, so that one that isn't read doesn't hold up the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS;
/// Bytes that a stream holds that its peer hasn't taken yet.
const SEND_BUFFER: usize = 64 * 1024;
/// How long a peer may take to end a connection that was told to end.
const FAREWELL: Duration = Duration::from_secs(60);
/// Streams that were reset and whose last frames may still come. Forgetting them earlier costs the whole connection.
const RESET_STREAMS: usize = 1_000;
/// Overhead of small frames that wait to be read: a few streams of small messages may each have a full window of them.
const FRAME_BUDGET: usize = 16 * 1024 * 1024;

/// What an error of the library means for an exchange.
fn broken(error: Error) -> Broken {
    if error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)) {
        // A stream that GOAWAY ends is above its last id.
        return Broken::Unprocessed(error.to_string());
    }
    match error.reason() {
        Some(reason) => Broken::Reset(reason),
        None => match error.into_io() {
            Some(error) => Broken::Io(error),
            None => Broken::Closed,
        },
    }
}

/// How a stream is reset after `broken` on the other side of the exchange. That a request wasn't processed is only true
/// of the hop that said it.
pub fn reason(broken: Option<Reason>) -> Reason {
    match broken {
        Some(Reason::REFUSED_STREAM | Reason::NO_ERROR) | None => Reason::INTERNAL_ERROR,
        Some(reason) => reason,
    }
}
