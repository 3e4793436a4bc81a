//! HTTP on the path: one [`head::Head`] for every version, and the two directions of an exchange as traits, so that
//! HTTP/1 connections and HTTP/2 streams are joined by the same code ([`peers`]), by static dispatch.

pub mod buffers;
pub mod clock;
pub mod deadline;
mod error;
mod field;
mod field_name;
pub mod h1;
pub mod h2;
pub mod head;
mod method;
pub mod path;
pub mod peers;
pub mod stream;
pub mod upgrade;

use std::task::{Context, Poll};

pub use error::PeerError;
use head::Head;

/// The receiving direction of a message body.
pub trait Incoming {
    /// Waits until [`Incoming::data`] holds something (`true`) or the body has ended (`false`).
    ///
    /// # Errors
    /// [`PeerError`] when the peer closed, or broke the framing.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, PeerError>>;

    /// The data that was received and isn't consumed yet.
    fn data(&self) -> &[u8];

    /// Consumes `count` bytes of [`Incoming::data`].
    fn consume(&mut self, count: usize);

    /// The trailer section, once the body has ended; `None` when there is none.
    fn trailers(&self) -> Option<&Head>;
}

/// The sending direction of a message body.
pub trait Outgoing {
    /// Waits until so little is buffered that more may be written.
    ///
    /// # Errors
    /// [`PeerError`] when the peer closed.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>>;

    /// Buffers `data`.
    fn write(&mut self, data: &[u8]);

    /// Number of bytes that are buffered.
    fn unsent(&self) -> usize;

    /// Ends the body.
    fn finish(&mut self, trailers: Option<&Head>);

    /// Sends everything that is buffered.
    ///
    /// # Errors
    /// [`PeerError`] when the peer closed.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>>;
}
