//! HTTP on the path: one [`head::Head`] for every version, and the two directions of an exchange as traits, so that
//! HTTP/1 connections and HTTP/2 streams are joined by the same code ([`peers`]), by static dispatch.

pub mod buffers;
pub mod clock;
pub mod deadline;
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

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use head::Head;

/// The receiving direction of a message body.
pub trait Incoming {
    /// Waits until [`Incoming::data`] holds something (`true`) or the body has ended (`false`).
    ///
    /// # Errors
    /// [`Broken`] when the peer closed, or broke the framing.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>>;

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
    /// [`Broken`] when the peer closed.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;

    /// Buffers `data`.
    fn write(&mut self, data: &[u8]);

    /// Number of bytes that are buffered.
    fn unsent(&self) -> usize;

    /// Ends the body.
    fn finish(&mut self, trailers: Option<&Head>);

    /// Sends everything that is buffered.
    ///
    /// # Errors
    /// [`Broken`] when the peer closed.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;
}

/// Failure of a connection or a stream, by its peer.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It closed before the message was complete.
    #[error("connection closed")]
    Closed,
    /// The transport failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It reset the stream (RFC 9113, section 5.4.2).
    #[error("stream reset: {0}")]
    Reset(h2::Reason),
    /// It didn't process the request, as it reports (RFC 9113, section 8.7) or because the request was never sent.
    #[error("not processed: {0}")]
    Unprocessed(String),
    /// It accepted no byte for this long.
    #[error("nothing was taken for {0:?}")]
    Stalled(Duration),
    /// It sent bytes that aren't HTTP, or not in the strict form that Leno accepts.
    #[error("{0}")]
    Syntax(h1::Invalid),
}
