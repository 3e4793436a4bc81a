//! HTTP/2 (RFC 9113), Leno's own: the streams of a connection as the same two halves that HTTP/1 has.
//!
//! `core` is a connection without IO, `driver` its IO, `body` the two directions of a stream, and `header_block` reads heads from
//! `hpack`'s lines into the form that HTTP/1 has. Streams write into one buffer, which leaves in one piece when all of them
//! have had their turn: that is what makes a connection that many requests share cheap.

mod body;
mod client;
mod core;
mod driver;
mod flood;
mod frame;
mod header_block;
mod hpack;
mod prefix_cache;
mod server;
mod stream;
mod tunnel;

use std::time::Duration;

pub use client::{ClientStream, Connection};
pub use frame::Reason;
pub use server::{Arrived, Served, serve};
pub use stream::ServerStream;
pub use tunnel::Tunnel;

/// What a client with prior knowledge of HTTP/2 says first (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that one stream's sender may be ahead of its reader, at first.
const STREAM_WINDOW: u32 = 64 * 1024;
/// And between sidecars when the reader keeps up: far peers take long to say that more may be sent.
const LARGE_WINDOW: u32 = 1024 * 1024;
/// Streams that a peer may have open at once: Envoy's figure for servers.
const MAX_STREAMS: u32 = 100;
/// What the windows of one connection's streams may have grown by, together.
const GROWTH: u32 = 4 * LARGE_WINDOW;
/// All streams of a connection may be ahead at once, so that one that isn't read doesn't hold up the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * (MAX_STREAMS + 1) + GROWTH;
/// How long a peer may take to end a connection that was told to end.
const FAREWELL: Duration = Duration::from_secs(60);

/// How a stream is reset after `broken` on the other side of the exchange. That a request wasn't processed is only true
/// of the hop that said it.
pub fn reason(broken: Option<Reason>) -> Reason {
    match broken {
        Some(Reason::REFUSED_STREAM | Reason::NO_ERROR) | None => Reason::INTERNAL_ERROR,
        Some(reason) => reason,
    }
}
