//! A stream as bytes, for what CONNECT opens.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::{Receiving, Sending};
use crate::http::{Broken, Incoming, Outgoing};

/// A stream as bytes.
#[derive(Debug)]
pub struct Tunnel {
    receiving: Receiving,
    sending: Sending,
    /// Counts the stream as open.
    _opened: Box<dyn Any>,
}

impl Tunnel {
    pub(super) fn new(receiving: Receiving, sending: Sending, opened: Box<dyn Any>) -> Tunnel {
        Tunnel {
            receiving,
            sending,
            _opened: opened,
        }
    }
}

fn io_error(broken: Broken) -> io::Error {
    match broken {
        Broken::Io(error) => error,
        other => io::Error::new(io::ErrorKind::ConnectionReset, other.to_string()),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if ready!(self.receiving.poll_data(cx)).map_err(io_error)? {
            let data = self.receiving.data();
            let count = data.len().min(buf.remaining());
            buf.put_slice(&data[..count]);
            self.receiving.consume(count);
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
        ready!(self.sending.poll_ready(cx)).map_err(io_error)?;
        self.sending.write(data);
        // What the peer takes now is on its way; the rest goes with the next call.
        if let Poll::Ready(Err(broken)) = self.sending.poll_flush(cx) {
            return Poll::Ready(Err(io_error(broken)));
        }
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sending.poll_flush(cx).map_err(io_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sending.finish(None);
        self.sending.poll_flush(cx).map_err(io_error)
    }
}
