//! The server half: receives requests from a client and sends the responses.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::conn::Conn;
use super::parse::parse_request;
use super::{Framing, InvalidHead, request_framing};
use crate::deadline::Deadline;
use crate::head::{FieldName, Head, Version};
use crate::{Outgoing, PeerError};

/// Outcome of waiting for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    /// A request.
    Request,
    /// The peer closed, the connection failed, or it was idle for too long.
    Closed,
}

/// A request that can't be served; the connection then takes no further one.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its head isn't acceptable.
    #[error(transparent)]
    Invalid(#[from] InvalidHead),
    /// Its head was not complete in this time.
    #[error("request head not complete after {0:?}")]
    HeadTimeout(Duration),
}

/// Time limits for a peer.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Idle time between requests.
    pub idle: Duration,
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// Without accepting any of the bytes that are sent to it.
    pub flush: Duration,
}

/// An HTTP/1 connection from a client.
#[derive(Debug)]
pub struct ServerHalf {
    conn: Conn,
    keep_alive: bool,
    version: Version,
    is_head: bool,
    length: Framing,
    /// Set once the drain has begun: each response then closes the connection.
    draining: Option<Arc<AtomicBool>>,
}

impl ServerHalf {
    /// A server half on `conn`.
    pub fn new(conn: Conn) -> ServerHalf {
        ServerHalf {
            conn,
            keep_alive: true,
            version: Version::Http11,
            is_head: false,
            length: Framing::Empty,
            draining: None,
        }
    }

    /// Makes each response the connection's last once `draining` is set.
    #[must_use]
    pub fn closing_when(mut self, draining: Arc<AtomicBool>) -> ServerHalf {
        self.draining = Some(draining);
        self
    }

    /// The connection, to receive and send bodies.
    pub fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// The connection, to inspect.
    pub fn conn_ref(&self) -> &Conn {
        &self.conn
    }

    /// The connection, once HTTP on it has ended.
    pub fn into_conn(self) -> Conn {
        self.conn
    }

    /// Makes this request the connection's last.
    pub fn close_after(&mut self) {
        self.keep_alive = false;
    }

    /// True for a HEAD request: its response has no body, regardless of the response's head.
    pub fn is_head(&self) -> bool {
        self.is_head
    }

    /// Framing of the request's body.
    pub fn body_framing(&self) -> Framing {
        self.length
    }

    /// Waits for a request until `idle_until`, and reads its head into `head`.
    ///
    /// # Errors
    /// [`ReadError`] when the head isn't acceptable, too large or too late.
    pub async fn read_request(
        &mut self,
        head: &mut Head,
        deadline: &mut Deadline,
        idle_until: Instant,
        head_timeout: Duration,
    ) -> Result<ReadOutcome, ReadError> {
        // The response to a malformed head is HTTP/1.1 and closes the connection.
        self.version = Version::Http11;
        self.is_head = false;
        if self.conn.unread().is_empty() {
            self.conn.release();
            let fill = poll_fn(|cx| self.conn.poll_fill(cx));
            match deadline.limit(idle_until, fill).await {
                Some(Ok(count)) if count > 0 => {}
                _ => return Ok(ReadOutcome::Closed),
            }
        }
        let keep_alive = std::mem::replace(&mut self.keep_alive, false);
        let mut late = None;
        loop {
            let taken = self.conn.take_head(head, parse_request);
            if taken? {
                break;
            }
            let fill = poll_fn(|cx| self.conn.poll_fill(cx));
            let late = *late.get_or_insert_with(|| Instant::now() + head_timeout);
            match deadline.limit(late, fill).await {
                Some(Ok(count)) if count > 0 => {}
                Some(_) => return Ok(ReadOutcome::Closed),
                None => return Err(ReadError::HeadTimeout(head_timeout)),
            }
        }
        self.accept(head, keep_alive)?;
        Ok(ReadOutcome::Request)
    }

