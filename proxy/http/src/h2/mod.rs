//! HTTP/2 (RFC 9113), Leno's own: each stream of a connection has the same two halves as an HTTP/1 exchange.
//!
//! `core` is the state of a connection without IO, `driver` its IO, `body` the two directions of a stream, and `header_block`
//! turns the field lines that `hpack` decodes into heads in HTTP/1 form. All streams write into one buffer, which the
//! driver sends in one piece once each of them has had its turn: that makes a connection shared by many requests cheap.

mod body;
mod client;
mod core;
mod driver;
mod flood;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod header_block;
mod hpack;
mod prefix_cache;
mod server;
mod stream;
mod tunnel;
mod write_head;

use std::time::Duration;

pub use crate::error::Reason;
pub use client::{ClientStream, Connection};
pub use server::{ServerConfig, StreamRequest, serve};
pub use stream::ServerStream;
pub use tunnel::Tunnel;

/// The connection preface, which a client with prior knowledge of HTTP/2 sends first (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Initial receive window of a stream: bytes that its sender may be ahead of its reader.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Largest receive window of a stream, between sidecars and if the reader keeps up: from far peers, WINDOW_UPDATE takes
/// long to arrive.
const LARGE_WINDOW: u32 = 1024 * 1024;
/// Streams that a peer may have open at once: Envoy's figure for servers.
const MAX_STREAMS: u32 = 100;
/// Bytes by which the receive windows of one connection's streams may grow, together.
const GROWTH: u32 = 4 * LARGE_WINDOW;
/// Receive window of a connection: all of its streams' windows together, so that an unread stream doesn't stall the
/// others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * (MAX_STREAMS + 1) + GROWTH;
/// Time that a peer has to close the connection after GOAWAY and the end of its last stream.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(60);

/// Error code for resetting a stream after `broken` on the other side of the exchange. REFUSED_STREAM isn't passed on:
/// that a request wasn't processed is only true of the hop that reported it.
pub fn reason(broken: Option<Reason>) -> Reason {
    match broken {
        Some(Reason::REFUSED_STREAM | Reason::NO_ERROR) | None => Reason::INTERNAL_ERROR,
        Some(reason) => reason,
    }
}
