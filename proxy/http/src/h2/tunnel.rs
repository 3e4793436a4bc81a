//! A stream as a byte stream, for the tunnels that CONNECT opens.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::Body;
use crate::{Incoming, Outgoing, PeerError};

/// A stream as [`AsyncRead`] and [`AsyncWrite`].
#[derive(Debug)]
pub struct Tunnel {
    body: Body,
    /// Counts the stream as open.
    _opened: Box<dyn Any>,
}

impl Tunnel {
    pub(super) fn new(body: Body, opened: Box<dyn Any>) -> Tunnel {
        Tunnel {
            body,
            _opened: opened,
        }
    }
}

fn io_error(broken: PeerError) -> io::Error {
    match broken {
        PeerError::Io(error) => error,
        other => io::Error::new(io::ErrorKind::ConnectionReset, other.to_string()),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if ready!(self.body.poll_data(cx)).map_err(io_error)? {
            let data = self.body.data();
            let count = data.len().min(buf.remaining());
            buf.put_slice(&data[..count]);
            self.body.consume(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.body.poll_ready(cx)).map_err(io_error)?;
        self.body.write(data);
        // As much as the peer takes now is sent; the rest is sent by the next call.
        if let Poll::Ready(Err(broken)) = self.body.poll_flush(cx) {
            return Poll::Ready(Err(io_error(broken)));
        }
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.body.poll_flush(cx).map_err(io_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.body.finish(None);
        self.body.poll_flush(cx).map_err(io_error)
    }
}