    fn accept(&mut self, head: &mut Head, keep_alive: bool) -> Result<(), InvalidHead> {
        self.length = request_framing(head)?;
        self.conn.receive(self.length);
        self.version = head.version();
        self.is_head = head.method() == b"HEAD";
        let wants = match self.version {
            Version::Http11 => !head.connection_has("close"),
            Version::Http10 => head.connection_has("keep-alive"),
            Version::Http2 => true,
        };
        self.keep_alive = keep_alive && wants;
        Ok(())
    }

    /// Sends an informational response. HTTP/1.0 has none.
    pub fn send_informational(&mut self, head: &Head) {
        if self.version == Version::Http11 {
            self.conn.send(Framing::Empty, |out| {
                head.write_response(out);
                out.extend_from_slice(b"\r\n");
            });
        }
    }

    /// Starts a response; its body was framed as `length` by its sender. The framing towards this peer is decided here.
    pub fn respond(&mut self, head: &mut Head, length: Framing) {
        let length = self.frame(head, length);
        let draining = self.draining.as_ref();
        if draining.is_some_and(|draining| draining.load(Ordering::Relaxed)) {
            self.keep_alive = false;
        }
        match (self.keep_alive, self.version) {
            (false, _) => head.add("connection", b"close"),
            (true, Version::Http10) => head.add("connection", b"keep-alive"),
            (true, Version::Http11 | Version::Http2) => {}
        }
        self.conn.send(length, |out| {
            head.write_response(out);
            out.extend_from_slice(b"\r\n");
        });
    }

    /// Switches to the protocol that `request` names, with the response `head`.
    pub fn switch(&mut self, request: &Head, head: &mut Head) {
        self.keep_alive = false;
        head.add("connection", b"upgrade");
        head.add(
            "upgrade",
            request.get(FieldName::Upgrade).unwrap_or_default(),
        );
        self.conn.send(Framing::Empty, |out| {
            head.write_response(out);
            out.extend_from_slice(b"\r\n");
        });
        self.conn.switch();
    }

    fn frame(&mut self, head: &mut Head, length: Framing) -> Framing {
        match length {
            Framing::Empty if head.status() == 204 => {
                head.remove(FieldName::ContentLength);
                Framing::Empty
            }
            Framing::Chunked | Framing::UntilClose if self.version == Version::Http10 => {
                self.keep_alive = false;
                Framing::UntilClose
            }
            Framing::Chunked | Framing::UntilClose => {
                head.add("transfer-encoding", b"chunked");
                Framing::Chunked
            }
            Framing::Fixed(0) => {
                // HTTP/2 signals it by END_STREAM.
                if head.get(FieldName::ContentLength).is_none() {
                    head.add("content-length", b"0");
                }
                length
            }
            Framing::Empty | Framing::Fixed(_) => length,
        }
    }

    /// Sends the rest of the response; true when another request may follow on the connection.
    pub async fn finish_response(&mut self) -> bool {
        let flushed = poll_fn(|cx| self.conn.poll_flush(cx)).await;
        flushed.is_ok() && self.keep_alive
    }

    /// Closes the connection so that the peer still reads the response: our direction ends first, then input that was
    /// under way is discarded, within bounds. Closing with unread input would reset the connection and could destroy
    /// the response.
    pub async fn close(mut self) {
        const LINGER: Duration = Duration::from_secs(1);
        const READ_OVER: usize = 256 * 1024;
        let deadline = Instant::now() + LINGER;
        let _ = timeout_at(deadline, poll_fn(|cx| self.poll_close(cx))).await;
        let mut left = READ_OVER;
        while left > 0 {
            self.conn.discard();
            match timeout_at(deadline, poll_fn(|cx| self.conn.poll_fill(cx))).await {
                Ok(Ok(count)) if count > 0 => left = left.saturating_sub(count),
                _ => return,
            }
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
        ready!(self.conn.poll_flush(cx))?;
        Poll::Ready(ready!(self.conn.poll_shutdown(cx)).map_err(PeerError::Io))
    }
}
