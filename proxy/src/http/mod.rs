//! HTTP on the path: one [`head::Head`] for every version, and the two directions of an exchange as traits, so that
//! the HTTP/1 halves of today and HTTP/2 streams beside them are joined by the same code, by static dispatch.

pub mod buffers;
pub mod h1;
pub mod head;
pub mod path;

use std::io;
use std::task::{Context, Poll};

use head::Head;

/// The receiving direction of a message body.
pub trait Incoming {
    /// Waits until [`Incoming::data`] holds something (`true`) or the body has ended (`false`).
    ///
    /// # Errors
    /// [`Broken`] when the peer left, or broke the framing.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>>;

    /// The data that is here and not consumed yet.
    fn data(&self) -> &[u8];

    /// Consumes `count` bytes of [`Incoming::data`].
    fn consume(&mut self, count: usize);

    /// The trailer section, once the body has ended; empty when there is none.
    fn trailers(&self) -> Option<&Head>;
}

/// The sending direction of a message body.
pub trait Outgoing {
    /// Waits until little enough is buffered that more may be written.
    ///
    /// # Errors
    /// [`Broken`] when the peer left.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;

    /// Buffers `data`.
    fn write(&mut self, data: &[u8]);

    /// Ends the body.
    fn finish(&mut self, trailers: Option<&Head>);

    /// Sends everything that is buffered.
    ///
    /// # Errors
    /// [`Broken`] when the peer left.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;
}

/// How a peer broke a connection.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It closed in the middle of a message.
    #[error("connection closed")]
    Closed,
    /// The transport failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It sent what isn't HTTP, or not in the strict form that Leno accepts.
    #[error("{0}")]
    Syntax(h1::Invalid),
}
